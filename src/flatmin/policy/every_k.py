"""The policy of LookSAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.engine import check
from flatmin.policy.base import Policy

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe


@dataclass(frozen=True)
class EveryK(Policy):
    """Every k-th step is perturbed.

        step t, from 0, is perturbed  iff  t mod k = 0

    Args:
        k: the period, at least 1; default 5. 1 perturbs every step. With `Reuse` between, 5 to 10
            are usual.

    Cost: a perturbed step every k-th time; a rate of 1/k.

    Raises:
        ValueError: `k` is not a positive integer.

    Reference: Liu et al., Towards Efficient and Scalable SAM, CVPR 2022, arXiv:2203.02714,
    Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SharpnessAware(base, policy=flatmin.policy.EveryK(k=4))
        >>> optimizer.gradients_per_step()
        1.25
    """

    k: int = 5

    def __post_init__(self) -> None:
        check.positive_int("k", self.k)

    @property
    def rate(self) -> float:
        return 1.0 / self.k

    def perturbs(self, at: Probe) -> bool:
        return at.step % self.k == 0

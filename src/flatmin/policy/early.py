"""The policy that perturbs the beginning of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.engine import check
from flatmin.policy.base import Policy
from flatmin.policy.late import boundary

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe


@dataclass(frozen=True)
class Early(Policy):
    """The first part of the training is perturbed; then the base optimizer is alone.

        step t, from 0, is perturbed  iff  t < end T

    It is what `Late` is compared with: its paper finds that a minimum that was flat early does not
    stay so.

    Args:
        total_steps: T, the steps of the whole training (epochs times batches), at least 1. Later
            steps are not perturbed.
        end: share of the training that is perturbed, in [0, 1]; default 0.125. 0 is never, 1 is
            `Always()`.

    Cost: a perturbed step in the first part; a rate of end.

    Raises:
        ValueError: `total_steps` is not a positive integer, or `end` is out of range.

    Reference: Zhou et al., Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in
    Training, 2024, arXiv:2410.10373.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> policy = flatmin.policy.Early(total_steps=1000, end=0.25)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, policy=policy)
        >>> optimizer.gradients_per_step()
        1.25
    """

    total_steps: int
    end: float = 0.125

    def __post_init__(self) -> None:
        check.positive_int("total_steps", self.total_steps)
        check.in_range("end", self.end, 0.0, 1.0)

    @property
    def rate(self) -> float:
        return boundary(self.end, self.total_steps) / self.total_steps

    def perturbs(self, at: Probe) -> bool:
        # Always with end = 1, also where the training goes on beyond T.
        return self.end == 1.0 or at.step < boundary(self.end, self.total_steps)

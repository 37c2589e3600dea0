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
    """Steps 0, k, 2k, … are perturbed.

    Fields:
        k: the period, at least 1; 1 perturbs every step.

    Reference: Liu et al., Towards Efficient and Scalable SAM, CVPR 2022, arXiv:2203.02714.
    """

    k: int = 5

    def __post_init__(self) -> None:
        check.positive_int("k", self.k)

    @property
    def rate(self) -> float:
        return 1.0 / self.k

    def perturbs(self, at: Probe) -> bool:
        return at.step % self.k == 0

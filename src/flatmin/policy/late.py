"""The policy that perturbs the end of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.engine import check
from flatmin.policy.base import Policy

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe


@dataclass(frozen=True)
class Late(Policy):
    """The last part of the training is perturbed; until then the base optimizer is alone.

        step t, from 0, is perturbed  iff  t >= start T

    Args:
        total_steps: T, the steps of the whole training (epochs times batches), at least 1. Later
            steps are perturbed.
        start: share of the training that comes first, in [0, 1]; default 0.875, the last 25 of 200
            epochs. 0 is `Always()`, 1 never.

    Cost: a perturbed step in the last part; a rate of 1 - start.

    Raises:
        ValueError: `total_steps` is not a positive integer, or `start` is out of range.

    Reference: Zhou et al., Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in
    Training, 2024, arXiv:2410.10373.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> policy = flatmin.policy.Late(total_steps=1000, start=0.75)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, policy=policy)
        >>> optimizer.gradients_per_step()
        1.25
    """

    total_steps: int
    start: float = 0.875

    def __post_init__(self) -> None:
        check.positive_int("total_steps", self.total_steps)
        check.in_range("start", self.start, 0.0, 1.0)

    @property
    def rate(self) -> float:
        return 1.0 - boundary(self.start, self.total_steps) / self.total_steps

    def perturbs(self, at: Probe) -> bool:
        # Never with start = 1, also where the training goes on beyond T.
        return self.start < 1.0 and at.step >= boundary(self.start, self.total_steps)


def boundary(share: float, total_steps: int) -> int:
    """The first step t with t >= share T: 7 for 0.7 of 10, whose product in floats is above 7."""
    return math.ceil(round(share * total_steps, 6))

"""The policy of SS-SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.engine import check, random
from flatmin.policy.base import Policy

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe


@dataclass(frozen=True)
class Bernoulli(Policy):
    """A coin decides.

    Fields:
        p: probability of a perturbed step, in [0, 1]; default 0.5.
        seed: seed of the coin. The step count decides the rest, so every rank throws the same
            coin, and a resumed run the one that the uninterrupted run would have thrown.

    Reference: Zhao et al., SS-SAM: Stochastic Scheduled SAM, 2022, arXiv:2203.09962.
    """

    p: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check.in_range("p", self.p, 0.0, 1.0)
        check.seed(self.seed)

    @property
    def rate(self) -> float:
        return self.p

    def perturbs(self, at: Probe) -> bool:
        return random.uniform(self.seed, at.step) < self.p

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

        step t is perturbed  iff  u(seed, t) < p,   u uniform in [0, 1)

    Args:
        p: probability of a perturbed step, in [0, 1]; default 0.5. 1 is `Always()`, 0 never.
        seed: of the coin, any whole number; default 0. The step count decides the rest, so every
            rank throws the same coin, and a resumed run the one that the uninterrupted run would
            have thrown.

    Cost: a perturbed step with probability p; a rate of p.

    Raises:
        ValueError: `p` is out of range, or `seed` is not a whole number.

    Reference: Zhao et al., SS-SAM: Stochastic Scheduled SAM, 2022, arXiv:2203.09962.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SharpnessAware(base, policy=flatmin.policy.Bernoulli(p=0.25))
        >>> optimizer.gradients_per_step()
        1.25
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

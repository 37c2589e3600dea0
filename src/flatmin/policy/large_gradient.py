"""The adaptive policy of AE-SAM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from flatmin.engine import check
from flatmin.policy.base import Policy

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe


@dataclass(frozen=True)
class LargeGradient(Policy):
    """Look around where the landscape is sharp: where the squared gradient norm is unusually large.

        s = ‖g‖²;   mu <- delta mu + (1 - delta) s;   var <- delta var + (1 - delta) (s - mu)²
        c = (t/T) lambda1 + (1 - t/T) lambda2;        perturbed iff s >= mu + c sqrt(var)

    with the new mu; mu starts at 0 and var at e^-10.

    Args:
        total_steps: T, the number of steps of the whole training, at least 1. Later steps keep
            lambda1, of which the paper says nothing.
        lambda1: threshold at the end, in standard deviations, any number or inf; default -1, that
            of AE-SAM (AE-LookSAM takes 0). Lower perturbs more often: -inf always, inf never.
        lambda2: threshold at the start, likewise; default 1 (AE-LookSAM takes 2).
        delta: memory of the running mean and variance, in [0, 1); default 0.9, the paper's.

    Cost: a perturbed step about every second time with the defaults; a norm of the gradient, and a
    host sync on accelerators, at every step.

    Raises:
        ValueError: a hyperparameter is out of range.

    Reference: Jiang et al., An Adaptive Policy to Employ SAM, ICLR 2023, arXiv:2304.14647, eqs. 4-5
    and Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> policy = flatmin.policy.LargeGradient(total_steps=1000)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, policy=policy)
        >>> policy.threshold(0), policy.threshold(500), policy.threshold(1000)
        (1.0, 0.0, -1.0)
    """

    total_steps: int
    lambda1: float = -1.0
    lambda2: float = 1.0
    delta: float = 0.9

    def __post_init__(self) -> None:
        check.positive_int("total_steps", self.total_steps)
        check.in_range("delta", self.delta, 0.0, 1.0, open_high=True)
        if math.isnan(self.lambda1) or math.isnan(self.lambda2):
            raise ValueError("lambda1 and lambda2 must be numbers, got nan")

    @property
    def memory(self) -> Mapping[str, float]:
        return MappingProxyType({"gradient_mean": 0.0, "gradient_variance": math.exp(-10)})

    @property
    def needs_gradient(self) -> bool:
        return True

    @property
    def rate(self) -> float:
        return math.nan

    def perturbs(self, at: Probe) -> bool:
        norm = float(at.norm(at.grad))  # host sync: the branch below needs the number
        s = at.agreed(norm * norm)
        before = at.number("gradient_mean"), at.number("gradient_variance")
        mean, variance, least = self.moved(s, at.step, *before)
        at.note("gradient_mean", mean)
        at.note("gradient_variance", variance)
        return s >= least or least == -math.inf  # whatever s is

    def moved(self, s: float, t: int, mean: float, variance: float) -> tuple[float, float, float]:
        """The running mean and variance with a step's squared norm, and what it has to reach.

        Args:
            s: the squared norm.
            t: number of the step, from 0.
            mean: the running mean of before.
            variance: the running variance of before.
        """
        mean = self.delta * mean + (1 - self.delta) * s
        variance = self.delta * variance + (1 - self.delta) * (s - mean) ** 2
        c = self.threshold(t)
        if math.isinf(c):  # apart, since inf * 0 is no threshold
            return mean, variance, c
        return mean, variance, mean + c * math.sqrt(variance)

    def threshold(self, t: int) -> float:
        """The `c` of a step: a line from lambda2 to lambda1.

        Args:
            t: number of the step, from 0.
        """
        if self.lambda1 == self.lambda2:
            return self.lambda1
        done = min(t / self.total_steps, 1.0)
        if done in (0.0, 1.0):
            return self.lambda1 if done else self.lambda2
        return done * self.lambda1 + (1 - done) * self.lambda2

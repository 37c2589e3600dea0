"""The adaptive policy of AE-SAM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

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

    Fields:
        total_steps: T, the number of steps of the whole training, at least 1. Later steps keep
            lambda1.
        lambda1: threshold at the end, in standard deviations; -inf always perturbs, +inf never.
        lambda2: threshold at the start. The defaults, -1 and 1, are those of AE-SAM; AE-LookSAM
            takes 0 and 2.
        delta: memory of the running mean and variance, in [0, 1).

    Cost: a norm of the gradient, and a host sync on accelerators, at every step.
    Reference: Jiang et al., An Adaptive Policy to Employ SAM, ICLR 2023, arXiv:2304.14647,
        eqs. 4-5 and Algorithm 1.
    """

    total_steps: int
    lambda1: float = -1.0
    lambda2: float = 1.0
    delta: float = 0.9

    memory: ClassVar[Mapping[str, float]] = MappingProxyType(
        {"gradient_mean": 0.0, "gradient_variance": math.exp(-10)}
    )

    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check.positive_int("total_steps", self.total_steps)
        check.in_range("delta", self.delta, 0.0, 1.0, open_high=True)
        if math.isnan(self.lambda1) or math.isnan(self.lambda2):
            raise ValueError("lambda1 and lambda2 must be numbers, got nan")

    @property
    def rate(self) -> float:
        return math.nan

    def perturbs(self, at: Probe) -> bool:
        norm = float(at.norm(at.grad))  # host sync: the branch below needs the number
        s = at.agreed(norm * norm)
        mean = self.delta * at.number("gradient_mean") + (1 - self.delta) * s
        variance = self.delta * at.number("gradient_variance") + (1 - self.delta) * (s - mean) ** 2
        at.note("gradient_mean", mean)
        at.note("gradient_variance", variance)
        c = self.threshold(at.step)
        if math.isinf(c):  # apart, since inf * 0 is no threshold
            return c < 0
        return s >= mean + c * math.sqrt(variance)

    def threshold(self, t: int) -> float:
        """`c` at step `t`, from 0: a line from lambda2 to lambda1."""
        if self.lambda1 == self.lambda2:
            return self.lambda1
        done = min(t / self.total_steps, 1.0)
        if done in (0.0, 1.0):
            return self.lambda1 if done else self.lambda2
        return done * self.lambda1 + (1 - done) * self.lambda2

"""Agnostic-SAM's direction from the steps before."""

# pyright: reportIncompatibleMethodOverride=false
# It asks for more than a `Viewpoint` has: a memory that all ranks share.
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flatmin.direction.opposed import Opposed
from flatmin.direction.previous import GRADIENT
from flatmin.engine.vec import ZERO

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe
    from flatmin.engine.vec import Vector

MEAN = "previous_mean"


@dataclass(frozen=True)
class PreviousAgnostic(Opposed):
    """Up the perturbed gradient of the step before, and down the mean of those before it.

        eps = rho1 Γ(h) - rho2 Γ(v),   h = g_s of the last perturbed step;   0 before the first
        v <- beta v + (1 - beta) h,    from 0, and only then  h <- g_s

    `Agnostic` climbs the batch at hand and steps down others. Here the last batch stands for the
    one at hand, and those before it for the others, so that no gradient is spent on either.

    Args:
        rho1: step up the last gradient, at least 0; default None: `ratio` times the radius of each
            parameter group, which it follows. Given, it is absolute.
        rho2: step down the mean, at least 0; default None: the radius of each parameter group,
            likewise. The weights move by up to `rho1 + rho2`: where `Previous` bears a radius, take
            half of it.
        beta: memory of `v`, in [0, 1); default 0.9; 0 keeps the gradient before the last alone.
        ratio: `rho1 / rho2` where these are left out, at least 0; default 2, that of `Agnostic`.

    Cost: one pass a perturbed step, at `w + eps`, of which the step returns the loss; three copies
    of the weights.

    Raises:
        ValueError: a hyperparameter is out of range.

    Under a policy that skips steps both move on perturbed steps alone.

    Reference: no paper has it; it takes the closing question of Nguyen et al., Agnostic
    Sharpness-Aware Minimization, arXiv:2406.07107 (reuse the gradients of earlier steps), to its
    end. Of the forms that we tried this was the best: see docs/choosing.md.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> direction = flatmin.direction.PreviousAgnostic()
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, direction=direction)
        >>> optimizer.gradients_per_step()
        1.0
    """

    needs_gradient: ClassVar[bool] = False

    @property
    def buffers(self) -> tuple[str, ...]:
        return (MEAN, GRADIENT)

    def displacement(self, at: Probe) -> Vector:
        return self.between(at, at.recall(GRADIENT) or ZERO, at.recall(MEAN) or ZERO)

    def learn(self, at: Probe, seen: Vector) -> None:
        h, before = at.recall(GRADIENT), at.recall(MEAN) or ZERO
        if h is not None:  # first, since both change in place
            at.keep(MEAN, self.beta * before + (1 - self.beta) * h, alike=True)
        at.keep(GRADIENT, seen, alike=True)

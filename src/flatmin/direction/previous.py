"""The direction of the step before."""

# pyright: reportIncompatibleMethodOverride=false
# It asks for more than a `Viewpoint` has: a memory that all ranks share.
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flatmin.direction.base import Direction
from flatmin.engine.vec import ZERO

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe
    from flatmin.engine.vec import Vector

GRADIENT = "previous_gradient"


@dataclass(frozen=True)
class Previous(Direction):
    """Up the perturbed gradient of the step before, so that no gradient is spent on it.

        eps = rho Γ(g_s of the last perturbed step);   0 before the first

    Cost: one pass a perturbed step, at `w + eps`, of which the step returns the loss; two copies of
    the weights.

    Under a policy that skips steps the gradient is that of the last perturbed one.

    Reference: no paper has it; it takes the closing question of Nguyen et al., Agnostic
    Sharpness-Aware Minimization, arXiv:2406.07107 (reuse the gradients of earlier steps), to its
    end.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> direction = flatmin.direction.Previous()
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, direction=direction)
        >>> optimizer.gradients_per_step()
        1.0
    """

    needs_gradient: ClassVar[bool] = False

    @property
    def buffers(self) -> tuple[str, ...]:
        return (GRADIENT,)

    def displacement(self, at: Probe) -> Vector:
        return at.climb(at.recall(GRADIENT) or ZERO)

    def learn(self, at: Probe, seen: Vector) -> None:
        at.keep(GRADIENT, seen, alike=True)

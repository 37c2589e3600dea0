"""The direction of SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.direction.base import Direction

if TYPE_CHECKING:
    from flatmin.engine.vec import Vector
    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class Ascent(Direction):
    """Straight up the gradient, as SAM does.

        eps = rho Γ(g)

    Cost: two passes a perturbed step; one copy of the weights.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021, arXiv:2010.01412, eq. 2.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SharpnessAware(base, direction=flatmin.direction.Ascent())
    """

    def displacement(self, at: Viewpoint) -> Vector:
        return at.climb(at.grad)

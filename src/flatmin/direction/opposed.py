"""What the directions of Agnostic-SAM share: up one gradient, and down another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.direction.base import Direction
from flatmin.engine import check

if TYPE_CHECKING:
    from flatmin.engine.vec import Vector
    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class Opposed(Direction):
    """Two steps with radii of their own, which follow those of the groups where they are left out.

    eps = rho1 Γ(up) - rho2 Γ(down)
    """

    rho1: float | None = None
    rho2: float | None = None
    beta: float = 0.9
    ratio: float = 2.0

    def __post_init__(self) -> None:
        check.in_range("beta", self.beta, 0.0, 1.0, open_high=True)
        check.at_least_zero("ratio", self.ratio)
        for name in ("rho1", "rho2"):
            if getattr(self, name) is not None:
                check.at_least_zero(name, getattr(self, name))

    def largest_radius(self, rho: float) -> float:
        rho1 = self.ratio * rho if self.rho1 is None else self.rho1
        return max(rho1, rho if self.rho2 is None else self.rho2)

    def between(self, at: Viewpoint, up: Vector, down: Vector) -> Vector:
        """`eps`."""
        ratio = self.ratio if self.rho1 is None else 1.0
        return ratio * at.climb(up, self.rho1) - at.climb(down, self.rho2)

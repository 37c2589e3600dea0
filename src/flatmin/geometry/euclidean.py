"""The plain metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.geometry.base import Geometry

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe


@dataclass(frozen=True)
class Euclidean(Geometry):
    """Every direction counts alike: `T = 1`, `Γ(d) = d / ‖d‖`.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021, arXiv:2010.01412.
    """

    @property
    def trivial(self) -> bool:
        return True

    def metric(self, at: Probe, j: int) -> float:
        return 1.0

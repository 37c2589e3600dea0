"""The plain metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.geometry.base import Geometry

if TYPE_CHECKING:
    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class Euclidean(Geometry):
    """Every direction counts alike, as in SAM.

        T = 1;   Γ(d) = d / ‖d‖

    Cost: no pass, no copy.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021, arXiv:2010.01412, eq. 2.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SharpnessAware(base, geometry=flatmin.geometry.Euclidean())
    """

    @property
    def trivial(self) -> bool:
        return True

    def metric(self, at: Viewpoint, j: int) -> float:
        return 1.0

"""The selection of SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.selection.base import Selection

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe
    from flatmin.engine.vec import Vector


@dataclass(frozen=True)
class WholeBatch(Selection):
    """Every sample, as in SAM.

    Cost: the perturbed pass costs a whole gradient.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021, arXiv:2010.01412, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SharpnessAware(base, selection=flatmin.selection.WholeBatch())
    """

    def choose(self, at: Probe, eps: Vector) -> None:
        return None

"""The descent of SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.descent.base import Descent

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe
    from flatmin.engine.vec import Vector


@dataclass(frozen=True)
class Plain(Descent):
    """The perturbed gradient as it is.

        g_s = ∇L(w + eps)

    Cost: no pass, no copy; the first gradient is let go before the second pass.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021, arXiv:2010.01412, eq. 3.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SharpnessAware(base, descent=flatmin.descent.Plain())
    """

    @property
    def looks_back(self) -> bool:
        return False

    def after(self, at: Probe, seen: Vector, eps: Vector) -> list[Vector]:
        return [seen]

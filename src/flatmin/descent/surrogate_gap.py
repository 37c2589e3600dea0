"""The descent of GSAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.descent.base import Descent
from flatmin.engine import check
from flatmin.engine.vec import TINY

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe
    from flatmin.engine.vec import Vector


@dataclass(frozen=True)
class SurrogateGap(Descent):
    """Also close the gap between the perturbed loss and the loss, without disturbing the former.

        w <- base step with g_s - alpha (g - (gᵀg_s / ‖g_s‖²) g_s)

    Args:
        alpha: weight of the gap, at least 0; default 0.1; 0 gives SAM. Since it climbs `L` across
            `g_s`, a large one works against the training.

    Cost: no pass, no copy; the first gradient is kept through the second pass.

    Raises:
        ValueError: `alpha` is negative.

    Reference: Zhuang et al., Surrogate Gap Minimization Improves SAM, ICLR 2022, arXiv:2203.08065,
    eq. 7.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> descent = flatmin.descent.SurrogateGap(alpha=0.1)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, descent=descent)
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        check.at_least_zero("alpha", self.alpha)

    def after(self, at: Probe, seen: Vector, eps: Vector) -> list[Vector]:
        if self.alpha == 0.0:
            return [seen]
        along = at.dot(at.grad, seen) / (at.norm(seen) + TINY) ** 2
        return [seen - self.alpha * (at.grad - along * seen)]

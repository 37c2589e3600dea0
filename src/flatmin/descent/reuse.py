"""The descent of LookSAM and AE-LookSAM."""

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
class Reuse(Descent):
    """Remember what a look showed across `g`, and add it on the steps that do not look.

        perturbed:  g_s,  and keep  h = g_s - (gᵀg_s / ‖g‖²) g
        other:      g + alpha (‖g‖ / ‖h‖) h;   just g before the first perturbed step

    Args:
        alpha: weight of the remembered part, at least 0; default 0.7. 0 leaves the other steps to
            the base. A network that overfits early bears little: try 0.1 and 0.3 too.

    Cost: no pass; two copies of the weights, and the first gradient through the second pass.

    Raises:
        ValueError: `alpha` is negative.

    Differs from much code for it, which projects tensor by tensor; norms here are over everything,
    as in the paper.

    Reference: Liu et al., Towards Efficient and Scalable SAM, CVPR 2022, arXiv:2203.02714,
    Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> descent, policy = flatmin.descent.Reuse(alpha=0.3), flatmin.policy.EveryK(k=5)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, descent=descent, policy=policy)
    """

    alpha: float = 0.7

    def __post_init__(self) -> None:
        check.at_least_zero("alpha", self.alpha)

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("reuse_across",)

    def after(self, at: Probe, seen: Vector, eps: Vector) -> list[Vector]:
        along = at.dot(at.grad, seen) / (at.norm(at.grad) + TINY) ** 2
        at.keep("reuse_across", seen - along * at.grad)
        return [seen]

    def without(self, at: Probe) -> list[Vector]:
        across = at.recall("reuse_across")
        if across is None:
            return [at.grad]
        weight = self.alpha * at.norm(at.grad) / (at.norm(across) + TINY)
        return [at.grad + weight * across]

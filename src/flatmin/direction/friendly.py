"""The direction of Friendly SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flatmin.direction.base import Direction
from flatmin.engine import check
from flatmin.engine.vec import ZERO

if TYPE_CHECKING:
    from flatmin.engine.vec import Vector
    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class Friendly(Direction):
    """Climb the noise of this batch rather than the full gradient.

        m <- lmbda m + (1 - lmbda) g    then    eps = rho Γ(g - sigma m)

    Args:
        sigma: share of the mean gradient to remove, any finite number; default 1, the paper's; 0
            gives SAM.
        lmbda: memory of the mean, in [0, 1); default 0.9. The paper takes 0.6 for smaller networks
            and 0.95 for ImageNet.
        variant: "paper" or "released"; default "paper". "paper" updates `m`, which starts at 0,
            before it is used (Algorithm 1); "released" is the authors' code, which subtracts the
            mean as it was before this step, and on the first step nothing, starting `m` at its
            gradient. With sigma = 1 the two differ in that start alone, since
            `g - m_t = lmbda (g - m_(t-1))`.

    Cost: two passes a perturbed step; two copies of the weights.

    Raises:
        ValueError: a hyperparameter is out of range.

    Under a policy that skips steps `m` moves on perturbed steps alone; no paper says.

    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350, eqs.
    10-14 and Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> direction = flatmin.direction.Friendly(lmbda=0.6)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, direction=direction)
    """

    sigma: float = 1.0
    lmbda: float = 0.9
    variant: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        check.finite("sigma", self.sigma)
        check.in_range("lmbda", self.lmbda, 0.0, 1.0, open_high=True)
        check.one_of("variant", self.variant, ("paper", "released"))

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("friendly_mean",)

    def displacement(self, at: Viewpoint) -> Vector:
        before = at.recall("friendly_mean")
        if self.variant == "released" and before is None:
            at.keep("friendly_mean", at.grad)
            return at.climb(at.grad)
        before = before or ZERO
        mean = self.lmbda * before + (1 - self.lmbda) * at.grad
        at.keep("friendly_mean", mean)
        removed = mean if self.variant == "paper" else before
        return at.climb(at.grad - self.sigma * removed)

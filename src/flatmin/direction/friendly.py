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
        on_skipped: whether `m` also moves on steps that a policy skips, where its gradient costs
            nothing; default False: on perturbed steps alone. The paper has no policy; its eq. 10
            moves `m` at every step.

    Cost: two passes a perturbed step; two copies of the weights.

    Raises:
        ValueError: a hyperparameter is out of range.

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
    on_skipped: bool = False

    def __post_init__(self) -> None:
        check.finite("sigma", self.sigma)
        check.in_range("lmbda", self.lmbda, 0.0, 1.0, open_high=True)
        check.one_of("variant", self.variant, ("paper", "released"))

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("friendly_mean",)

    @property
    def moving(self) -> tuple[str, ...]:
        return self.buffers if self.on_skipped else ()

    def displacement(self, at: Viewpoint) -> Vector:
        before = at.recall("friendly_mean")
        mean = self._remember(at, before)
        removed = mean if self.variant == "paper" else before or ZERO
        return at.climb(at.grad - self.sigma * removed)

    def skipped(self, at: Viewpoint) -> None:
        if self.on_skipped:
            self._remember(at, at.recall("friendly_mean"))

    def _remember(self, at: Viewpoint, before: Vector | None) -> Vector:
        """`m <- lmbda m + (1 - lmbda) g`, from 0 or, in the released code, from the first `g`."""
        mean = self.lmbda * (before or ZERO) + (1 - self.lmbda) * at.grad
        if self.variant == "released" and before is None:
            mean = at.grad
        at.keep("friendly_mean", mean)
        return mean

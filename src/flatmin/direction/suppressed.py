"""The direction of VASSO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.direction.base import Direction
from flatmin.engine import check

if TYPE_CHECKING:
    from flatmin.engine.vec import Vector
    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class Suppressed(Direction):
    """Climb a running mean of the gradients, whose variance is smaller than one batch's.

        d <- (1 - theta) d + theta g    then    eps = rho Γ(d)

    `d` starts at the first gradient; that of a parameter that appears later, at 0.

    Args:
        theta: weight of the new gradient, in (0, 1]; default 0.9; 1 gives SAM. A smaller one
            remembers longer, about `1 / theta` steps.
        on_skipped: whether `d` also moves on steps that a policy skips, where its gradient costs
            nothing; default False: on perturbed steps alone. The paper has no policy.

    Cost: two passes a perturbed step; two copies of the weights.

    Raises:
        ValueError: `theta` is out of range.

    Reference: Li & Giannakis, Enhancing Sharpness-Aware Optimization Through Variance Suppression,
    NeurIPS 2023, arXiv:2309.15639.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> direction = flatmin.direction.Suppressed(theta=0.4)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, direction=direction)
    """

    theta: float = 0.9
    on_skipped: bool = False

    def __post_init__(self) -> None:
        check.in_range("theta", self.theta, 0.0, 1.0, open_low=True)

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("suppressed_mean",)

    @property
    def moving(self) -> tuple[str, ...]:
        return self.buffers if self.on_skipped else ()

    def displacement(self, at: Viewpoint) -> Vector:
        return at.climb(self._remember(at))

    def skipped(self, at: Viewpoint) -> None:
        if self.on_skipped:
            self._remember(at)

    def _remember(self, at: Viewpoint) -> Vector:
        """`d <- (1 - theta) d + theta g`, from the first `g`."""
        before = at.recall("suppressed_mean") or at.grad
        mean = (1 - self.theta) * before + self.theta * at.grad
        at.keep("suppressed_mean", mean)
        return mean

"""The descent of WSAM and of mixed random weight perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.descent.base import Descent
from flatmin.engine import check

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe
    from flatmin.engine.vec import Vector


@dataclass(frozen=True)
class Mixed(Descent):
    """A mean of the gradient and the perturbed gradient.

        w <- base step with (1 - share) g + share g_s

    Args:
        share: weight of the perturbed gradient, at least 0; default 0.5. 0 is the base's own step
            at twice its price, 1 is `Plain()`; above 1 the perturbed gradient is overstated and `g`
            taken off, as WSAM does.

    Cost: no pass under a direction that needs the gradient at `w`, one under others; no copy; the
    first gradient is kept through the second pass.

    Raises:
        ValueError: `share` is negative or not finite.

    Reference: Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a
    Regularization Term, KDD 2023, arXiv:2305.15817, with share = gamma / (1 - gamma); Li et al.,
    arXiv:2404.00357, for random perturbations.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> descent = flatmin.descent.Mixed(share=0.5)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, descent=descent)
        >>> optimizer.gradients_per_step()
        2.0
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        check.at_least_zero("share", self.share)

    @property
    def looks_back(self) -> bool:
        return self.share != 1.0

    @property
    def asks_for_gradient(self) -> bool:
        return self.share != 1.0

    def after(self, at: Probe, seen: Vector, eps: Vector) -> list[Vector]:
        if self.share == 1.0:
            return [seen]
        return [(1 - self.share) * at.grad + self.share * seen]

"""The metric of Fisher SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.engine import check
from flatmin.geometry.base import Geometry

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class Fisher(Geometry):
    """Distance in the space of predictions, by the diagonal empirical Fisher information.

        T = (1 + eta g²)^(-1/2),   g the primary gradient at the unperturbed weights

    Args:
        eta: weight of the Fisher information against the identity, at least 0; default 1. 0 is the
            Euclidean metric. What matters is `eta g²`: where gradients are tiny, only a large one
            is felt.

    Since `T` is at most 1, weights move no farther than in the Euclidean metric: start at the same
    radius, or twice that.

    Cost: no pass, no copy.

    Raises:
        ValueError: `eta` is negative.

    Reference: Kim et al., Fisher SAM, ICML 2022, arXiv:2206.04920, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> geometry = flatmin.geometry.Fisher(eta=1.0)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.1, geometry=geometry)
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check.at_least_zero("eta", self.eta)

    @property
    def needs_gradient(self) -> bool:
        return True

    def metric(self, at: Viewpoint, j: int) -> Tensor:
        return at.grad.block(j).square().mul_(self.eta).add_(1.0).rsqrt_()

"""The metric of ASAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.engine import check
from flatmin.geometry.base import Geometry

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class Adaptive(Geometry):
    """Large weights move far, small ones little.

        T = |w| + eta;   Γ(d) = T² d / ‖T d‖

    The step then does not change when two layers are rescaled against each other without changing
    the function (exactly so for `eta = 0`). A radius is now relative to the weights: start at about
    ten times the Euclidean one.

    Args:
        eta: floor of the scale, at least 0; default 0.01. It lets weights near 0 move.

    Cost: no pass, no copy.

    Raises:
        ValueError: `eta` is negative.

    Differs from the authors' code, which leaves biases in the Euclidean metric; here every
    parameter has the same rule, as in the paper's equations.

    Reference: Kwon et al., ASAM, ICML 2021, arXiv:2102.11600, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> geometry = flatmin.geometry.Adaptive(eta=0.01)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.5, geometry=geometry)
    """

    eta: float = 0.01

    def __post_init__(self) -> None:
        check.at_least_zero("eta", self.eta)

    def metric(self, at: Viewpoint, j: int) -> Tensor:
        return at.weights.block(j).abs().add_(self.eta)

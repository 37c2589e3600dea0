"""The stochastic weight perturbation of ESAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.engine import check, random
from flatmin.geometry.base import Geometry

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class RandomSubset(Geometry):
    """Perturb a random share of the parameter tensors, and these the more for it.

        T = 1 on the tensors kept, 0 on the rest;   the climb is divided by beta

    Args:
        beta: probability with which a tensor is kept, in (0, 1]; default 0.6. 1 keeps all. The way
            of those kept is `1 / beta` as long, so that the radius stays that of SAM.
        seed: of the draws, any whole number; default 0. Step and position of the tensor decide the
            rest, so a resumed run draws what the uninterrupted one would have.

    Cost: no pass, no copy.

    Raises:
        ValueError: `beta` is out of range, or `seed` is not a whole number.

    Reference: Du et al., Efficient Sharpness-aware Minimization, ICLR 2022, arXiv:2110.03141, §3.1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> geometry = flatmin.geometry.RandomSubset(beta=0.6)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, geometry=geometry)
    """

    beta: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        check.in_range("beta", self.beta, 0.0, 1.0, open_low=True)
        check.seed(self.seed)

    @property
    def gain(self) -> float:
        return 1.0 / self.beta

    def metric(self, at: Viewpoint, j: int) -> Tensor:
        return at.each(j, lambda i: float(random.uniform(self.seed, at.step, i) < self.beta))

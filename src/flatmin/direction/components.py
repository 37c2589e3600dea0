"""The two components of a batch gradient: along the full gradient, and across it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.direction.base import Direction

if TYPE_CHECKING:
    from flatmin.engine.probe import PassGenerator
    from flatmin.engine.vec import Vector
    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class FullComponent(Direction):
    """Climb along the full gradient only (SAM-full).

        G = ∇L(w; A);   eps = rho Γ(cos(G, g) G)

    The auxiliary closure evaluates the whole training set, or a large sample of it.

    Cost: two passes on the primary and one on the auxiliary batch a perturbed step; one copy of the
    weights.

    As in the paper `G` is scaled by the cosine itself, not by `‖g‖ cos(G, g) / ‖G‖` as a projection
    would be; the climb differs in nothing, since its length is `rho`.

    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350, §4.1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> direction = flatmin.direction.FullComponent()
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, direction=direction)
    """

    @property
    def auxiliary_passes(self) -> int:
        return 1

    def displacement(self, at: Viewpoint) -> PassGenerator[Vector]:
        full = yield from at.auxiliary()
        return at.climb(at.cosine(full, at.grad) * full)


@dataclass(frozen=True)
class NoiseComponent(Direction):
    """Climb what the batch adds to the full gradient (SAM-noise).

        G = ∇L(w; A);   eps = rho Γ(g - cos(G, g) G)

    The auxiliary closure evaluates the whole training set, or a large sample of it.

    Cost: two passes on the primary and one on the auxiliary batch a perturbed step; one copy of the
    weights.

    As in the paper `G` is scaled by the cosine itself, so that the result is orthogonal to `G` only
    where `‖g‖ = ‖G‖`.

    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350, §4,
    eqs. 8-9.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> direction = flatmin.direction.NoiseComponent()
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, direction=direction)
    """

    @property
    def auxiliary_passes(self) -> int:
        return 1

    def displacement(self, at: Viewpoint) -> PassGenerator[Vector]:
        full = yield from at.auxiliary()
        return at.climb(at.grad - at.cosine(full, at.grad) * full)

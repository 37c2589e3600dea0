"""The two components of a batch gradient: along the full gradient, and across it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flatmin.direction.base import Direction
from flatmin.engine import check
from flatmin.engine.vec import TINY

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

        G = ∇L(w; A)
        "printed":     eps = rho Γ(g - cos(G, g) G)
        "orthogonal":  eps = rho Γ(g - (gᵀG / ‖G‖²) G)

    The auxiliary closure evaluates the whole training set, or a large sample of it.

    Args:
        projection: "printed" or "orthogonal"; default "printed". The paper prints a cosine, with
            which the result is orthogonal to `G` only where `‖g‖ = ‖G‖`; its word "orthogonal" and
            its Lemma 1 ask for the other.

    Cost: two passes on the primary and one on the auxiliary batch a perturbed step; one copy of the
    weights.

    Raises:
        ValueError: `projection` is neither.

    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350, §4,
    eqs. 8-9.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> direction = flatmin.direction.NoiseComponent(projection="orthogonal")
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, direction=direction)
    """

    projection: Literal["printed", "orthogonal"] = "printed"

    def __post_init__(self) -> None:
        check.one_of("projection", self.projection, ("printed", "orthogonal"))

    @property
    def auxiliary_passes(self) -> int:
        return 1

    def displacement(self, at: Viewpoint) -> PassGenerator[Vector]:
        full = yield from at.auxiliary()
        if self.projection == "printed":
            return at.climb(at.grad - at.cosine(full, at.grad) * full)
        along = at.dot(at.grad, full) / (at.norm(full) + TINY) ** 2
        return at.climb(at.grad - along * full)

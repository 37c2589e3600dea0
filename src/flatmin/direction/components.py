"""The two components of a batch gradient: along the full gradient, and across it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.direction.base import Direction

if TYPE_CHECKING:
    from flatmin.engine.probe import PassGenerator, Probe
    from flatmin.engine.vec import Vector


@dataclass(frozen=True)
class FullComponent(Direction):
    """Climb along the full gradient only: `eps = rho Γ(cos(G, g) G)`, `G = ∇L(w; A)`.

    The auxiliary closure evaluates the whole training set, or a large sample of it (SAM-full).

    Cost: two passes on the primary and one on the auxiliary batch a perturbed step.
    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350, §4,
        eq. 8.
    """

    @property
    def auxiliary_passes(self) -> int:
        return 1

    def displacement(self, at: Probe) -> PassGenerator[Vector]:
        full = yield from at.auxiliary()
        return at.climb(at.cosine(full, at.grad) * full)


@dataclass(frozen=True)
class NoiseComponent(Direction):
    """Climb what the batch adds to the full gradient `G`: `eps = rho Γ(g - cos(G, g) G)`.

    The auxiliary closure evaluates the whole training set, or a large sample of it: `G = ∇L(w; A)`
    (SAM-noise).
    As in the paper, `G` is scaled by the cosine itself, so the result is orthogonal to `G` only
    where `‖g‖ = ‖G‖`.

    Cost: two passes on the primary and one on the auxiliary batch a perturbed step.
    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350, §4,
        eq. 9.
    """

    @property
    def auxiliary_passes(self) -> int:
        return 1

    def displacement(self, at: Probe) -> PassGenerator[Vector]:
        full = yield from at.auxiliary()
        return at.climb(at.grad - at.cosine(full, at.grad) * full)

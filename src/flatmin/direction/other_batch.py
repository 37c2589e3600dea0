"""The direction of another batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.direction.base import Direction

if TYPE_CHECKING:
    from flatmin.engine.probe import PassGenerator
    from flatmin.engine.vec import Vector
    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class OtherBatch(Direction):
    """Climb the gradient of the auxiliary batch.

        eps = rho Γ(∇L(w; A))

    With another batch of the same size it is the paper's SAM-db; with one `k` times as large that
    contains the primary batch, the study of the perturbation's batch size.

    Cost: two passes on the primary and one on the auxiliary batch a perturbed step; one copy of the
    weights.

    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350, §4.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> direction = flatmin.direction.OtherBatch()
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, direction=direction)
    """

    @property
    def auxiliary_passes(self) -> int:
        return 1

    def displacement(self, at: Viewpoint) -> PassGenerator[Vector]:
        at.norm(at.grad)  # which ends the step if it is not finite; nothing else is made of it
        return at.climb((yield from at.auxiliary()))

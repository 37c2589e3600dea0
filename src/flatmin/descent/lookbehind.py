"""The descent of Lookbehind-SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.descent.base import Descent
from flatmin.engine import check

if TYPE_CHECKING:
    from flatmin.engine.probe import PassGenerator, Probe
    from flatmin.engine.vec import Vector


@dataclass(frozen=True)
class Lookbehind(Descent):
    """Climb k times, each from the last perturbed point, and descend every gradient seen.

        eps_1 = eps,   eps_(j+1) = eps_j + rho Γ(∇L(w + eps_j))
        w_fast <- base step with ∇L(w + eps_j), j = 1 … k;   w <- w + alpha (w_fast - w)

    Args:
        k: ascent steps, at least 1; default 5. The way is up to `k rho`.
        alpha: share of the way from the slow to the fast weights, in (0, 1]; default 0.5.

    Cost: k + 1 passes a perturbed step; k gradients beside the copy of the weights.

    Raises:
        ValueError: `k` is not a positive integer, or `alpha` is out of range.

    Differs from the authors' code, which takes 2k passes: there each perturbed gradient is computed
    once to descend and once more, at the same point, to climb on. The weights are the same. There
    the passes and the base steps alternate; here the passes come first, so that a step that fails
    leaves no trace.

    Reference: Mordido et al., Lookbehind-SAM, ICML 2024, arXiv:2307.16704, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> optimizer = flatmin.SharpnessAware(base, descent=flatmin.descent.Lookbehind(k=2))
        >>> optimizer.gradients_per_step()
        3.0
    """

    k: int = 5
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check.positive_int("k", self.k)
        check.in_range("alpha", self.alpha, 0.0, 1.0, open_low=True)

    @property
    def further_passes(self) -> int:
        return self.k - 1

    @property
    def way(self) -> float:
        return self.alpha

    def after(self, at: Probe, seen: Vector, eps: Vector) -> PassGenerator[list[Vector]]:
        gradients = [seen]
        for left in reversed(range(self.k - 1)):
            eps = eps + at.climb(gradients[-1])
            gradients.append((yield from at.primary(eps, last=not left)))
        return gradients

"""The direction of RWP."""

# pyright: reportIncompatibleMethodOverride=false
# It asks for more than a `Viewpoint` has: noise, and sums over filters.
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flatmin.direction.base import Direction
from flatmin.engine import check
from flatmin.engine.vec import ZERO, Term, Vector

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.engine.probe import Probe

SQUARES = "random_squares"


@dataclass(frozen=True)
class Random(Direction):
    """Anywhere: noise as large as the weights of each filter, and no gradient spent on it.

        eps = rho ‖w_filter‖ z,   z standard normal, for each filter
        eta > 0:  eps / sqrt(1 + eta f),   f <- beta f + Σ_filter g_s² from 0

    A filter is a row of a matrix or of a kernel; any other tensor (a bias, say) is one as a whole.
    No norm is divided by: a filter of `n` weights moves by about `rho sqrt(n) ‖w_filter‖`. Since
    the lengths are its own, it goes with no geometry.

    Args:
        eta: how much less filters with large gradients move, at least 0; default 0: not at all. The
            adaptive form of ARWP takes 0.1.
        beta: memory of `f`, in [0, 1); default 0.99. It does nothing where `eta` is 0.
        seed: of the noise, any whole number; default 0. The step count decides the rest, so that
            all ranks draw alike and a resumed run draws what the uninterrupted one would have. With
            `ascent="local"` each rank draws its own.

    Cost: one pass a perturbed step, at `w + eps`, of which the step returns the loss; two copies of
    the weights (the noise is one), one more with `eta`.

    Raises:
        ValueError: a hyperparameter is out of range.

    Reference: Li et al., Efficient Generalization Improvement Guided by Random Weight Perturbation,
    2022, arXiv:2211.11489, with eta = 0; Li et al., Revisiting Random Weight Perturbation for
    Efficiently Improving Generalization, TMLR 2024, arXiv:2404.00357, for the adaptive form.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> direction = flatmin.direction.Random(seed=1)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.01, direction=direction)
        >>> optimizer.gradients_per_step()
        1.0
    """

    eta: float = 0.0
    beta: float = 0.99
    seed: int = 0

    needs_gradient: ClassVar[bool] = False
    takes_metric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check.at_least_zero("eta", self.eta)
        check.in_range("beta", self.beta, 0.0, 1.0, open_high=True)
        check.seed(self.seed)

    @property
    def buffers(self) -> tuple[str, ...]:
        return (SQUARES,) if self.eta else ()

    def displacement(self, at: Probe) -> Vector:
        squares = at.filter_squares(at.weights)
        f = at.recall(SQUARES) if self.eta else None

        def length(j: int) -> Tensor:
            root = squares(j).sqrt()
            return root if f is None else root * (1.0 + self.eta * f.block(j)).rsqrt()

        return at.by_radius(at.noise(self.seed).in_metric(length))

    def learn(self, at: Probe, seen: Vector) -> None:
        if self.eta:
            squares = at.filter_squares(seen)
            like = seen.terms[0].blocks
            new = Vector(Term([squares(j).to(x.dtype) for j, x in enumerate(like)]))
            before = at.recall(SQUARES) or ZERO
            at.keep(SQUARES, self.beta * before + new, alike=True)

"""The direction of Agnostic-SAM and Align-SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flatmin.direction.opposed import Opposed
from flatmin.engine import check
from flatmin.engine.vec import ZERO

if TYPE_CHECKING:
    from flatmin.engine.probe import PassGenerator
    from flatmin.engine.vec import Vector
    from flatmin.engine.viewpoint import Viewpoint


@dataclass(frozen=True)
class Agnostic(Opposed):
    """Climb the training loss while stepping down the auxiliary one, so that their gradients align.

        eps_v = rho2 Γ(∇L(w; A));   v <- beta v + (1 - beta) ∇L(w + eps_v; A)
        eps = rho1 Γ(g) - rho2 Γ(v)

    Args:
        rho1: step up the primary loss, at least 0; default None: `ratio` times the radius of each
            parameter group, which it follows. Given, it is absolute.
        rho2: step down the auxiliary loss, at least 0; default None: the radius of each parameter
            group, likewise. The weights move by up to `rho1 + rho2`, three radii where SAM moves
            one: halve the radius where training breaks down.
        beta: memory of `v`, which starts at 0, in [0, 1); default 0.9; 0 keeps none.
        ratio: `rho1 / rho2` where these are left out, at least 0; default 2, that of both papers.
        auxiliary: "batch" or "previous"; default "batch". "batch" takes `A` from the auxiliary
            closure. "previous" takes the previous primary batch, whose perturbed gradient is known
            from the step before: `v <- beta v + (1 - beta) g_s` after each perturbed step, no
            auxiliary closure at all.
        on_skipped: with "previous", whether `v` also moves on steps that a policy skips, by their
            gradient at `w`; default False: on perturbed steps alone. No paper has a policy. With
            "batch" it would cost two passes there, and is refused.

    Cost: two passes on the primary and two on the auxiliary batch a perturbed step ("previous": two
    passes); two copies of the weights (one for beta = 0 with "batch").

    Raises:
        ValueError: a hyperparameter is out of range.

    Reference: Nguyen et al., Agnostic Sharpness-Aware Minimization, 2024, arXiv:2406.07107,
    Algorithm 1; with beta = 0, Align-SAM (ICLR 2026), its later form. "previous" answers their
    closing question.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
        >>> direction = flatmin.direction.Agnostic(auxiliary="previous")
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.05, direction=direction)
        >>> optimizer.gradients_per_step()
        2.0
    """

    auxiliary: Literal["batch", "previous"] = "batch"
    on_skipped: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("auxiliary", self.auxiliary, ("batch", "previous"))
        if self.on_skipped and self.auxiliary == "batch":
            raise ValueError(
                "on_skipped=True moves v by the gradient of a skipped step, and with "
                'auxiliary="batch" v is made of others, which would cost two passes: take '
                'auxiliary="previous", or leave on_skipped out'
            )

    @property
    def auxiliary_passes(self) -> int:
        return 2 if self.auxiliary == "batch" else 0

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("agnostic_mean",) if self.beta or self.auxiliary == "previous" else ()

    @property
    def moving(self) -> tuple[str, ...]:
        return self.buffers if self.on_skipped else ()

    def displacement(self, at: Viewpoint) -> PassGenerator[Vector]:
        if self.auxiliary == "batch":
            eps_v = at.climb((yield from at.auxiliary()), self.rho2)
            v = self._remember(at, (yield from at.auxiliary(eps_v)))
        else:
            v = at.recall("agnostic_mean") or ZERO
        return self.between(at, at.grad, v)

    def skipped(self, at: Viewpoint) -> None:
        if self.on_skipped:
            self._remember(at, at.grad)

    def learn(self, at: Viewpoint, seen: Vector) -> None:
        if self.auxiliary == "previous":
            self._remember(at, seen)

    def _remember(self, at: Viewpoint, gradient: Vector) -> Vector:
        """`v <- beta v + (1 - beta) gradient`."""
        v = gradient
        if self.beta:
            before = at.recall("agnostic_mean") or ZERO
            v = self.beta * before + (1 - self.beta) * gradient
        for name in self.buffers:
            at.keep(name, v)
        return v

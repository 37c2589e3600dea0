"""The direction of MSAM."""

# pyright: reportIncompatibleMethodOverride=false
# It asks for more than a `Viewpoint` has: what the base optimizer keeps.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from flatmin.direction.base import Direction
from flatmin.engine.vec import ZERO

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe
    from flatmin.engine.vec import Vector

OWN = "momentum_mean"
BASES = ("momentum_buffer", "exp_avg")
"""What base optimizers call their momentum."""

MEMORY = 0.9
"""Of the running mean that stands in for it."""


@dataclass(frozen=True)
class Momentum(Direction):
    """Along the momentum that the base optimizer has anyway, so that no gradient is spent on it.

        eps = sign rho Γ(m),   m the base's momentum after its last step;   0 before the first

    `m` is `momentum_buffer` (SGD, RMSprop, Muon) or `exp_avg` (the Adam family). Over parameters
    whose base keeps neither it is a mean of ours, `m <- 0.9 m + 0.1 g_s` from 0, which moves on
    perturbed steps.

    Args:
        own: whether to keep that mean where it is needed; default True. False refuses a base
            without momentum.
        sign: -1 or 1; default -1, the authors' code, which looks ahead to where the base is about
            to go. 1 climbs.

    Cost: one pass a perturbed step, at `w + eps`, of which the step returns the loss; one copy of
    the weights, one more for a mean of ours.

    Raises:
        ValueError: `sign` is neither, or the base has no momentum although `own` is False.

    Reference: Becker et al., Momentum-SAM: Sharpness Aware Minimization without Computational
    Overhead, 2024, arXiv:2401.12033, Algorithm 1.

    Examples:
        >>> import torch, flatmin
        >>> base = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1, momentum=0.9)
        >>> direction = flatmin.direction.Momentum()
        >>> optimizer = flatmin.SharpnessAware(base, rho=3.0, direction=direction)
        >>> optimizer.gradients_per_step()
        1.0
    """

    own: bool = True
    sign: Literal[-1, 1] = -1

    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.sign not in (-1, 1):
            raise ValueError(f"sign must be -1 (as in the authors' code) or 1, got {self.sign!r}")

    @property
    def buffers(self) -> tuple[str, ...]:
        return (OWN,) if self.own else ()

    def kept(self, at: Probe) -> tuple[str, ...]:
        return self.buffers if at.base_lacks(BASES, has_momentum) else ()

    def require(self, groups: Sequence[Mapping[str, Any]]) -> None:
        if not (self.own or all(map(has_momentum, groups))):
            raise ValueError(
                "the base optimizer has no momentum, and own=False keeps none for it: build it "
                "with one, as in torch.optim.SGD(..., momentum=0.9), or take Momentum(own=True)"
            )

    def displacement(self, at: Probe) -> Vector:
        names = (*BASES, *self.buffers) if self._stands_in(at) else BASES
        return self.sign * at.climb(at.stored(*names) or ZERO)

    def learn(self, at: Probe, seen: Vector) -> None:
        if self._stands_in(at):
            before = at.recall(OWN) or ZERO
            at.keep(OWN, MEMORY * before + (1 - MEMORY) * seen, alike=True)

    def _stands_in(self, at: Probe) -> bool:
        """Does a mean of ours stand in for the momentum of some parameter?"""
        return self.own and at.base_lacks(BASES, has_momentum)


def has_momentum(group: Mapping[str, Any]) -> bool:
    """Do the options of a parameter group say that its base optimizer keeps a momentum?"""
    return bool(group.get("momentum")) or "betas" in group

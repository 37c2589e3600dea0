"""Learning rates and radii step by step, by name.

Learning rates are "cosine", "constant" or "step", after a warm-up or not; radii "constant",
"cosine", "linear" or "proportional" to the learning rate, each down to a share of the radius.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from flatmin.optimizer import SharpnessAware
from flatmin.schedules import CosineRho, LinearRho, ProportionalRho, RhoScheduler
from flatmin.training.errors import InputError, unknown

Schedule = Callable[[Optimizer, int, Sequence[int], float], LRScheduler]
"""From (optimizer, number of steps, milestones among them, factor at each milestone)."""


def build(
    name: str,
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> LRScheduler:
    """The schedule called `name` in `SCHEDULES`, over `total_steps` steps of `optimizer`.

    In the warm-up of `w` steps the learning rate of step `t`, from 1, is `t / (w + 1)` of the full
    one; then the named schedule starts.

    Args:
        name: a key of `SCHEDULES`.
        optimizer: whose learning rates move.
        total_steps: of the whole training, warm-up included.
        warmup_steps: of these, in which the learning rate rises.
        milestones: of "step", as shares of `total_steps`.
        gamma: what "step" multiplies the learning rate by at each milestone.
    """
    marks = [round(share * total_steps) - warmup_steps for share in milestones]
    main = SCHEDULES[name](optimizer, total_steps - warmup_steps, marks, gamma)
    if not warmup_steps:
        return main
    rise = LinearLR(optimizer, 1 / (warmup_steps + 1), total_iters=warmup_steps)
    return SequentialLR(optimizer, [rise, main], [warmup_steps])


def cosine(
    optimizer: Optimizer, steps: int, milestones: Sequence[int], gamma: float
) -> LRScheduler:
    """Half a period of a cosine, from the full learning rate to 0."""
    return CosineAnnealingLR(optimizer, max(1, steps))


def constant(
    optimizer: Optimizer, steps: int, milestones: Sequence[int], gamma: float
) -> LRScheduler:
    """The full learning rate."""
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def step(optimizer: Optimizer, steps: int, milestones: Sequence[int], gamma: float) -> LRScheduler:
    """Times `gamma` at each milestone."""
    return MultiStepLR(optimizer, milestones, gamma)


SCHEDULES: Mapping[str, Schedule] = {"cosine": cosine, "constant": constant, "step": step}
"""Every schedule by its name in a recipe."""


@dataclass(frozen=True)
class RhoSchedule:
    """How the radius moves: `RhoSchedule.parse("cosine")`, `RhoSchedule.parse("proportional:0.5")`.

    Fields:
        kind: a key of `RHO_SCHEDULES`, or "constant".
        end: share of the radius at the end, or where the learning rate is 0.
    """

    kind: str
    end: float = 0.0

    @classmethod
    def parse(cls, text: str) -> RhoSchedule:
        """`<kind>` or `<kind>:<end>`. Raises InputError, in one line, for anything else."""
        kind, colon, given = text.partition(":")
        known = ("constant", *RHO_SCHEDULES)
        if kind not in known:
            raise unknown("radius schedule", kind, known)
        if kind == "constant" and colon:
            raise InputError(f"rho_schedule {text}: a constant radius has no end: leave it out")
        try:
            end = float(given) if colon else 0.0
        except ValueError:
            end = math.nan
        if not 0 <= end < math.inf:
            raise InputError(
                f"rho_schedule {text}: behind the colon stands a share of the radius, at least 0, "
                f"such as {kind}:0.5"
            )
        if kind == "proportional" and end > 1:
            raise InputError(
                f"rho_schedule {text}: the radius at the lowest learning rate would be above that "
                f"at the highest: give a share in [0, 1], such as {kind}:0.5"
            )
        return cls(kind, end)

    def __str__(self) -> str:
        return f"{self.kind}:{self.end!r}" if self.end else self.kind

    def over(self, optimizer: SharpnessAware, total_steps: int) -> RhoScheduler | None:
        """The schedule of `optimizer`, built after that of its learning rate; None for constant."""
        if self.kind == "constant":
            return None
        # of the method's own radius where groups differ in nothing, as here
        end = self.end * optimizer.rho
        return RHO_SCHEDULES[self.kind](optimizer, total_steps, end)


RHO_SCHEDULES: Mapping[str, Callable[[SharpnessAware, int, float], RhoScheduler]] = {
    "cosine": CosineRho,
    "linear": LinearRho,
    "proportional": lambda optimizer, total_steps, end: ProportionalRho(optimizer, rho_min=end),
}
"""Every schedule of the radius that moves, by its name in a recipe."""

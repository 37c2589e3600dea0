"""Learning rates step by step, by name: "cosine", "constant" or "step", after a warm-up or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

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

"""Learning rates step by step, by name: "cosine", "constant" or "step", after a warm-up or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

if TYPE_CHECKING:
    from flatmin.training.settings import Training

Schedule = Callable[[Optimizer, "Training", int, int], LRScheduler]
"""From (optimizer, training, number of all steps, number of those that warm up)."""


def build(optimizer: Optimizer, training: Training, total_steps: int) -> LRScheduler:
    """The schedule that `training` describes, over `total_steps` steps of `optimizer`.

    In the warm-up of `w` steps the learning rate of step `t`, from 1, is `t / (w + 1)` of the full
    one; then the named schedule starts.
    """
    warm = round(training.warmup * total_steps / training.epochs)
    main = table[training.schedule](optimizer, training, total_steps, warm)
    if not warm:
        return main
    rise = LinearLR(optimizer, 1 / (warm + 1), total_iters=warm)
    return SequentialLR(optimizer, [rise, main], [warm])


def cosine(optimizer: Optimizer, training: Training, total: int, warm: int) -> LRScheduler:
    """Half a period of a cosine, from the full learning rate to 0."""
    return CosineAnnealingLR(optimizer, max(1, total - warm))


def constant(optimizer: Optimizer, training: Training, total: int, warm: int) -> LRScheduler:
    """The full learning rate."""
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def step(optimizer: Optimizer, training: Training, total: int, warm: int) -> LRScheduler:
    """Times `gamma` at each milestone, a share of the whole training, warm-up included."""
    marks = [round(share * total) - warm for share in training.milestones]
    return MultiStepLR(optimizer, marks, training.gamma)


table: Mapping[str, Schedule] = {"cosine": cosine, "constant": constant, "step": step}
"""Every schedule by its name in a recipe."""

"""A finished training run, and the epochs that it is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from flatmin.engine.cost import Cost
from flatmin.training import losses
from flatmin.training.settings import Training


@dataclass(frozen=True)
class Epoch:
    """What one epoch ended with.

    Fields:
        loss: mean training loss at the unperturbed weights, each batch before its step.
        train_accuracy: % of the training labels as given, noise included, on the same occasions;
            nan where the metric is not accuracy.
        accuracy: % right on the test images, or on the held-out ones; or the metric of the run.
        passes: gradient cost so far, in passes over the training images.
        seconds: of training, evaluation left out.
    """

    loss: float
    train_accuracy: float
    accuracy: float
    passes: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Fields:
        training: what was asked for.
        epochs: the curve.
        cost: counted by the optimizer.
        chance: accuracy in % of a guess; 0 where that is not known.
        threads: of torch, during the run.
        examined: % right of the final model on each further set that was asked for.
        observed: what was recorded along the run, one number a step or an epoch; nan where there
            is none.
        analysed: what was looked at beside it, by name.
        device: on which it ran, such as "cpu" or "NVIDIA H200".
        processes: that trained the model together.
        tested: number of samples that each accuracy was measured on; None if that is not known.
    """

    training: Training
    epochs: tuple[Epoch, ...]
    cost: Cost
    chance: float
    threads: int = field(default_factory=torch.get_num_threads)
    examined: Mapping[str, float] = field(default_factory=dict[str, float])
    observed: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    analysed: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    device: str = "cpu"
    processes: int = 1
    tested: int | None = None

    @property
    def model(self) -> nn.Module | None:
        """As it was measured last, in evaluation mode; with FSDP2 this rank's shard of it.

        No field: a run can be compared, printed and written down without it.
        """
        return self.__dict__.get("_model")

    def with_model(self, model: nn.Module) -> Run:
        """The same run, which has `model`."""
        object.__setattr__(self, "_model", model)
        return self

    @property
    def accuracy(self) -> float:
        """% right at the end of the last epoch. No epoch is picked by its accuracy."""
        return self.epochs[-1].accuracy

    @property
    def seconds_per_epoch(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs) / len(self.epochs)

    @property
    def trouble(self) -> str | None:
        """Why this run should not be taken at face value; None if nothing is wrong."""
        skipped = None
        if self.cost.skipped:
            steps = self.cost.steps + self.cost.skipped
            skipped = f"{self.cost.skipped} of {steps} steps skipped: loss or gradient not finite"
        # what a report leaves out comes first: a few skipped steps do not hide that it is worse
        if self.cost.skipped > self.cost.steps:
            return skipped
        if not math.isfinite(self.epochs[-1].loss):
            return "diverged: the loss is not finite"
        by_chance = self.training.metric == losses.ACCURACY and not self.training.holdout
        # of two classes, five points more than a guess: a fifth more would be much
        if by_chance and self.accuracy < min(1.2 * self.chance, self.chance + 5):
            return "learned nothing: accuracy at chance"
        return skipped

"""What can be recorded along a run, by name: `Training(observe=("gradient-norms", "perturbed"))`.

A further observable is one function and one row of `OBSERVABLES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatmin.engine.cost import Cost
from flatmin.training.errors import InputError
from flatmin.training.processes import ProcessGroup

Gradient = Sequence[Tensor]
"""One tensor for each trainable parameter, in the order of the model."""


@dataclass(frozen=True)
class Step:
    """What an observable may see of one step.

    Fields:
        loss: of the primary batch at the unperturbed weights.
        lr: the learning rate of the step.
        cost: of this step alone.
        here: the primary gradient at the unperturbed weights.
        there: the last primary gradient of the step; `here` where nothing was perturbed.
        before: `here` of the step before; None in the first.
    """

    loss: float
    lr: float
    cost: Cost
    here: Gradient = ()
    there: Gradient = ()
    before: Gradient | None = None


@dataclass(frozen=True)
class EpochSummary:
    """What an observable may see of one epoch, each batch before its step; sums over images.

    Fields:
        losses: of each image.
        images: how many there were.
        hits: how many of them the model gave their label as given.
        wrong: how many have a wrong label; counted if an observable needs it.
        wrong_hits: how many of these the model gave that label.
    """

    losses: float
    images: float
    hits: float
    wrong: float
    wrong_hits: float

    @property
    def loss(self) -> float:
        """Mean over the images."""
        return self.losses / self.images

    @property
    def accuracy(self) -> float:
        """% of the images that were given their label."""
        return 100 * self.hits / self.images


@dataclass(frozen=True)
class Observable:
    """A number for each step, or for each epoch.

    Fields:
        sentence: what it is.
        of_step: from a step to the number; None for a number of the epoch.
        of_epoch: from an epoch to the number.
        gradients: whether it needs the gradients of the step, at the cost of a copy or two.
    """

    sentence: str
    of_step: Callable[[Step], float] | None = None
    of_epoch: Callable[[EpochSummary], float] | None = None
    gradients: bool = False


class Recorder:
    """Records observables along a run.

    Args:
        names: of the observables.
        model: whose gradients are looked at.
        group: over whose ranks a loss is the mean.

    Attributes:
        values: by observable, one number a step or an epoch, in order.
    """

    def __init__(self, names: Sequence[str], model: nn.Module, group: ProcessGroup) -> None:
        self._group = group
        self.values: dict[str, list[float]] = {name: [] for name in names}
        self._rows = {name: OBSERVABLES[name] for name in names}
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._gradients = any(row.gradients for row in self._rows.values())
        self._steps = any(row.of_step for row in self._rows.values())
        self._seen: list[Gradient] = []
        self._before: Gradient | None = None
        self._cost = Cost()

    def require(self, *, per_sample: bool) -> None:
        """Raise InputError if gradients are to be seen and the method or the group hides them."""
        if self._gradients and (per_sample or self._group.sharded):
            names = [name for name, row in self._rows.items() if row.gradients]
            found = "esam runs the backward pass itself" if per_sample else "fsdp2 holds shards"
            raise InputError(f"cannot observe {', '.join(names)}, since {found}: leave it away")

    @property
    def apart(self) -> bool:
        """Are answers to wrong labels to be counted apart?"""
        return any(row.of_epoch for row in self._rows.values())

    def passed(self) -> None:
        """A primary batch has been differentiated; its gradient is in the parameters."""
        if self._gradients:
            seen = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
            self._seen = [*self._seen[:1], [g.clone() for g in seen]]

    def stepped(self, loss: Tensor, lr: float, cost: Cost) -> None:
        """A step has been taken; `cost` is the total so far."""
        if not self._steps:
            return
        here, there = (self._seen[0], self._seen[-1]) if self._seen else ((), ())
        mean = float(self._group.total(loss.detach().clone())) / self._group.world
        step = Step(mean, lr, _between(self._cost, cost), here, there, self._before)
        for name, row in self._rows.items():
            if row.of_step:
                self.values[name].append(row.of_step(step))
        self._cost, self._before, self._seen = cost, here, []

    def ended(self, epoch: EpochSummary) -> None:
        """An epoch has ended."""
        for name, row in self._rows.items():
            if row.of_epoch:
                self.values[name].append(row.of_epoch(epoch))

    def state(self) -> dict[str, Any]:
        """What was recorded, and what the next step needs."""
        return {"values": self.values, "before": self._before, "cost": asdict(self._cost)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.values = dict(state["values"])
        before: Gradient | None = state["before"]
        if before:  # there is one where gradients are observed
            before = [g.to(p.device) for g, p in zip(before, self._parameters, strict=True)]
        self._before = before
        self._cost = Cost(**state["cost"])


def _between(before: Cost, after: Cost) -> Cost:
    return Cost(**{name: value - getattr(before, name) for name, value in asdict(after).items()})


def squared_norm(gradient: Gradient) -> float:
    """`‖g‖²`."""
    return float(sum(g.double().square().sum() for g in gradient))


def cosine(a: Gradient | None, b: Gradient) -> float:
    """`cos(a, b)`; nan where one of them is missing or zero."""
    if a is None:
        return math.nan
    dot = sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
    length = math.sqrt(squared_norm(a) * squared_norm(b))
    return dot / length if length else math.nan


def _share(part: float, whole: float) -> float:
    return 100 * part / whole if whole else math.nan


OBSERVABLES: Mapping[str, Observable] = {
    "losses": Observable(
        "the loss of each step at the unperturbed weights", of_step=lambda step: step.loss
    ),
    "learning-rates": Observable("the learning rate of each step", of_step=lambda step: step.lr),
    "perturbed": Observable(
        "1 for each perturbed step, 0 for each other",
        of_step=lambda step: float(step.cost.perturbed),
    ),
    "radii": Observable(
        "the length of each step's perturbation, 0 where there is none",
        of_step=lambda step: step.cost.distance,
    ),
    "gradient-norms": Observable(
        "the squared norm of each step's stochastic gradient at the unperturbed weights",
        of_step=lambda step: squared_norm(step.here),
        gradients=True,
    ),
    "cosine-previous": Observable(
        "the cosine of each step's stochastic gradient and the one before; nan at first",
        of_step=lambda step: cosine(step.before, step.here),
        gradients=True,
    ),
    "cosine-perturbed": Observable(
        "the cosine of each step's gradients at the unperturbed and at the perturbed weights",
        of_step=lambda step: cosine(step.here, step.there),
        gradients=True,
    ),
    "wrong-label-accuracy": Observable(
        "% of the training images with wrong labels that are given those, in each epoch; nan "
        "without noise",
        of_epoch=lambda epoch: _share(epoch.wrong_hits, epoch.wrong),
    ),
    "right-label-accuracy": Observable(
        "% of the training images with right labels that are given those, in each epoch",
        of_epoch=lambda epoch: _share(epoch.hits - epoch.wrong_hits, epoch.images - epoch.wrong),
    ),
}
"""Every observable by name."""

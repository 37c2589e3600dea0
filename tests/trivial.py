"""Cells that cost next to nothing, for what is promised about scheduling."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from flatmin.engine.cost import Cost
from flatmin.studies.plan.tuning import Progress
from flatmin.studies.store import provenance
from flatmin.studies.store.row import Curves, Row
from flatmin.training import Epoch, Training
from flatmin.training.loop import Watch

EPOCH = Epoch(loss=1.0, train_accuracy=1.0, accuracy=1.0, passes=1.0, seconds=1.0)


@dataclass(frozen=True)
class Many:
    """A plan of `total` cells that differ in their seed."""

    total: int

    def plan(self, rows: Mapping[str, Row], given_up: frozenset[str]) -> Iterator[Training]:
        return (cell(seed) for seed in range(self.total))

    def progress(self, rows: Mapping[str, Row], given_up: frozenset[str]) -> Progress:
        return Progress(len(rows), len(given_up), self.total - len(rows) - len(given_up))


@dataclass(frozen=True)
class Nothing:
    """Does a cell without doing anything."""

    def do(self, training: Training, watch: Watch) -> Row:
        watch(1, EPOCH)
        return row(training)

    def clear(self, training: Training) -> None:
        pass


@dataclass(frozen=True)
class Raises(Nothing):
    """Raises an `error` in the cell with the seed 1."""

    error: Exception

    def do(self, training: Training, watch: Watch) -> Row:
        if training.seed == 1:
            raise self.error
        return row(training)


@dataclass(frozen=True)
class Dies(Nothing):
    """Takes its process along in the cell with the seed 1, the first `times` times."""

    folder: Path
    times: int

    def do(self, training: Training, watch: Watch) -> Row:
        if training.seed == 1:
            died = len(list(self.folder.iterdir()))
            if died < self.times:
                (self.folder / str(died)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return row(training)


@dataclass(frozen=True)
class AwaitsKills(Nothing):
    """Goes on only where enough workers were killed: one for every `every` cells, less one.

    Each kill leaves a file in `folder`. Else a busy machine has the cells done between two of the
    moments at which somebody could be killed.
    """

    folder: Path
    every: float

    def do(self, training: Training, watch: Watch) -> Row:
        while training.seed >= (len(list(self.folder.iterdir())) + 1) * self.every:
            time.sleep(0.01)
        return super().do(training, watch)


@dataclass(frozen=True)
class Allocates(Nothing):
    """Takes 16 MiB and frees them, again and again; counts the pages that the system gave."""

    file: Path

    def do(self, training: Training, watch: Watch) -> Row:
        for times in (1, 100):  # the first has to come from somewhere
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(times):
                torch.zeros(2**22)
            self.file.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
        return row(training)


@dataclass(frozen=True)
class Waits(Nothing):
    """Takes the process's number down, and its time."""

    folder: Path
    seconds: float

    def do(self, training: Training, watch: Watch) -> Row:
        (self.folder / str(os.getpid())).touch()
        time.sleep(self.seconds)
        return row(training)


def cell(seed: int) -> Training:
    return Training("digits", "mlp", "sam", seed=seed, epochs=1)


def row(training: Training) -> Row:
    """A row whose accuracy is the cell's seed, modulo 100."""
    one = [1.0]
    return Row(
        key=training.key,
        training=asdict(training),
        accuracy=float(training.seed % 100),
        curves=Curves(loss=one, train_accuracy=one, accuracy=one, passes=one, seconds=one),
        cost=asdict(Cost(steps=1)),
        ratio=2.0,
        share=100.0,
        radius=0.05,
        seconds_per_epoch=1.0,
        trouble=None,
        threads=1,
        versions=provenance.versions(),
    )


MODULE = """
import torch
from torch import nn

def data():
    x = torch.arange(240.0).view(60, 4) % 7
    y = (x.sum(1) > 12).long()
    return (x[:40], y[:40]), (x[40:], y[40:])

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Linear(4, classes))

made = Net(2)

def same():
    return made
"""
"""A module of a user's."""

"""A worker of several processes, started by torchrun: every cell is trained by all of them.

The first process takes up cells and keeps their rows; the others train what it tells them.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist

from flatmin.studies.run.worker import CellTrainer
from flatmin.studies.store.database import ClaimLost
from flatmin.studies.store.row import Row
from flatmin.training.errors import InputError
from flatmin.training.loop import Watch
from flatmin.training.processes import started
from flatmin.training.settings import Training

_IDLE = dt.timedelta(days=30)
"""How long the others wait for the next cell: it may be long until somebody else's has ended."""


def several() -> bool:
    """Has torchrun started more than one process?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def together(trainer: CellTrainer, lead: Callable[[CellTrainer], None]) -> None:
    """Call `lead` in the first process, with a trainer that all processes do together."""
    with started():
        group = dist.new_group(backend="gloo", timeout=_IDLE)
        if dist.get_rank() == 0:
            try:
                lead(_Shared(trainer, group))
            finally:
                _tell(None, group)
        else:
            while (training := _hear(group)) is not None:
                _follow(trainer, training)


def _follow(trainer: CellTrainer, training: Training) -> None:
    with suppress(InputError):  # what does not fit does not fit anywhere: the first process says so
        trainer.do(training, lambda number, epoch: None)


@dataclass(frozen=True)
class _Shared:
    """A trainer whose cells the other processes do as well."""

    trainer: CellTrainer
    group: Any

    def do(self, training: Training, watch: Watch) -> Row:
        _tell(training, self.group)
        try:
            return self.trainer.do(training, watch)
        except InputError:
            raise
        except (Exception, ClaimLost) as error:
            # the others are amid a step that will never end: torchrun ends them with this process
            raise SystemExit(f"flatmin: {type(error).__name__}: {error}") from error

    def clear(self, training: Training) -> None:
        self.trainer.clear(training)


def _tell(training: Training | None, group: Any) -> None:
    dist.broadcast_object_list([None if training is None else asdict(training)], 0, group)


def _hear(group: Any) -> Training | None:
    heard: list[Any] = [None]
    dist.broadcast_object_list(heard, 0, group)
    return None if heard[0] is None else Training.of(heard[0])

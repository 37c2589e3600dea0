"""How a worker does a cell: load the images once, train, and leave nothing but the row."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatmin.studies.plan.estimate import CostEstimate
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.row import Row, row_of
from flatmin.training import checkpoints
from flatmin.training.data.images import ImageData, load
from flatmin.training.loop import Epoch, Training, Watch, train

WORTH_KEEPING = 60.0
"""Estimated seconds from which a run leaves checkpoints; a shorter one is sooner done again."""


@dataclass(frozen=True)
class Trainer:
    """Trains cells.

    Fields:
        checkpoints: folder or URL under which every cell has a folder; None for no checkpoints.
        short: whether cells of less than a minute, by estimate, leave checkpoints as well.
        tensorboard: folder for live curves, `<method>/<key>`; None for none.
    """

    checkpoints: str | None = None
    short: bool = False
    tensorboard: Path | None = None

    @classmethod
    def at(
        cls, location: StudyLocation, *, checkpoints: str | None = None, tensorboard: bool = False
    ) -> Trainer:
        """One that leaves in the folder of `location` what does not go elsewhere.

        Whoever says where checkpoints go gets them of every cell.
        """
        folder = location.folder
        usual = None if folder is None else str(folder / "checkpoints")
        live = folder / "tensorboard" if tensorboard and folder is not None else None
        return cls(checkpoints or usual, checkpoints is not None, live)

    def do(self, training: Training, watch: Watch) -> Row:
        """Train, from the newest checkpoint if there is one."""
        start = time.perf_counter()
        data = _images(training.data, training.limit, training.size)
        with self._live(training) as show:

            def both(number: int, epoch: Epoch) -> None:
                show(number, epoch)
                watch(number, epoch)

            run = train(training, data, both, checkpoints=self._saved(training))
        return row_of(run, images=data.fingerprint(), wall=time.perf_counter() - start)

    def clear(self, training: Training) -> None:
        """Remove the checkpoints of a cell."""
        saved = self._saved(training)
        if saved is not None:
            checkpoints.remove(saved)

    def _saved(self, training: Training) -> str | None:
        if self.checkpoints is None:
            return None
        if not self.short and 3600 * CostEstimate.of([training]).hours < WORTH_KEEPING:
            return None
        return f"{self.checkpoints.rstrip('/')}/{training.key}"

    def _live(self, training: Training) -> AbstractContextManager[Watch]:
        if self.tensorboard is None:
            return nullcontext(lambda number, epoch: None)
        return _Curves(self.tensorboard / training.method / training.key)


def require(trainings: Iterable[Training]) -> list[str]:
    """What a user should know of the images of the runs, line by line.

    Raises InputError now where they are missing or do not suffice.
    """
    wanted = dict.fromkeys((each.data, each.limit, each.size) for each in trainings)
    return [
        note for name, limit, size in wanted for note in load(name, limit=limit, size=size).notes
    ]


class _Curves:
    """Every epoch as a point of TensorBoard's curves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def __enter__(self) -> Watch:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder))
        return self._write

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def _write(self, number: int, epoch: Epoch) -> None:
        for name, value in vars(epoch).items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()


@functools.lru_cache(maxsize=1)
def _images(name: str, limit: int | None, size: int | None) -> ImageData:
    """A worker does one data set after the other."""
    return load(name, limit=limit, size=size)

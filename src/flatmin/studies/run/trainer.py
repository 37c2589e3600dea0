"""How a worker does a cell: load the images once, train, and leave nothing but the row."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flatmin.studies.plan.estimate import CostEstimate
from flatmin.studies.store import weights
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.row import Row, row_of
from flatmin.training import checkpoints, evaluation, own
from flatmin.training.data.batches import RunData
from flatmin.training.data.images import ImageData
from flatmin.training.data.samples import AnyData, load_any
from flatmin.training.errors import InputError
from flatmin.training.learner import Learner
from flatmin.training.loop import Watch, train
from flatmin.training.models import pretraining
from flatmin.training.observer import Observer
from flatmin.training.processes import ProcessGroup
from flatmin.training.result import Epoch
from flatmin.training.settings import Training

WORTH_KEEPING = 60.0
"""Estimated seconds from which a run leaves checkpoints; a shorter one is sooner done again."""


@dataclass(frozen=True)
class Trainer:
    """Trains cells.

    Fields:
        checkpoints: folder or URL under which every cell has a folder; None for no checkpoints.
        short: whether cells of less than a minute, by estimate, leave checkpoints as well.
        tensorboard: folder for live curves, `<method>/<key>`; None for none.
        weights: folder in which the final weights of every run stay, but for those of tuning; None
            for none.
    """

    checkpoints: str | None = None
    short: bool = False
    tensorboard: Path | None = None
    weights: Path | None = None

    @classmethod
    def at(
        cls,
        location: StudyLocation,
        *,
        checkpoints: str | None = None,
        tensorboard: bool = False,
        keep: bool = False,
    ) -> Trainer:
        """One that leaves in the folder of `location` what does not go elsewhere.

        Whoever says where checkpoints go gets them of every cell. With `keep` weights stay; raises
        InputError where there is no folder for them.
        """
        folder = location.folder
        usual = None if folder is None else str(folder / "checkpoints")
        live = folder / "tensorboard" if tensorboard and folder is not None else None
        if keep and folder is None:
            raise InputError(
                f"weights stay in a folder, and {location} has none here: give the folder"
            )
        kept = folder / weights.FOLDER if keep and folder is not None else None
        return cls(checkpoints or usual, checkpoints is not None, live, kept)

    def do(self, training: Training, watch: Watch) -> Row:
        """Train, from the newest checkpoint if there is one."""
        start = time.perf_counter()
        data = _images(training.data, training.limit, training.size)
        with self._live(training) as show:

            def both(number: int, epoch: Epoch) -> None:
                show(number, epoch)
                watch(number, epoch)

            saved = self._saved(training)
            run = train(training, data, both, checkpoints=saved, observer=observer_of(training))
        if self.weights is not None and not training.holdout and ProcessGroup.here("cpu").leads:
            # Before the row: where there is one, there are weights.
            size = training.size or (data.size if isinstance(data, ImageData) else 0)
            weights.keep(self.weights, run, evaluation.facts(data, size))
        return row_of(run, images=data.fingerprint(), wall=time.perf_counter() - start)

    def clear(self, training: Training) -> None:
        """Remove the checkpoints of a cell."""
        saved = self._saved(training)
        if saved is not None:
            checkpoints.remove(saved)

    def _saved(self, training: Training) -> str | None:
        if self.checkpoints is None:
            return None
        # of what is the user's own nothing is known: it may take hours
        known = not (own.is_own(training.data) or own.is_own(training.model))
        if known and not self.short and 3600 * CostEstimate.of([training]).hours < WORTH_KEEPING:
            return None
        return f"{self.checkpoints.rstrip('/')}/{training.key}"

    def _live(self, training: Training) -> AbstractContextManager[Watch]:
        if self.tensorboard is None:
            return nullcontext(lambda number, epoch: None)
        return _Curves(self.tensorboard / own.title(training.method) / training.key)


def forget() -> None:
    """Load the next data set anew, though it may have the name of the last."""
    _images.cache_clear()


def observer_of(training: Training) -> Callable[[Learner, RunData], Observer] | None:
    """What does the analysis of a training; scipy is loaded where there is one."""
    if not training.analysis:
        return None
    from flatmin.studies.run.looks import CellAnalysis

    return CellAnalysis


def require(trainings: Iterable[Training]) -> list[str]:
    """What a user should know of the images of the runs, line by line.

    Raises InputError now where they are missing or do not suffice, and where weights to start from
    are missing.
    """
    trainings = list(trainings)
    for source in {each.pretrained for each in trainings} - {None, "hub"}:
        pretraining.located(Path(cast("str", source)))
    wanted = dict.fromkeys((each.data, each.limit, each.size) for each in trainings)
    return [
        note
        for name, limit, size in wanted
        for note in load_any(name, limit=limit, size=size).notes
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
def _images(name: str, limit: int | None, size: int | None) -> AnyData:
    """A worker does one data set after the other."""
    return load_any(name, limit=limit, size=size)

"""How far a run is: cells done, at work, waiting and given up, and what those at work say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from flatmin.studies.plan.tuning import Plan, progress_of
from flatmin.studies.store.files import finite
from flatmin.studies.store.store import Running, Store
from flatmin.training import own
from flatmin.training.loop import Training


@dataclass(frozen=True)
class CellStatus:
    """A cell at work.

    Fields:
        what: the run, for people to read.
        epoch, epochs: ended, and in all.
        loss, accuracy: of the last epoch that has ended.
        seconds: that it has taken, and `left` that it will take at this rate, nan if unknown.
        worker: who works on it.
    """

    what: str
    epoch: int
    epochs: int
    loss: float | None
    accuracy: float | None
    seconds: float
    left: float
    worker: str

    @classmethod
    def of(cls, running: Running) -> CellStatus:
        training, progress = running.training, running.progress
        further = training.epochs - progress.epoch
        return cls(
            what=described(training),
            epoch=progress.epoch,
            epochs=training.epochs,
            loss=progress.loss,
            accuracy=progress.accuracy,
            seconds=progress.seconds,
            left=further * progress.seconds / progress.epoch if progress.epoch else math.nan,
            worker=str(running.owner),
        )


@dataclass(frozen=True)
class MethodCounts:
    """Cells of one method, those known by now: tuning chooses the rest."""

    method: str
    done: int
    running: int
    waiting: int
    failed: int


@dataclass(frozen=True)
class Status:
    """A run at one moment.

    Fields:
        done, running, waiting, failed: cells; `waiting` has those that tuning has yet to choose.
        methods: the same for each method.
        cells: those at work.
        failures: why cells were given up.
        left: seconds until the end, with the workers there are; nan if unknown.
    """

    done: int
    running: int
    waiting: int
    failed: int
    methods: tuple[MethodCounts, ...]
    cells: tuple[CellStatus, ...]
    failures: tuple[str, ...]
    left: float

    @classmethod
    def of(cls, store: Store, plan: Plan) -> Status:
        """Of the store as it was last read."""
        running = {cell.key: cell for cell in store.running.values()}
        progress = progress_of(plan, store)
        waiting = max(0, progress.left - len(running))
        return cls(
            done=progress.done,
            running=len(running),
            waiting=waiting,
            failed=progress.failed,
            methods=tuple(_counts(store, plan, running)),
            cells=tuple(CellStatus.of(cell) for cell in running.values()),
            failures=tuple(
                f"{described(failure.training)}: {failure.reason}"
                for failure in store.failures.values()
            ),
            left=_left(store, waiting, len(running)),
        )

    @property
    def total(self) -> int:
        return self.done + self.running + self.waiting + self.failed

    @property
    def settled(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.running and not self.waiting

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return finite({"total": self.total, **asdict(self)})


def described(training: Training) -> str:
    """`SAM ρ 0.05 seed 1`."""
    rho = "" if training.rho is None else f" ρ {training.rho:g}"
    purpose = f"tuning {-training.seed}" if training.holdout else f"seed {training.seed}"
    return f"{own.method_title(training.method, training.base)}{rho} {purpose}"


def shown(status: Status) -> RenderableType:
    """For the terminal."""
    line = (
        f"{status.done} of {status.total} runs done, {status.running} at work, "
        f"{status.waiting} waiting, {status.failed} failed"
    )
    left = "" if math.isnan(status.left) else f"; about {duration(status.left)} left"
    parts: list[RenderableType] = [line + left, "", _by_method(status)]
    if status.cells:
        parts += ["", _at_work(status)]
    return Group(*parts, *(f"failed: {failure}" for failure in status.failures))


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`; a dash where it is not known."""
    if math.isnan(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counts(store: Store, plan: Plan, at_work: Collection[str]) -> list[MethodCounts]:
    cells = list(plan.plan(store.rows, store.given_up))

    def counted(keys: Collection[str]) -> Counter[str]:
        return Counter(cell.method for cell in cells if cell.key in keys)

    done, running, failed = counted(store.rows), counted(at_work), counted(store.failures)
    known = Counter(cell.method for cell in cells)
    waiting = known - done - running - failed
    return [
        MethodCounts(method, done[method], running[method], waiting[method], failed[method])
        for method in known
    ]


def _left(store: Store, waiting: int, running: int) -> float:
    walls = [row.wall for row in store.rows.values() if row.wall is not None]
    if not walls or not running:
        return math.nan
    return sum(walls) / len(walls) * (waiting + running / 2) / running


def _by_method(status: Status) -> Table:
    table = _table("method", "done", "at work", "waiting", "failed")
    for count in status.methods:
        numbers = (count.done, count.running, count.waiting, count.failed)
        table.add_row(own.method_title(count.method), *map(str, numbers))
    return table


def _at_work(status: Status) -> Table:
    table = _table("at work", "epoch", "loss", "accuracy %", "s an epoch", "left", "worker")
    for cell in status.cells:
        table.add_row(
            cell.what,
            f"{cell.epoch} of {cell.epochs}",
            "–" if cell.loss is None else f"{cell.loss:.3f}",
            "–" if cell.accuracy is None else f"{cell.accuracy:.1f}",
            f"{cell.seconds / cell.epoch:.2g}" if cell.epoch else "–",
            duration(cell.left),
            cell.worker,
        )
    return table


def _table(first: str, *further: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for title in further:
        table.add_column(title, justify="right")
    return table

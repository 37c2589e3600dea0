"""How far a run is: cells done, at work, waiting and given up, and what those at work say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from flatmin.studies.plan.tuning import Plan, progress_of
from flatmin.studies.report import columns, text
from flatmin.studies.report.columns import ConsoleColumn
from flatmin.studies.store.files import finite
from flatmin.studies.store.store import Running, Store
from flatmin.training import own
from flatmin.training.settings import Training


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
        abandoned: those that a worker has left amid; they are free, and count as waiting.
        failures: why cells were given up.
        left: seconds until the end, with the workers there are; nan if unknown.
        command: that goes on with it.
    """

    done: int
    running: int
    waiting: int
    failed: int
    methods: tuple[MethodCounts, ...]
    cells: tuple[CellStatus, ...]
    abandoned: tuple[CellStatus, ...]
    failures: tuple[str, ...]
    left: float
    command: str

    @classmethod
    def of(cls, store: Store, plan: Plan, command: str = "") -> Status:
        """Of the store as it was last read; `command` is told where nobody is at work."""
        running = {cell.key: cell for cell in store.at_work}
        progress = progress_of(plan, store)
        waiting = max(0, progress.left - len(running))
        return cls(
            done=progress.done,
            running=len(running),
            waiting=waiting,
            failed=progress.failed,
            methods=tuple(_counts(store, plan, running)),
            cells=tuple(CellStatus.of(cell) for cell in running.values()),
            abandoned=tuple(
                CellStatus.of(cell)
                for cell in store.running.values()
                if cell.key not in {*running, *store.rows}
            ),
            failures=tuple(
                f"{described(failure.training)}: {failure.reason}"
                for failure in store.failures.values()
            ),
            left=remaining(store, waiting, len(running)),
            command=command,
        )

    @property
    def total(self) -> int:
        return self.done + self.running + self.waiting + self.failed

    @property
    def settled(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.running and not self.waiting

    @property
    def interrupted(self) -> bool:
        """Whether there is something to do, and nobody who does it."""
        return not self.settled and not self.running

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        about = {"total": self.total, "settled": self.settled, "interrupted": self.interrupted}
        return finite({**about, **asdict(self)})


def described(training: Training) -> str:
    """`SAM ρ 0.05 seed 1`."""
    rho = "" if training.rho is None else f" ρ {training.rho:g}"
    purpose = f"tuning {-training.seed}" if training.holdout else f"seed {training.seed}"
    return f"{own.method_title(training.method, training.base)}{rho} {purpose}"


def shown(status: Status, width: int) -> RenderableType:
    """For a terminal of that many characters."""
    line = (
        f"{status.done} of {status.total} runs done, {status.running} at work, "
        f"{status.waiting} waiting, {status.failed} failed"
    )
    left = "" if math.isnan(status.left) else f"; about {text.duration(status.left)} left"
    parts: list[RenderableType] = [Text(line + left)]
    if status.interrupted:
        parts.append(Text(f"nobody is at work: {nobody(status)}"))
    parts += ["", _by_method(status, width)]
    for title, cells in (("at work", status.cells), ("left amid", status.abandoned)):
        if cells:
            parts += ["", _cells(title, cells, width)]
    return Group(*parts, *(Text(f"failed: {failure}") for failure in status.failures))


def nobody(status: Status) -> str:
    """What to do where nobody is at work."""
    return f"to go on, {status.command}" if status.command else "the same command goes on"


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


def remaining(store: Store, waiting: int, running: int) -> float:
    """Seconds until the end, by the time that the finished cells took; nan if unknown."""
    walls = [row.wall for row in store.rows.values() if row.wall is not None]
    if not walls or not running:
        return math.nan
    return sum(walls) / len(walls) * (waiting + running / 2) / running


def _by_method(status: Status, width: int) -> RenderableType:
    rows = [
        (
            own.method_title(count.method),
            *map(str, (count.done, count.running, count.waiting, count.failed)),
        )
        for count in status.methods
    ]
    titles = {"done": 0, "at work": 1, "waiting": 2, "failed": 3}
    named = [ConsoleColumn(title, rank) for title, rank in titles.items()]
    return columns.table([ConsoleColumn("method", left=True), *named], rows, width)


def _cells(title: str, cells: Sequence[CellStatus], width: int) -> RenderableType:
    rows = [
        (
            cell.what,
            f"{cell.epoch} of {cell.epochs}",
            "–" if cell.loss is None else f"{cell.loss:.3f}",
            "–" if cell.accuracy is None else f"{cell.accuracy:.1f}",
            f"{cell.seconds / cell.epoch:.2g}" if cell.epoch else "–",
            text.duration(cell.left),
            cell.worker,
        )
        for cell in cells
    ]
    ranks = {"epoch": 0, "loss": 4, "accuracy %": 3, "s an epoch": 5, "left": 1, "worker": 6}
    named = [ConsoleColumn(name, rank) for name, rank in ranks.items()]
    return columns.table([ConsoleColumn(title, left=True), *named], rows, width)

"""Doing the cells of a table of few-shot learning, several at once, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from flatmin.studies.meta import testing, training
from flatmin.studies.meta.pools import Pools
from flatmin.studies.meta.recipes import (
    Cell,
    FewShotEntry,
    best,
    entries,
    evaluation,
    judged,
    known,
    trials,
)
from flatmin.studies.plan import serialization
from flatmin.studies.plan.fewshot import FewShot
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.run.processes import Child, await_server
from flatmin.training.errors import InputError


@dataclass(frozen=True)
class Finding:
    """What an entry has come to.

    Fields:
        entry: the method and its place.
        judged: best accuracy on the validation classes by radius, over the trials.
        tested: its trainings, seed by seed.
    """

    entry: FewShotEntry
    judged: Mapping[float, float]
    tested: tuple[testing.Tested, ...]

    @property
    def edge(self) -> bool:
        """Whether the chosen radius is the smallest or the largest that was tried."""
        return bool(self.judged) and best(self.judged) in (min(self.judged), max(self.judged))


def exported(plan: ScaledRecipe, asked: str, found: Sequence[Finding]) -> dict[str, Any]:
    """All of it, as `flatmin report` reads it; `asked` is what `flatmin run` was given."""
    episodes = [
        {
            "at": each.entry.at,
            "label": each.entry.label,
            "judged": [[rho, accuracy] for rho, accuracy in each.judged.items()],
            "tested": [tested.as_data() for tested in each.tested],
        }
        for each in found
    ]
    return {"plan": serialization.described(plan, asked), "runs": [], "episodes": episodes}


def restored(plan: ScaledRecipe, episodes: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What `exported` has put into a file. Raises InputError where it is not whole."""
    known = {(each.at, each.label): each for each in entries(plan)}
    try:
        return [
            Finding(
                known[each["at"], each["label"]],
                dict(each["judged"]),
                tuple(map(testing.Tested.of_data, each["tested"])),
            )
            for each in episodes
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            "what this run of few-shot learning has found cannot be read: run it again"
        ) from None


def run(
    plan: ScaledRecipe,
    folder: Path,
    *,
    workers: int = 1,
    tell: Callable[[Cell], training.Tell] | None = None,
) -> list[Finding]:
    """Train and test what is missing in `folder`, each cell in a folder of its own.

    Where radii are to be chosen, each is tried by the same number of trainings, with seeds of
    their own, and judged by the best model's accuracy on the validation classes; of equals the
    smallest is taken.

    Args:
        plan: of a recipe of few-shot learning.
        folder: for all of it; what is finished there is not done again.
        workers: processes that do cells at once, one thread each; with 1 this process does them.
        tell: gives what hears of the meta-steps of a cell; with several workers it is pickled.
    """
    if workers > 1:
        together = _together(plan, folder, workers, tell)

        def done(cell: Cell) -> testing.Tested | None:
            return together[cell.folder]

    else:
        doer = Doer(folder)

        def done(cell: Cell) -> testing.Tested | None:
            return doer.do(cell, None if tell is None else tell(cell))

    found: list[Finding] = []
    for entry in entries(plan):
        for trial in trials(plan, entry):
            done(trial)
        scores = judged(plan, entry, folder)
        assert scores is not None, "every trial is done"
        tested = [done(cell) for cell in evaluation(plan, entry, scores)]
        found.append(Finding(entry, scores, tuple(each for each in tested if each is not None)))
    return found


class Doer:
    """Does cells, one after another, in folders below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pools: tuple[FewShot, Pools] | None = None  # of one at a time

    def do(self, cell: Cell, tell: training.Tell | None) -> testing.Tested | None:
        """Train, and test what is to be tested; what is finished already is read."""
        settings, folder = cell.settings, self._folder / cell.folder
        if self._pools is None or self._pools[0] != settings:
            self._pools = settings, Pools.load(settings)
        pools = self._pools[1]
        training.train(settings, pools, folder, tell=tell)
        return None if cell.chooses else testing.measured(settings, pools, folder)


def _together(
    plan: ScaledRecipe, folder: Path, count: int, tell: Callable[[Cell], training.Tell] | None
) -> dict[str, testing.Tested | None]:
    """Do all cells in so many processes; however this ends, they end with it.

    Returns what came out, by folder.
    """
    found: dict[str, testing.Tested | None] = {}
    begun = set[str]()
    idle: list[_Worker] = []
    busy: dict[object, tuple[_Worker, Cell]] = {}
    team: list[_Worker] = []
    await_server()
    try:
        team.extend(_Worker(folder, index) for index in range(count))
        idle.extend(team)
        while True:
            for cell in known(plan, folder):
                if idle and cell.folder not in begun:
                    begun.add(cell.folder)
                    worker = idle.pop()
                    worker.begin(cell, None if tell is None else tell(cell))
                    busy[worker.pipe] = worker, cell
            if not busy:
                return found
            for pipe in wait([worker.pipe for worker, _ in busy.values()]):
                worker, cell = busy.pop(pipe)
                found[cell.folder] = worker.answer(cell)
                idle.append(worker)
    finally:
        for worker in team:
            worker.child.stop()


class _Worker:
    """A process that does the cells which are sent to it, one after another."""

    def __init__(self, folder: Path, index: int) -> None:
        self.pipe, theirs = Pipe()
        self.child = Child(_serve, theirs, folder, index=index)
        theirs.close()

    def begin(self, cell: Cell, tell: training.Tell | None) -> None:
        """Let it do a cell; InputError if the process has ended."""
        try:
            self.pipe.send((cell, tell))
        except OSError:
            raise self._death(cell) from None

    def answer(self, cell: Cell) -> testing.Tested | None:
        """What came out of the cell that it is at; InputError if the process has ended over it."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            raise self._death(cell) from None

    def _death(self, cell: Cell) -> InputError:
        how = self.child.ended()
        return InputError(f"{cell.name}: its process died ({how}); the same command continues")


def _serve(pipe: Connection[Any, Any], folder: Path) -> None:
    doer = Doer(folder)
    while True:
        cell, tell = pipe.recv()
        pipe.send(doer.do(cell, tell))

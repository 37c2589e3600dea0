"""The tables of few-shot learning: every cell a training and its test, several at once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from flatmin import methods
from flatmin.studies.meta import testing, training
from flatmin.studies.meta.pools import Pools
from flatmin.studies.plan import serialization, tuning
from flatmin.studies.plan.fewshot import FewShot
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.schema import Changes, Position
from flatmin.studies.run.processes import Child
from flatmin.training.errors import InputError


@dataclass(frozen=True)
class FewShotEntry:
    """A method at one place of a table.

    Fields:
        label: of the method; `at` says where on the grid.
        usual: how it trains, seed 0, with the radius that it has where none is chosen.
        radii: to choose from on the validation classes; empty for nothing to choose.
        printed: the paper's number there; None if there is none, or if the data are others here.
    """

    label: str
    at: str
    usual: FewShot
    radii: tuple[float, ...]
    printed: float | None


@dataclass(frozen=True)
class Cell:
    """One training of a table; those whose seed is below 0 choose a radius."""

    entry: FewShotEntry
    settings: FewShot

    @property
    def chooses(self) -> bool:
        """Whether it is there to choose a radius, and is not tested."""
        return self.settings.seed < 0

    @property
    def folder(self) -> str:
        """A name for its folder."""
        words = [self.entry.at, self.entry.label, f"seed {self.settings.seed}"]
        if self.entry.radii:
            words.insert(2, f"rho {self.settings.rho:g}")
        plain = " ".join(words).lower().replace("seed -", "trial ")
        return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-")

    @property
    def name(self) -> str:
        """For a line that tells of it."""
        at = f"{self.entry.at}, " if self.entry.at else ""
        settings = self.settings
        what = f"trial of ρ {settings.rho:g}" if self.chooses else f"seed {settings.seed}"
        return f"{at}{self.entry.label}, {what}"


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
        return bool(self.judged) and _best(self.judged) in (min(self.judged), max(self.judged))


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


def entries(plan: ScaledRecipe) -> Iterator[FewShotEntry]:
    """Every method at every place of a recipe at a scale."""
    full = {
        tuple(each.position.items()): each.changes
        for each in ScaledRecipe(plan.recipe, "full").settings
    }
    for setting in plan.settings:
        at = place(setting.position)
        for label, changes in setting.changes.items():
            paper = full.get(tuple(setting.position.items()), {}).get(label)
            same = paper is not None and _protocol(paper) == _protocol(changes)
            printed = plan.printed(setting.position, label) if same else None
            usual = FewShot.of(changes, 0)
            mean = printed.mean if printed else None
            yield FewShotEntry(label, at, usual, _radii(plan, usual), mean)


def place(position: Position) -> str:
    """Where on the grid, in words."""
    return ", ".join(position.values())


def _radii(plan: ScaledRecipe, usual: FewShot) -> tuple[float, ...]:
    """What a method chooses its radius from, the small ones first."""
    if plan.tune is None or usual.method == "sgd":
        return ()
    default = methods.find(usual.method).rho if usual.rho is None else usual.rho
    return tuple(sorted(plan.tune.rho or (default * each for each in plan.tune.factors)))


def _protocol(changes: Changes) -> tuple[object, ...]:
    """Data, classes, ways, shots and queries: where these agree, so may numbers."""
    return FewShot.of(changes, 0).problem[:-1]


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
    doer = Doer(folder)
    if workers > 1:
        _together(plan, folder, workers, tell)

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


def trials(plan: ScaledRecipe, entry: FewShotEntry) -> Iterator[Cell]:
    """What a radius is chosen by."""
    for rho, seed in itertools.product(entry.radii, range(1, _trials(plan) + 1)):
        yield Cell(entry, replace(entry.usual, rho=rho, seed=-seed))


def judged(plan: ScaledRecipe, entry: FewShotEntry, folder: Path) -> dict[float, float] | None:
    """Accuracy on the validation classes by radius; None until every trial has finished."""
    found: dict[float, list[float]] = {rho: [] for rho in entry.radii}
    for cell in trials(plan, entry):
        history = training.history(folder / cell.folder)
        if not history or history[-1].step < cell.settings.steps:
            return None
        found[cell.settings.rho or 0.0].append(max(row.accuracy for row in history))
    return {rho: tuning.mean(values) for rho, values in found.items()}


def evaluation(
    plan: ScaledRecipe, entry: FewShotEntry, scores: Mapping[float, float]
) -> Iterator[Cell]:
    """What is tested, with the radius that is best by `scores`."""
    rho = _best(scores) if scores else entry.usual.rho
    for seed in range(plan.seeds):
        yield Cell(entry, replace(entry.usual, rho=rho, seed=seed))


def _known(plan: ScaledRecipe, folder: Path) -> Iterator[Cell]:
    """The cells that can be done by now: those that choose radii first."""
    every = list(entries(plan))
    for entry in every:
        yield from trials(plan, entry)
    for entry in every:
        scores = judged(plan, entry, folder)
        if scores is not None:
            yield from evaluation(plan, entry, scores)


def _together(
    plan: ScaledRecipe, folder: Path, count: int, tell: Callable[[Cell], training.Tell] | None
) -> None:
    """Do all cells in so many processes; however this ends, they end with it."""
    begun = set[str]()
    idle: list[_Worker] = []
    busy: dict[object, tuple[_Worker, Cell]] = {}
    team: list[_Worker] = []
    try:
        team.extend(_Worker(folder, index) for index in range(count))
        idle.extend(team)
        while True:
            for cell in _known(plan, folder):
                if idle and cell.folder not in begun:
                    begun.add(cell.folder)
                    worker = idle.pop()
                    worker.pipe.send((cell, None if tell is None else tell(cell)))
                    busy[worker.pipe] = worker, cell
            if not busy:
                return
            for pipe in wait([worker.pipe for worker, _ in busy.values()]):
                worker, cell = busy.pop(pipe)
                worker.heard(cell)
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

    def heard(self, cell: Cell) -> None:
        """Return if `cell` is done; InputError if its process has ended over it."""
        try:
            self.pipe.recv()
        except (EOFError, OSError):
            how = self.child.ended()
            raise InputError(
                f"{cell.name}: its process died ({how}); the same command continues"
            ) from None


def _serve(pipe: Connection[Any, Any], folder: Path) -> None:
    doer = Doer(folder)
    while True:
        cell, tell = pipe.recv()
        doer.do(cell, tell)
        pipe.send(None)


def _trials(plan: ScaledRecipe) -> int:
    """Of each radius."""
    return 0 if plan.tune is None else plan.tune.seeds


def _best(scores: Mapping[float, float]) -> float:
    """The radius with the highest score; of equals the smallest."""
    return max(sorted(scores), key=lambda rho: scores[rho])

"""What a table of few-shot learning is made of: every cell a training, most of them tested."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flatmin import methods
from flatmin.studies.meta import training
from flatmin.studies.plan import tuning
from flatmin.studies.plan.fewshot import FewShot
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.schema import Changes, Position


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
    rho = best(scores) if scores else entry.usual.rho
    for seed in range(plan.seeds):
        yield Cell(entry, replace(entry.usual, rho=rho, seed=seed))


def known(plan: ScaledRecipe, folder: Path) -> Iterator[Cell]:
    """The cells that can be done by now: those that choose radii first."""
    every = list(entries(plan))
    for entry in every:
        yield from trials(plan, entry)
    for entry in every:
        scores = judged(plan, entry, folder)
        if scores is not None:
            yield from evaluation(plan, entry, scores)


def _trials(plan: ScaledRecipe) -> int:
    """Of each radius."""
    return 0 if plan.tune is None else plan.tune.seeds


def best(scores: Mapping[float, float]) -> float:
    """The radius with the highest score; of equals the smallest."""
    return max(sorted(scores), key=lambda rho: scores[rho])

"""The tables of few-shot learning: every cell a training and its test, one after another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flatmin import methods
from flatmin.studies.meta import testing, training
from flatmin.studies.meta.pools import Pools
from flatmin.studies.plan import tuning
from flatmin.studies.plan.fewshot import FewShot
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.schema import Changes


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
        seed = self.settings.seed
        what = f"seed {seed}" if seed >= 0 else f"trial of ρ {self.settings.rho:g}"
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


def entries(plan: ScaledRecipe) -> Iterator[FewShotEntry]:
    """Every method at every place of a recipe at a scale."""
    full = {
        tuple(each.position.items()): each.changes
        for each in ScaledRecipe(plan.recipe, "full").settings
    }
    for setting in plan.settings:
        at = ", ".join(setting.position.values())
        for label, changes in setting.changes.items():
            paper = full.get(tuple(setting.position.items()), {}).get(label)
            same = paper is not None and _protocol(paper) == _protocol(changes)
            printed = plan.printed(setting.position, label) if same else None
            usual = FewShot.of(changes, 0)
            mean = printed.mean if printed else None
            yield FewShotEntry(label, at, usual, _radii(plan, usual), mean)


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
    plan: ScaledRecipe, folder: Path, *, tell: Callable[[Cell], training.Tell] | None = None
) -> list[Finding]:
    """Train and test what is missing in `folder`, each cell in a folder of its own.

    Where radii are to be chosen, each is tried by the same number of trainings, with seeds of
    their own, and judged by the best model's accuracy on the validation classes; of equals the
    smallest is taken.
    """
    pools: dict[FewShot, Pools] = {}

    def trained(entry: FewShotEntry, settings: FewShot) -> tuple[Cell, Pools]:
        cell = Cell(entry, settings)
        if settings not in pools:
            pools.clear()  # of one at a time
            pools[settings] = Pools.load(settings)
        told = None if tell is None else tell(cell)
        training.train(settings, pools[settings], folder / cell.folder, tell=told)
        return cell, pools[settings]

    def judged(entry: FewShotEntry, rho: float) -> float:
        assert plan.tune is not None
        found: list[float] = []
        for seed in range(-1, -plan.tune.seeds - 1, -1):
            cell, _ = trained(entry, replace(entry.usual, rho=rho, seed=seed))
            history = training.history(folder / cell.folder)
            found.append(max(row.accuracy for row in history))
        return tuning.mean(found)

    def found(entry: FewShotEntry) -> Finding:
        scores = {rho: judged(entry, rho) for rho in entry.radii}
        tested: list[testing.Tested] = []
        for seed in range(plan.seeds):
            rho = _best(scores) if scores else entry.usual.rho
            cell, data = trained(entry, replace(entry.usual, rho=rho, seed=seed))
            tested.append(testing.measured(cell.settings, data, folder / cell.folder))
        return Finding(entry, scores, tuple(tested))

    return list(map(found, entries(plan)))


def _best(scores: Mapping[float, float]) -> float:
    """The radius with the highest score; of equals the smallest."""
    return max(sorted(scores), key=lambda rho: scores[rho])


def with_paper(findings: list[Finding]) -> str:
    """Markdown: the paper's numbers beside ours, where data and protocol agree; nothing else."""
    rows = ["| setting | method | seed | paper | ours (best on validation) |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for found in findings:
        for tested in found.tested:
            if found.entry.printed is None:
                continue
            mean = sum(tested.best) / len(tested.best)
            half = training.half_width(list(tested.best))
            rows.append(
                f"| {found.entry.at} | {found.entry.label} | {tested.settings.seed} "
                f"| {found.entry.printed:.2f} | {mean:.2f} ± {half:.2f} |"
            )
    if len(rows) == 2:
        return "The paper's numbers are of other data or tasks, and so stand beside none of these."
    return "\n".join([*rows, ""])


def choices(findings: list[Finding]) -> str:
    """Markdown: what each radius reached on the validation classes; empty where none was chosen."""
    tuned = [found for found in findings if found.judged]
    if not tuned:
        return ""
    rows = ["| setting | method | accuracy on the validation classes, by radius |"]
    rows.append("| --- | --- | --- |")
    for found in tuned:
        best = _best(found.judged)
        scores = ", ".join(
            f"**{rho:g}: {score:.2f}**" if rho == best else f"{rho:g}: {score:.2f}"
            for rho, score in found.judged.items()
        )
        rows.append(f"| {found.entry.at} | {found.entry.label} | {scores} |")
    return "\n".join([*rows, ""])

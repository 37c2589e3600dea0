"""The tables of few-shot learning: every cell a training and its test, one after another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flatmin.studies.meta import testing, training
from flatmin.studies.meta.pools import Pools
from flatmin.studies.plan.fewshot import FewShot
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.schema import Changes


@dataclass(frozen=True)
class Cell:
    """One training of a table.

    Fields:
        label: of its method; `at` says where on the grid.
        printed: the paper's number there; None if there is none, or if the data are others here.
    """

    label: str
    at: str
    settings: FewShot
    printed: float | None

    @property
    def folder(self) -> str:
        """A name for its folder."""
        words = f"{self.at} {self.label} seed {self.settings.seed}"
        return re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-")


def cells(plan: ScaledRecipe) -> Iterator[Cell]:
    """Every training of a recipe at a scale."""
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
            for seed in range(plan.seeds):
                found = FewShot.of(changes, seed)
                yield Cell(label, at, found, printed.mean if printed else None)


def _protocol(changes: Changes) -> tuple[object, ...]:
    """Data, classes, ways, shots and queries: where these agree, so may numbers."""
    return FewShot.of(changes, 0).problem[:-1]


def run(
    plan: ScaledRecipe, folder: Path, *, tell: Callable[[Cell], training.Tell] | None = None
) -> list[tuple[Cell, testing.Tested]]:
    """Train and test what is missing in `folder`, each cell in a folder of its own."""
    found: list[tuple[Cell, testing.Tested]] = []
    pools: dict[FewShot, Pools] = {}
    for cell in cells(plan):
        if cell.settings not in pools:
            pools = {cell.settings: Pools.load(cell.settings)}
        own = folder / cell.folder
        training.train(
            cell.settings, pools[cell.settings], own, tell=None if tell is None else tell(cell)
        )
        found.append((cell, testing.measured(cell.settings, pools[cell.settings], own)))
    return found


def with_paper(found: list[tuple[Cell, testing.Tested]]) -> str:
    """Markdown: the paper's numbers beside ours, where data and protocol agree."""
    rows = ["| setting | method | seed | paper | ours (best on validation) |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for cell, tested in found:
        mean = sum(tested.best) / len(tested.best)
        half = training.half_width(list(tested.best))
        paper = "other data here" if cell.printed is None else f"{cell.printed:.2f}"
        ours = f"{mean:.2f} ± {half:.2f}"
        rows.append(f"| {cell.at} | {cell.label} | {cell.settings.seed} | {paper} | {ours} |")
    return "\n".join([*rows, ""])

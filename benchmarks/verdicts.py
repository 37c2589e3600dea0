"""How often a table of equal methods names a winner, and how often a better method is found.

    python benchmarks/verdicts.py [--tables 10000] [--processes 2]

Every cell is so many made-up tables, judged by the code that judges `flatmin compare` and
`flatmin run`. An accuracy is a share of right images among the test images, drawn with the chance

    p = 90 % + seed + method in this seed + method on these images

where the seeds (sd 1 point) are shared by all methods, and the second term has an sd of 0.5 points.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatmin.studies.report.statistics import Comparisons

SEEDS = (2, 3, 5, 10)
METHODS = (3, 5, 9)
IMAGES = (360, 10_000)
GAPS = {360: 6.0, 10_000: 1.5}
"""Points by which the better method is better where the power is measured."""

SHARE = 0.9
SEED_SD = 1.0
RUN_SD = 0.5
WILD = 10.0
"""Times the spread of the others that a wild method has."""

COMMON = 0.05
"""Part of the test images' error that belongs to a method and not to a run: see the documents."""


@dataclass(frozen=True)
class Scenario:
    """What the methods of a table are like: one better by `gap` points, one wild, or all alike."""

    title: str
    gap: bool = False
    wild: bool = False
    common: float = 0.0


SCENARIOS = (
    Scenario("all equal"),
    Scenario("all equal, the images of a test set suit some methods", common=COMMON),
    Scenario("all equal, the spread of one ten times that of the others", wild=True),
    Scenario("one better", gap=True),
)


@dataclass(frozen=True)
class Cell:
    """So many tables of one kind."""

    scenario: Scenario
    images: int
    methods: int
    seeds: int
    tables: int


@dataclass(frozen=True)
class Rates:
    """Shares of tables: with a winner, with anything told from the best, with the pool split."""

    winner: float
    told: float
    apart: float


def tables(cell: Cell) -> Iterator[NDArray[np.float64]]:
    """Accuracies in percent, methods by seeds."""
    scenario = cell.scenario
    numbers = [cell.images, cell.methods, cell.seeds, SCENARIOS.index(scenario)]
    rng = np.random.default_rng(numbers)
    size = (cell.methods, cell.seeds)
    sd = np.full((cell.methods, 1), RUN_SD)
    sd[-1] *= WILD if scenario.wild else 1
    gaps = np.zeros((cell.methods, 1))
    gaps[0] = GAPS[cell.images] if scenario.gap else 0
    own = 100 * np.sqrt(scenario.common * SHARE * (1 - SHARE) / cell.images)
    for _ in range(cell.tables):
        points = 100 * SHARE + gaps + rng.normal(0, SEED_SD, (1, cell.seeds))
        points = points + sd * rng.normal(size=size) + own * rng.normal(size=(cell.methods, 1))
        right = rng.binomial(cell.images, np.clip(points / 100, 0, 1))
        yield 100 * right / cell.images


def rates(cell: Cell) -> Rates:
    """Of the tables of a cell."""
    found = np.zeros(3)
    for table in tables(cell):
        values = {str(name): dict(enumerate(row)) for name, row in enumerate(table.tolist())}
        compared = Comparisons(values, cell.images)
        best = compared.best
        told = [compared.lead(best, other).distinct for other in values if other != best]
        # a winner that is not the better one is no find
        won = all(told) and (not cell.scenario.gap or best == "0")
        found += won, any(told), bool(compared.pool.apart)
    return Rates(*(found / cell.tables).tolist())


def main() -> None:
    """Print the rates of all cells."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tables", type=int, default=10_000, help="of each kind")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    cells = [
        Cell(scenario, images, methods, seeds, asked.tables)
        for scenario, images, methods, seeds in itertools.product(SCENARIOS, IMAGES, METHODS, SEEDS)
    ]
    with multiprocessing.Pool(asked.processes) as pool:
        shown = ""
        for cell, found in zip(cells, pool.imap(rates, cells), strict=True):
            if cell.scenario.title != shown:
                shown = cell.scenario.title
                gaps = ", ".join(f"{gap:g} points of {n} images" for n, gap in GAPS.items())
                print(f"\n{shown}{f' ({gaps})' if cell.scenario.gap else ''}, % of tables")
                print("images  methods  seeds  winner  told from the best  of another spread")
            print(
                f"{cell.images:6}  {cell.methods:7}  {cell.seeds:5}  {100 * found.winner:6.2f}"
                f"  {100 * found.told:18.2f}  {100 * found.apart:17.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

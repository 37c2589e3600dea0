"""A comparison on the terminal: progress while it runs, on stderr, and the table, on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from flatmin.studies.plan.comparison import Outcome
from flatmin.studies.plan.estimate import CostEstimate
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.recipe import RecipeSummary
from flatmin.studies.plan.schema import SCALES
from flatmin.studies.plan.tuning import Progress
from flatmin.studies.report import comparison as report
from flatmin.studies.report import paper as tables
from flatmin.studies.report import text
from flatmin.studies.report.measures import heading
from flatmin.studies.report.status import described, duration
from flatmin.studies.report.summary import Line, Summary, remarks, verdict
from flatmin.studies.store.store import Failed, Store

Columns = Mapping[str, Callable[[Line], str]]
"""What stands above and, for each method, in the columns of a table."""


class ProgressBar:
    """A live bar where someone watches; else a line every `pause` seconds at most.

    Use as a context manager, and call it now and then with the store and how far it is by then.
    """

    def __init__(self, name: str, total: int, store: Store, pause: float = 10.0) -> None:
        self._begun = False
        self._start = time.monotonic()
        self._pause = pause
        self._told = self._start
        console = Console(stderr=True)
        # four frames a second: drawing takes time from the training next to it
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            refresh_per_second=4,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._bar.add_task(name, total=total, unit="runs")
        self._each: dict[int, TaskID] = {}
        self._failed: set[str] = set(store.failures)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, store: Store, progress: Progress) -> None:
        if progress.done and not self._begun:
            self._say(f"{progress.done} of {progress.total} runs are there already")
        self._begun = True
        self._bar.update(self._all, completed=progress.done, total=progress.total)
        for number in self._each.keys() - store.running.keys():
            self._bar.remove_task(self._each.pop(number))
        for number, cell in store.running.items():
            if number not in self._each:
                epochs = cell.training.epochs
                what = described(cell.training)
                self._each[number] = self._bar.add_task(what, total=epochs, unit="epochs")
            self._bar.update(self._each[number], completed=cell.progress.epoch)
        for key in store.failures.keys() - self._failed:
            self._say(failed(store.failures[key]))
        self._failed = set(store.failures)
        self._now_and_then(progress)

    def _now_and_then(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._bar.disable and now - self._told >= self._pause:
            self._told = now
            self._say(f"{progress.done} of {progress.total} runs, {now - self._start:.0f} s")

    def _say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


def failed(failure: Failed) -> str:
    """One line for a run that is missing."""
    return f"failed: {described(failure.training)}: {failure.reason}"


def print_comparison(
    outcome: Outcome, summary: Summary, page: Path | None, console: Console | None = None
) -> None:
    """Print the table, the verdict and where the report is."""
    console = console or Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    results: Columns = {
        _measured(outcome): lambda line: _accuracy(summary, line),
        **{f"{Path(name).name} %": _examined(name) for name in outcome.comparison.examine},
        f"difference (95 %)\nto {summary.first}": lambda line: _difference(summary, line),
        "at equal\ncost": lambda line: text.spread(line.at_equal_cost, summary.digits),
        "rho": _rho,
        **({"lr": _rate} if "lr" in outcome.comparison.tune else {}),
    }
    costs: Columns = {
        "gradients\na step": lambda line: text.number(line.ratio),
        "%SAM": lambda line: text.number(line.mean("share"), 0),
        "‖ε‖": lambda line: text.number(line.mean("radius"), 3),
        "seconds\nan epoch": lambda line: text.number(line.mean("seconds_per_epoch")),
    }
    console.print(f"\n{report.subject(outcome)}", markup=False)
    table = _table(summary, {**results, **costs})
    fits = console.measure(table, options=console.options.update(width=999)).maximum
    split = [_table(summary, results), _table(summary, costs)]
    for part in [table] if fits <= console.width else split:
        console.print()
        console.print(part)
    console.print(f"\n{verdict(summary)}", markup=False)
    for remark in remarks(outcome.comparison, summary):
        console.print(f"• {remark}", markup=False)
    if page is not None:
        console.print(f"\n{page}", markup=False, soft_wrap=True)


def print_recipe(plan: ScaledRecipe, store: Store, page: Path) -> None:
    """Print what a recipe has given beside what its paper prints."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    recipe = plan.recipe
    console.print(f"\n{recipe.shows}: {recipe.title}", markup=False)
    if plan.says:
        console.print(f"at the scale {plan.scale!r}: {plan.says}", markup=False)
    console.print()
    console.print(tables.table(plan, store.rows))
    if (said := tables.verdict_of(plan, tables.blocks(plan, store.rows))) is not None:
        console.print(f"\n{said}", markup=False)
    for failure in store.failures.values():
        console.print(failed(failure), markup=False)
    console.print(f"\n{page}", markup=False, soft_wrap=True)


def recipes(listing: Sequence[RecipeSummary]) -> None:
    """Print the recipes and what they take, in runs and estimated time on two cores."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("shows")
    for scale in SCALES:
        table.add_column(scale, justify="right", no_wrap=True)
    for each in listing:
        needs = f" (needs {', '.join(each.needs)})" if each.needs else ""
        costs = [_cost(each.estimates.get(scale)) for scale in SCALES]
        table.add_row(each.name, f"{each.shows}: {each.title}{needs}", *costs)
    console.print(table)
    console.print("\nruns and hours on two cores, estimated to a factor of two")


def _cost(estimate: CostEstimate | None) -> str:
    if estimate is None or not estimate.runs:
        return "–"
    return f"{estimate.runs} runs, {duration(3600 * estimate.hours)}"


def _table(summary: Summary, columns: Columns) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for line in summary.lines:
        leads = summary.rank(line)
        cells = [cell(line) for cell in columns.values()]
        table.add_row(line.title, *cells, style="bold" if leads else None)
    return table


def _accuracy(summary: Summary, line: Line) -> str:
    marks = ("†" if line in summary.apart else "") + ("!" if line.troubles else "")
    return text.spread(line.value, summary.digits) + marks


def _measured(outcome: Outcome) -> str:
    """What stands above what was measured."""
    shown = heading(outcome.comparison.measure)
    return "accuracy %" if shown.accuracy else shown.title.lower()


def _examined(name: str) -> Callable[[Line], str]:
    return lambda line: text.spread(line.spread(name))


def _difference(summary: Summary, line: Line) -> str:
    return "" if line.difference is None else text.difference(line.difference, summary.digits)


def _rate(line: Line) -> str:
    return f"{line.tuned['lr']:g}" if "lr" in line.tuned else "–"


def _rho(line: Line) -> str:
    return "–" if line.rho is None else f"{line.rho:g}" + ("*" if line.edge else "")

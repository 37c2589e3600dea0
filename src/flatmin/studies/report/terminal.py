"""A comparison on the terminal: progress while it runs, on stderr, and the table, on stdout."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
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

from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.opening import Outcome
from flatmin.studies.plan.tuning import Progress
from flatmin.studies.report import columns, text
from flatmin.studies.report import comparison as report
from flatmin.studies.report import paper as tables
from flatmin.studies.report.columns import ConsoleColumn
from flatmin.studies.report.measures import heading
from flatmin.studies.report.status import described, remaining
from flatmin.studies.report.summary import Line, Summary, remarks, verdict
from flatmin.studies.store.store import Failed, Store


class ProgressBar:
    """A live bar where someone watches; else a line every `pause` seconds at most.

    Use as a context manager, and call it now and then with the store and how far it is by then.
    """

    def __init__(self, name: str, total: int, store: Store, pause: float = 10.0) -> None:
        self._begun = False
        self._start = time.monotonic()
        self._pause = pause
        self._told = self._start
        console = Console(stderr=True, emoji=False)
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
        self._now_and_then(store, progress)

    def _now_and_then(self, store: Store, progress: Progress) -> None:
        now = time.monotonic()
        if self._bar.disable and now - self._told >= self._pause:
            self._told = now
            at_work = len(store.running)
            left = remaining(store, max(0, progress.left - at_work), at_work)
            about = "" if math.isnan(left) else f", about {text.duration(left)} left"
            taken = text.duration(now - self._start)
            self._say(f"{progress.done} of {progress.total} runs, {taken}{about}")

    def _say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


def failed(failure: Failed) -> str:
    """One line for a run that is missing."""
    return f"failed: {described(failure.training)}: {failure.reason}"


def print_comparison(
    outcome: Outcome, summary: Summary, page: Path | None, console: Console | None = None
) -> None:
    """Print the table, the verdict and where the report is."""
    console = console or columns.console(140)
    shown: Mapping[ConsoleColumn, Callable[[Line], str]] = {
        ConsoleColumn("method", left=True): lambda line: line.title,
        ConsoleColumn(_measured(outcome)): lambda line: _accuracy(summary, line),
        **{
            ConsoleColumn(f"{Path(name).name} %", 2): _examined(name)
            for name in outcome.comparison.examine
        },
        ConsoleColumn(f"difference (95 %)\nto {summary.first}", 1): (
            lambda line: _difference(summary, line)
        ),
        ConsoleColumn("at equal\ncost", 4): (
            lambda line: text.spread(line.at_equal_cost, summary.digits)
        ),
        ConsoleColumn("rho", 2): _rho,
        **({ConsoleColumn("lr", 2): _rate} if "lr" in outcome.comparison.tune else {}),
        ConsoleColumn("gradients\na step", 3): lambda line: text.number(line.ratio),
        ConsoleColumn("%SAM", 6): lambda line: text.number(line.mean("share"), 0),
        ConsoleColumn("‖ε‖", 7): lambda line: text.number(line.mean("radius"), 3),
        ConsoleColumn("seconds\nan epoch", 5): lambda line: text.number(
            line.mean("seconds_per_epoch")
        ),
    }
    console.print(f"\n{report.subject(outcome)}\n", markup=False)
    rows = [[cell(line) for cell in shown.values()] for line in summary.lines]
    leads = [bool(summary.rank(line)) for line in summary.lines]
    console.print(columns.table(list(shown), rows, console.width, bold=leads))
    console.print(f"\n{verdict(summary)}", markup=False)
    for remark in remarks(outcome.comparison, summary):
        console.print(f"• {remark}", markup=False)
    if page is not None:
        console.print(f"\n{page}", markup=False, soft_wrap=True)


def print_recipe(plan: ScaledRecipe, store: Store, page: Path) -> None:
    """Print what a recipe has given beside what its paper prints."""
    console = columns.console(140)
    recipe = plan.recipe
    console.print(f"\n{recipe.shows}: {recipe.title}", markup=False)
    if plan.says:
        console.print(f"at the scale {plan.scale!r}: {plan.says}", markup=False)
    console.print()
    console.print(tables.table(plan, store.rows, console.width))
    if (said := tables.verdict_of(plan, tables.blocks(plan, store.rows))) is not None:
        console.print(f"\n{said}", markup=False)
    for failure in store.failures.values():
        console.print(failed(failure), markup=False)
    console.print(f"\n{page}", markup=False, soft_wrap=True)


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

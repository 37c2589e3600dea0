"""The command line: compare, run, worker, status, report, recipes, methods.

A user's mistake ends with one line and status 2, an interrupt with one line and status 130.
Everything beyond the standard library is imported where it is used, so that a missing extra is a
line and no traceback.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatmin.studies.arguments import Compare, Report, Run, Status, Worker
    from flatmin.studies.compare import Comparison
    from flatmin.studies.store import Store
    from flatmin.studies.trainer import Trainer
    from flatmin.studies.worker import Plan


_again = "mend that, and the same command goes on; every run is kept"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    sys.stdout = sys.stdout or io.StringIO()  # None where it was closed
    try:
        try:
            return _obey(arguments)
        finally:
            sys.stdout.flush()  # here, where an error can be told
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in ("", "flatmin"):
            raise
        return _stop(f"this needs {package}: pip install 'flatmin[studies]'")
    except KeyboardInterrupt:
        return _stop("interrupted", 130)
    except BrokenPipeError:  # who reads the standard output has seen enough
        _mute()
        return 1
    except OSError as error:
        full = error.errno == errno.ENOSPC  # of files that is told where they are written
        if full and error.filename is None:
            _mute()
            error.filename = "the standard output"
        about = "" if error.filename is None else f"{error.filename}: "
        return _stop(f"{about}{error.strerror or error}")


def _mute() -> None:
    """Print no more: Python flushes the standard output once again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _obey(arguments: Sequence[str] | None) -> int:
    import tyro

    from flatmin.studies.arguments import (
        Compare,
        Methods,
        Recipes,
        Report,
        Run,
        Status,
        Worker,
    )
    from flatmin.training.errors import InputError

    commands: dict[Any, Any] = {
        Compare: _compare,
        Run: _run,
        Worker: _worker,
        Status: _status,
        Report: _report,
        Recipes: _recipes,
        Methods: _methods,
    }
    chosen = tyro.extras.subcommand_cli_from_dict(
        {command.__name__.lower(): command for command in commands},
        prog="flatmin",
        description="Sharpness-aware minimization, compared honestly.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        return commands[type(chosen)](chosen)
    except InputError as mistake:
        return _stop(str(mistake))


def _compare(wanted: Compare) -> int:
    importlib.import_module("plotly")  # of the report: better missed now than after the training

    from flatmin.studies import compare, files, terminal
    from flatmin.studies.places import Place
    from flatmin.studies.report import comparison as report
    from flatmin.studies.summary import summarise
    from flatmin.studies.trainer import Trainer

    comparison = _comparison(wanted)
    workers = _workers(wanted.workers)
    data = compare.images(comparison)
    folder = wanted.out or default_folder(comparison)
    place = Place.new(folder, wanted.storage)
    outcome = compare.begin(comparison, data, place, allow_mixed=wanted.allow_mixed)
    trainer = Trainer.at(place, tensorboard=wanted.tensorboard)
    if not _train(outcome.store, comparison, comparison.data, trainer, workers):
        return 130
    summary = summarise(outcome)
    if not summary.lines:
        return _stop("no run has finished: there is nothing to report", 1)
    page = folder / "report.html"
    with files.told(folder / "results.json", _again):
        outcome.store.export()
    with files.told(page, _again):
        report.save(outcome, summary, page)
    if wanted.json:
        print(report.as_json(outcome, summary))
    else:
        terminal.show(outcome, summary, page)
    return 1 if outcome.failures else 0


def _run(wanted: Run) -> int:
    from flatmin.studies import archive, files, terminal
    from flatmin.studies.places import Place
    from flatmin.studies.recipes import Recipe
    from flatmin.studies.report import pages, sheets
    from flatmin.studies.report.runs import Record
    from flatmin.studies.store import Store
    from flatmin.studies.trainer import Trainer, require

    recipe = Recipe.find(wanted.recipe)
    recipe.require()
    plan = recipe.at(wanted.scale)
    workers = _workers(wanted.workers)
    require(plan.runs)
    name = f"{recipe.name}-{plan.scale}"
    place = Place.new(wanted.out or Path("runs") / name, wanted.storage, study=name)
    identity, description = archive.identity(plan), archive.described(plan, wanted.recipe)
    store = Store.open(place, identity, description, allow_mixed=wanted.allow_mixed)
    if wanted.storage:
        print(f"flatmin: others join by: flatmin worker '{place}'", file=sys.stderr)
    trainer = Trainer.at(place, checkpoints=wanted.checkpoints, tensorboard=wanted.tensorboard)
    if not _train(store, plan, archive.named(plan), trainer, workers):
        return 130
    page = store.folder / "report.html"
    with files.told(store.folder / "results.json", _again):
        store.export()
    with files.told(page, _again):
        files.write(page, pages.report([sheets.sheet(Record.of(store, plan))]))
    terminal.beside(plan, store, page)
    return 1 if store.failures else 0


def _worker(wanted: Worker) -> int:
    from flatmin.studies import archive, ranks
    from flatmin.studies.places import Place
    from flatmin.studies.store import Store
    from flatmin.studies.trainer import Trainer
    from flatmin.studies.worker import work

    place = Place.of(wanted.run)
    store = Store.join(place, allow_mixed=wanted.allow_mixed)
    plan = archive.restored(store.plan)
    trainer = Trainer.at(place, checkpoints=wanted.checkpoints, tensorboard=wanted.tensorboard)
    if ranks.several():
        ranks.together(trainer, lambda shared: work(store, plan, shared))
        return 0
    if not _train(store, plan, archive.named(plan), trainer, _workers(wanted.workers), retry=False):
        return 130
    tally = plan.tally(store.rows, frozenset(store.failures))
    print(f"{tally.done} of {tally.total} runs are done in {place}")
    return 1 if store.failures else 0


def _train(
    store: Store, plan: Plan, name: str, trainer: Trainer, workers: int, *, retry: bool = True
) -> bool:
    """Do what is missing; False, and a line, if the user interrupts it."""
    from flatmin.studies import processes, terminal
    from flatmin.training.errors import InputError

    if retry:
        store.retry()
    try:
        with terminal.Progress(name, plan.total, store) as progress:
            processes.run(store, plan, trainer, workers, progress)
    except KeyboardInterrupt:
        store.refresh()
        tally = plan.tally(store.rows, frozenset(store.failures))
        _stop(
            f"interrupted: {tally.done} of {tally.total} runs are kept in {store.place}; "
            f"the same command continues"
        )
        return False
    except ConnectionError as error:
        raise InputError(
            f"the workers have gone ({error.strerror or error}): the same command continues"
        ) from None
    return True


def _workers(wanted: int | None) -> int:
    from flatmin.studies import processes
    from flatmin.training.errors import InputError

    if wanted is not None and wanted < 1:
        raise InputError(f"--workers {wanted} is out of range: expected at least 1")
    return wanted or processes.usual()


def _status(wanted: Status) -> int:
    from rich.console import Console
    from rich.live import Live

    from flatmin.studies import archive, database, files, status
    from flatmin.studies.places import Place
    from flatmin.studies.store import Store
    from flatmin.training.errors import InputError

    place = Place.of(wanted.run)
    if wanted.watch and not database.writable(place):
        raise InputError(f"{place} can be read, but not be watched: leave out --watch")
    with database.readable(place) as there:
        store = Store.join(there, allow_mixed=True)
    plan = archive.restored(store.plan)
    now = status.Status.of(store, plan)
    if wanted.json:
        print(files.as_json(now.as_data()))
        return 0
    console = Console(highlight=False)
    if not wanted.watch:
        console.print(status.shown(now))
        return 0
    with Live(status.shown(now), console=console, auto_refresh=False) as live:
        while not now.settled:
            time.sleep(1)
            store.refresh()
            now = status.Status.of(store, plan)
            live.update(status.shown(now), refresh=True)
    return 0


def _report(wanted: Report) -> int:
    from flatmin.studies import files
    from flatmin.studies.report import pages, plain, runs, sheets
    from flatmin.training.errors import InputError

    if not wanted.runs:
        raise InputError("report takes the folder of a run, or several: for example runs/")
    if wanted.markdown and wanted.csv:
        raise InputError("give one of --markdown and --csv: a file has one format")
    found = runs.records(wanted.runs)
    if wanted.csv:
        content = plain.table_of_runs(found)
    elif wanted.markdown:
        content = plain.markdown([sheets.sheet(record) for record in found])
    else:
        content = pages.report([sheets.sheet(record) for record in found])
    if wanted.out is None and (wanted.csv or wanted.markdown):
        sys.stdout.write(content)
        return 0
    path = wanted.out or runs.folder(wanted.runs) / "report.html"
    with files.told(path, "give another file by --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)
    print(path)
    return 0


def _recipes(_: object) -> int:
    from flatmin.studies import recipes, terminal

    terminal.recipes(recipes.listing())
    return 0


def _comparison(wanted: Compare) -> Comparison:
    """What the flags ask for, with the data set's own defaults where they are silent."""
    from flatmin.studies.compare import Comparison
    from flatmin.studies.regimes import regime

    usual = regime(wanted.data)

    def given(name: str) -> object:
        value = getattr(wanted, name)
        return getattr(usual, name) if value is None else value

    return Comparison.checked(
        data=wanted.data,
        methods=_listed(wanted.methods),
        noise=wanted.noise,
        rho=None if wanted.rho is None else _numbers(wanted.rho),
        tune=wanted.tune,
        limit=wanted.limit,
        augment=usual.augment and not wanted.no_augment,
        fraction=wanted.fraction,
        **{
            name: given(name)
            for name in (
                "model",
                "epochs",
                "batch",
                "lr",
                "weight_decay",
                "seeds",
                "tuning_seeds",
            )
        },
    )


def default_folder(comparison: Comparison) -> Path:
    """A folder of its own for each configuration, so that the same command continues."""
    digest = hashlib.sha256(comparison.model_dump_json().encode()).hexdigest()[:8]
    return Path("runs") / f"{Path(comparison.data).name}-{digest}"


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part for part in (piece.strip() for piece in text.split(",")) if part)


def _numbers(text: str) -> tuple[float, ...]:
    from flatmin.training.errors import InputError

    try:
        return tuple(float(part) for part in _listed(text))
    except ValueError:
        raise InputError(
            f"--rho {text} is no radius: give a number such as 0.1, or with --tune rho several "
            f"separated by commas"
        ) from None


def _methods(_: object) -> int:
    from rich.console import Console
    from rich.table import Table

    from flatmin import methods

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("name", "method", "rho", "what it does"):
        table.add_column(title, no_wrap=title != "what it does")
    for method in methods.table.values():
        table.add_row(
            method.name, method.title, f"{method.rho:g}" if method.rho else "–", method.summary
        )
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    return 0


def _stop(line: str, status: int = 2) -> int:
    print(f"flatmin: {line}", file=sys.stderr)
    return status

"""`flatmin run` and `flatmin worker`: cells of a plan, done until none is left."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flatmin.cli.messages import AGAIN, stop

if TYPE_CHECKING:
    from flatmin.cli.arguments import RunArguments, WorkerArguments
    from flatmin.studies.plan.estimate import CostEstimate
    from flatmin.studies.plan.grid import ScaledRecipe
    from flatmin.studies.plan.recipe import Recipe
    from flatmin.studies.plan.tuning import Plan
    from flatmin.studies.run.trainer import Trainer
    from flatmin.studies.store.store import Store


def run(wanted: RunArguments) -> int:
    """Train what a recipe asks for, and set it beside the paper."""
    from flatmin.studies.plan import serialization
    from flatmin.studies.plan.recipe import Recipe
    from flatmin.studies.report import html, section, terminal
    from flatmin.studies.report.runs import Record
    from flatmin.studies.run.trainer import Trainer, require
    from flatmin.studies.store import files, folders
    from flatmin.studies.store.location import StudyLocation
    from flatmin.studies.store.store import Store
    from flatmin.training.errors import InputError

    recipe = Recipe.find(wanted.recipe)
    recipe.require()
    plan = recipe.at(wanted.scale)
    name = f"{recipe.name}-{plan.scale}"
    folder = wanted.out or Path("runs") / name
    few_shot = "meta" in recipe.needs
    if wanted.reuse and wanted.keep:
        raise InputError(
            "--reuse takes rows, and no weights are beside them: leave out --keep, or --reuse"
        )
    workers = worker_count(wanted.workers)
    for note in [] if few_shot else require(plan.runs):
        print(f"flatmin: {note}", file=sys.stderr)
    begun = files.is_folder(folder) if few_shot else folders.has_database(folder)
    if not (begun or wanted.yes):
        _require_time(recipe, plan, workers)
    if few_shot:
        return _tasks(wanted, recipe, plan, folder, workers)
    location = StudyLocation.new(folder, wanted.storage, study=name)
    identity, description = (
        serialization.identity(plan),
        serialization.described(plan, wanted.recipe),
    )
    store = Store.open(location, identity, description, allow_mixed=wanted.allow_mixed)
    if wanted.storage:
        print(f"flatmin: others join by: flatmin worker '{location}'", file=sys.stderr)
    trainer = Trainer.at(
        location,
        checkpoints=wanted.checkpoints,
        tensorboard=wanted.tensorboard,
        keep=bool(wanted.keep),
    )
    if wanted.reuse:
        _take_over(store, plan, wanted)
    _announce(recipe, plan, workers, plan.left(store.rows))
    if not train(store, plan, serialization.named(plan), trainer, workers):
        return 130
    page = store.folder / "report.html"
    with files.told(store.folder / "results.json", AGAIN):
        store.export()
    with files.told(page, AGAIN):
        files.write(page, html.report([section.of_record(Record.of(store, plan))]))
    terminal.print_recipe(plan, store, page)
    return 1 if store.failures else 0


DAY = 24.0
"""Hours beyond which a run is asked for twice."""


def _take_over(store: Store, plan: ScaledRecipe, wanted: RunArguments) -> None:
    """Take the rows that other runs have made of what this one asks for."""
    from flatmin.studies.run import reuse
    from flatmin.training.errors import InputError

    def tell(line: str) -> None:
        print(f"flatmin: --reuse {wanted.reuse}: {line}", file=sys.stderr)

    assert wanted.reuse is not None
    try:
        count = reuse.take_over(
            store, plan, wanted.reuse, allow_mixed=wanted.allow_mixed, tell=tell
        )
    except InputError as error:
        raise InputError(f"--reuse {wanted.reuse}: {error}") from None
    tell(f"{count} {'run is' if count == 1 else 'runs are'} taken over")


def _require_time(recipe: Recipe, plan: ScaledRecipe, workers: int) -> None:
    """Raise InputError where a run takes more than a day, unless the user says yes to that."""
    from flatmin.studies.report import text
    from flatmin.training.errors import InputError

    hours = plan.estimate.hours_here(workers)
    if hours <= DAY:
        return
    takes = (
        f"{recipe.name} at the scale {plan.scale} takes about {text.duration(3600 * hours)} here"
    )
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"flatmin: {takes}: begin? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    smaller = ""
    for scale in ("small", "smoke"):
        if scale in recipe.scales and scale != plan.scale:
            seconds = 3600 * recipe.at(scale).estimate.hours_here(workers)
            smaller = f"give --scale {scale} ({text.duration(seconds)}), or "
            break
    raise InputError(f"{takes}: {smaller or 'give '}--yes to begin")


def _announce(
    recipe: Recipe, plan: ScaledRecipe, workers: int, left: CostEstimate | None = None
) -> None:
    """Say how much there is to do: all of it, or what is `left`."""
    from flatmin.studies.report import text

    cost = plan.estimate
    left = left or cost
    runs = f"{cost.runs:,} {'run' if cost.runs == 1 else 'runs'}"
    if left.runs:
        runs += (
            f", about {text.duration(3600 * left.hours_here(workers))}"
            f"{' for what is left' if left.runs < cost.runs else ''} with {workers} "
            f"{'workers' if workers > 1 else 'worker'} here, estimated to a factor of two"
        )
    print(f"flatmin: {recipe.name} at the scale {plan.scale}: {runs}", file=sys.stderr, flush=True)


def _tasks(
    wanted: RunArguments, recipe: Recipe, plan: ScaledRecipe, folder: Path, workers: int
) -> int:
    """The table of few-shot learning that a recipe asks for."""
    from flatmin.cli.meta import StepReport, kept
    from flatmin.studies.meta import running, section
    from flatmin.studies.report import export, html, runs
    from flatmin.studies.run import processes
    from flatmin.studies.store import files
    from flatmin.training.errors import InputError

    for flag in ("storage", "checkpoints", "reuse"):
        if getattr(wanted, flag):
            raise InputError(
                f"--{flag}: few-shot learning keeps its cells in folders of this machine: leave "
                f"it out, or share a training by torchrun and flatmin meta train"
            )
    _announce(recipe, plan, workers)
    try:
        with processes.interrupts(signal.default_int_handler):
            found = running.run(
                plan, folder, workers=workers, tell=lambda cell: StepReport(f"{cell.name}: ")
            )
    except KeyboardInterrupt:
        return stop(kept(folder), 130)
    exported = running.exported(plan, wanted.recipe, found)
    path = folder / "report.html"
    with files.told(path, AGAIN):
        files.write(folder / "results.json", files.as_json(exported))
        sections = [section.of_record(runs.record(str(folder)))]
        files.write(path, html.report(sections))
    print(export.markdown(sections))
    print(f"flatmin: {path}", file=sys.stderr)
    return 0


def worker(wanted: WorkerArguments) -> int:
    """Join a run until nothing of it is left."""
    from flatmin.studies.plan import serialization
    from flatmin.studies.plan.comparison import Comparison
    from flatmin.studies.plan.tuning import progress_of
    from flatmin.studies.run import torchrun
    from flatmin.studies.run.trainer import Trainer
    from flatmin.studies.run.worker import work
    from flatmin.studies.store.location import StudyLocation
    from flatmin.studies.store.store import Store

    location = StudyLocation.of(wanted.run)
    store = Store.join(location, allow_mixed=wanted.allow_mixed)
    plan = serialization.restored(store.plan)
    if isinstance(plan, Comparison):
        plan.require_here()  # or else every cell would fail for that
    trainer = Trainer.at(
        location,
        checkpoints=wanted.checkpoints,
        tensorboard=wanted.tensorboard,
        keep=bool(wanted.keep),
    )
    if torchrun.several():
        torchrun.together(trainer, lambda shared: work(store, plan, shared))
        return 0
    if not train(
        store, plan, serialization.named(plan), trainer, worker_count(wanted.workers), retry=False
    ):
        return 130
    progress = progress_of(plan, store)
    print(f"{progress.done} of {progress.total} runs are done in {location}")
    return 1 if store.failures else 0


def train(
    store: Store, plan: Plan, name: str, trainer: Trainer, workers: int, *, retry: bool = True
) -> bool:
    """Do what is missing; False, and a line, if the user interrupts it."""
    from flatmin.studies.plan.tuning import progress_of
    from flatmin.studies.report import terminal
    from flatmin.studies.run import processes
    from flatmin.training.errors import InputError

    if retry:
        store.retry()
    try:
        # an exception, where there is something to be kept
        with (
            processes.interrupts(signal.default_int_handler),
            terminal.ProgressBar(name, plan.total, store) as progress,
        ):
            processes.run(store, plan, trainer, workers, progress)
    except KeyboardInterrupt:
        store.refresh()
        progress = progress_of(plan, store)
        stop(
            f"interrupted: {progress.done} of {progress.total} runs are kept in {store.location}; "
            f"the same command continues"
        )
        return False
    except ConnectionError as error:
        raise InputError(
            f"the workers have gone ({error.strerror or error}): the same command continues"
        ) from None
    return True


def worker_count(wanted: int | None) -> int:
    """How many processes train at once: as asked, or one for each GPU or core."""
    from flatmin.studies.run import processes
    from flatmin.training.errors import InputError

    if wanted is not None and wanted < 1:
        raise InputError(f"--workers {wanted} is out of range: expected at least 1")
    return wanted or processes.usual()

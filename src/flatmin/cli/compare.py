"""`flatmin compare`."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flatmin.cli.messages import AGAIN, stop
from flatmin.cli.run import train, worker_count

if TYPE_CHECKING:
    from flatmin.cli.arguments import CompareArguments
    from flatmin.studies.plan.comparison import Comparison


def compare(wanted: CompareArguments) -> int:
    """Train methods side by side, print the table and write the report."""
    importlib.import_module("jinja2")  # of the report: better missed now than after the training

    from flatmin.studies.plan.comparison import begin, images
    from flatmin.studies.report import comparison as report
    from flatmin.studies.report import terminal
    from flatmin.studies.report.summary import summarise
    from flatmin.studies.run.trainer import Trainer
    from flatmin.studies.store import files
    from flatmin.studies.store.location import StudyLocation

    comparison = _comparison(wanted)
    workers = worker_count(wanted.workers)
    data = images(comparison)
    for note in data.notes:
        print(f"flatmin: {note}", file=sys.stderr)
    folder = wanted.out or default_folder(comparison)
    location = StudyLocation.new(folder, wanted.storage)
    outcome = begin(comparison, data, location, allow_mixed=wanted.allow_mixed)
    trainer = Trainer.at(location, tensorboard=wanted.tensorboard)
    if not train(outcome.store, comparison, comparison.data, trainer, workers):
        return 130
    summary = summarise(outcome)
    if not summary.lines:
        return stop("no run has finished: there is nothing to report", 1)
    page = folder / "report.html"
    with files.told(folder / "results.json", AGAIN):
        outcome.store.export()
    with files.told(page, AGAIN):
        report.save(outcome, summary, page)
    if wanted.json:
        print(report.as_json(outcome, summary))
    else:
        terminal.print_comparison(outcome, summary, page)
    return 1 if outcome.failures else 0


def _comparison(wanted: CompareArguments) -> Comparison:
    """What the flags ask for, with the data set's own defaults where they are silent."""
    from flatmin.studies.plan.comparison import Comparison
    from flatmin.studies.plan.defaults import regime

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

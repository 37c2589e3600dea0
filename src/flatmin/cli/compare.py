"""`flatmin compare`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flatmin.cli.messages import AGAIN, stop
from flatmin.cli.run import train, worker_count

if TYPE_CHECKING:
    from flatmin.cli.arguments import CompareArguments


def compare(wanted: CompareArguments) -> int:
    """Train methods side by side, print the table and write the report."""
    importlib.import_module("jinja2")  # of the report: better missed now than after the training

    from flatmin.studies.plan.identity import default_folder
    from flatmin.studies.plan.opening import begin, settled
    from flatmin.studies.report import comparison as report
    from flatmin.studies.report import terminal
    from flatmin.studies.report.summary import summarise
    from flatmin.studies.run.trainer import Trainer
    from flatmin.studies.store import files, weights
    from flatmin.studies.store.location import StudyLocation

    workers = worker_count(wanted.workers)
    comparison, data, notes = settled(_asked(wanted))
    for note in notes:
        print(f"flatmin: {note}", file=sys.stderr)
    folder = wanted.out or default_folder(comparison)
    location = StudyLocation.new(folder, wanted.storage)
    outcome = begin(comparison, data, location, allow_mixed=wanted.allow_mixed)
    trainer = Trainer.at(location, tensorboard=wanted.tensorboard, keep=bool(wanted.keep))
    if not train(outcome.store, comparison, comparison.data, trainer, workers):
        return 130
    summary = summarise(outcome)
    rows = [row for line in summary.lines for row in line.finished.values()]
    if wanted.keep and (lacking := weights.lacking(folder, rows)):
        print(f"flatmin: {lacking}", file=sys.stderr)
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


def _asked(wanted: CompareArguments) -> dict[str, Any]:
    """What the flags ask for, by the names of a comparison's fields; None where they are silent."""
    same = (
        *("data", "model", "noise", "epochs", "batch", "weight_decay", "tune", "tuning_seeds"),
        *("seeds", "limit", "fraction", "base", "momentum", "schedule", "gamma", "warmup"),
        *("max_norm", "precision", "label_smoothing", "cutout", "size", "pretrained", "loss"),
        *("metric", "rho_schedule"),
    )
    return {
        **{name: getattr(wanted, name) for name in same},
        "methods": _listed(wanted.methods),
        "lr": _numbers("lr", wanted.lr),
        "rho": _numbers("rho", wanted.rho),
        "milestones": _numbers("milestones", wanted.milestones),
        "examine": _listed(wanted.examine) if wanted.examine else None,
        "augment": False if wanted.no_augment else None,
        "options": _by_method(wanted.option),
        "base_options": dict(_set("base-option", each) for each in wanted.base_option) or None,
    }


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part for part in (piece.strip() for piece in text.split(",")) if part)


_MEANT = {
    "rho": "radius: give a number such as 0.1, or with --tune rho",
    "lr": "learning rate: give a number such as 0.1, or with --tune lr",
    "milestones": "share of the epochs: give a number such as 0.5, or",
}


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    from flatmin.training.errors import InputError

    try:
        return None if text is None else tuple(float(part) for part in _listed(text))
    except ValueError:
        raise InputError(
            f"--{flag} {text} is no {_MEANT[flag]} several separated by commas"
        ) from None


def _by_method(given: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """`agnostic-sam.beta=0.5` and others, by method."""
    from flatmin.training.errors import InputError

    found: dict[str, dict[str, Any]] = {}
    for each in given:
        name, value = _set("option", each)
        method, dot, option = name.rpartition(".")
        if not dot:
            raise InputError(f"--option {each} names no method: give one as agnostic-sam.beta=0.5")
        found.setdefault(method, {})[option] = value
    return found or None


def _set(flag: str, text: str) -> tuple[str, int | float | bool | str]:
    """`name=value`, the value as Python would read it, or else as text."""
    from flatmin.training.errors import InputError

    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InputError(f"--{flag} {text} sets nothing: give it as name=value")
    if value in ("True", "true", "False", "false"):
        return name, value.lower() == "true"
    try:
        return name, int(value) if value.lstrip("+-").isdigit() else float(value)
    except ValueError:
        return name, value

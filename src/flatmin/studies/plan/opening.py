"""A comparison before its first run: fitted to the data, checked, opened where its rows are."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from flatmin.studies.plan import tuning
from flatmin.studies.plan.comparison import Comparison
from flatmin.studies.plan.identity import differing, identity
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.store import Failed, Store
from flatmin.training import evaluation, models, own, trial
from flatmin.training.data import noise
from flatmin.training.data.images import ImageData, require_shared_classes
from flatmin.training.data.samples import AnyData, load_any
from flatmin.training.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """A comparison with its rows.

    Fields:
        comparison: what was asked for.
        data: what was learned from.
        store: where the rows are.
    """

    comparison: Comparison
    data: AnyData
    store: Store

    @property
    def failures(self) -> tuple[Failed, ...]:
        """Why a run is missing, for each that is."""
        return tuple(self.store.failures.values())


def images(comparison: Comparison) -> AnyData:
    """What it is about. Raises InputError where it is missing, or something does not fit."""
    data = load_any(comparison.data, limit=comparison.limit, size=comparison.size)
    check(comparison, data)
    return data


def settled(given: Mapping[str, Any]) -> tuple[Comparison, AnyData, list[str]]:
    """A comparison from what is `given`, its data, and what was changed, in a line each.

    What is None there was left to us, and never stops a command: it is made to fit the data. Raises
    InputError where what was given does not fit.
    """
    comparison = Comparison.asked(given)
    data = load_any(comparison.data, limit=comparison.limit, size=comparison.size)
    typed = [name for name, value in given.items() if value is not None]
    comparison, notes = fitted(comparison, data, typed)
    check(comparison, data)
    return comparison, data, [*data.notes, *notes]


def fitted(
    comparison: Comparison, data: AnyData, typed: Collection[str]
) -> tuple[Comparison, list[str]]:
    """A comparison whose defaults fit the data, and what was changed; what was `typed` stays."""
    notes: list[str] = []
    changes: dict[str, Any] = {}
    count = _trained_on(comparison, data)
    if "batch" not in typed and comparison.batch > count:
        # at least four steps an epoch
        changes["batch"] = batch = 2 ** max(0, int(math.log2(max(1, count) / 4)))
        notes.append(
            f"--batch {batch}: the usual {comparison.batch} is more than the {count} "
            f"{_kind(data)} to train on"
        )
    size = comparison.size or (data.size if isinstance(data, ImageData) else 0)
    if "model" not in typed and isinstance(data, ImageData) and not own.is_own(comparison.model):
        network = models.find(comparison.model)
        if size < network.smallest or size % network.multiple:
            changes["model"] = "mlp"
            notes.append(
                f"--model mlp: the usual {comparison.model} is for images larger than {size}"
            )
    return comparison.model_copy(update=changes), notes


def begin(
    comparison: Comparison, data: AnyData, location: StudyLocation, *, allow_mixed: bool = False
) -> Outcome:
    """A comparison with the rows that are at its location by now.

    The rows of one that differs in what is `EXTENDABLE` alone are taken over: more seeds or fewer,
    other methods, another grid. Raises InputError where it cannot be written there, or where what
    is there means something else; the message names what differs.
    """
    store = Store.open(
        location,
        identity(comparison, data),
        comparison.description,
        allow_mixed=allow_mixed,
        differing=differing,
    )
    return Outcome(comparison, data, store)


def check(comparison: Comparison, data: AnyData) -> None:
    """Raise now what the first run would raise."""
    if isinstance(data, ImageData):
        require_shared_classes(data)
    count = _trained_on(comparison, data)
    if comparison.batch > count:
        raise InputError(
            f"--batch {comparison.batch} is more than the {count} {_kind(data)} to train on: "
            f"give a smaller one"
        )
    for name in comparison.examine:
        evaluation.require(name, data)
    if comparison.brought or not isinstance(data, ImageData):
        runs = [comparison.tuned(method).usual for method in comparison.methods]
        for run in runs:
            trial.require_method(run)
        trial.require(runs[0], data)
        return
    noise.parse(comparison.noise).labels(data, 0)
    models.build(
        comparison.model,
        channels=data.channels,
        size=comparison.size or data.size,
        classes=len(data.classes),
    )


def _kind(data: AnyData) -> str:
    """What it consists of, in a message."""
    return "images" if isinstance(data, ImageData) else "samples"


def _trained_on(comparison: Comparison, data: AnyData) -> int:
    """Samples of the smallest training set: a part is held out where something is tuned."""
    return round(data.train_count * (1 - tuning.HOLDOUT)) if comparison.tune else data.train_count

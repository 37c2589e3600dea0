"""What a run in a table is measured by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from flatmin.studies.store.row import Row
from flatmin.training.losses import ACCURACY

MEASURES: Mapping[str, Callable[[Row], float | None]] = {
    "accuracy": lambda row: row.accuracy,
    "loss": lambda row: row.curves.loss[-1],
    "train_accuracy": lambda row: row.curves.train_accuracy[-1],
    "share": lambda row: row.share,
    "ratio": lambda row: row.ratio,
    "passes": lambda row: row.curves.passes[-1],
    "radius": lambda row: row.radius,
    "seconds_per_epoch": lambda row: row.seconds_per_epoch,
    "minutes": lambda row: sum(row.curves.seconds) / 60,
}
"""What every run is measured by: % right on the test set, mean training loss and % of the training
labels in the last epoch, %SAM, gradient cost over that of the base optimizer, passes over the
training images, mean ‖ε‖, seconds and minutes of training."""


def of_metric(metric: str) -> str:
    """The name of the measure that stands for the metric of a run."""
    return metric if metric == ACCURACY else f"metric:{metric}"


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def value(row: Row, measure: str) -> float | None:
    """What `row` has for a measure; None where it was not finite or not measured.

    Args:
        row: a finished run.
        measure: one of `MEASURES`, a name in `examine`, or `observed:<name in observe>` and
            `analysis:<name in flatmin.studies.plan.analyses>`: the last number recorded;
            `metric:<metric of the run>` for a user's own.
    """
    if measure in MEASURES:
        return _known(MEASURES[measure](row))
    kind, _, name = measure.partition(":")
    if kind == "metric":
        return _known(row.accuracy)
    if kind == "observed":
        return (row.observed.get(name) or [None])[-1]
    if kind == "analysis":
        return (row.analysed.get(name) or [None])[-1]
    return row.examined.get(measure)

"""What a run in a table is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flatmin.studies.rows import Row

measures: Mapping[str, Callable[[Row], float | None]] = {
    "accuracy": lambda row: row.accuracy,
    "train_accuracy": lambda row: row.curves.train_accuracy[-1],
    "share": lambda row: row.share,
    "ratio": lambda row: row.ratio,
    "passes": lambda row: row.curves.passes[-1],
    "radius": lambda row: row.radius,
    "seconds_per_epoch": lambda row: row.seconds_per_epoch,
    "minutes": lambda row: sum(row.curves.seconds) / 60,
}
"""What every run is measured by: % right on the test set, % of the training labels in the last
epoch, %SAM, gradient cost over that of the base optimizer, passes over the training images, mean
‖ε‖, seconds and minutes of training."""


@dataclass(frozen=True)
class Heading:
    """What stands above the numbers of a measure.

    Fields:
        title, unit: for people to read.
        digits: behind the point.
        accuracy: whether it is a share of images that are given their label, by which methods are
            ranked: higher is better.
    """

    title: str
    unit: str = ""
    digits: int = 1
    accuracy: bool = False


_headings: Mapping[str, Heading] = {
    "accuracy": Heading("Test accuracy", "%", accuracy=True),
    "train_accuracy": Heading("Fit", "% of labels"),
    "share": Heading("%SAM", "of steps", 0),
    "ratio": Heading("Gradients", "a step", 2),
    "passes": Heading("Passes", "in all"),
    "radius": Heading("‖ε‖", "mean", 3),
    "seconds_per_epoch": Heading("Seconds", "an epoch", 2),
    "minutes": Heading("Minutes", "a run"),
    "observed:wrong-label-accuracy": Heading("Memorised", "% of the wrong"),
    "observed:right-label-accuracy": Heading("Learned", "% of the right"),
    "observed:losses": Heading("Loss", "of the last step", 3),
    "observed:learning-rates": Heading("Learning rate", "of the last step", 4),
    "observed:gradient-norms": Heading("‖g‖²", "of the last step", 3),
}


def heading(measure: str) -> Heading:
    """What a reader calls a measure."""
    if measure in _headings:
        return _headings[measure]
    kind, _, name = measure.partition(":")
    if kind in ("observed", "analysis"):
        return Heading(name.replace("-", " ").capitalize(), "of the last", 3)
    return Heading(measure, "%", accuracy=True)


def value(row: Row, measure: str) -> float | None:
    """What `row` has for a measure; None where it was not finite or not measured.

    Args:
        row: a finished run.
        measure: one of `measures`, a name in `examine`, or `observed:<name in observe>`: the last
            number recorded.
    """
    if measure in measures:
        return measures[measure](row)
    kind, _, name = measure.partition(":")
    if kind == "observed":
        return (row.observed.get(name) or [None])[-1]
    return row.examined.get(measure)

"""What stands above the numbers of a measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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

    @property
    def named(self) -> str:
        """Both on one line: `Test accuracy (%)`."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


_HEADINGS: Mapping[str, Heading] = {
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
    if measure in _HEADINGS:
        return _HEADINGS[measure]
    kind, _, name = measure.partition(":")
    if kind in ("observed", "analysis"):
        return Heading(name.replace("-", " ").capitalize(), "of the last", 3)
    return Heading(measure, "%", accuracy=True)

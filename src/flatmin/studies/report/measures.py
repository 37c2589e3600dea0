"""What stands above the numbers of a measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flatmin.training import losses, own


@dataclass(frozen=True)
class Heading:
    """What stands above the numbers of a measure.

    Fields:
        title, unit: for people to read.
        digits: behind the point.
        accuracy: whether it is a share of images that are given their label.
        metric: whether it is a metric of the user's own.
        lower: whether less of it is better.
    """

    title: str
    unit: str = ""
    digits: int = 1
    accuracy: bool = False
    metric: bool = False
    lower: bool = False

    @property
    def ranks(self) -> bool:
        """Whether methods are ranked by it."""
        return self.accuracy or self.metric

    @property
    def named(self) -> str:
        """Both on one line: `Test accuracy (%)`."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


_HEADINGS: Mapping[str, Heading] = {
    "accuracy": Heading("Test accuracy", "%", accuracy=True),
    "loss": Heading("Training loss", "of the last epoch", 3),
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
    "analysis:gradient-variance": Heading("Var ∇L_B", "at the end", 4),
    "analysis:batch-gradient": Heading("E‖∇L_B‖²", "at the end", 4),
    "analysis:full-gradient": Heading("‖∇L‖²", "at the end", 4),
    "analysis:gradient-norms": Heading("E‖∇L_B‖²", "last stage", 4),
    "analysis:normality": Heading("Normality", "W, last stage", 3),
    "analysis:normality-p": Heading("p", "of W", 4),
    "analysis:skewness": Heading("Skewness", "of ‖∇L_B‖²", 2),
    "analysis:cosine-before": Heading("Cosine before", "last epoch", 4),
    "analysis:cosine-after": Heading("Cosine after", "last epoch", 4),
    "analysis:cosine-difference": Heading("After − before", "last epoch", 4),
    "analysis:cosine-change": Heading("Change", "÷ after", 4),
    "analysis:cosine-lowered": Heading("Lowered", "% of steps", 0),
    "analysis:cosine-so-far": Heading("Cosine before", "all steps", 4),
    "analysis:lowered-so-far": Heading("Lowered", "% of all steps", 0),
    "analysis:surface-rise": Heading("Loss rise", "half way out", 3),
    "analysis:eigenvalue-1-at-loss": Heading("λ₁", "at equal loss", 2),
    "analysis:surface-rise-at-loss": Heading("Loss rise", "at equal loss", 3),
    "analysis:cosine-before-at-loss": Heading("Cosine before", "at equal loss", 4),
    "analysis:cosine-lowered-at-loss": Heading("Lowered", "% of steps, at equal loss", 0),
    "analysis:theorem-conditions": Heading("Steps small enough", "%", 0),
    "analysis:theorem-conclusion": Heading("Inequality holds", "% of steps", 0),
    "analysis:theorem-broken": Heading("Broken", "% of small steps", 1),
    "analysis:eigenvalue-error": Heading("Residual", "%, the largest", 3),
}

_BELOW = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def heading(measure: str) -> Heading:
    """What a reader calls a measure."""
    if measure in _HEADINGS:
        return _HEADINGS[measure]
    kind, _, name = measure.partition(":")
    if kind == "analysis" and name.startswith(("eigenvalue-", "ratio-")):
        part, _, number = name.partition("-")
        sign = "λ" if part == "eigenvalue" else "λ₁ / λ"
        return Heading(sign + number.translate(_BELOW), "at the end", 2)
    if kind in ("observed", "analysis"):
        return Heading(name.replace("-", " ").capitalize(), "of the last", 3)
    if kind == "metric":
        lower = losses.lower_is_better(name)
        return Heading(_titled(name), "less is better" if lower else "", 3, False, True, lower)
    title = Path(measure).name if "/" in measure else measure
    return Heading(title, "%", accuracy=True)


def _titled(metric: str) -> str:
    return f"Test {own.title(losses.metric_name(metric)).replace('_', ' ')}"

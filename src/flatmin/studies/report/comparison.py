"""The page of `flatmin compare`: the verdict, the table, the curves, how to do it again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from flatmin.studies.plan import tuning
from flatmin.studies.plan.comparison import (
    RATE_FACTORS,
    TUNING_FACTORS,
    Comparison,
)
from flatmin.studies.plan.opening import Outcome
from flatmin.studies.plan.tuning import progress_of
from flatmin.studies.report import html, section
from flatmin.studies.report.summary import Line, Summary, remarks, verdict
from flatmin.studies.store import files
from flatmin.training import losses, own
from flatmin.training.data import noise
from flatmin.training.data.images import ImageData


def save(outcome: Outcome, summary: Summary, path: Path) -> None:
    """Write the report of `outcome` to `path`, whole or not at all."""
    files.write(path, render(outcome, summary))


def render(outcome: Outcome, summary: Summary) -> str:
    """The report as one HTML document."""
    comparison = outcome.comparison
    said = remarks(comparison, summary)
    rows = outcome.store.rows
    progress = progress_of(comparison, outcome.store)
    return html.page(
        "compare.html",
        [section.of_summary(comparison, summary, said, rows, progress)],
        subject=subject(outcome),
        verdict=verdict(summary),
        comparison=comparison,
        model=own.title(comparison.model),
        common_cost=summary.common_cost,
        held_out=_held_out(outcome),
        grid=_grid(comparison),
        error=_error(outcome),
        results=html.script(results(outcome, summary)),
    )


def as_json(outcome: Outcome, summary: Summary) -> str:
    """What `results.json` holds, and the table, as one line of JSON."""
    runs = [row.model_dump() for row in outcome.store.rows.values()]
    return files.as_json({**results(outcome, summary), "runs": runs})


def results(outcome: Outcome, summary: Summary) -> dict[str, Any]:
    """The table as data, small enough to stand in the report and to be printed."""
    return {
        "verdict": str(verdict(summary)),
        "remarks": remarks(outcome.comparison, summary),
        "identity": outcome.store.identity,
        "common_cost": summary.common_cost,
        "methods": [_as_data(line) for line in summary.lines],
    }


def subject(outcome: Outcome) -> str:
    """What was learned from: "digits: 1,437 training and 360 test images, …"."""
    comparison, data = outcome.comparison, outcome.data
    found = noise.parse(comparison.noise)
    if isinstance(found, noise.Human):
        labels = f"human labels ({found.column})"
    elif found.share:
        labels = f"{found.share:.0%} of the training labels wrong".replace("%", " %")
    else:
        labels = "labels as they are"
    said = f", {labels}" if data.classes else ""
    size = comparison.size
    if size and isinstance(data, ImageData) and size != data.size:
        said = f", resized to {size} × {size}{said}"
    return f"{Path(own.title(data.name)).name}: {data.described}{said}"


def _held_out(outcome: Outcome) -> int:
    return round(tuning.HOLDOUT * outcome.data.train_count)


def _grid(comparison: Comparison) -> str:
    """What was tried, in words."""
    radii = f"{', '.join(f'{factor:g}' for factor in TUNING_FACTORS)} times its default"
    if comparison.rho:
        radii = files.as_typed(comparison.rho)
    if "lr" not in comparison.tune:
        return radii
    several = comparison.lr is not None and len(comparison.lr) > 1
    start = comparison.lr[0] if comparison.lr else 0.0
    rates = comparison.lr if several else [start * factor for factor in RATE_FACTORS]
    said = f"the learning rates {', '.join(f'{rate:g}' for rate in rates or ())}"
    if "rho" not in comparison.tune:
        return said
    return f"{said} with each of the radii {radii} (without a radius, as many learning rates)"


def _error(outcome: Outcome) -> float:
    """Standard error, in points, of a mean held-out accuracy: that of the best one found."""
    comparison, rows = outcome.comparison, outcome.store.rows
    if comparison.metric != losses.ACCURACY:
        return math.nan
    found = [a for m in comparison.methods for a in comparison.judged(m, rows).values()]
    share = max(found, default=0.0) / 100
    return 100 * math.sqrt(share * (1 - share) / (_held_out(outcome) * comparison.tuning_seeds))


def _as_data(line: Line) -> dict[str, Any]:
    return {
        "method": line.method,
        "rho": line.rho,
        "accuracy": {"mean": line.value.mean, "sd": line.value.sd, "n": line.value.n},
        "accuracy_by_seed": line.by_seed,
        "difference": None if line.difference is None else vars(line.difference),
        "accuracy_at_common_cost": line.at_equal_cost.mean,
        "train_accuracy": line.mean("train_accuracy"),
        "gradient_cost": line.ratio,
        "share_perturbed": line.mean("share"),
        "radius": line.mean("radius"),
        "seconds_per_epoch": line.mean("seconds_per_epoch"),
        "ranked": line.ranked,
        "troubles": line.troubles,
    }

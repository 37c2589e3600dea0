"""What the plots of a report show, as data for its script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatmin.studies.plan.analyses import EACH_EPOCH, SENTENCES
from flatmin.studies.report import colours
from flatmin.studies.report.frontier import dominated, frontier
from flatmin.studies.report.measures import Heading, heading
from flatmin.studies.report.paper import PaperTable
from flatmin.studies.report.statistics import Spread
from flatmin.studies.report.summary import Line, Summary
from flatmin.studies.store.row import Row
from flatmin.training import recorder

POINTS = 150
"""At most as many on a curve over the steps."""


@dataclass(frozen=True)
class Figure:
    """One plot.

    Fields:
        kind: "across" an axis, "frontier", "difference", "curve" or "tuning".
        title, unit: above it.
        label: for those who do not see it.
        curve: of a curve: its name in the data.
        x: of a curve: "epoch" or "passes".
        wide: whether it takes the whole width.
    """

    kind: str
    title: str
    unit: str
    label: str
    curve: str = ""
    x: str = ""
    wide: bool = False


def figures(
    blocks: Sequence[PaperTable],
    axes: Mapping[str, Sequence[str]],
    measure: str,
    first: str,
    comparable: bool,
    further: Sequence[str] = (),
) -> list[Figure]:
    """The plots for which there is something to draw; `comparable` as in `data`.

    `further` are the kinds that a recipe asks for.
    """
    named = heading(measure)
    lines = [line for block in blocks for line in block.summary.lines]
    ring = "; ring: the paper" if any(block.printed for block in blocks) else ""
    found: list[Figure] = []
    if axes and lines:
        found.append(
            Figure(
                "across",
                f"{named.title} over the settings",
                f"{named.unit}; bar: ± sd{ring if comparable else ''}",
                f"{named.title} of each method in each setting; the numbers are in the table",
                wide=True,
            )
        )
    if "frontier" in further and lines:
        found.append(
            Figure(
                "frontier",
                f"{named.title} over gradients a step",
                f"{named.unit}; bar: ± sd; line: the frontier; ring: a method that costs no more "
                f"is better, as far as the seeds tell",
                f"{named.title} of each method by its gradients a step; the numbers are in the "
                f"table",
                wide=True,
            )
        )
    if named.ranks and any(line.difference and line.difference.n for line in lines):
        found.append(
            Figure(
                "difference",
                f"Difference to {first}, seed by seed",
                f"{'points of ' if named.accuracy else ''}{named.title.lower()}; bar: "
                f"95 % interval of the mean{ring}",
                f"Paired differences of each method to {first}; the numbers are in the table",
                wide=True,
            )
        )
    found += [_curve(name, x, named) for name, x in _curves(lines)]
    if any(line.judged for line in lines):
        found.append(
            Figure(
                "tuning",
                "Tuning",
                "accuracy on held-out training samples, labels as given, %; ring: chosen"
                if named.accuracy
                else f"{named.title.lower()} on held-out training samples; ring: chosen",
                "Held-out accuracy by radius for each method",
                wide=True,
            )
        )
    return found


def data(
    blocks: Sequence[PaperTable],
    axes: Mapping[str, Sequence[str]],
    methods: Sequence[str],
    measure: str,
    first: str,
    comparable: bool,
    further: Sequence[str] = (),
) -> dict[str, Any]:
    """What the plots show; `comparable` says whether values may stand beside the paper's."""
    return {
        "first": first,
        "unit": heading(measure).unit,
        "axes": [{"name": name, "labels": list(labels)} for name, labels in axes.items()],
        "methods": _methods(blocks, methods),
        "settings": [
            {
                "labels": [block.position[axis] for axis in axes],
                "commonCost": block.summary.common_cost,
                "lines": [
                    _line(block, line, methods.index(line.title), comparable)
                    for line in block.summary.lines
                ],
                **(_frontier(block.summary, methods) if "frontier" in further else {}),
            }
            for block in blocks
        ],
    }


def _methods(blocks: Sequence[PaperTable], titles: Sequence[str]) -> list[dict[str, Any]]:
    """What each is called and how it is drawn; one without a line yet goes by its title."""
    known = {line.title: line.method for block in blocks for line in block.summary.lines}
    styles = colours.styles({title: known.get(title, title) for title in titles})
    return [{"title": title, "style": style.as_data()} for title, style in styles.items()]


def _line(block: PaperTable, line: Line, method: int, comparable: bool) -> dict[str, Any]:
    rows = [line.rows[seed] for seed in sorted(line.rows)]
    printed = block.paper(line) if comparable else None
    return {
        "method": method,
        "value": _spread(line.value),
        "paper": None if printed is None else {"mean": printed.mean, "sd": printed.sd},
        "passes": [_short(value) for value in _means([row.curves.passes for row in rows])],
        "curves": {name: _band(name, rows) for name in _names(rows)},
        "difference": _forest(block, line),
        "tuning": _tuning(line),
    }


def _frontier(summary: Summary, methods: Sequence[str]) -> dict[str, Any]:
    """By the number of a method: what it costs, whether it is dominated; and the frontier."""
    return {
        "costs": {methods.index(line.title): _short(line.ratio) for line in summary.lines},
        "dominated": [methods.index(x.title) for x in summary.lines if dominated(summary, x)],
        "frontier": [methods.index(line.title) for line in frontier(summary)],
    }


def _forest(block: PaperTable, line: Line) -> dict[str, Any] | None:
    first, found = _first(block.summary), line.difference
    if first is None or found is None or not found.n:
        return None
    shared = sorted(line.by_seed.keys() & first.by_seed.keys())
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "seeds": [_short(line.by_seed[seed] - first.by_seed[seed]) for seed in shared],
        "paper": block.lead_in_paper(line, first.title),
    }


def _first(summary: Summary) -> Line | None:
    return next((line for line in summary.lines if line.title == summary.first), None)


def _tuning(line: Line) -> dict[str, Any] | None:
    if not line.judged:
        return None
    return {
        "rho": list(line.judged),
        "accuracy": [_short(value) for value in line.judged.values()],
        "chosen": line.rho,
    }


# Curves ---------------------------------------------------------------------------------------

_TITLES = {
    "accuracy": ("Test accuracy", "%"),
    "train_accuracy": ("Fit", "% of the training labels as given"),
    "loss": ("Training loss", "mean over the epoch"),
    "observed:wrong-label-accuracy": ("Memorised", "% of the wrong labels that are learned"),
    "observed:right-label-accuracy": ("Learned", "% of the right labels that are learned"),
}


def _curves(lines: Iterable[Line]) -> list[tuple[str, str]]:
    """Name and horizontal axis of what there are curves of."""
    names = dict.fromkeys(
        name for line in lines for row in line.rows.values() for name in _names([row])
    )
    over = [("accuracy", "epoch"), ("accuracy", "passes"), ("train_accuracy", "epoch")]
    over = [(name, x) for name, x in over if name in names]
    return [*over, *((name, "epoch") for name in names if name not in dict(over))]


def _curve(name: str, x: str, measured: Heading) -> Figure:
    title, unit = _TITLES.get(name) or _recorded(name)
    if name == "accuracy" and measured.metric:
        title, unit = measured.title, measured.unit
    over = "gradient cost" if x == "passes" else "epoch"
    cost = "; in passes over the training data" if x == "passes" else ""
    return Figure(
        "curve",
        f"{title} by {over}",
        f"{unit}; band: ± sd{cost}".removeprefix("; "),
        f"{title} of each method by {over}",
        curve=name,
        x=x,
    )


def _recorded(name: str) -> tuple[str, str]:
    kind, _, part = name.partition(":")
    if kind == "analysis":
        return heading(name).title, SENTENCES.get(part, "")
    known = recorder.OBSERVABLES.get(part)
    return heading(name).title, known.sentence if known else ""


def _names(rows: Sequence[Row]) -> list[str]:
    """Of the curves that all rows have."""
    recorded = [{name for name, values in row.observed.items() if values} for row in rows]
    observed = [name for name in rows[0].observed if all(name in names for names in recorded)]
    looked_at = [name for name in EACH_EPOCH if all(row.analysed.get(name) for row in rows)]
    fit = any(math.isfinite(value) for row in rows for value in row.curves.train_accuracy)
    counted = ["train_accuracy"] if fit else []  # not where there are no answers to count
    recorded = [*(f"observed:{name}" for name in observed), *(f"analysis:{n}" for n in looked_at)]
    return ["accuracy", *counted, "loss", *recorded]


def _band(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and spread over the seeds, epoch by epoch or, at most `POINTS` of them, by steps.

    `x` is in epochs; None where there is one value for each of them.
    """
    epochs = len(rows[0].curves.loss)
    curves = [_values(name, row) for row in rows]
    length = min(map(len, curves))
    x = None
    if length != epochs:
        each = max(1, math.ceil(length / POINTS))
        x = [_short(min(at + each / 2, length) * epochs / length) for at in range(0, length, each)]
        curves = [_thinned(curve[:length], each) for curve in curves]
    spreads = [Spread.of(_known(values)) for values in zip(*curves, strict=True)]
    return {
        "x": x,
        "mean": [_short(each.mean) for each in spreads],
        "sd": [_short(each.sd) if each.n > 1 else 0.0 for each in spreads],
    }


def _values(name: str, row: Row) -> Sequence[float | None]:
    kind, _, observable = name.partition(":")
    if kind == "analysis":
        return row.analysed[observable]
    return row.observed[observable] if kind == "observed" else getattr(row.curves, name)


def _thinned(values: Sequence[float | None], each: int) -> list[float | None]:
    """Means of `each` consecutive values."""
    return [_mean(values[at : at + each]) for at in range(0, len(values), each)]


def _means(curves: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [_mean(values) for values in zip(*curves, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _spread(value: Spread) -> dict[str, Any]:
    return {"mean": _short(value.mean), "sd": _short(value.sd) if value.n > 1 else 0.0}


def _short(value: float | None) -> float | None:
    """To five digits, which is more than a plot can show: pages with many recipes stay small."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")

"""What the plots of an inspection show, as plotly takes it; the page gives them their colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from flatmin.analysis import Surface, pictures
from flatmin.studies.report.findings import Findings, Wanted

METHODS = {
    "projected": ("the worst that projected ascent finds", "solid"),
    "ascent": ("one step along the gradient", "dash"),
    "average": ("mean over random directions", "dot"),
}
"""What each kind of sharpness is, and how its line is drawn."""

Trace = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A place for a plot on the page.

    Fields:
        key: of its traces.
        title, unit: above it.
        wide: whether it takes the whole width.
    """

    key: str
    title: str
    unit: str = ""
    wide: bool = False


def plots(models: Sequence[Findings], wanted: Wanted) -> list[Plot]:
    """Those beside the surfaces, for which there is something to draw."""
    found: list[Plot] = []
    if any(each.spectrum is not None for each in models):
        found.append(
            Plot(
                "density",
                "Density of the Hessian's eigenvalues",
                "share of all per unit, logarithmic; each peak of its own is one eigenvalue",
            )
        )
        found.append(
            Plot("eigenvalues", "Largest eigenvalues", "by magnitude; bar: ± residual of Lanczos")
        )
    if any(each.sharpness for each in models):
        kinds = "; ".join(f"{dash}: {says}" for says, dash in METHODS.values())
        found.append(Plot("sharpness", "Rise of the loss within a radius ρ", kinds, wide=True))
    if any(_through(each.surface) for each in models):
        found.append(Plot("across", "Loss across the centre, along the first direction"))
        found.append(Plot("down", "And along the second"))
    if any(each.observed for each in models):
        found.append(Plot("alignment", "Alignment along the training", "by record", wide=True))
    return found


def surfaces(models: Sequence[Findings], shared: Surface | None) -> list[tuple[str, Surface, int]]:
    """The surfaces by name, in the order of their plots, and how many of their points are gaps."""
    found = [(each.name, each.surface) for each in models if each.surface is not None]
    if shared is not None:
        found = [("All models", shared)]
    return [(name, each, int((~np.isfinite(each.losses)).sum())) for name, each in found]


def content(models: Sequence[Findings], wanted: Wanted, shared: Surface | None) -> dict[str, Any]:
    """Everything that the page's script draws."""
    shown = [surface for _, surface, _ in surfaces(models, shared)]
    marks = [each.name for each in models] if shared is not None else []
    metrics = ["loss", *(shown[0].metrics if shown else ())]
    return {
        "series": [each.name for each in models],
        "plots": {
            "density": _density(models),
            "eigenvalues": _eigenvalues(models),
            "sharpness": _sharpness(models, wanted),
            "across": _across(models, 0),
            "down": _across(models, 1),
            "alignment": _alignment(models),
        },
        "metrics": metrics,
        "surfaces": {metric: _drawn(shown, metric, marks) for metric in metrics},
    }


def _drawn(shown: Sequence[Surface], metric: str, marks: Sequence[str]) -> list[Any]:
    """Contours and solids of all surfaces, on one scale; `marks`: who stands on the path."""
    if not shown:
        return []
    tables = [each.losses if metric == "loss" else each.metrics[metric] for each in shown]
    span = pictures.span_of(tables)
    log = metric == "loss" and 0 < pictures.WIDE * span[0] < span[1]
    drawn: list[Any] = []
    for each, values in zip(shown, tables, strict=True):
        kinds = ("contour", "surface") if values.ndim == 2 else ("contour",)
        made = [pictures.picture(each, metric, kind, log, span=span) for kind in kinds]
        path = made[0]["data"][-1]
        if marks and values.ndim == 2:
            path |= {"text": list(marks), "mode": f"{path['mode']}+text"}
            path |= {"textposition": "top center", "textfont": {"color": "white"}}
        drawn.append({"kinds": _short([m["data"] for m in made]), "labels": each.plane.labels})
    return [{"log": log, "span": _short(list(span)), "drawn": drawn}]


def _line(k: int, name: str, x: Any, y: Any, **more: Any) -> Trace:
    """A line of model `k`; None is a gap."""
    return {"type": "scatter", "mode": "lines", "series": k, "name": name, "x": x, "y": y, **more}


def _density(models: Sequence[Findings]) -> list[Trace]:
    """All widened alike; below a tenth of a single eigenvalue's peak there is nothing."""
    spectra = [(k, each) for k, each in enumerate(models) if each.spectrum is not None]
    nodes = [cast("Any", each.spectrum).nodes for _, each in spectra]
    if not nodes:
        return []
    span = max(float(x.max()) for x in nodes) - min(float(x.min()) for x in nodes)
    width = 0.006 * (span or 1.0)
    traces: list[Trace] = []
    for k, each in spectra:
        assert each.spectrum is not None
        found = each.spectrum.density(600, width)
        floor = 0.1 / (each.spectrum.size * width * math.sqrt(2 * math.pi))
        values = [y if y > floor else None for y in found.values.tolist()]
        traces.append(_line(k, each.name, _short(found.at.tolist()), _short(values)))
    return traces


def _eigenvalues(models: Sequence[Findings]) -> list[Trace]:
    return [
        _line(
            k,
            each.name,
            list(range(1, len(each.top) + 1)),
            _short([v for v, _ in each.top]),
            mode="lines+markers",
            error_y={"type": "data", "array": _short([r for _, r in each.top])},
        )
        for k, each in enumerate(models)
        if each.top
    ]


def _sharpness(models: Sequence[Findings], wanted: Wanted) -> list[Trace]:
    return [
        _line(
            k,
            f"{each.name}, {METHODS[method][0]}",
            list(wanted.rho),
            _short(list(found.rise)),
            mode="lines+markers",
            dash=METHODS[method][1],
            error_y={"type": "data", "array": _short(list(found.error))},
        )
        for k, each in enumerate(models)
        for method, found in each.sharpness.items()
    ]


def _through(surface: Surface | None) -> bool:
    """Has a plane points on both axes through its centre?"""
    return (
        surface is not None
        and surface.losses.ndim == 2
        and all(bool((axis == 0).any()) for axis in surface.at)
    )


def _across(models: Sequence[Findings], direction: int) -> list[Trace]:
    """The losses along one axis of each surface."""
    traces: list[Trace] = []
    for k, each in enumerate(models):
        if each.surface is None or not _through(each.surface):
            continue
        middle = int(np.flatnonzero(each.surface.at[1 - direction] == 0)[0])
        losses = each.surface.losses.take(middle, axis=1 - direction)
        at = each.surface.at[direction].tolist()
        traces.append(_line(k, each.name, _short(at), _short(pictures.gaps(losses))))
    return traces


def _alignment(models: Sequence[Findings]) -> list[Trace]:
    return [
        _line(
            k,
            f"{each.name}, {name}",
            list(range(1, len(values) + 1)),
            _short(list(values)),
            dash=("solid", "dash", "dot")[i % 3],
        )
        for k, each in enumerate(models)
        for i, (name, values) in enumerate(each.observed.items())
    ]


def _short(content: Any) -> Any:
    """Numbers to five digits, which is more than a plot can show."""
    if isinstance(content, float):
        return float(f"{content:.5g}") if math.isfinite(content) else None
    if isinstance(content, list):
        return [_short(each) for each in cast("list[Any]", content)]
    if isinstance(content, dict):
        return {key: _short(each) for key, each in cast("dict[str, Any]", content).items()}
    return content

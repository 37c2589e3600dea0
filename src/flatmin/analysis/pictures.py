"""Surfaces as plotly draws them: plain data, which a page can hold and a notebook can show."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np

from flatmin.analysis.lanczos import Array
from flatmin.analysis.planes import Plane
from flatmin.engine import check

WIDE = 30.0
"""Ratio of the largest loss to the smallest from which the scale is logarithmic."""

LINES = 24
"""About how many contours there are."""

COLOURS = "Viridis"


class Drawable(Protocol):
    """What a picture needs of a surface."""

    @property
    def losses(self) -> Array: ...
    @property
    def metrics(self) -> dict[str, Array]: ...
    @property
    def at(self) -> tuple[Array, ...]: ...
    @property
    def plane(self) -> Plane: ...
    @property
    def says(self) -> str: ...


def picture(
    surface: Drawable,
    metric: str = "loss",
    kind: str = "contour",
    log: bool | None = None,
    *,
    span: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """A figure as plotly's JSON: `data` and `layout`.

    Args:
        surface: what is drawn.
        metric: "loss" or one of its metrics.
        kind: of a plane: "contour" or "surface".
        log: whether the scale is logarithmic; None: where values range widely.
        span: of the colours; default that of the values.
    """
    check.one_of("metric", metric, ("loss", *surface.metrics))
    check.one_of("kind", kind, ("contour", "surface"))
    values = surface.losses if metric == "loss" else surface.metrics[metric]
    low, high = span or span_of([values])
    if log is None:
        log = metric == "loss" and low > 0 and high > WIDE * low
    log = log and low > 0
    title = f"{metric}<br><sup>{'<br>'.join(textwrap.wrap(surface.says, 100))}</sup>"
    layout: dict[str, Any] = {"title": {"text": title}, "template": "plotly_white"}
    labels = surface.plane.labels
    if values.ndim == 1:
        layout["xaxis"] = {"title": {"text": labels[0]}}
        layout["yaxis"] = {"title": {"text": metric}, "type": "log" if log else "linear"}
        return {"data": line_traces(surface, values), "layout": layout}
    if kind == "contour":
        layout["xaxis"], layout["yaxis"] = ({"title": {"text": text}} for text in labels)
        return {"data": contour_traces(surface, values, metric, (low, high), log), "layout": layout}
    layout["scene"] = {
        "xaxis": {"title": {"text": labels[0]}},
        "yaxis": {"title": {"text": labels[1]}},
        "zaxis": {"title": {"text": metric}, "type": "log" if log else "linear"},
    }
    return {"data": surface_traces(surface, values, metric, (low, high), log), "layout": layout}


def span_of(tables: Sequence[Array]) -> tuple[float, float]:
    """The smallest and the largest finite value; (0, 1) where there is none."""
    finite = np.concatenate([x[np.isfinite(x)] for x in tables])
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def line_traces(surface: Drawable, values: Array) -> list[dict[str, Any]]:
    """A curve, with a dot at each point and a gap where there is none."""
    curve = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": surface.at[0].tolist(),
        "y": gaps(values),
        "connectgaps": False,
        "marker": {"size": 4},
        "showlegend": False,
    }
    return [curve]


def contour_traces(
    surface: Drawable, values: Array, metric: str, span: tuple[float, float], log: bool
) -> list[dict[str, Any]]:
    """Contours, joined by straight lines, the path, and the centre."""
    a, b = surface.at
    traces: list[dict[str, Any]] = [
        {
            "type": "contour",
            "x": a.tolist(),
            "y": b.tolist(),
            "z": gaps(logarithms(values.T) if log else values.T),
            "customdata": gaps(values.T),
            "colorscale": COLOURS,
            "colorbar": {"title": {"text": metric}, **(ticks(span) if log else {})},
            "connectgaps": False,
            "line": {"smoothing": 0, "width": 0.5},
            **levels(span, log),
            "hovertemplate": f"%{{x:.3g}}, %{{y:.3g}}: {metric} %{{customdata:.4g}}<extra></extra>",
        }
    ]
    path = surface.plane.path
    if path is None:
        path = np.zeros((1, 2))
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+markers" if surface.plane.ordered and len(path) > 1 else "markers",
            "x": path[:, 0].tolist(),
            "y": path[:, 1].tolist(),
            "text": [f"checkpoint {i + 1}" for i in range(len(path))] if len(path) > 1 else "w",
            "hovertemplate": "%{text}<extra></extra>",
            "line": {"color": "white", "width": 2},
            "marker": {"color": "white", "size": 6, "line": {"color": "black", "width": 1}},
            "showlegend": False,
        }
    )
    return traces


def surface_traces(
    surface: Drawable, values: Array, metric: str, span: tuple[float, float], log: bool
) -> list[dict[str, Any]]:
    """The same in three dimensions."""
    a, b = surface.at
    return [
        {
            "type": "surface",
            "x": a.tolist(),
            "y": b.tolist(),
            "z": gaps(values.T),
            "surfacecolor": gaps(logarithms(values.T) if log else values.T),
            "colorscale": COLOURS,
            "cmin": math.log10(span[0]) if log else span[0],
            "cmax": math.log10(span[1]) if log else span[1],
            "colorbar": {"title": {"text": metric}, **(ticks(span) if log else {})},
            "connectgaps": False,
            "hovertemplate": f"%{{x:.3g}}, %{{y:.3g}}: {metric} %{{z:.4g}}<extra></extra>",
        }
    ]


def levels(span: tuple[float, float], log: bool) -> dict[str, Any]:
    """The colours and the contours of a span: the same for all pictures that share it."""
    low, high = (math.log10(x) for x in span) if log else span
    step = even((high - low) / LINES)
    lines = {"start": math.ceil(low / step) * step, "end": high, "size": step}
    return {"zmin": low, "zmax": high, "autocontour": False, "contours": lines}


def even(step: float) -> float:
    """A step of 1, 2 or 5 times a power of ten, not below the one given; 1 for 0."""
    if not step > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def ticks(span: tuple[float, float]) -> dict[str, Any]:
    """Marks of a logarithmic scale of colours, by their values."""
    low, high = (math.log10(x) for x in span)
    within = [
        m * 10.0**e
        for e in range(math.floor(low), math.ceil(high) + 1)
        for m in (1, 2, 5)
        if span[0] <= m * 10.0**e <= span[1]
    ]
    return {"tickvals": [math.log10(x) for x in within], "ticktext": [f"{x:g}" for x in within]}


def logarithms(values: Any) -> Array:
    """To base 10; nan where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values)


def gaps(values: Any) -> list[Any]:
    """Nested lists, with None for what is not finite."""
    if values.ndim > 1:
        return [gaps(row) for row in values]
    return [x if math.isfinite(x) else None for x in cast("list[float]", values.tolist())]

"""What an analysis has found that is no curve over the epochs, drawn as SVG.

The distribution of squared gradient norms at a stage of training, as a histogram and against the
normal distribution; and the loss around the final weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from flatmin.studies.plan.analyses import DISTRIBUTION, GRID
from flatmin.studies.report.paper import PaperTable
from flatmin.studies.report.summary import Line
from flatmin.studies.store.row import Row

WIDTH, HEIGHT, MARGIN = 320, 200, 24

BINS = 20

FEWEST = 3
"""Numbers of which there is a distribution to draw."""


@dataclass(frozen=True)
class Drawing:
    """One picture.

    Fields:
        title, unit: above it.
        svg: itself.
    """

    title: str
    unit: str
    svg: Markup


def drawings(blocks: Sequence[PaperTable], axes: Sequence[str]) -> list[Drawing]:
    """Of the first seed of each method in each setting."""
    found: list[Drawing] = []
    surfaces: list[tuple[str, np.ndarray]] = []
    for block in blocks:
        where = [block.position[axis] for axis in axes]
        for line in block.summary.lines:
            row, name = _first(line), ", ".join([*where, line.title])
            found += _distributions(row, name)
            surfaces += [(name, grid) for grid in _grids(row)]
    return found + list(_surfaces(surfaces))


def _first(line: Line) -> Row:
    return line.rows[min(line.rows)]


# Distributions --------------------------------------------------------------------------------


def _distributions(row: Row, name: str) -> Iterable[Drawing]:
    from flatmin.analysis.noise import GradientNoise

    for key, values in row.analysed.items():
        norms = np.array([v for v in values if v is not None])
        if not key.startswith(DISTRIBUTION) or len(norms) < FEWEST:
            continue
        noise = GradientNoise(norms, math.nan, math.nan, 1, len(norms))
        share = float(key.removeprefix(DISTRIBUTION))
        at = f"{name}, at {share:.0%} of the epochs"
        bars = noise.histogram(BINS)
        yield Drawing(f"‖∇L_B‖² of {len(norms)} batches", at, _histogram(bars.edges, bars.counts))
        points = noise.quantiles()
        test = noise.normality()
        says = f"{at}; W {test.statistic:.3f}, p {test.p:.2g}; line: normal"
        yield Drawing(
            "Normal quantile plot",
            says,
            _quantiles(points.normal, points.sample, points.slope, points.intercept),
        )


def _histogram(edges: np.ndarray, counts: np.ndarray) -> Markup:
    x, y = _scale(edges[0], edges[-1], WIDTH), _scale(0, max(1, counts.max()), HEIGHT)
    bars = Markup("").join(
        Markup('<rect x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
            f"{x(low):.1f}",
            f"{HEIGHT - y(count):.1f}",
            f"{x(high) - x(low):.1f}",
            f"{y(count) - MARGIN:.1f}",
            f"{low:.4g} to {high:.4g}: {count}",
        )
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )
    bars = Markup('<g fill="currentColor" fill-opacity="0.45">{}</g>').format(bars)
    return _framed(bars, f"{edges[0]:.3g}", f"{edges[-1]:.3g}", f"up to {counts.max()} batches")


def _quantiles(normal: np.ndarray, sample: np.ndarray, slope: float, intercept: float) -> Markup:
    ends = np.array([normal[0], normal[-1]])
    line = intercept + slope * ends
    x = _scale(normal[0], normal[-1], WIDTH)
    y = _scale(min(sample[0], line[0]), max(sample[-1], line[-1]), HEIGHT)
    dots = Markup("").join(
        Markup('<circle cx="{}" cy="{}" r="1.8"/>').format(f"{x(a):.1f}", f"{HEIGHT - y(b):.1f}")
        for a, b in zip(normal, sample, strict=True)
    )
    shown = Markup(
        '<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="currentColor" stroke-opacity="0.5"/>'
        '<g fill="currentColor">{}</g>'
    ).format(
        f"{x(ends[0]):.1f}",
        f"{HEIGHT - y(line[0]):.1f}",
        f"{x(ends[1]):.1f}",
        f"{HEIGHT - y(line[1]):.1f}",
        dots,
    )
    high = f"{sample[0]:.3g} to {sample[-1]:.3g}"
    return _framed(shown, f"{normal[0]:.1f} sd", f"{normal[-1]:.1f} sd", high)


# Surfaces -------------------------------------------------------------------------------------


def _grids(row: Row) -> Iterable[np.ndarray]:
    for key, values in row.analysed.items():
        if key.startswith(GRID):
            side = round(math.sqrt(len(values)))
            yield np.array([math.nan if v is None else v for v in values]).reshape(side, side)


def _surfaces(grids: Sequence[tuple[str, np.ndarray]]) -> Iterable[Drawing]:
    """All in one scale of grey, which is logarithmic; what is not finite stays open."""
    finite = [x for _, grid in grids for x in grid[np.isfinite(grid) & (grid > 0)]]
    if not finite:
        return
    low, high = math.log(min(finite)), math.log(max(finite))
    for name, grid in grids:
        yield Drawing(
            "Loss around the weights",
            f"{name}; {np.nanmin(grid):.3g} to {np.nanmax(grid):.3g}; dark is high, "
            f"one scale for all",
            _cells(grid, low, high),
        )


def _cells(grid: np.ndarray, low: float, high: float) -> Markup:
    n, side = len(grid), HEIGHT
    each, span = side / n, (high - low) or 1.0
    cells = Markup("").join(
        Markup(
            '<rect x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"><title>{}</title></rect>'
        ).format(
            f"{i * each:.2f}",
            f"{(n - 1 - j) * each:.2f}",
            f"{each:.2f}",
            f"{each:.2f}",
            f"{0.06 + 0.94 * (math.log(grid[i, j]) - low) / span:.3f}",
            f"{grid[i, j]:.4g}",
        )
        for i in range(n)
        for j in range(n)
        if math.isfinite(grid[i, j]) and grid[i, j] > 0
    )
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" width="100%"><g fill="currentColor">{}</g></svg>'
    ).format(side, side, cells)


# Both -----------------------------------------------------------------------------------------


def _scale(low: float, high: float, size: int) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: MARGIN + (size - 2 * MARGIN) * (float(value) - low) / span


def _framed(inside: Markup, left: str, right: str, top: str) -> Markup:
    """With what its axes reach."""
    return Markup(
        '<svg viewBox="0 0 {w} {h}" role="img" width="100%">{inside}'
        '<g fill="currentColor" font-size="11"><text x="{m}" y="{low}">{left}</text>'
        '<text x="{end}" y="{low}" text-anchor="end">{right}</text>'
        '<text x="{m}" y="12">{top}</text></g></svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT,
        m=MARGIN,
        low=HEIGHT - 8,
        end=WIDTH - MARGIN,
        inside=inside,
        left=left,
        right=right,
        top=top,
    )

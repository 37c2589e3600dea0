"""Models looked at side by side: curvature, sharpness, surfaces; as a page, and in a notebook.

from flatmin.studies.report.inspection import Subject, inspect

inspect([Subject("SGD", a, batches), Subject("SAM", b, batches)])    # shows itself
"""

from __future__ import annotations

import html as escapes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from flatmin import analysis
from flatmin.studies.report import html, inspection_figures
from flatmin.studies.report.findings import STEPS, TOP, Bench, Findings, Wanted, digest_of
from flatmin.studies.report.subjects import Subject
from flatmin.studies.report.text import listing, number

__all__ = ["Findings", "Inspection", "Subject", "Wanted", "inspect"]

EQUAL = 1.5
"""Losses further apart than by this factor are remarked on."""


@dataclass(frozen=True)
class Inspection:
    """What `inspect` has found.

    Fields:
        models: what was found of each, in the order given; of fewer after Ctrl-C.
        wanted: what was asked for.
        shared: the surface through all models, where they lie on one.
        interrupted: whether Ctrl-C ended it.
        alike: whether all were looked at on the same data.
    """

    models: tuple[Findings, ...]
    wanted: Wanted
    shared: analysis.Surface | None = None
    interrupted: bool = False
    alike: bool = True

    @property
    def headline(self) -> str:
        """The one number that most ask for."""
        said = [
            f"{number(each.top[0][0], digits(each.top[0][0]))} for {each.name}"
            for each in self.models
            if each.top
        ]
        if not said:
            return "No eigenvalue has converged"
        return f"Largest Hessian eigenvalue: {listing(said)}"

    @property
    def remarks(self) -> list[str]:
        """What a reader must know before believing it."""
        said: list[str] = []
        if self.interrupted:
            said.append("Interrupted: what is missing was not measured. The same command goes on.")
        if not self.alike:
            said.append("The models were looked at on different samples or labels.")
        losses = [each.loss for each in self.models if each.loss > 0]
        if len(losses) > 1 and max(losses) > EQUAL * min(losses):
            said.append(
                "The losses differ, and curvature grows and falls with the training loss: compare "
                "at equal loss before calling one of them flatter."
            )
        said += [
            f"{each.name}: {len(each.top)} of {TOP} eigenvalues have converged after "
            f"{each.spectrum.products} products; raise --products."
            for each in self.models
            if each.spectrum is not None and len(each.top) < TOP
        ]
        return said

    def page(self, command: str = "") -> str:
        """One HTML document that needs nothing else.

        Args:
            command: that makes it again; default none.
        """
        import plotly.offline  # half a second, which those who only measure need not wait

        return html.page(
            "inspect.html",
            [],
            inspection=self,
            rows=[cells(each) for each in self.models],
            tops=[[measured(*pair) for pair in each.top] for each in self.models],
            steps=STEPS,
            surfaces=inspection_figures.surfaces(self.models, self.shared),
            boxes=inspection_figures.plots(self.models, self.wanted),
            library=Markup(plotly.offline.get_plotlyjs()),  # its own text, not the user's
            inspected=html.script(
                inspection_figures.content(self.models, self.wanted, self.shared)
            ),
            command=command,
        )

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for a notebook."""
        return (
            f'<iframe srcdoc="{escapes.escape(self.page())}" title="flatmin inspection" '
            'style="width:100%;height:48rem;border:0"></iframe>'
        )


def inspect(
    subjects: Sequence[Subject],
    wanted: Wanted | None = None,
    *,
    grids: Path | None = None,
    tell: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Inspection:
    """Measure models side by side.

    Args:
        subjects: the models, each with its data.
        wanted: what is measured; default all, as `Wanted` has it.
        grids: a folder in which surfaces are kept as they grow, and from which they go on.
        tell: called with what is being done.
        progress: whether points and products are told on standard error.

    Returns:
        what was found; after Ctrl-C so far.

    Raises InputError where a model or its data does not allow it.
    """
    wanted = wanted or Wanted()
    wanted.check(len(subjects))
    bench = Bench(wanted, grids, tell or (lambda said: None), progress)
    found: list[Findings] = []
    shared, interrupted = None, False
    try:
        for subject in subjects:
            found.append(Findings(subject.name, subject.about))
            for known in bench.findings(subject):
                found[-1] = known
        if wanted.along == "between":
            shared = bench.between(subjects)
    except KeyboardInterrupt:
        interrupted = True
    interrupted = interrupted or (shared is not None and shared.interrupted)
    alike = len({digest_of(each) for each in subjects}) == 1
    return Inspection(tuple(found), wanted, shared, interrupted, alike)


def cells(found: Findings) -> list[str]:
    """A line of the table."""
    values = [v for v, _ in found.top]
    trace = found.spectrum.trace if found.spectrum is not None else None
    largest = measured(*found.top[0]) if values else "–"
    stands_out = len(values) == TOP and values[-1] > 0
    return [
        found.name,
        number(found.loss, 4),
        number(found.accuracy, 1),
        largest,
        number(values[0] / values[-1], 1) if stands_out else "–",
        measured(trace.value, trace.error) if trace is not None else "–",
        *rises(found),
    ]


def rises(found: Findings) -> list[str]:
    """By radius, the highest that projected ascent has found."""
    projected = found.sharpness.get("projected")
    return [] if projected is None else [number(rise, digits(rise)) for rise in projected.rise]


def measured(value: float, error: float) -> str:
    """`69.2 ± 0.4`: no more digits than are known, and at most five."""
    known = digits(value) + 2
    if not error:
        return number(value, known)
    known = min(max(digits(error) - 2, 0), known)
    said = number(error, known)
    return f"{number(value, known)} ± {said if float(said) else f'{error:.0e}'}"


def digits(value: float) -> int:
    """How many behind the point make three that count."""
    if not value or not math.isfinite(value):
        return 0
    return max(0, 2 - math.floor(math.log10(abs(value))))

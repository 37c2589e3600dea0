"""What few-shot trainings have found, for people: a page, and the same as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from flatmin.studies.meta.testing import TestedMethod, TestTable
from flatmin.studies.report import html, text
from flatmin.studies.report.statistics import SEEDS, Difference

HEADINGS = (
    "method",
    "seeds",
    "best on validation",
    "last",
    "− first, over tasks",
    "− first, over seeds",
    "seconds",
    "diverged",
)

WIDTH, HEIGHT = 640, 200
COLOURS = ("#3366cc", "#dc3912", "#109618", "#990099", "#ff9900", "#0099c6", "#dd4477", "#66aa00")


def markdown(tables: Sequence[TestTable], command: str) -> str:
    """Tables for a document, with the command that makes them."""
    parts: list[str] = []
    for table in tables:
        parts += [
            f"## {table.shows}",
            "",
            note(table),
            "",
            "| " + " | ".join(HEADINGS) + " |",
            "| " + " | ".join("---" for _ in HEADINGS) + " |",
            *("| " + " | ".join(cells(line)) + " |" for line in table.lines),
            "",
        ]
    return "\n".join([*parts, "```console", f"$ {command}", "```", ""])


def page(tables: Sequence[TestTable], command: str) -> str:
    """The HTML document, in the form of all reports."""
    return html.page(
        "meta.html",
        [],
        headings=HEADINGS,
        tables=[(table, note(table), [cells(line) for line in table.lines]) for table in tables],
        curves=[curve(table) for table in tables],
        command=command,
    )


def note(table: TestTable) -> str:
    """What the numbers are."""
    return (
        f"Accuracy in percent over {table.tasks} test tasks, the same for all; ± is half of the "
        f"95 % interval over tasks. Differences to the first are of the models that were best on "
        f"the validation classes: paired over the tasks, and over the seeds with an interval for "
        f"all methods together. Bold where both leave out zero; below {SEEDS} seeds nothing is."
    )


def cells(line: TestedMethod) -> list[str]:
    """A line as text, Markdown's bold included."""
    gaps = [_gap(each, bold=line.told_apart) for each in (line.gap, line.gap_of_trainings)]
    best, last = (f"{mean:.2f} ± {half:.2f}" for mean, half in (line.best, line.last))
    seeds = ", ".join(map(str, line.seeds))
    return [line.title, seeds, best, last, *gaps, f"{line.seconds:.0f}", str(line.diverged)]


def _gap(gap: Difference | None, *, bold: bool) -> str:
    if gap is None:
        return ""
    said = text.signed(gap.mean, 2)
    if math.isfinite(gap.low):
        said += f" [{gap.low:+.2f}, {gap.high:+.2f}]"
    return f"**{said}**" if bold else said


def curve(table: TestTable) -> Markup:
    """The validation accuracy over meta-steps, one line a method (its first seed)."""
    rows = [row for history in table.curves.values() for row in history]
    if len({row.step for row in rows}) < 2:
        return Markup("")
    most = max(row.step for row in rows)
    low, high = min(row.accuracy for row in rows), max(row.accuracy for row in rows)
    height = max(high - low, 1e-9)

    def at(step: int, accuracy: float) -> str:
        return f"{WIDTH * step / most:.1f},{HEIGHT - HEIGHT * (accuracy - low) / height:.1f}"

    drawn = Markup("")
    for (title, history), colour in zip(
        table.curves.items(), COLOURS * (1 + len(table.curves) // len(COLOURS)), strict=False
    ):
        points = " ".join(at(row.step, row.accuracy) for row in history)
        drawn += Markup(
            '<polyline fill="none" stroke="{}" stroke-width="2" points="{}"><title>{}</title>'
            "</polyline>"
        ).format(colour, points, title)
    label = Markup(
        '<text x="0" y="{}" fill="currentColor" font-size="12">validation accuracy, {} to {} %, '
        "over {} meta-steps</text>"
    ).format(HEIGHT + 16, f"{low:.1f}", f"{high:.1f}", most)
    return Markup('<svg viewBox="0 0 {} {}" role="img" width="100%">{}{}</svg>').format(
        WIDTH, HEIGHT + 20, drawn, label
    )

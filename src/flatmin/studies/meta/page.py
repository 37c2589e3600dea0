"""What few-shot trainings have found, for people: a page, and the same as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flatmin.studies.meta.testing import TestedMethod, TestTable
from flatmin.studies.report import colours, html, text
from flatmin.studies.report.figures import Figure
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
        [curves(table) for table in tables],
        headings=HEADINGS,
        tables=[
            (table, note(table), [cells(line) for line in table.lines], styles(table))
            for table in tables
        ],
        plotted=PLOTS,
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


PLOTS = {
    "figures": [
        Figure(
            "curve",
            "Validation accuracy along meta-training",
            "%, of the first seed",
            "Validation accuracy of each method by meta-step",
            curve="accuracy",
            x="epoch",
            wide=True,
        )
    ],
    "axes": dict[str, tuple[str, ...]](),
    "drawings": (),
}
"""What is drawn below a table."""


def styles(table: TestTable) -> dict[str, dict[str, str]]:
    """How each method is drawn."""
    found = colours.styles({line.title: line.method for line in table.lines})
    return {title: style.as_data() for title, style in found.items()}


def curves(table: TestTable) -> dict[str, Any]:
    """The validation accuracy over meta-steps, one line a method, as the page's script takes it."""
    lines = [
        {
            "method": at,
            "curves": {
                "accuracy": {
                    "x": [row.step for row in table.curves[line.title]],
                    "mean": [row.accuracy for row in table.curves[line.title]],
                    "sd": [0.0 for _ in table.curves[line.title]],
                }
            },
        }
        for at, line in enumerate(table.lines)
    ]
    return {
        "axes": [],
        "over": "meta-step",
        "methods": [{"title": title, "style": style} for title, style in styles(table).items()],
        "settings": [{"labels": [], "lines": lines}],
    }

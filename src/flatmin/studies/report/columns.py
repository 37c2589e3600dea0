"""Tables for a terminal of any width: what does not fit is a column less, never a digit."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

GAP = 2
"""Characters between two columns."""

LEAST = 10
"""Characters to which the first column may be wrapped, where nothing else helps."""


@dataclass(frozen=True)
class ConsoleColumn:
    """A column of a table.

    Fields:
        title: above it, in one line or several.
        rank: columns with the highest go first where the table is too wide; 0 never goes.
        left: whether its cells are words, which begin at the left.
        least: characters to which it may be wrapped; 0 for not at all.
    """

    title: str
    rank: int = 0
    left: bool = False
    least: int = 0


def console(piped: int) -> Console:
    """The standard output: as wide as the terminal, or as $COLUMNS says, or else `piped`."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(width=None if known else piped, highlight=False, emoji=False)


def table(
    columns: Sequence[ConsoleColumn],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    bold: Sequence[bool] = (),
) -> RenderableType:
    """The rows below the columns that fit into `width`, and a line that names the others.

    Args:
        columns: the first one names what a row is about.
        rows: a cell for each column.
        width: in characters.
        bold: which rows are; default none.
    """
    kept = fitting(columns, rows, width)
    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
    fits = _width(columns, rows, kept) <= width
    for at in kept:
        each = columns[at]
        made.add_column(
            each.title,
            justify="left" if each.left else "right",
            no_wrap=not each.least and (fits or at > 0),
            min_width=each.least or (None if fits or at else LEAST),
        )
    for number, row in enumerate(rows):
        style = "bold" if number < len(bold) and bold[number] else None
        made.add_row(*(Text(row[at]) for at in kept), style=style)
    gone = [" ".join(each.title.split()) for at, each in enumerate(columns) if at not in kept]
    if not gone:
        return made
    return Group(made, Text(f"left out, for want of width: {', '.join(gone)}", style="dim"))


def fitting(
    columns: Sequence[ConsoleColumn], rows: Sequence[Sequence[str]], width: int
) -> Sequence[int]:
    """The positions of the columns that fit together."""
    kept = list(range(len(columns)))
    while _width(columns, rows, kept) > width:
        last = max(kept, key=lambda at: (columns[at].rank, at))
        if not columns[last].rank:
            break
        kept.remove(last)
    return kept


def _width(
    columns: Sequence[ConsoleColumn], rows: Sequence[Sequence[str]], kept: Sequence[int]
) -> int:
    """Of the table, where what may be wrapped is."""
    return sum(
        columns[at].least
        or max(
            cell_len(line)
            for cell in (columns[at].title, *(row[at] for row in rows))
            for line in cell.split("\n")
        )
        for at in kept
    ) + GAP * (len(kept) - 1)

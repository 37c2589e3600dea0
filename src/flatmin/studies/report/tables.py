"""The table of a report as text: every page, whatever its format, shows the same cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from flatmin.studies.report import text
from flatmin.studies.report.measures import heading
from flatmin.studies.report.paper import PaperTable
from flatmin.studies.report.summary import Line

COSTS = ("ratio", "passes", "share", "radius", "train_accuracy", "seconds_per_epoch")
"""What stands in every table, if it is not what the table is about."""

APART = "†"
"""Behind the value of a method whose spread differs by far from that of the others."""


@dataclass(frozen=True)
class Column:
    """What stands above the cells of a column."""

    title: str
    unit: str = ""


@dataclass(frozen=True)
class TableCell:
    """Ours, and beneath it the paper's; both may be empty."""

    ours: str
    paper: str = ""


@dataclass(frozen=True)
class Entry:
    """One method in one setting.

    Fields:
        title: of the method.
        rank: "best" for the leader, "level" for what the seeds do not tell from it, or empty.
        cells: one for each column but that of the method.
        troubles: why its numbers should not be taken at face value.
    """

    title: str
    rank: str
    cells: tuple[TableCell, ...]
    troubles: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """One setting: its labels on the axes that have several, and its methods."""

    labels: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Table:
    """Columns, the first of which names the method, and the entries below them.

    Fields:
        same: what is the same in all entries, in words; it has no column.
    """

    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    same: tuple[str, ...] = ()

    @property
    def ranked(self) -> bool:
        """Whether there is a leader in any setting."""
        return any(entry.rank for group in self.groups for entry in group.entries)

    @property
    def apart(self) -> bool:
        """Whether any method has a spread of its own."""
        return any(entry.cells[0].ours.endswith(APART) for g in self.groups for entry in g.entries)


@dataclass(frozen=True)
class Layout:
    """Which columns there are.

    Fields:
        measures: of the recipe, first things first.
        axes: those with several labels.
        first, sam: methods to which differences are taken; None for none.
        costs: which of `COSTS` to show.
        comparable: whether our values are as comparable to the paper's as their difference is.
        runs: whether to say how many runs there are.
        rho: how the radii came about.
        ranks: whether a best method is marked.
    """

    measures: tuple[str, ...]
    axes: tuple[str, ...]
    first: str | None
    sam: str | None
    costs: tuple[str, ...]
    comparable: bool
    runs: bool
    rho: str
    ranks: bool = True

    @property
    def others(self) -> list[str]:
        """To which differences are taken."""
        return [other for other in (self.first, self.sam) if other is not None]

    @property
    def equal_cost(self) -> bool:
        """Whether there are methods to compare at equal gradient cost."""
        return self.first is not None and heading(self.measures[0]).ranks

    @property
    def further(self) -> tuple[str, ...]:
        """Measures with columns of their own, besides the first."""
        return tuple(name for name in self.measures[1:] if name not in self.costs)

    @property
    def last(self) -> tuple[str, ...]:
        """What stands behind the radius."""
        return tuple(name for name in self.costs if name != self.measures[0])


def table(layout: Layout, blocks: Iterable[PaperTable]) -> Table:
    """The cells of all blocks."""
    every = list(blocks)
    costs = [block.summary.common_cost for block in every]
    return folded(
        Table(
            tuple(_columns(layout, costs)),
            tuple(
                Group(
                    tuple(block.position[axis] for axis in layout.axes),
                    tuple(_entry(layout, block, line) for line in block.summary.lines),
                )
                for block in every
            ),
        )
    )


def folded(whole: Table) -> Table:
    """Without the columns that say the same of every method in every setting, or nothing."""
    entries = [entry for group in whole.groups for entry in group.entries]
    if len(entries) < 2:
        return whole
    kept, same = [0], list[str]()  # what the table is about stays
    for at, column in enumerate(whole.columns[2:], 1):
        first, *others = {entry.cells[at] for entry in entries}
        if others or first.paper:
            kept.append(at)
        elif first.ours not in ("", "–"):
            same.append(f"{column.title} {first.ours}{f' ({column.unit})' if column.unit else ''}")
    return Table(
        (*whole.columns[:1], *(whole.columns[at + 1] for at in kept)),
        tuple(
            replace(
                group,
                entries=tuple(
                    replace(entry, cells=tuple(entry.cells[at] for at in kept))
                    for entry in group.entries
                ),
            )
            for group in whole.groups
        ),
        tuple(same),
    )


def _columns(layout: Layout, costs: Sequence[float]) -> Iterable[Column]:
    first = heading(layout.measures[0])
    points = "points, 95 % interval" if first.accuracy else "95 % interval"
    yield Column("Method")
    yield Column(first.title, ", ".join(filter(None, [first.unit, "mean ± sd"])))
    if layout.runs:
        yield Column("Runs")
    if layout.comparable:
        yield Column("Ours − paper")
    for other in layout.others:
        yield Column(f"Difference to {other}", points)
    if layout.equal_cost:
        known = sorted({f"{cost:.0f}" for cost in costs if math.isfinite(cost)}, key=float)
        after = known[0] if len(known) == 1 else " to ".join((*known[:1], *known[-1:]))
        unit = "%" if first.accuracy else ""
        said = f"after {after} passes" if known else ""
        # on the way there is the test set alone, whatever the final models are measured on
        way = first.metric or layout.measures[0] == "accuracy"
        title = "At equal cost" if way else f"{heading('accuracy').title} at equal cost"
        yield Column(title, ", ".join(filter(None, [unit, said])))
    for measure in layout.further:
        yield _column(measure)
    yield Column("ρ", layout.rho)
    for measure in layout.last:
        yield _column(measure)


def _column(measure: str) -> Column:
    named = heading(measure)
    return Column(named.title, named.unit)


def _entry(layout: Layout, block: PaperTable, line: Line) -> Entry:
    return Entry(
        line.title,
        block.summary.rank(line) if layout.ranks else "",
        tuple(_cells(layout, block, line)),
        tuple(line.troubles),
    )


def _cells(layout: Layout, block: PaperTable, line: Line) -> Iterable[TableCell]:
    printed = block.paper(line)
    digits = block.summary.digits
    mark = APART if line in block.summary.apart else ""
    value = text.spread(line.value, digits) + mark
    yield TableCell(value, text.printed(printed) if printed else "")
    if layout.runs:
        done, asked = line.value.n, line.asked
        yield TableCell(f"{done}" if done == asked else f"{done} of {asked}")
    if layout.comparable:
        yield TableCell(text.signed(line.value.mean - printed.mean, digits) if printed else "")
    for other in layout.others:
        gap, theirs = block.gap(line, other), block.lead_in_paper(line, other)
        yield TableCell(
            text.difference(gap, digits) if gap else "",
            "" if theirs is None else text.signed(theirs),
        )
    if layout.equal_cost:
        yield TableCell(text.spread(line.at_equal_cost, digits))
    for measure in layout.further:
        yield _measured(layout, block, line, measure)
    yield TableCell(_radius(line))
    for measure in layout.last:
        yield _measured(layout, block, line, measure)


def _measured(layout: Layout, block: PaperTable, line: Line, measure: str) -> TableCell:
    """With its spread where the table is about it, and where there is one; else the mean alone."""
    printed = block.paper(line, measure)
    digits = heading(measure).digits
    if measure in layout.measures:
        digits = max(digits, 1)
    ours = line.spread(measure)
    told = measure in layout.measures and round(ours.sd, digits) > 0
    shown = text.spread(ours, digits) if told else text.number(ours.mean, digits)
    return TableCell(shown, text.printed(printed) if printed else "")


def _radius(line: Line) -> str:
    rho = "–" if line.rho is None else f"{line.rho:g}" + ("*" if line.edge else "")
    return ", ".join([rho, *(f"{name} {value}" for name, value in line.tuned.items())])

"""What a report says about a recipe of few-shot learning."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatmin.studies.meta import page, recipes, running, testing
from flatmin.studies.meta.running import Finding
from flatmin.studies.meta.testing import TestedMethod, TestTable
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.report import section, tables, text
from flatmin.studies.report.figures import Figure
from flatmin.studies.report.runs import Record
from flatmin.studies.report.section import Section
from flatmin.studies.report.statistics import Difference
from flatmin.studies.report.summary import FEW, Verdict
from flatmin.studies.report.tables import Column, Entry, Group, Table, TableCell


@dataclass(frozen=True)
class GridPlace:
    """One place of the grid: what each method has come to there, and the table of it."""

    labels: tuple[str, ...]
    findings: tuple[Finding, ...]
    table: TestTable

    @property
    def lines(self) -> Iterator[tuple[Finding, TestedMethod]]:
        """Both, method by method."""
        return zip(self.findings, self.table.lines, strict=True)


def of_record(record: Record) -> Section:
    """What there is to say about a run of a recipe of few-shot learning."""
    assert isinstance(record.plan, ScaledRecipe)
    plan, blocks = record.plan, blocks_of(record)
    axes = _axes(plan)
    found = [each for block in blocks for each in block.findings]
    return section.of_plan(
        plan,
        record,
        axes=axes,
        verdict=_verdict(plan, blocks),
        remarks=_remarks(blocks),
        table=_table(blocks),
        figures=[CURVE, *([TUNING] if any(each.judged for each in found) else [])],
        data=_data(axes, blocks),
        paper=any(finding.entry.printed is not None for finding in found),
        made=section.provenance(each.made for finding in found for each in finding.tested),
    )


def blocks_of(record: Record) -> list[GridPlace]:
    """Every place of the grid."""
    assert isinstance(record.plan, ScaledRecipe)
    found = running.restored(record.plan, record.episodes)
    return [_block(record.plan, each) for each in _places(found)]


CURVE = Figure(
    "curve",
    "Accuracy on the validation classes by meta-step",
    "%, of the first seed",
    "Accuracy on the validation classes of each method by meta-step",
    curve="accuracy",
    x="epoch",
    wide=True,
)

TUNING = Figure(
    "tuning",
    "Tuning",
    "accuracy of the best model on the validation classes, %; ring: chosen",
    "Accuracy on the validation classes by radius for each method",
    wide=True,
)


def _places(found: Sequence[Finding]) -> list[tuple[Finding, ...]]:
    """Those of one place together."""
    return [tuple(group) for _, group in itertools.groupby(found, lambda each: each.entry.at)]


def _axes(plan: ScaledRecipe) -> dict[str, tuple[str, ...]]:
    """Those with several labels."""
    return {axis: tuple(values) for axis, values in plan.grid.items() if len(values) > 1}


def _block(plan: ScaledRecipe, found: tuple[Finding, ...]) -> GridPlace:
    labels = next(
        tuple(setting.position[axis] for axis in _axes(plan))
        for setting in plan.settings
        if recipes.place(setting.position) == found[0].entry.at
    )
    return GridPlace(
        labels, found, testing.table({each.entry.label: each.tested for each in found})
    )


def _table(blocks: Sequence[GridPlace]) -> Table:
    first = blocks[0].table.lines[0].title
    printed = any(each.entry.printed is not None for block in blocks for each in block.findings)
    columns = (
        Column("Method"),
        Column("Accuracy", "%, mean ± sd"),
        Column("Runs"),
        Column("Over tasks", "± half of the 95 % interval"),
        Column(f"Difference to {first}, over tasks", "points, 95 % interval"),
        Column(f"Difference to {first}, over seeds", "points, 95 % interval"),
        Column("After the last step", "%, ± over tasks"),
        Column("ρ", "tuned" if any(e.judged for b in blocks for e in b.findings) else "as set"),
        Column("Meta-training", "s"),
        Column("Diverged", "tasks"),
    )
    groups = [
        Group(block.labels, tuple(_entry(block, each, line, printed) for each, line in block.lines))
        for block in blocks
    ]
    return tables.folded(Table(columns, tuple(groups)))


def _entry(block: GridPlace, found: Finding, line: TestedMethod, printed: bool) -> Entry:
    theirs = found.entry.printed
    rho = found.tested[0].settings.rho if found.tested[0].settings.method != "sgd" else None
    return Entry(
        line.title,
        block.table.rank(line),
        (
            TableCell(
                text.spread(block.table.over_trainings(line)),
                text.number(theirs) if printed and theirs else "",
            ),
            TableCell(str(len(line.seeds))),
            TableCell(f"± {line.best[1]:.1f}"),
            TableCell(text.difference(line.gap)),
            TableCell(text.difference(line.gap_of_trainings)),
            TableCell(f"{line.last[0]:.1f} ± {line.last[1]:.1f}"),
            TableCell("–" if rho is None else f"{rho:g}" + "*" * found.edge),
            TableCell(f"{line.seconds:.0f}"),
            TableCell(str(line.diverged)),
        ),
        (),
    )


def _verdict(plan: ScaledRecipe, blocks: Sequence[GridPlace]) -> Verdict:
    """Which methods differ from the first, as far as tasks and seeds both tell."""
    if plan.smoke_only:
        return Verdict("It runs; its numbers say nothing about methods", text.sentence(plan.says))
    first = blocks[0].table.lines[0].title
    if not all(block.table.repeated for block in blocks):
        return Verdict(f"Too few runs to tell any method from {first}", FEW)
    told = [
        f"{line.title}{_where(block)}: {_both(line)}"
        for block in blocks
        for line in block.table.lines
        if line.told_apart
    ]
    if told:
        return Verdict(
            f"Told from {first} over tasks and over seeds: {len(told)} of {_pairs(blocks)}",
            text.sentence("; ".join(told)),
        )
    widest = max(
        (
            (block, line)
            for block in blocks
            for line in block.table.lines
            if line.gap_of_trainings is not None
        ),
        key=lambda each: abs(_gap(each[1]).mean),
        default=None,
    )
    if widest is None:
        return Verdict(f"{first} alone", "There is no other method to compare it with.")
    block, line = widest
    return Verdict(
        f"No method is told from {first}, over tasks and over seeds",
        f"Furthest from it is {line.title}{_where(block)}: {_both(line)}.",
    )


def _gap(line: TestedMethod) -> Difference:
    assert line.gap_of_trainings is not None, "not the first"
    return line.gap_of_trainings


def _both(line: TestedMethod) -> str:
    over_tasks = text.difference(line.gap)
    return f"{over_tasks} points over tasks, {text.difference(_gap(line))} over seeds"


def _pairs(blocks: Sequence[GridPlace]) -> int:
    return sum(len(block.table.lines) - 1 for block in blocks)


def _where(block: GridPlace) -> str:
    return f" ({', '.join(block.labels)})" if block.labels else ""


def _remarks(blocks: Sequence[GridPlace]) -> Iterator[str]:
    yield (
        f"Accuracy is that of the model which was best on the validation classes, over "
        f"{blocks[0].table.tasks} test tasks that are the same for all. Differences over tasks say "
        f"how far these trained models differ, over seeds how far trainings do."
    )
    for block in blocks:
        tried = [f"{each.entry.label} {_tried(each)}" for each in block.findings if each.judged]
        if tried:
            at = f", {', '.join(block.labels)}" if block.labels else ""
            yield f"Accuracy on the validation classes by radius{at}: {'; '.join(tried)}."
    edges = [
        f"{each.entry.label} ({'; '.join([f'{each.tested[0].settings.rho:g}', *block.labels])})"
        for block in blocks
        for each in block.findings
        if each.edge
    ]
    yield from section.edges(edges)


def _tried(found: Finding) -> str:
    return ", ".join(f"{rho:g} ({accuracy:.1f} %)" for rho, accuracy in found.judged.items())


def _data(axes: Mapping[str, Sequence[str]], blocks: Sequence[GridPlace]) -> dict[str, Any]:
    """What the plots show."""
    drawn = [page.curves(block.table) for block in blocks]
    for block, each in zip(blocks, drawn, strict=True):
        (setting,) = each["settings"]
        setting["labels"] = list(block.labels)
        for line, found in zip(setting["lines"], block.findings, strict=True):
            line["tuning"] = _tuning(found)
    return {
        **drawn[0],
        "axes": [{"name": name, "labels": list(labels)} for name, labels in axes.items()],
        "settings": [setting for each in drawn for setting in each["settings"]],
    }


def _tuning(found: Finding) -> dict[str, Any] | None:
    if not found.judged:
        return None
    return {
        "rho": list(found.judged),
        "accuracy": list(found.judged.values()),
        "chosen": found.tested[0].settings.rho,
    }

"""What a report says about one run, whatever the format: of a recipe, or of a comparison."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatmin.studies.plan.comparison import Comparison
from flatmin.studies.plan.grid import ScaledRecipe, merged
from flatmin.studies.plan.recipe import papers
from flatmin.studies.plan.schema import Changes
from flatmin.studies.plan.serialization import StoredPlan
from flatmin.studies.plan.tuning import Progress
from flatmin.studies.report import drawings, figures, status, summary, tables, text
from flatmin.studies.report import paper as with_paper
from flatmin.studies.report.drawings import Drawing
from flatmin.studies.report.figures import Figure
from flatmin.studies.report.frontier import frontier
from flatmin.studies.report.paper import PaperTable
from flatmin.studies.report.runs import Record
from flatmin.studies.report.summary import Summary, Verdict
from flatmin.studies.report.tables import Layout, Table
from flatmin.studies.store import files
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import Failed
from flatmin.training import losses, own

_SHOWN = 6
"""Remarks of one kind before the rest is counted."""


@dataclass(frozen=True)
class Section:
    """One run in a report.

    Fields:
        group: the folder of the paper, or "compare".
        source: the paper; empty for a comparison.
        name, scale: of the recipe; the scale is empty for a comparison.
        shows: what the paper calls it.
        title: what the numbers are.
        about: what the paper leaves open, and what is done here.
        done, total: runs that have finished, and all.
        verdict: what the table means; None where it ranks nothing.
        remarks: what a reader must know before believing the table.
        methods: all of them, in order.
        axes: those with several labels.
        table, figures: what is shown.
        data: what the figures show.
        drawings: pictures that need no script.
        paper: whether numbers of the paper stand in the table.
        tuned: whether hyperparameters are chosen on held-out images.
        command: that does it again.
        settings: how the runs were made, by name.
    """

    group: str
    source: str
    name: str
    scale: str
    shows: str
    title: str
    about: str
    done: int
    total: int
    verdict: Verdict | None
    remarks: tuple[str, ...]
    methods: tuple[str, ...]
    axes: Mapping[str, Sequence[str]]
    table: Table
    figures: Sequence[Figure]
    data: Mapping[str, Any]
    paper: bool
    tuned: bool
    command: str
    settings: Sequence[tuple[str, str]]
    drawings: Sequence[Drawing] = ()

    @property
    def alone(self) -> bool:
        """Whether settings are compared rather than methods."""
        return len(self.methods) == 1 and bool(self.axes)

    @property
    def styles(self) -> Mapping[str, Mapping[str, str]]:
        """How each method is drawn."""
        return {method["title"]: method["style"] for method in self.data["methods"]}

    @property
    def anchor(self) -> str:
        """A name for links."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.name} {self.scale}".lower()).strip("-")


def of_record(record: Record) -> Section:
    """What there is to say about a run."""
    if isinstance(record.plan, Comparison):
        return _of_comparison(record.plan, record)
    return _of_recipe(record.plan, record)


# Comparisons ----------------------------------------------------------------------------------


def _of_comparison(comparison: Comparison, record: Record) -> Section:
    found = summary.of_comparison(comparison, record.rows, record.failures)
    remarks = summary.remarks(comparison, found) if found.lines else []
    return of_summary(comparison, found, _partial(record) + remarks, record.rows, record.progress)


def of_summary(
    comparison: Comparison,
    found: Summary,
    remarks: Iterable[str],
    rows: Mapping[str, Row],
    progress: Progress,
) -> Section:
    """A comparison whose table is made already."""
    layout = Layout(
        measures=(comparison.measure, *comparison.examine),
        axes=(),
        first=found.first,
        sam=None,
        costs=_costs(comparison),
        comparable=False,
        runs=False,
        rho="tuned" if comparison.tune else "given" if comparison.rho else "default",
    )
    blocks = [PaperTable({}, found, {})]
    titles = tuple(line.title for line in found.lines)
    return Section(
        group="compare",
        source="",
        name=f"compare {own.title(comparison.data)}",
        scale="",
        shows="",
        title=_subject(comparison),
        about="",
        done=progress.done,
        total=progress.total,
        verdict=summary.verdict(found) if found.lines else summary.NOTHING,
        remarks=tuple(remarks),
        methods=titles,
        axes={},
        table=tables.table(layout, blocks),
        figures=figures.figures(blocks, {}, comparison.measure, found.first, comparable=False),
        data=figures.data(blocks, {}, titles, comparison.measure, found.first, comparable=False),
        paper=False,
        tuned=bool(comparison.tune),
        command=command(comparison),
        settings=[*_fields(_asked(comparison)), *_provenance(rows)],
    )


def command(comparison: Comparison) -> str:
    """The command line that asks for `comparison`, with nothing left to defaults.

    Objects have no words there: what they are called stands in a comment.
    """
    objects = [name for name in comparison.brought.values() if own.is_object(name)]
    if objects:
        return f"flatmin.compare(…)  # {', '.join(objects)}"
    words = ["flatmin", "compare"]
    for name, value in _asked(comparison).items():
        if value is None or name == "augment" or (name == "tuning_seeds" and not comparison.tune):
            continue
        words += _words(name, value)
    return shlex.join(words if comparison.augment else [*words, "--no-augment"])


def _asked(comparison: Comparison) -> dict[str, Any]:
    """The fields of a comparison, without those that are at a default which nobody changes."""
    usual = Comparison.model_fields
    always = ("data", "methods", "model", "noise", "epochs", "batch", "lr", "weight_decay", "rho")
    always += ("tune", "tuning_seeds", "seeds", "limit", "fraction", "augment")
    return {
        name: value
        for name, value in comparison.model_dump(exclude={"radii"}).items()
        if value != () and (name in always or value != usual[name].default)
    }


def _words(name: str, value: Any) -> list[str]:
    """A field as flags."""
    if name == "options":
        every = [
            (m, option, each) for m, options in value.items() for option, each in options.items()
        ]
        return [word for m, option, each in every for word in ("--option", f"{m}.{option}={each}")]
    if name == "base_options":
        return [
            word for option, each in value.items() for word in ("--base-option", f"{option}={each}")
        ]
    return [f"--{name.replace('_', '-')}", files.as_typed(value)]


def _costs(comparison: Comparison) -> tuple[str, ...]:
    """Without passes; and without the fit where there are no right answers."""
    left_out = ("passes", *(["train_accuracy"] if comparison.metric != losses.ACCURACY else []))
    return tuple(name for name in tables.COSTS if name not in left_out)


def continuing(location: StudyLocation, plan: StoredPlan, asked: str) -> str:
    """The command that goes on with a run; `asked` as in `Record`."""
    if location.folder is None:
        return shlex.join(["flatmin", "worker", str(location)])
    begun = command(plan) if isinstance(plan, Comparison) else _command(plan, asked)
    further = ["--out", str(location.folder)]
    if location.url is not None:
        further += ["--storage", str(location)] + ["--yes"] * (not isinstance(plan, Comparison))
    return f"{begun} {shlex.join(further)}"


def _subject(comparison: Comparison) -> str:
    share = "" if comparison.noise == "0" else f", label noise {comparison.noise}"
    data, model = own.title(comparison.data), own.title(comparison.model)
    return f"{data}{share}: {model}, {comparison.epochs} epochs"


# Recipes --------------------------------------------------------------------------------------


def _of_recipe(plan: ScaledRecipe, record: Record) -> Section:
    recipe = plan.recipe
    blocks = with_paper.blocks(plan, record.rows)
    axes = {axis: tuple(values) for axis, values in plan.grid.items() if len(values) > 1}
    methods = tuple(plan.methods)
    first = methods[0]
    full = plan.scale == "full"
    paper = any(block.printed for block in blocks)
    layout = Layout(
        measures=plan.measures,
        axes=tuple(axes),
        first=first if len(methods) > 1 else None,
        sam=next((block.sam for block in blocks if block.sam), None),
        costs=tuple(name for name in tables.COSTS if name != "seconds_per_epoch"),
        comparable=full and paper,
        runs=True,
        rho="tuned" if plan.tune else "as set",
        ranks=not plan.smoke_only,
    )
    return of_plan(
        plan,
        record,
        axes=axes,
        verdict=with_paper.verdict_of(plan, blocks),
        remarks=_remarks(plan, record, blocks),
        table=tables.table(layout, [block for block in blocks if block.summary.lines]),
        figures=figures.figures(blocks, axes, plan.measure, first, full, recipe.figures),
        data=figures.data(blocks, axes, methods, plan.measure, first, full, recipe.figures),
        paper=paper,
        made=_provenance(record.rows),
        drawings=drawings.drawings(blocks, tuple(axes)),
    )


def of_plan(
    plan: ScaledRecipe,
    record: Record,
    *,
    axes: Mapping[str, Sequence[str]],
    verdict: Verdict | None,
    remarks: Iterable[str],
    table: Table,
    figures: Sequence[Figure],
    data: Mapping[str, Any],
    paper: bool,
    made: Iterable[tuple[str, str]],
    drawings: Sequence[Drawing] = (),
) -> Section:
    """A recipe at a scale, whatever its runs are; `made` says where its numbers come from."""
    recipe = plan.recipe
    return Section(
        group=recipe.paper,
        source=_source(recipe.paper),
        name=recipe.name,
        scale=plan.scale,
        shows=recipe.shows,
        title=recipe.title.replace(" %", "\u00a0%"),
        about=recipe.about.strip(),
        done=record.progress.done,
        total=record.progress.total,
        verdict=verdict,
        remarks=(*_known_first(plan, record, paper), *remarks),
        methods=tuple(plan.methods),
        axes=axes,
        table=table,
        figures=figures,
        data=data,
        paper=paper,
        tuned=plan.tune is not None,
        command=_command(plan, record.asked),
        settings=[*_settings(plan), *made],
        drawings=drawings,
    )


def _command(plan: ScaledRecipe, asked: str) -> str:
    return shlex.join(["flatmin", "run", asked or plan.recipe.name, "--scale", plan.scale])


def _source(folder: str) -> str:
    paper = papers().get(folder)
    if paper is None:
        return folder
    arxiv = f", arXiv:{paper.arxiv}" if paper.arxiv else ""
    return f"{paper.title}. {paper.authors}, {paper.venue}{arxiv}"


def _known_first(plan: ScaledRecipe, record: Record, paper: bool) -> Iterable[str]:
    """What is said of every recipe before its own remarks."""
    yield from _partial(record)
    if plan.says:
        yield f"Smaller than full scale: {text.sentence(plan.says)}"
    if paper and plan.scale != "full":
        yield (
            "The paper's numbers, beneath ours, are for its own setting: what can be compared are "
            "orders and differences, not values."
        )
    elif plan.recipe.printed and not paper:
        yield "The paper's numbers are for other data, and do not stand beside ours."


def _remarks(plan: ScaledRecipe, record: Record, blocks: Sequence[PaperTable]) -> Iterable[str]:
    lines = [(block, line) for block in blocks for line in block.summary.lines]
    yield from _some(
        [
            f"{_where(plan, block)}{line.title}: {trouble}."
            for block, line in lines
            for trouble in line.troubles
        ]
    )
    if "frontier" in plan.recipe.figures:
        yield from _frontiers(plan, blocks)
    yield from _some([_missing(failure) for failure in record.failures])
    yield from summary.spreads(
        [_named(plan, block, each.title) for block in blocks for each in block.summary.apart]
    )
    yield from edges(
        [_named(plan, block, line.title, f"{line.rho:g}") for block, line in lines if line.edge]
    )


def edges(named: Sequence[str]) -> Iterable[str]:
    """A remark on the methods whose radius was chosen at the edge of what was tried."""
    if named:
        yield (
            f"The chosen radius is at the edge of what was tried for {_counted(named)}: a better "
            f"one may lie beyond."
        )


def _frontiers(plan: ScaledRecipe, blocks: Sequence[PaperTable]) -> Iterable[str]:
    """Which methods are not dominated, setting by setting."""
    for block in blocks:
        found = [f"{line.title} ({line.ratio:.3g})" for line in frontier(block.summary)]
        if found:
            yield (
                f"{_where(plan, block)}the frontier, by gradients a step: {text.listing(found)}. "
                f"Every other method has a lower mean than one that costs no more."
            )


def _partial(record: Record) -> list[str]:
    note = [record.note] if record.note else []
    if not record.progress.left:
        return note
    done, total = record.progress.done, record.progress.total
    working = "" if record.running is None else f", {record.running or 'nobody'} at work"
    return [*note, f"Not finished: {done} of {total} runs{working}. The numbers will change."]


def _missing(failure: Failed) -> str:
    return f"Missing: {status.described(failure.training)}: {failure.reason}."


def _where(plan: ScaledRecipe, block: PaperTable) -> str:
    labels = [block.position[axis] for axis, values in plan.grid.items() if len(values) > 1]
    return "".join(f"{label}, " for label in labels)


def _named(plan: ScaledRecipe, block: PaperTable, title: str, told: str = "") -> str:
    """A method of a setting, in a list of such: a title may have commas of its own."""
    where = _where(plan, block).removesuffix(", ")
    inside = "; ".join(part for part in (told, where) if part)
    return f"{title} ({inside})" if inside else title


def _some(lines: Sequence[str]) -> Iterable[str]:
    yield from lines[:_SHOWN]
    if len(lines) > _SHOWN:
        yield f"… and {len(lines) - _SHOWN} more of the kind."


def _counted(names: Sequence[str]) -> str:
    if len(names) <= _SHOWN:
        return text.listing(names)
    return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"


def _settings(plan: ScaledRecipe) -> Iterable[tuple[str, str]]:
    yield from _fields(merged(plan.recipe.fields, plan.recipe.scales[plan.scale].fields))
    for label, changes in plan.methods.items():
        yield label, _changes(changes)
    yield "seeds", str(plan.seeds)
    if plan.tune:
        tried = plan.tune.rho or plan.tune.factors
        of = "" if plan.tune.rho else " times each method's radius"
        yield "tuned", f"{files.as_typed(tried)}{of}, {plan.tune.seeds} runs of each"


def _changes(changes: Changes) -> str:
    return ", ".join(
        str(value) if name == "method" else f"{name} {files.as_typed(value)}"
        for name, value in changes.items()
    )


# Both -----------------------------------------------------------------------------------------


def _fields(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name.replace("_", " "), files.as_typed(value))
        for name, value in values.items()
        if value is not None
    ]


def _provenance(rows: Mapping[str, Row]) -> Iterable[tuple[str, str]]:
    """Where the numbers come from; several where they are mixed."""
    yield from provenance(
        {
            "commit": row.commit,
            "software": ", ".join(f"{name} {v}" for name, v in row.versions.items()),
            "device": row.device,
            "threads a run": str(row.threads),
            "images": row.images or "unknown",
        }
        for row in rows.values()
    )
    walls = [row.wall for row in rows.values() if row.wall is not None]
    if walls:
        yield "training time", text.duration(math.fsum(walls))


def provenance(made: Iterable[Mapping[str, str]]) -> Iterable[tuple[str, str]]:
    """Where numbers come from, by what it is; several where they are mixed."""
    every = list(made)
    for name in dict.fromkeys(name for each in every for name in each):
        yield name, "; ".join(sorted({each[name] for each in every if name in each}))

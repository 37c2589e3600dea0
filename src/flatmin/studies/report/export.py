"""Reports for other programs: the tables as Markdown, the runs as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from flatmin.studies.plan import measures, serialization
from flatmin.studies.plan.comparison import Comparison
from flatmin.studies.plan.tuning import TunedMethod
from flatmin.studies.report.runs import Record
from flatmin.studies.report.section import Section
from flatmin.studies.report.statistics import Spread
from flatmin.studies.report.summary import INTERVALS
from flatmin.studies.report.tables import Column, Entry, TableCell
from flatmin.studies.store.row import Row
from flatmin.training import Training

# Markdown -------------------------------------------------------------------------------------


def markdown(sections: Sequence[Section]) -> str:
    """The tables, as GitHub shows them, with what must be known to believe them."""
    return "\n".join(line for section in sections for line in _section(section))


def _section(section: Section) -> Iterable[str]:
    yield f"## {_plain(f'{section.shows}: {section.title}' if section.shows else section.title)}"
    yield ""
    yield f"`{section.command}`, {section.done} of {section.total} runs"
    if section.source:
        yield f"<br>{_plain(section.source)}"
    yield ""
    if section.verdict is not None:
        yield f"**{_plain(section.verdict.headline)}.** {_plain(section.verdict.detail)}".strip()
        yield ""
    yield from (f"- {_plain(remark)}" for remark in section.remarks)
    if section.remarks:
        yield ""
    if section.table.same:
        yield f"The same for all: {_plain('; '.join(section.table.same))}."
        yield ""
    if any(group.entries for group in section.table.groups):
        yield from _table(section)
        yield ""


def _table(section: Section) -> Iterable[str]:
    table = section.table
    columns = [*(Column(axis) for axis in section.axes), *table.columns]
    yield _row([f"{each.title} ({each.unit})" if each.unit else each.title for each in columns])
    left = len(section.axes) + 1
    yield _row(["---"] * left + ["---:"] * (len(columns) - left))
    for group in table.groups:
        for entry in group.entries:
            yield _row([*group.labels, *_entry(entry)])
    yield ""
    paper = ["In brackets: the paper's own."] if section.paper else []
    notes = ["Bold: the highest mean, and what the seeds do not tell from it."]
    intervals = [INTERVALS] if any("interval" in column.unit for column in table.columns) else []
    yield " ".join([*(notes if table.ranked else []), *intervals, *paper])


def _entry(entry: Entry) -> Iterable[str]:
    mark = "**" if entry.rank else ""
    yield f"{mark}{entry.title}{mark}"
    for index, cell in enumerate(entry.cells):
        yield _cell(cell, mark if index == 0 else "")


def _cell(cell: TableCell, mark: str) -> str:
    ours = f"{mark}{cell.ours}{mark}" if cell.ours else ""
    return f"{ours} ({cell.paper})".strip() if cell.paper else ours


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(words: str) -> str:
    """Words that Markdown takes as they are."""
    return words.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


# CSV ------------------------------------------------------------------------------------------

_FIELDS = tuple(field.name for field in fields(Training))
_ABOUT = ("key", "trouble", "images", "device", "threads", "processes", "wall", "commit")


def table_of_runs(records: Sequence[Record]) -> str:
    """One line for each run of each record, tuning included (RFC 4180).

    Columns: the recipe or data, scale, setting and label; the fields of `Training`; what was
    measured; where it comes from. Lists are JSON; what is not there is empty.
    """
    lines = [line for record in records for line in _lines(record)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _lines(record: Record) -> Iterable[dict[str, Any]]:
    if record.episodes:
        yield from _episodes(record)
        return
    for row, at in _placed(record):
        yield _line(record, row, at)


def _episodes(record: Record) -> Iterable[dict[str, Any]]:
    """Of few-shot learning: one for each training that was tested."""
    for found in record.episodes:
        for tested in found["tested"]:
            yield {
                "study": serialization.named(record.plan),
                "setting": found["at"],
                "label": found["label"],
                "use": "evaluation",
                **tested["settings"],
                "accuracy": Spread.of(tested["best"]).mean,
                "accuracy after the last step": Spread.of(tested["last"]).mean,
                **tested["made"],
            }


def _line(record: Record, row: Row, at: Sequence[tuple[str, str]]) -> dict[str, Any]:
    examined = [name for name in row.examined if name not in measures.MEASURES]
    observed = [f"observed:{name}" for name in row.observed]
    # behind an @ are samples and grids, whose last number says nothing
    analysed = [f"analysis:{name}" for name in row.analysed if "@" not in name]
    names = *measures.MEASURES, *examined, *observed, *analysed
    measured = {name: measures.value(row, name) for name in names}
    return {
        "study": serialization.named(record.plan),
        "setting": " | ".join(dict.fromkeys(setting for setting, _ in at)),
        "label": " | ".join(dict.fromkeys(label for _, label in at)),
        "use": "tuning" if row.training["holdout"] else "evaluation",
        **{name: _shown(row.training.get(name)) for name in _FIELDS},
        **{name: _shown(value) for name, value in measured.items()},
        **{name: _shown(value) for name, value in row.cost.items()},
        **{name: _shown(getattr(row, name)) for name in _ABOUT},
        **row.versions,
    }


def _shown(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple) else value


def _placed(record: Record) -> Iterable[tuple[Row, list[tuple[str, str]]]]:
    """Every row, and the settings and labels it stands for."""
    places: dict[str, list[tuple[str, str]]] = {}
    for setting, tuned_methods in _settings(record):
        for label, tuned in tuned_methods.items():
            for training in (*tuned.tuning, *tuned.evaluation(record.rows)):
                places.setdefault(training.key, []).append((setting, label))
    for key, row in record.rows.items():
        yield row, places.get(key, [])


def _settings(record: Record) -> Iterable[tuple[str, Mapping[str, TunedMethod]]]:
    plan = record.plan
    if isinstance(plan, Comparison):
        yield "", {plan.title(name): plan.tuned(name) for name in plan.methods}
        return
    for setting in plan.settings:
        labels = [f"{axis}: {label}" for axis, label in setting.position.items()]
        yield ", ".join(labels), setting.tuned_methods

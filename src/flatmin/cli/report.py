"""`flatmin report`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatmin.cli.arguments import ReportArguments
    from flatmin.studies.report.runs import Record
    from flatmin.studies.report.section import Section


def report(wanted: ReportArguments) -> int:
    """Write one page, or one text, about all the runs that are named; 1 if some cannot be read."""
    from flatmin.studies.report import export, html, runs
    from flatmin.studies.store import files
    from flatmin.training.errors import InputError

    if not wanted.runs:
        raise InputError("report takes the folder of a run, or several: for example runs/")
    if wanted.markdown and wanted.csv:
        raise InputError("give one of --markdown and --csv: a file has one format")
    wrong: list[str] = []
    found = runs.records(wanted.runs, wrong.append)
    for line in (*wrong, *(f"{each.where}: {each.note}" for each in found if each.note)):
        print(f"flatmin: {line}", file=sys.stderr)
    if wanted.csv:
        content = export.table_of_runs(found)
    elif wanted.markdown:
        content = export.markdown(list(map(_section, found)))
    else:
        content = html.report(list(map(_section, found)))
    if wanted.out is None and (wanted.csv or wanted.markdown):
        sys.stdout.write(content)
        return 1 if wrong else 0
    path = wanted.out or runs.folder(wanted.runs) / "report.html"
    with files.told(path, "give another file by --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)
    print(path)
    return 1 if wrong else 0


def _section(record: Record) -> Section:
    """What there is to say about a run, of whatever kind."""
    from flatmin.studies.meta import section as of_episodes
    from flatmin.studies.report import section

    return (of_episodes if record.episodes else section).of_record(record)

"""`flatmin report`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatmin.cli.arguments import ReportArguments


def report(wanted: ReportArguments) -> int:
    """Write one page, or one text, about all the runs that are named; 1 if some cannot be read."""
    from flatmin.studies.report import export, html, runs, section
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
        content = export.markdown([section.of_record(record) for record in found])
    else:
        content = html.report([section.of_record(record) for record in found])
    if wanted.out is None and (wanted.csv or wanted.markdown):
        sys.stdout.write(content)
        return 1 if wrong else 0
    path = wanted.out or runs.folder(wanted.runs) / "report.html"
    with files.told(path, "give another file by --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)
    print(path)
    return 1 if wrong else 0

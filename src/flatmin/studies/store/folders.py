"""Which folders hold runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flatmin.studies.store import files
from flatmin.training.errors import InputError

_DATABASES = ("study.db", "storage.json")
"""A folder with one of these has its rows in a database: in this file, or where it says."""

_MARKS = (*_DATABASES, "results.json")
"""A folder with one of these holds a run; the first one found is read."""


def holds_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return any(files.is_file(path / mark) for mark in _MARKS)


def has_database(path: Path) -> bool:
    """Whether the folder of a run says where its database is."""
    return any(files.is_file(path / mark) for mark in _DATABASES)


def runs(where: str) -> list[str]:
    """The runs in `where`: a folder of one, a folder that holds such, or a URL, which is one.

    Raises InputError where there is none.
    """
    if "://" in where:
        return [where]
    top = Path(where)
    if top.name in _MARKS and files.is_file(top):
        top = top.parent
    if not files.is_folder(top):
        raise InputError(f"there is no folder {where}: give that of a run, or one that holds runs")
    found = sorted(_below(top), key=_naturally)
    if not found:
        raise InputError(f"no run in {where}: `flatmin run` and `flatmin compare` make some")
    return list(map(str, found))


def _below(top: Path) -> Iterator[Path]:
    """The folders of runs, not looking for runs inside runs."""
    for folder, inside, names in os.walk(top):
        if any(mark in names for mark in _MARKS):
            inside.clear()
            yield Path(folder)
        inside[:] = [name for name in inside if not name.startswith(".")]


def _naturally(path: Path) -> list[tuple[int, str]]:
    """Table 2 before Table 10."""
    words = str(path).replace("/", "-").split("-")
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in words]

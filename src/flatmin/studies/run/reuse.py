"""Rows that other runs have made, and this one asks for too: taken over, and not trained again.

Tables of a paper share their baselines. A row is addressed by everything that determined it, so one
that stands in another folder is the row that would come out here, where code, software and images
are the same.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from flatmin.studies.plan.tuning import Plan
from flatmin.studies.store import database, folders, provenance
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import Store
from flatmin.training import losses, own
from flatmin.training.data.samples import load_any
from flatmin.training.errors import InputError
from flatmin.training.settings import Training


def take_over(
    store: Store,
    plan: Plan,
    where: str,
    *,
    allow_mixed: bool = False,
    tell: Callable[[str], object] = lambda line: None,
) -> int:
    """Take into `store` what `plan` asks for of the rows in `where`; how many these were.

    `where` is the folder of a run, a folder that holds such, or a URL. Taken is what has been made
    by the same versions, from the same images, by flatmin's own methods and networks, and, unless
    `allow_mixed`, by the same code; `tell` is told, in a line each, of what was not, and why.

    Raises InputError where there is no run, or none that can be taken from.
    """
    found = _finished(where, allow_mixed, tell)
    fingerprint = functools.cache(_fingerprint)  # one data set may be that of a thousand rows
    refused: Counter[str] = Counter()
    count = 0
    while True:  # tuning asks for further runs once it has chosen
        asked = [each.key for each in plan.plan(store.rows, store.given_up)]
        wanted = [key for key in asked if key in found and key not in store.rows]
        if not wanted:
            break
        for key in wanted:
            reason = ""
            for row in found.pop(key):
                reason = _reason(row, fingerprint)
                if not reason:
                    count += store.add(row)
                    break
            refused[reason] += bool(reason)
    for reason, times in (+refused).items():
        tell(f"{times} {'run is' if times == 1 else 'runs are'} trained again: {reason}")
    return count


def _finished(where: str, allow_mixed: bool, tell: Callable[[str], object]) -> dict[str, list[Row]]:
    """The rows of all runs there, by key: several may have the same."""
    rows: dict[str, list[Row]] = {}
    wrong: list[InputError] = []
    given = folders.runs(where)
    for path in given:
        try:
            if "://" not in path and not folders.has_database(Path(path)):
                raise InputError(f"{path} has no database, which says what code made its rows")
            with database.readable(StudyLocation.of(path)) as there:
                for key, row in Store.join(there, allow_mixed=allow_mixed).rows.items():
                    rows.setdefault(key, []).append(row)
        except InputError as error:  # noqa: PERF203
            wrong.append(error)
    if len(wrong) == len(given):
        raise wrong[0]
    for error in wrong:
        tell(f"left out: {error}")
    return rows


def _reason(row: Row, fingerprint: Callable[[str, int | None, int | None], str]) -> str:
    """Why a row may not be what would come out here; empty where nothing speaks against it."""
    training = Training.of(row.training)
    for what in ("flatmin", "torch"):
        theirs, ours = row.versions.get(what), provenance.versions()[what]
        if theirs != ours:
            return f"made by {what} {theirs}, this is {ours}"
    named = (training.data, training.model, training.method, training.base, training.loss)
    if any(map(own.is_own, (*named, losses.metric_name(training.metric)))):
        return "what is not flatmin's own may have changed since"
    if row.images != fingerprint(training.data, training.limit, training.size):
        return f"made from other images of {training.data}"
    return ""


def _fingerprint(name: str, limit: int | None, size: int | None) -> str:
    return load_any(name, limit=limit, size=size).fingerprint()

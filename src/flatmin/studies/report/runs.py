"""Runs to report on: where they are, and what they have by now."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flatmin.studies.plan import serialization
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.serialization import StoredPlan
from flatmin.studies.plan.tuning import Progress
from flatmin.studies.store import database, files, folders
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import Failed, Store
from flatmin.training.errors import InputError


@dataclass(frozen=True)
class Record:
    """A run as it is at one moment.

    Fields:
        where: its folder or URL.
        plan: what there is to do.
        rows: what has been done, by key.
        failures: the runs given up.
        running: how many are at work; None where that is not known.
        asked: what `flatmin run` was given for the recipe; empty for its name.
        note: what must be known of where the rows come from; empty for nothing.
        episodes: what a recipe of few-shot learning has found, in place of rows, as its file holds
            it; `flatmin.studies.meta` can read it.
    """

    where: str
    plan: StoredPlan
    rows: Mapping[str, Row]
    failures: tuple[Failed, ...] = ()
    running: int | None = None
    asked: str = ""
    note: str = ""
    episodes: Sequence[Mapping[str, Any]] = ()

    @property
    def begun(self) -> bool:
        """Whether there is anything to report."""
        return bool(self.rows or self.episodes)

    @cached_property
    def progress(self) -> Progress:
        """How far it is."""
        if self.episodes and isinstance(self.plan, ScaledRecipe):
            return Progress(self.plan.estimate.runs, 0, 0)  # the file is written at the end
        given_up = frozenset(failure.training.key for failure in self.failures)
        return self.plan.progress(self.rows, given_up)

    @classmethod
    def of(cls, store: Store, plan: StoredPlan) -> Record:
        """Of a store as it was last read."""
        failures = tuple(store.failures.values())
        asked = serialization.asked(store.plan)
        return cls(str(store.location), plan, store.rows, failures, len(store.at_work), asked)


def records(given: Sequence[str], tell: Callable[[str], object] | None = None) -> list[Record]:
    """What is in `given`, in their order: folders of runs, folders that hold such, URLs.

    Where some of several runs cannot be read, `tell` is told why, and the others are returned.

    Raises InputError where there is no run, where none can be read, or none has a finished row.
    """
    found, wrong = _all(given)
    if not found:
        raise wrong[0]
    for error in wrong:
        if tell is None:
            raise error
        tell(f"left out: {error}")
    if not any(record.begun for record in found):
        one = found[0].where if len(found) == 1 else f"any of the {len(found)} runs"
        raise InputError(
            f"no training run of {one} has finished yet: `flatmin status` tells how far it is"
        )
    return found


def record(path: str) -> Record:
    """The run in a folder, however far it is."""
    return _read(path)


def _all(given: Iterable[str]) -> tuple[list[Record], list[InputError]]:
    """What can be read, each run once, and why the others cannot."""
    wrong: list[InputError] = []
    paths: dict[str, None] = {}
    for where in given:
        with _noted(wrong):
            paths.update(dict.fromkeys(folders.runs(where)))
    found: list[Record] = []
    for path in paths:
        with _noted(wrong):
            found.append(_read(path))
    return found, wrong


@contextmanager
def _noted(wrong: list[InputError]) -> Generator[None, None, None]:
    try:
        yield
    except InputError as error:
        wrong.append(error)


def folder(given: Sequence[str]) -> Path:
    """Where a report on `given` is put: in the only folder, or else in the current one."""
    if len(given) > 1 or "://" in given[0]:
        return Path()
    only = Path(given[0])
    return only if files.is_folder(only) else only.parent


def _read(path: str) -> Record:
    exported = Path(path) / "results.json"
    if "://" not in path and not folders.has_database(Path(path)):
        return _exported(exported)
    try:
        return _stored(path)
    except InputError as error:
        if "://" in path or not files.is_file(exported):
            raise
        with suppress(InputError):
            record = _exported(exported)
            return replace(record, note=f"Read from results.json, since {error}.")
        raise


def _stored(path: str) -> Record:
    """From its database."""
    location = StudyLocation.of(path)
    try:
        with database.readable(location) as there:
            store = Store.join(there, allow_mixed=True)
            record = Record.of(store, serialization.restored(store.plan))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise database.foreign(location) from None  # whole for SQLite, but not what we write
    return replace(record, where=str(location))


def _exported(path: Path) -> Record:
    """From the file that is written when a command ends, where its database is not at hand."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row.model_validate(row) for row in content["runs"]]
        plan, asked = content["plan"], serialization.asked(content["plan"])
        episodes = content.get("episodes", ())
    except (OSError, ValueError, ValidationError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path} is no file that `flatmin run` or `flatmin compare` has written: remove it, "
            f"or run them again"
        ) from None
    by_key = {row.key: row for row in rows}
    restored = serialization.restored(plan)
    return Record(str(path.parent), restored, by_key, asked=asked, episodes=episodes)

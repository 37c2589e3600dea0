"""The database of a run: made whole, looked at before it is trusted, and its errors in one line."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.exceptions import (
    DuplicatedStudyError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import SQLAlchemyError

from flatmin.studies.store import files, provenance
from flatmin.studies.store.location import StudyLocation
from flatmin.training.errors import InputError

SCHEMA_VERSION = 1
"""Of what flatmin writes into a study; another one is refused."""

_SQLITE_MARK = 0x666C6D6E
"""SQLite's own field for whose file it is: "flmn"."""


class ClaimLost(Exception):
    """The cell was taken from this process, which was held to be dead: its row is not wanted."""


@contextmanager
def told(location: StudyLocation) -> Generator[None, None, None]:
    """Turn what a database raises into one line that says what to do."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error) as error:
        raise InputError(_line(location, error)) from error
    except OSError as error:
        raise InputError(f"cannot write to {location}: {error.strerror or error}") from error


@contextmanager
def unless_lost() -> Generator[None, None, None]:
    """Raise ClaimLost where a trial that is written to has ended already."""
    try:
        yield
    except UpdateFinishedTrialError:
        raise ClaimLost from None


def _line(location: StudyLocation, error: BaseException) -> str:
    cause: BaseException = error
    while isinstance(cause, StorageInternalError | SQLAlchemyError) and cause.__cause__:
        cause = cause.__cause__
    said = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    if "disk is full" in said:
        return f"the disk of {location} is full: free some space, and the same command goes on"
    if "readonly" in said or "read-only" in said:
        return f"{location} cannot be written: change its permissions, or give another --out"
    if isinstance(cause, sqlite3.DatabaseError) and (
        "malformed" in said or "not a database" in said
    ):
        return str(foreign(location))
    return f"the database of {location} does not answer ({said}): the same command goes on later"


def foreign(location: StudyLocation) -> InputError:
    """The error for a database that is damaged or somebody else's."""
    folder = None if location.file is None else location.file.parent
    if folder is not None and files.is_file(folder / "results.json"):
        mend = "remove that file alone, and the same command goes on from results.json"
    else:
        mend = "remove it, or give another --out"
    return InputError(f"{location.file or location} is no whole study of flatmin: {mend}")


def backend(location: StudyLocation) -> RDBStorage:
    """The storage at a location that is there."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if location.file is None:
        _require_driver()
        # A server, or a firewall before it, ends connections that lie idle: they are tried first.
        return RDBStorage(
            _verbatim(cast("str", location.url)), engine_kwargs={"pool_pre_ping": True}
        )
    # `isolation_level`: Python's sqlite3 would begin transactions by itself, and not before the
    # first write; `_begin` does it. `timeout`: seconds to wait for another process's transaction.
    # The tables have been there, whole, since the file got its name.
    storage = RDBStorage(
        _url(location.file),
        engine_kwargs={"connect_args": {"timeout": 60, "isolation_level": None}},
        skip_table_creation=True,
    )
    # Optuna has opened a connection by now, which would never be told what follows.
    storage.engine.dispose()
    event.listen(storage.engine, "connect", _set_synchronous)
    event.listen(storage.engine, "begin", _begin)
    return storage


def _require_driver() -> None:
    try:
        importlib.import_module("psycopg")
    except ImportError as error:  # the package, or the library of PostgreSQL that it needs
        raise InputError(
            f"PostgreSQL needs psycopg ({str(error).splitlines()[0]}): pip install "
            f"'flatmin[postgres]'"
        ) from None


def _url(path: Path) -> str:
    """Of a SQLite file, whatever characters its name has."""
    try:
        url = URL.create("sqlite", database=str(path)).render_as_string()
        read = make_url(url).database
    except UnicodeEncodeError:
        read = url = ""
    if read != str(path):  # a ? before SQLAlchemy 2.1
        raise InputError(f"{path} has a character that SQLAlchemy cannot take: rename its folder")
    return _verbatim(url)


def _verbatim(url: str) -> str:
    """For Optuna, which fills in what stands in braces."""
    return url.replace("{", "{{").replace("}", "}}")


def _set_synchronous(connection: sqlite3.Connection, _: object) -> None:
    # With a write-ahead log this loses nothing when processes die, only when the power fails.
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin(connection: Any) -> None:
    """Lock at once: otherwise two could read a trial's state before either writes it.

    Nor could the second wait for the first: who has read what another has written since is refused
    the lock at once, whatever the timeout.
    """
    connection.exec_driver_sql("BEGIN" if _ONLY_READS.get() else "BEGIN IMMEDIATE")


_ONLY_READS = ContextVar("_only_reads", default=False)
"""Of each thread by itself: while one reads, the heartbeat of another goes on to write."""


@contextmanager
def reading() -> Generator[None, None, None]:
    """Transactions of SQLite within lock nothing, and must not write.

    All workers read all the time; with a write-ahead log, these wait for nobody.
    """
    before = _ONLY_READS.set(True)
    try:
        yield
    finally:
        _ONLY_READS.reset(before)


def prepare_file(
    path: Path, content: Mapping[str, Any], trials: Sequence[FrozenTrial] = ()
) -> None:
    """Make the database, whole or not at all; if it is there already, leave it.

    `trials` are what stands in it from the beginning.
    """
    if files.is_file(path):
        return
    # Made aside and given its name when it is whole; by a link, since a rename would replace what
    # another process has made meanwhile, rows and all; and in the same folder, since links stay on
    # one disk.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as folder:
        new = Path(folder) / path.name
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = RDBStorage(_url(new))
        study = _create(storage, "run", content)
        for trial in trials:
            storage.create_new_trial(study, trial)
        storage.engine.dispose()
        # The last connection to close brings everything into the one file that is then linked; that
        # it has a write-ahead log stands in the file, for whoever opens it next.
        with _connected(new) as connection:
            connection.execute(f"PRAGMA application_id = {_SQLITE_MARK}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("PRAGMA journal_mode = WAL")
        with suppress(FileExistsError):  # somebody else was first
            os.link(new, path)


def prepare_server(location: StudyLocation, content: Mapping[str, Any]) -> None:
    """Make the study in its database; if it is there already, leave it."""
    storage = _twice(lambda: backend(location))
    try:
        _create(storage, location.study, content)
    except DuplicatedStudyError:
        study = storage.get_study_id_from_name(location.study)
        if "retried" not in storage.get_study_user_attrs(study):
            _fill(storage, study, content)  # whoever began it is as far, or has died
    storage.engine.dispose()


def _twice(make: Callable[[], RDBStorage]) -> RDBStorage:
    """Two that make the tables at the same moment: the second finds them when it tries again."""
    try:
        return make()
    except SQLAlchemyError:
        return make()


def _create(storage: BaseStorage, name: str, content: Mapping[str, Any]) -> int:
    study = storage.create_new_study([StudyDirection.MAXIMIZE], name)
    _fill(storage, study, content)
    return study


def _fill(storage: BaseStorage, study: int, content: Mapping[str, Any]) -> None:
    # In order, each in a transaction of its own: the last key, "retried", says that all are there.
    for key, value in content.items():
        storage.set_study_user_attr(study, key, value)


@contextmanager
def _connected(path: Path) -> Generator[sqlite3.Connection, None, None]:
    connection = sqlite3.connect(path, timeout=60)
    try:
        yield connection
    finally:
        connection.close()


def inspect(path: Path) -> None:
    """Raise InputError unless the file is a whole study of this version."""
    location = StudyLocation(path.parent)
    if not files.is_file(path):
        raise InputError(f"no run in {location}: `flatmin run` makes one")
    if not writable(location):
        raise InputError(f"{path} cannot be written: {os.strerror(errno.EACCES)}")
    _look(path, location)


def writable(location: StudyLocation) -> bool:
    """Whether its database takes anything; SQLite writes beside its file as well."""
    path = location.file
    return path is None or all(os.access(each, os.W_OK) for each in (path, path.parent))


@contextmanager
def readable(location: StudyLocation) -> Generator[StudyLocation, None, None]:
    """The location; where nothing can be written, that of a copy as it is now."""
    path = location.file
    if path is None or writable(location):
        yield location
        return
    with tempfile.TemporaryDirectory(prefix="flatmin-") as folder:
        copy = StudyLocation(Path(folder))
        try:
            _copy(path, Path(folder) / path.name)
            _look(Path(folder) / path.name, location)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        except sqlite3.Error as error:
            raise InputError(_line(location, error)) from None
        yield copy


def _copy(path: Path, to: Path) -> None:
    """Of a database that others may be writing, without writing anything beside it.

    SQLite cannot read one with a write-ahead log where it may not write, unless somebody has it
    open; and files copied while somebody writes may be of two moments. So it is one or the other.
    """
    with suppress(sqlite3.OperationalError), _connected(to) as new:
        old = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=60)
        with closing(old):
            old.backup(new)
        return
    # nobody has it open, or else SQLite would have found its index of the log
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{path}{suffix}", f"{to}{suffix}")


def _look(path: Path, location: StudyLocation) -> None:
    """Raise InputError unless the file, that of `location`, is a whole study of this version."""
    with _connected(path) as connection:
        (mark,) = connection.execute("PRAGMA application_id").fetchone()
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        # Reads the whole file, up to the first damage: a row that is missing would be a cell
        # trained once more, and nobody would know.
        (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if mark != _SQLITE_MARK or state != "ok":
        raise foreign(location)
    _of_this_version(found, location)


def study_at(storage: BaseStorage, location: StudyLocation, allow_mixed: bool) -> int:
    """The study at a location. Raises InputError unless this version of this code has filled it."""
    try:
        study = storage.get_study_id_from_name(location.study)
    except KeyError:
        raise InputError(f"no run in {location}: `flatmin run` makes one") from None
    attributes = storage.get_study_user_attrs(study)
    if "schema" not in attributes or "retried" not in attributes:
        raise foreign(location)
    _of_this_version(attributes["schema"], location)
    of_this_code(attributes["source"], location, allow_mixed)
    return study


def of_this_code(theirs: Mapping[str, str], location: StudyLocation, allow_mixed: bool) -> None:
    """Raise InputError where rows are of other code, unless that is allowed."""
    if theirs["digest"] != provenance.digest() and not allow_mixed:
        raise InputError(
            f"the rows of {location} are made by flatmin at {_code(**theirs)}, this is "
            f"{_code(provenance.digest(), provenance.commit())}: use that one, give another --out, "
            f"or mix them by --allow-mixed"
        )


def _code(digest: str, commit: str) -> str:
    """A commit; where it does not say which code it is, the code's hash besides."""
    exact = commit != "unknown" and not commit.endswith("+changes")
    return f"commit {commit}" if exact or not digest else f"commit {commit} (source {digest[:8]})"


def _of_this_version(found: int, location: StudyLocation) -> None:
    if found != SCHEMA_VERSION:
        raise InputError(
            f"{location} holds a database of version {found}, this flatmin writes version "
            f"{SCHEMA_VERSION}: give another --out, or use the flatmin that made it"
        )


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The keys in which two identities differ."""
    return [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]


def same(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    location: StudyLocation,
    differing: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]] = differing,
) -> None:
    """Raise InputError, with what differs, unless two identities are one."""
    said = [
        f"{key} {files.as_typed(theirs.get(key))} there, {files.as_typed(ours.get(key))} here"
        for key in differing(ours, theirs)
    ]
    if said:
        raise InputError(
            f"{location} holds the results of another configuration ({'; '.join(said)}): "
            f"give another --out, or remove that folder"
        )

"""Where the rows of a run are kept: a file in its folder, or a database by URL."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from flatmin.studies.store import files
from flatmin.training.errors import InputError

_POINTER = "storage.json"


@dataclass(frozen=True)
class StudyLocation:
    """A run: its folder, and its study in a database.

    Fields:
        folder: for reports and checkpoints; None for a worker that knows the database alone.
        url: of the database, as SQLAlchemy takes it; None for `study.db` in the folder.
        study: name of the study in the database.
    """

    folder: Path | None
    url: str | None = None
    study: str = "run"

    @classmethod
    def new(cls, folder: Path, url: str | None = None, study: str | None = None) -> StudyLocation:
        """The location of a run in `folder`, which is made; in the database at `url` if given.

        `study` names it there; default the name after a # in `url`, or else the folder's.

        Raises InputError if the folder cannot be written, or `url` names no database.
        """
        files.writable(folder)
        if url is None:
            return cls(folder)
        address, _, name = url.partition("#")
        location = cls(folder, _checked(address), name or study or folder.resolve().name)
        pointer = {"storage": _without_password(address), "study": location.study}
        files.write(folder / _POINTER, json.dumps(pointer) + "\n")
        return location

    @classmethod
    def of(cls, text: str) -> StudyLocation:
        """The location of a run that is there: its folder, or a URL, `#` and the study's name.

        Raises InputError if there is none.
        """
        if "://" in text:
            address, _, name = text.partition("#")
            if not name:
                raise InputError(f"{text} names no study: append # and its name")
            return cls(None, _checked(address), name)
        folder = Path(text)
        if folder.name == "study.db":
            folder = folder.parent
        if files.is_file(folder / "study.db"):
            return cls(folder)
        if files.is_file(folder / _POINTER):
            return cls._pointed(folder)
        raise InputError(f"no run in {text}: give the folder of one, as `flatmin run` names it")

    @classmethod
    def _pointed(cls, folder: Path) -> StudyLocation:
        try:
            found = json.loads((folder / _POINTER).read_text(encoding="utf-8"))
            return cls(folder, _checked(found["storage"]), str(found["study"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{folder / _POINTER} does not name a database: give the URL of the run instead"
            ) from None

    @property
    def file(self) -> Path | None:
        """The SQLite file; None where the database is elsewhere."""
        return self.folder / "study.db" if self.folder and not self.url else None

    def __str__(self) -> str:
        if self.url is None:
            return str(self.folder)
        return f"{_without_password(self.url)}#{self.study}"


def _checked(url: str) -> str:
    """The URL with its driver: psycopg is the one that comes with flatmin."""
    scheme, colon, rest = url.partition("://")
    if scheme in ("postgresql", "postgres", "postgresql+psycopg") and colon and rest:
        return f"postgresql+psycopg://{rest}"
    raise InputError(
        f"--storage {_without_password(url)} is no database that flatmin knows: give "
        f"postgresql://user@host/name, or leave it out for a file in the run's folder"
    )


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme.partition('+')[0]}://{user.partition(':')[0]}{at}{host}"

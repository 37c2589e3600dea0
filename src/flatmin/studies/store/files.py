"""Files that are whole or not there, and JSON that any reader takes."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from flatmin.training.errors import InputError


def write(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`; whoever reads it finds it whole, even after a crash.

    A link stays, and what it points at is replaced; a device or a pipe is written into.
    """
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as file:
            file.write(text)
        return
    path = Path(os.path.realpath(path))
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp keeps the file from everyone else
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def told(path: Path, remedy: str) -> Generator[None, None, None]:
    """Turn what prevents that `path` is written into one line, which ends with the `remedy`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}): {remedy}") from None


def is_file(path: Path) -> bool:
    """Whether there is a file. Raises InputError, as `is_folder` does, where nobody may look."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether there is a folder."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """What there is at `path`; 0 for nothing. Path's own questions raise before Python 3.14."""
    try:
        return path.stat().st_mode
    except ValueError:  # a null character
        return 0
    except OSError as error:
        if error.errno in _NOTHING:
            return 0
        raise InputError(
            f"cannot look at {path} ({error.strerror}): change its permissions, or give another one"
        ) from None


_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors that say that no file has such a name."""


def writable(folder: Path) -> None:
    """Make `folder` if need be; raises InputError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror}): give another folder by --out"
        ) from None


def as_json(content: Any) -> str:
    """JSON for any reader: a number that is not finite becomes null."""
    return json.dumps(finite(content), allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def finite(content: Any) -> Any:
    """A copy of nested dicts, lists and tuples with None for every number that is not finite."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        items = cast("Mapping[Any, Any]", content).items()
        return {key: finite(value) for key, value in items}
    if isinstance(content, list | tuple):
        return [finite(value) for value in cast("Sequence[Any]", content)]
    return content


def as_typed(value: Any) -> str:
    """A setting as it is typed: several values are separated by commas."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, cast("Sequence[object]", value)))
    return str(value)

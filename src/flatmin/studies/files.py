"""Files that are whole or not there, and JSON that any reader takes."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from flatmin.training.errors import InputError


def write(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`; whoever reads it finds it whole, even after a crash."""
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

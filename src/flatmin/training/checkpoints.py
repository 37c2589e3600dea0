"""A run that is killed at any moment goes on, bit for bit, from the end of an epoch.

    checkpoints = Checkpoints("runs/a/checkpoints/9f3c", key="9f3c")
    checkpoints.save(epoch, state)
    found = checkpoints.newest()        # (epoch, state) or None

A file is a line of text, with the key of the run and the SHA-256 of that and of what follows, and
then a state as `torch.save` writes it. It appears under its name once it is whole. The last two are
kept: should the newest turn out damaged, the one before is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from flatmin.training.errors import InputError

FORMAT = "flatmin-checkpoint-2"

KEPT = 2
"""How many checkpoints of a run there are at most."""

ABANDONED_SECONDS = 600
"""Seconds after which an unfinished file counts as left behind by a process that was killed."""


class Damaged(Exception):
    """A checkpoint is not what was written."""


class CheckpointLocation(Protocol):
    """A folder, wherever it is. Every method raises OSError where it fails."""

    def names(self) -> list[str]:
        """The names of the files in it; none where it does not exist."""
        ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, or not at all."""
        ...

    def delete(self, name: str) -> None: ...

    def clear(self) -> None:
        """Remove the folder, should it be there."""
        ...


class Checkpoints:
    """The checkpoints of one run, in a folder of their own.

    Args:
        where: a local folder, or the URL of one that fsspec knows ("s3://bucket/runs/9f3c").
        key: of everything that determines the run; a checkpoint with another key is refused.
    """

    def __init__(self, where: str | Path, key: str) -> None:
        self._where, self._key = where, key
        self._location = location(where)

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Keep the `state` at the end of `epoch`, and of the earlier ones the last.

        Later ones are left alone: a run gets to an earlier epoch only when they are damaged.

        Raises InputError, with the earlier checkpoints as they were, where it cannot be written.
        """
        try:
            self._location.write(_name(epoch), packed(state, self._key))
            for old in sorted(number for number in self._epochs() if number <= epoch)[:-KEPT]:
                self._location.delete(_name(old))
        except OSError as error:
            raise InputError(
                f"no checkpoint of epoch {epoch} could be written to {self._where} "
                f"({error.strerror or error}): make room there, and run the same again; earlier "
                f"checkpoints are kept"
            ) from None

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """The number and the state of the last epoch saved whole; None if there is none.

        Damaged ones are named in a warning and passed over.

        Raises InputError for a checkpoint of another run, or where the folder cannot be read.
        """
        try:
            epochs = sorted(self._epochs(), reverse=True)
        except OSError as error:
            raise InputError(
                f"the checkpoints in {self._where} cannot be read ({error.strerror or error}): "
                f"make the folder readable, or give another one"
            ) from None
        for epoch in epochs:
            state = self._opened(_name(epoch))
            if state is not None:
                return epoch, state
        return None

    def _opened(self, name: str) -> dict[str, Any] | None:
        try:
            return unpacked(self._location.read(name), self._key)
        except (Damaged, OSError) as damage:
            warnings.warn(
                f"the checkpoint {self._where}/{name} is damaged ({damage}); the one before is "
                f"used, if there is one",
                RuntimeWarning,
                stacklevel=3,
            )
            return None
        except InputError as foreign:
            raise InputError(f"{self._where}/{name} {foreign}") from None

    def _epochs(self) -> list[int]:
        found = (name.removeprefix("epoch-").removesuffix(".pt") for name in self._location.names())
        return [int(number) for number in found if number.isdigit()]


def remove(where: str | Path) -> None:
    """Remove the checkpoints of a run that is finished, folder and all."""
    location(where).clear()


def packed(state: Mapping[str, Any], key: str) -> bytes:
    """A checkpoint as a file holds it."""
    stream = io.BytesIO()
    torch.save(dict(state), stream)
    content = stream.getvalue()
    return f"{FORMAT} {key} {_checksum(key, content)}\n".encode() + content


def unpacked(file: bytes, key: str) -> dict[str, Any]:
    """The state in a checkpoint.

    Raises Damaged where a bit is not as it was written, and InputError for another run's.
    """
    found, state = opened(file)
    if found != key:
        raise InputError(
            "belongs to another run (other settings or other images): give another folder"
        )
    return state()


def opened(file: bytes) -> tuple[str, Callable[[], dict[str, Any]]]:
    """The key of the run that a checkpoint is of, and its state.

    Raises Damaged where a bit is not as it was written.
    """
    head, _, content = file.partition(b"\n")
    words = head.decode(errors="replace").split(" ")
    if len(words) != 3 or words[0] != FORMAT:
        raise Damaged("it does not start as one")
    if _checksum(words[1], content) != words[2]:
        raise Damaged("its checksum does not fit")
    return words[1], lambda: torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _checksum(key: str, content: bytes) -> str:
    digest = hashlib.sha256(f"{key}\n".encode())
    digest.update(content)
    return digest.hexdigest()


def location(where: str | Path) -> CheckpointLocation:
    """The folder that a path or a URL names."""
    url = str(where)
    if url.startswith("file://"):
        return _Local(Path(url.removeprefix("file://")))
    return _Remote(url) if "://" in url else _Local(Path(where))


class _Local:
    """A folder of this machine, or one that is mounted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        return [file.name for file in self._folder.iterdir()] if self._folder.is_dir() else []

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._folder / f".{name}.{os.getpid()}"
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._folder / name)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _remember_names(self._folder)
        self._tidy((self._folder / name).stat().st_mtime - ABANDONED_SECONDS)

    def _tidy(self, before: float) -> None:
        """Remove unfinished files that nobody has written to since."""
        for file in self._folder.glob(".epoch-*.pt.*"):
            # it may go by itself, or be another user's
            with suppress(OSError):
                if file.suffix[1:].isdigit() and file.stat().st_mtime < before:
                    file.unlink()

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def clear(self) -> None:
        for name in self.names():
            if name.lstrip(".").startswith("epoch-"):
                self.delete(name)
        if self._folder.is_dir() and not self.names():
            self._folder.rmdir()


class _Remote:
    """A folder on a file system of fsspec; object stores write a file whole or not at all."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(f"{url} cannot be opened: {error}") from None

    def names(self) -> list[str]:
        self._files.invalidate_cache()
        if not self._files.isdir(self._root):
            return []
        return [str(path).rpartition("/")[2] for path in self._files.ls(self._root, detail=False)]

    def read(self, name: str) -> bytes:
        return self._files.cat_file(f"{self._root}/{name}")

    def write(self, name: str, content: bytes) -> None:
        self._files.makedirs(self._root, exist_ok=True)
        self._files.pipe_file(f"{self._root}/{name}", content)

    def delete(self, name: str) -> None:
        self._files.rm_file(f"{self._root}/{name}")

    def clear(self) -> None:
        if self._files.isdir(self._root):
            self._files.rm(self._root, recursive=True)


def _remember_names(folder: Path) -> None:
    """Make a rename in `folder` outlast a loss of power, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _name(epoch: int) -> str:
    return f"epoch-{epoch:06d}.pt"

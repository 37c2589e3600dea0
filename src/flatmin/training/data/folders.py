"""The files of a data set, whether they lie in folders or in archives.

    tree = Tree.of(Path("data/flowers102"))
    tree["jpg/image_00001.jpg"].read()

Archives are read where they are. A file in a .tar or .zip is fetched when it is wanted; a
compressed .tar, which can only be read from its start, is read once and kept in memory.
"""

from __future__ import annotations

import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from flatmin.training.data.decoding import Encoded, File, Held
from flatmin.training.data.memory import most_bytes, readable
from flatmin.training.errors import InputError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
"""How the names of archives end."""

_MACOS = "__MACOSX"
"""What macOS adds to an archive: a folder of its own, with a file beside each file."""


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes from `start` on in the file `path`."""

    path: str
    start: int
    length: int
    name: str

    def read(self) -> bytes:
        with Path(self.path).open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)


@dataclass(frozen=True, slots=True)
class Zipped:
    """A member of an open .zip, from which one thread reads at a time."""

    archive: zipfile.ZipFile
    member: str
    lock: threading.Lock

    @property
    def name(self) -> str:
        return f"{self.archive.filename}:{self.member}"

    def read(self) -> bytes:
        with self.lock, _unpacked(self.name):
            return self.archive.read(self.member)


@dataclass(frozen=True)
class Tree:
    """Files by path, which is relative to the folder or to the archive that holds them.

    Fields:
        where: of all of them, for messages.
        files: by path, with "/" between its parts; archives themselves are left out.
        folders: their paths, the empty ones too.
        left_out: paths of folders that macOS adds to what it packs.
    """

    where: str
    files: Mapping[str, Encoded]
    folders: frozenset[str]
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, where: Path) -> Tree:
        """Everything below the folder `where`, in its archives too, or in the one archive `where`.

        An archive beside a folder of the same name has been unpacked and is left alone. Links to
        folders are followed, but not back to one on the way to them.

        Raises InputError where an archive is broken or too large to be kept.
        """
        files: dict[str, Encoded] = {}
        folders: set[str] = set()
        left_out: list[str] = []
        if where.is_file():
            files.update(_shown(where, left_out))
        for folder, inside, names in _walk(where):
            above = Path(folder).relative_to(where).as_posix() + "/"
            above = above.removeprefix("./")
            if _MACOS in inside:
                inside.remove(_MACOS)
                left_out.append(f"{folder}/{_MACOS}")
            folders.update(above + name for name in inside)
            for name in names:
                if not name.endswith(ARCHIVES):
                    files[above + name] = File(f"{folder}/{name}")
                elif _stem(name) not in inside:
                    files.update(_shown(Path(folder, name), left_out))
        folders.update(folder for name in files for folder in _above(name))
        return cls(str(where), files, frozenset(folders), tuple(left_out))

    def __getitem__(self, path: str) -> Encoded:
        """The file whose path is `path`, or ends with it; the outermost of several.

        Raises InputError where there is none.
        """
        found = self.get(path)
        if found is None:
            raise InputError(f"no {path} in {self.where}: put all original files of the set there")
        return found

    def get(self, path: str) -> Encoded | None:
        """Like `[path]`, or None."""
        if path in self.files:
            return self.files[path]
        outermost = _outermost(name for name in self.files if name.endswith(f"/{path}"))
        return self.files[outermost] if outermost else None

    def below(self, folder: str) -> Tree:
        """What is in the folder whose path is `folder`, or ends with it; the outermost of several.

        Empty where there is none.
        """
        found = (name for name in self.folders if f"/{name}".endswith(f"/{folder}"))
        start = f"{_outermost(found) or folder}/"
        return Tree(
            f"{self.where}/{start[:-1]}",
            {
                name.removeprefix(start): self.files[name]
                for name in self.files
                if name.startswith(start)
            },
            frozenset(name.removeprefix(start) for name in self.folders if name.startswith(start)),
        )

    def without(self, folders: Iterable[str]) -> Tree:
        """All but some of the outermost folders and what is in them."""
        left_out = set(folders)
        return Tree(
            self.where,
            {
                name: file
                for name, file in self.files.items()
                if name.partition("/")[0] not in left_out
            },
            frozenset(name for name in self.folders if name.partition("/")[0] not in left_out),
        )

    def unwrapped(self) -> Tree:
        """What is in the one folder, where there is but one and it holds nothing but folders."""
        top = {name.partition("/")[0] for name in (*self.files, *self.folders)}
        deep = all(name.count("/") > 1 for name in self.files)
        return self.below(top.pop()).unwrapped() if len(top) == 1 and deep and self.files else self


def _walk(where: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every folder with the names of the folders and the files in it, sorted, the hidden left out.

    No folder is met below itself, which links could make endless.
    """
    ways: dict[Path, frozenset[str]] = {where: frozenset()}
    for folder, inside, names in os.walk(where, followlinks=True):
        way = ways.pop(Path(folder)) | {os.path.realpath(folder)}
        below = {name: Path(folder, name) for name in inside if not name.startswith(".")}
        inside[:] = sorted(name for name in below if os.path.realpath(below[name]) not in way)
        ways.update((below[name], way) for name in inside)
        yield folder, inside, sorted(name for name in names if not name.startswith("."))


def _outermost(names: Iterable[str]) -> str | None:
    return min(names, key=lambda name: (name.count("/"), name), default=None)


def _above(name: str) -> Iterator[str]:
    """The folders on the way to a file."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _stem(name: str) -> str:
    """The name of an archive without its ending."""
    ending = next(ending for ending in ARCHIVES if name.endswith(ending))
    return name.removesuffix(ending)


def _members(path: Path) -> Iterator[tuple[str, Encoded]]:
    if path.name.endswith(".zip"):
        yield from _zip_members(path)
    elif path.name.endswith(".tar"):
        with path.open("rb") as file:
            yield from _tar_members(path, file, 0)
    else:
        yield from _compressed_members(path)


def _shown(archive: Path, left_out: list[str]) -> Iterator[tuple[str, Encoded]]:
    """Without hidden files, nor what macOS adds to archives, which goes to what is `left_out`."""
    added = False
    for name, file in _members(archive):
        parts = name.split("/")
        if _MACOS in parts:
            added = True
        elif not any(part.startswith(".") for part in parts):
            yield name, file
    if added:
        left_out.append(f"{archive}/{_MACOS}")


def _zip_members(path: Path) -> Iterator[tuple[str, Encoded]]:
    with _unpacked(str(path)):
        archive, lock = zipfile.ZipFile(path), threading.Lock()
    for name in archive.namelist():
        if not name.endswith("/"):
            yield name, Zipped(archive, name, lock)


def _tar_members(path: Path, file: IO[bytes], offset: int) -> Iterator[tuple[str, Encoded]]:
    """The files in the .tar that starts at `offset`, and in the .tar files in it: ImageNet's."""
    file.seek(offset)
    end = path.stat().st_size
    met: dict[str, Extent] = {}
    with _whole(str(path)), tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            # nobody needs a list of a million members
            cast("Any", archive).members.clear()
            start = member.offset_data
            if start + member.size > end:
                raise EOFError
            if member.isfile() and member.name.endswith(".tar"):
                folder = member.name.removesuffix(".tar")
                for name, inner in _tar_members(path, file, start):
                    yield f"{folder}/{name}", inner
            elif member.isfile() or member.islnk():
                name = _plain(member.name)
                if member.isfile():
                    met[name] = Extent(str(path), start, member.size, f"{path}:{member.name}")
                elif (target := met.get(_plain(member.linkname))) is not None:
                    met[name] = replace(target, name=f"{path}:{member.name}")
                else:
                    raise InputError(
                        f"{path}:{name} is a link to {member.linkname}, which is no file before "
                        f"it: unpack the archive where it is"
                    )
                yield name, met[name]


def _compressed_members(path: Path) -> Iterator[tuple[str, Encoded]]:
    left = most_bytes()
    with _whole(str(path)), tarfile.open(path, mode="r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                continue
            left -= member.size
            if left < 0:
                raise InputError(
                    f"{path} holds more than the {readable(most_bytes())} that may be kept in "
                    f"memory: unpack it where it is, or set FLATMIN_MEMORY to more"
                )
            yield _plain(member.name), Held(content.read(), f"{path}:{member.name}")


def _plain(name: str) -> str:
    return name.removeprefix("./")


@contextmanager
def _whole(name: str) -> Generator[None, None, None]:
    """Whatever is wrong with an archive becomes one line."""
    try:
        yield
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        KeyError,  # of a link to what is not there
        OSError,
    ) as error:
        detail = str(error) or "it ends too early"
        raise InputError(f"{name} is no whole archive ({detail}): fetch it again") from None


@contextmanager
def _unpacked(name: str) -> Generator[None, None, None]:
    """Whatever keeps a .zip from being read becomes one line."""
    try:
        with _whole(name):
            yield
    except NotImplementedError as error:
        raise InputError(
            f"{name} cannot be read ({error}): unpack the archive where it is"
        ) from None
    except RuntimeError:  # of zipfile, which has no other word for it
        raise InputError(f"{name} is encrypted: unpack the archive where it is") from None

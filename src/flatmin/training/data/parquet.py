"""Data sets in Parquet files of the Hugging Face `datasets` layout."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from flatmin.training.data.decoding import Encoded, Form, Held, OpenForm, Part, common_form
from flatmin.training.data.layouts import TESTED, Content
from flatmin.training.data.memory import most_bytes
from flatmin.training.errors import InputError


def holds(folder: Path) -> bool:
    """Whether there are Parquet files to train on in `folder` or below."""
    return bool(_found(folder, "train"))


def holds_test(folder: Path) -> bool:
    """Whether there are Parquet files to test on in `folder` or below."""
    return any(_found(folder, name) for name in TESTED)


def read_test(folder: Path, form: Form) -> Content:
    """The test part of an image set alone; see `read_images`."""
    name = next(each for each in TESTED if _found(folder, each))
    table, label, (labels, images) = _part(folder, _found(folder, name))
    classes = _class_names(table, label, 1 + int(labels.max()))
    test = Part.encoded(labels, images, form)
    return Content(classes, test.at(torch.arange(0)), test)


def unsplit(path: Path) -> list[Path]:
    """The files of a set that has no test part; empty where `path` holds none, or one that has.

    That is a file, or a folder with a training part alone, or with one file of any name.
    """
    if path.is_file() and path.suffix == ".parquet":
        return [path]
    every = _found(path, "") if path.is_dir() else []
    if any(_found(path, name) for name in TESTED):
        return []
    return _found(path, "train") or (every if len(every) == 1 else [])


def read_unsplit(
    files: Sequence[Path], form: OpenForm
) -> tuple[tuple[str, ...], Part, tuple[str, ...]]:
    """Classes, images and notes of what `unsplit` has found."""
    folder = files[0] if len(files) == 1 else files[0].parent
    table, label, (labels, images) = _part(folder, files)
    classes = _class_names(table, label, 1 + int(labels.max()))
    _require_classes(folder, labels, classes)
    found, notes = common_form(images, form)
    return classes, Part.encoded(labels, images, found), notes


def read_images(
    folder: Path,
    form: Form | OpenForm,
    names: Sequence[str] = TESTED,
    validated: Sequence[str] = (),
) -> Content:
    """An image set.

    The columns may be called `image` or `img`, and `label` or `fine_label`. Files that
    take more memory than a data set may are copied once, uncompressed, to the cache, and mapped.

    Args:
        folder: that holds `train*.parquet` and `test*.parquet`, or below which they are.
        form: of the images, or what settles it.
        names: under which the test part is looked for, the preferred one first.
        validated: names of a part whose classes are to validate on, where tasks are drawn from
            classes; it becomes part of the training images.

    Raises InputError where something is missing or cannot be read.
    """
    held = next((found for name in validated if (found := _found(folder, name))), list[Path]())
    train_files = [*_files(folder, "train"), *held]
    test = next((name for name in names if _found(folder, name)), names[0])
    train, label, training = _part(folder, train_files)
    test_table, test_label, testing = _part(folder, _files(folder, test))
    notes: tuple[str, ...] = ()
    if isinstance(form, OpenForm):
        form, notes = common_form([*training[1], *testing[1]], form)
    count = 1 + int(max(training[0].max(), testing[0].max()))
    declared = _declared(train, label), _declared(test_table, test_label)
    classes = declared[0] or declared[1] or _class_names(train, label, count)
    theirs = declared[1] or classes
    _require_classes(folder, training[0], classes)
    _require_classes(folder, testing[0], theirs)
    if theirs != classes:
        testing = (_matched(testing[0], theirs, classes, folder), testing[1])
    labels = set(map(int, _part(folder, held)[2][0])) if held else set[int]()
    return Content(
        classes,
        Part.encoded(*training, form),
        Part.encoded(*testing, form),
        tuple(sorted(classes[label] for label in labels)),
        notes,
    )


def _require_classes(folder: Path, labels: Tensor, classes: Sequence[str]) -> None:
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(
            f"{folder} has labels outside 0 .. {len(classes) - 1}: expected those of its "
            f"{len(classes)} classes"
        )
    if len(classes) < 2:
        raise InputError(f"{folder} has a single class: expected at least 2")


def _matched(labels: Tensor, theirs: Sequence[str], ours: Sequence[str], folder: Path) -> Tensor:
    """Labels of a part whose classes stand in an order of its own, in the order of the others."""
    found = [theirs[label] for label in cast("list[int]", labels.unique().tolist())]
    unknown = sorted(set(found) - set(ours))
    if unknown:
        raise InputError(
            f"{folder} has test images of {', '.join(unknown[:10])}, which no training image "
            f"shows: give both parts the same classes"
        )
    position = {name: at for at, name in enumerate(ours)}
    return torch.tensor([position.get(name, -1) for name in theirs])[labels]


def read_labels(folder: Path, columns: Sequence[str]) -> dict[str, Tensor]:
    """Integer `columns` of a training part without images, each int64 (n,)."""
    table = _table(folder, _files(folder, "train"), list(columns))
    return {name: _integers(table, name, str(folder)) for name in columns}


def cache() -> Path:
    """$FLATMIN_CACHE, or the usual folder for what can be made again."""
    given = os.environ.get("FLATMIN_CACHE")
    usual = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(usual) / "flatmin"


class _Images(Sequence[Encoded]):
    """The encoded images in a column of a table, none of them copied before it is asked for."""

    def __init__(self, column: Any, where: str) -> None:
        self._chunks = cast("list[Any]", column.chunks)
        self._wrapped = _wrapped(column.type, where)
        self._starts = [0, *itertools.accumulate(len(chunk) for chunk in self._chunks)]
        self._where = where

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        chunk = bisect.bisect_right(self._starts, row) - 1
        value = self._chunks[chunk][row - self._starts[chunk]].as_py()
        content = cast("bytes | None", value["bytes"] if value and self._wrapped else value)
        return Held(content or b"", f"image {row} in {self._where}")


def _part(folder: Path, files: Sequence[Path]) -> tuple[Any, str, tuple[Tensor, _Images]]:
    import pyarrow.parquet as pq

    with _Readable(files[0]):
        found = cast("list[str]", cast("Any", pq).read_schema(files[0]).names)
    label = _column(found, ("label", "fine_label"), folder)
    image = _column(found, ("image", "img"), folder)
    table = _table(folder, files, [image, label])
    where = f"{files[0].parent}/{files[0].name.split('-')[0]}"
    if not len(table):
        raise InputError(f"{where} has no rows: expected at least one image")
    labels = _integers(table, label, where)
    return table, label, (labels, _Images(table.column(image), where))


def _files(folder: Path, part: str) -> list[Path]:
    files = _found(folder, part)
    if not files:
        raise InputError(f"no {part}*.parquet in {folder}: put the Parquet files of the set there")
    return files


def _found(folder: Path, part: str) -> list[Path]:
    """The files of a part, but for those in hidden folders, where others keep their copies."""
    return sorted(
        file
        for file in folder.rglob(f"{part}*.parquet")
        if not any(name.startswith(".") for name in file.relative_to(folder).parts)
    )


def _table(folder: Path, files: Sequence[Path], columns: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if sum(file.stat().st_size for file in files) > most_bytes():
        return _mapped(files, columns)
    tables: list[Any] = []
    for file in files:
        with _Readable(file):
            tables.append(cast("Any", pq).read_table(file, columns=columns))
    with _Readable(folder):
        return cast("Any", pa).concat_tables(tables)


def _mapped(files: Sequence[Path], columns: list[str]) -> Any:
    """The tables of `files`, mapped from a copy in the cache that can be read anywhere at once."""
    import pyarrow as pa

    known = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(json.dumps([known, columns]).encode()).hexdigest()[:16]
    copy = cache() / "parquet" / f"{digest}.arrow"
    if not copy.exists():
        _copy(files, columns, copy)
    return cast("Any", pa).ipc.open_file(cast("Any", pa).memory_map(str(copy))).read_all()


def _copy(files: Sequence[Path], columns: list[str], copy: Path) -> None:
    """Write an Arrow file, whole or not at all."""
    import pyarrow as pa

    partial = copy.with_suffix(f".{uuid.uuid4().hex}")
    batches = itertools.chain.from_iterable(_batches(file, columns) for file in files)
    first = next(batches, None)
    if first is None:
        raise InputError(f"{files[0].parent}/{files[0].name} has no rows: expected at least one")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with cast("Any", pa).ipc.new_file(str(partial), first.schema) as writer:
            for batch in itertools.chain([first], batches):
                writer.write_batch(batch)
        partial.replace(copy)
    except OSError as error:
        raise InputError(
            f"{files[0].parent} does not fit in memory and cannot be copied to {copy.parent} "
            f"({error.strerror or error}): make room, or set FLATMIN_CACHE to another folder"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _batches(file: Path, columns: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with _Readable(file), cast("Any", pq).ParquetFile(file) as content:
        for batch in content.iter_batches(batch_size=256, columns=columns):
            yield batch.select(columns)


class _Readable:
    """Whatever is wrong with a Parquet file becomes one line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        if isinstance(error, (cast("type[Exception]", pa.ArrowException), OSError)):
            reason = str(error).splitlines()[0]
            raise InputError(f"{self._path} cannot be read: {reason}") from None


def _column(found: Sequence[str], names: Sequence[str], folder: Path) -> str:
    for name in names:
        if name in found:
            return name
    raise InputError(f"{folder} has the columns {', '.join(found)}: expected {' or '.join(names)}")


def _integers(table: Any, name: str, where: str) -> Tensor:
    import pyarrow as pa

    column, types = table.column(name), cast("Any", pa).types
    if _texts(column.type) and not column.null_count:
        position = {text: at for at, text in enumerate(sorted(column.unique().to_pylist()))}
        return torch.tensor([position[text] for text in column.to_pylist()], dtype=torch.int64)
    if not types.is_integer(column.type) and not types.is_boolean(column.type):
        raise InputError(
            f"{where} has {column.type} in the column {name}: expected integers, or names"
        )
    if column.null_count:
        raise InputError(
            f"{where} has {column.null_count} rows without {name}: fill them in or remove them"
        )
    return torch.tensor(column.to_numpy(), dtype=torch.int64)


def _wrapped(kind: Any, where: str) -> bool:
    """Whether the bytes of images of an Arrow type are in a struct, with the path."""
    import pyarrow as pa

    types = cast("Any", pa).types
    inner = kind
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = kind.field("bytes").type
    if not types.is_binary(inner) and not types.is_large_binary(inner):
        raise InputError(
            f"{where} has {kind} for images: expected the bytes of image files (binary), "
            f"or a struct with them in bytes"
        )
    return inner is not kind


def _texts(kind: Any) -> bool:
    import pyarrow as pa

    types = cast("Any", pa).types
    return types.is_string(kind) or types.is_large_string(kind)


def _class_names(table: Any, label: str, count: int) -> tuple[str, ...]:
    """As the file says, or else numbers."""
    return _declared(table, label) or tuple(map(str, range(count)))


def _declared(table: Any, label: str) -> tuple[str, ...] | None:
    """The names of the classes, where the file says them, or its labels are names themselves."""
    if _texts(table.column(label).type):
        return tuple(sorted(table.column(label).unique().to_pylist()))
    described: dict[bytes, bytes] = table.schema.metadata or {}
    features = json.loads(described.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names: list[str] | None = features.get(label, {}).get("names")
    return tuple(names) if names else None

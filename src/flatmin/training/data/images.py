"""Real images: `load("digits")`, `load("cifar10")`, `load("path/to/folder")`, `load("hub:<name>")`.

Every set becomes uint8 images (n, channels, size, size) and int64 labels (n,), for training and
for testing. Sets that fit are decoded once and kept; the others are decoded batch by batch, which
gives the same numbers. `flatmin.training.data.sets` knows the names and where they are looked for.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from flatmin.training.data import parquet, sets
from flatmin.training.data.decoding import Form, OpenForm, Part, common_form
from flatmin.training.data.folders import ARCHIVES, Tree
from flatmin.training.data.layouts import TESTED, Content, by_class, listed, split
from flatmin.training.data.memory import most_bytes
from flatmin.training.data.stream import Pixels, Streamed, pieces, spaced
from flatmin.training.errors import InputError, unknown
from flatmin.training.seeds import generator


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set.

    Fields:
        name: as given to `load`.
        classes: names of the classes, by label.
        train_images: uint8 (n, channels, size + margin, size + margin), decoded or `Streamed`.
        train_labels: int64 (n,).
        test_images: as `train_images`.
        test_labels: int64 (n,).
        train_rows: int64 (n,), where each training image stood in the whole training set.
        margin: pixels by which the images are larger than what a model sees of them.
        validation: names of the training classes that are to validate on, where the set says so.
        notes: what a user should know of it, line by line: what is left out, what is odd.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Pixels
    train_labels: Tensor
    test_images: Pixels
    test_labels: Tensor
    train_rows: Tensor
    margin: int = 0
    validation: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def size(self) -> int:
        """Height and width of the images as a model sees them, in pixels."""
        return self.train_images.shape[2] - self.margin

    @property
    def train_count(self) -> int:
        return len(self.train_labels)

    @property
    def test_count(self) -> int:
        return len(self.test_labels)

    @property
    def described(self) -> str:
        """How much of what it has: "1,437 training and 360 test images of 8 × 8 pixels …"."""
        return (
            f"{self.train_count:,} training and {self.test_count:,} test images of {self.size} × "
            f"{self.size} pixels in {len(self.classes)} classes"
        )

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any label, and with any pixel.

        Of sets with more than 2^31 pixels, only evenly spaced images are looked at.
        """
        digest = hashlib.blake2b(digest_size=6)
        for pixels, labels in (
            (self.train_images, self.train_labels),
            (self.test_images, self.test_labels),
        ):
            whole = pixels.shape[0] * pixels.shape[1] * pixels.shape[2] ** 2 <= 2**31
            for piece in pieces(pixels if whole else spaced(pixels, 2**26)):
                digest.update(piece.contiguous().numpy().data)
            digest.update(labels.numpy().data)
        return digest.hexdigest()


NAMES: tuple[str, ...] = ("digits", *sets.NAMED_SETS)
"""Every data set that `load` knows by name."""

LARGEST_FOLDER_SIZE = 64
"""Pixels to a side, at most, of the images that come from a folder, unless a size is given."""


def load(
    name: str, root: Path | None = None, limit: int | None = None, size: int | None = None
) -> ImageData:
    """The data set `name`: one of `NAMES`, a folder or an archive of images by class, or `hub:...`.

    `digits` are the 1,797 images of 8x8 pixels that scikit-learn carries, split once and for all
    into 1,437 training and 360 test images with equal shares of every class.

    A folder holds `train/<class>/*` and `test/<class>/*`, or just `<class>/*`, of which a fixed,
    stratified fifth becomes the test set; or Parquet files, one of which will do. Its images are
    resized to a common square: the median of the shorter sides, at most 64 pixels. They stay grey
    where all are grey.

    Args:
        name: of the data set, or path of the folder or archive, or `hub:<repository>`.
        root: of the sets with a name; default $FLATMIN_DATA.
        limit: number of training images kept, a fixed stratified choice with some of every class;
            default all.
        size: side in pixels at which a model is to see photographs, and images from a folder,
            which have no size of their own; default that of the set. From 96 pixels on they are
            kept a seventh larger.

    Raises InputError where the name is unknown, the data is missing or the limit impossible.

    Examples:
        >>> from flatmin.training import load
        >>> data = load("digits", limit=100)
        >>> data.train_images.shape, len(data.test_labels)
        (torch.Size([100, 1, 8, 8]), 360)
    """
    content = _open(name, root, size)
    rows = _limited(name, content.train.labels, len(content.classes), limit)
    train, test = content.train.at(rows), content.test
    # of photographs as large as asked for, or of those that are so large by themselves
    shown = size or (sets.NAMED_SETS[name].form.size if name in sets.NAMED_SETS else 0)
    stored = train.form.size
    margin = stored - shown if shown and stored == shown + sets.margin(shown) else 0
    count = len(rows) + len(test.labels)
    keep = count * train.form.channels * stored**2 <= most_bytes()
    return ImageData(
        name=name,
        classes=content.classes,
        train_images=_pixels(train, keep=keep),
        train_labels=train.labels,
        test_images=_pixels(test, keep=keep),
        test_labels=test.labels,
        train_rows=rows,
        margin=margin,
        validation=content.validation,
        notes=content.notes,
    )


def test_classes(name: str) -> tuple[str, ...]:
    """The classes in a folder to test on, in the order of `load_test`. Nothing is decoded."""
    path = Path(name)
    if path.is_dir() and parquet.holds_test(path):
        return parquet.read_test(path, Form(3, 8)).classes
    return tuple(sorted(set(listed(_to_test(path), least=1).labels)))


def load_test(name: str, *, channels: int, size: int) -> ImageData:
    """Images to test on alone, in a folder or an archive by class, or in Parquet files.

    Where there is a test part (`test/`, `val/`, `test*.parquet`) it is that; else it is all.

    Args:
        name: path of the folder or archive.
        channels: of the images, as a model takes them.
        size: the same.
    """
    path = Path(name)
    form = Form(channels, size + sets.margin(size))
    if path.is_dir() and parquet.holds_test(path):
        content = parquet.read_test(path, form)
    else:
        images = listed(_to_test(path), least=1)
        classes = tuple(sorted(set(images.labels)))
        test = images.part(classes, form)
        content = Content(classes, test.at(torch.arange(0)), test)
    keep = len(content.test.labels) * channels * form.size**2 <= most_bytes()
    test = content.test
    return ImageData(
        name=name,
        classes=content.classes,
        train_images=torch.empty(0, channels, form.size, form.size, dtype=torch.uint8),
        train_labels=torch.empty(0, dtype=torch.int64),
        test_images=_pixels(test, keep=keep),
        test_labels=test.labels,
        train_rows=torch.arange(0),
        margin=form.size - size,
    )


def _to_test(path: Path) -> Tree:
    """The test part of a folder or an archive, where it has one."""
    tree = Tree.of(path).unwrapped()
    named = next((each for each in TESTED if each in tree.folders), None)
    return tree.below(named) if named else tree


def require_shared_classes(data: ImageData) -> None:
    """Raise InputError where there is nothing to train on, or other classes to test on."""
    if not len(data.train_labels) or not len(data.test_labels):
        lacking = "test" if len(data.train_labels) else "train"
        raise InputError(f"{data.name} has no images to {lacking} on: give a set that has both")
    count = len(data.classes)
    trained_on = torch.bincount(data.train_labels, minlength=count) > 0
    tested_on = torch.bincount(data.test_labels, minlength=count) > 0
    if (tested_on & ~trained_on).any():
        raise InputError(
            f"{data.name} has other classes to test on than to train on: it is for episodes, as "
            f"in flatmin meta train; give a set that shares them"
        )


def stratified(
    labels: Tensor, count: int, source: torch.Generator, *, all_classes: bool = False
) -> Tensor:
    """`count` of the positions of `labels` (n,), ascending, with every class in its share.

    Shares that are no whole numbers are rounded by largest remainder, ties to the lower label.
    With `all_classes`, those that come to nothing take one image each from the largest.
    """
    sizes = torch.bincount(labels)
    exact = sizes.double() * count / len(labels)
    quotas = exact.floor().long()
    missing = count - int(quotas.sum())
    quotas[(exact - quotas).argsort(descending=True, stable=True)[:missing]] += 1
    if all_classes:
        for label in ((quotas == 0) & (sizes > 0)).nonzero().flatten():
            quotas[quotas.argmax()] -= 1
            quotas[label] = 1
    chosen: list[Tensor] = []
    for label, quota in enumerate(quotas):
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=source)[: int(quota)]])
    return torch.cat(chosen).sort().values


def others(count: int, rows: Tensor) -> Tensor:
    """The positions 0 .. `count` - 1 that are not in `rows`, ascending."""
    free = torch.ones(count, dtype=torch.bool)
    free[rows] = False
    return free.nonzero().flatten()


def _pixels(part: Part, *, keep: bool) -> Pixels:
    rows = torch.arange(len(part.labels))
    if keep:
        return part.pixels(rows)
    return Streamed(part.pixels, rows, part.form.channels, part.form.size)


def _open(name: str, root: Path | None, size: int | None) -> Content:
    if name == "digits":
        return _digits()
    if name in sets.NAMED_SETS or name.startswith("imagenet-c:"):
        return sets.read(name, root, size)
    form = OpenForm(size + sets.margin(size), exact=True) if size else OpenForm(LARGEST_FOLDER_SIZE)
    if name.startswith("hub:"):
        return sets.of_hub(name.removeprefix("hub:"), form)
    path = Path(name)
    if files := parquet.unsplit(path):
        classes, every, notes = parquet.read_unsplit(files, form)
        return replace(_parted(classes, every, _fifth(every), "folder"), notes=notes)
    if path.is_dir() and parquet.holds(path):
        return parquet.read_images(path, form)
    if path.is_dir() or (path.is_file() and name.endswith(ARCHIVES)):
        return _folder(path, form)
    if os.sep in name:
        raise InputError(f"no folder {name}: give a folder of images by class, or --data digits")
    raise unknown("data set", name, NAMES)


def _limited(name: str, labels: Tensor, classes: int, limit: int | None) -> Tensor:
    if limit is None:
        return torch.arange(len(labels))
    if limit > len(labels):
        raise InputError(
            f"--limit {limit} is more than the {len(labels)} training images of {name}: "
            f"give at most {len(labels)}, or leave it away"
        )
    if limit < classes:
        raise InputError(f"--limit {limit} is less than one image for each of {classes} classes")
    known = name in NAMES or name.startswith(("hub:", "imagenet-c:"))
    # a path can be spelt in many ways
    source = generator(0, f"limit {name if known else 'folder'}")
    return stratified(labels, limit, source, all_classes=True)


def _digits() -> Content:
    from sklearn.datasets import load_digits  # pyright: ignore[reportUnknownVariableType]

    pixels, answers = cast("tuple[Any, Any]", load_digits(return_X_y=True))
    shades = torch.tensor(pixels).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    every = Part.held(torch.tensor(answers, dtype=torch.int64), shades)
    return _parted(tuple(map(str, range(10))), every, 360, "digits")


def _folder(path: Path, wanted: OpenForm) -> Content:
    whole = Tree.of(path)
    tree = whole.unwrapped()
    left_out = tuple(f"{name} is left out" for name in whole.left_out)
    parts = split(tree)
    if parts:
        found = by_class(*parts, wanted)
        return replace(found, notes=left_out + found.notes)
    listing = listed(tree)
    classes = tuple(sorted(set(listing.labels)))
    form, about = common_form(listing.images, wanted)
    every = listing.part(classes, form)
    found = _parted(classes, every, _fifth(every), "folder")
    return replace(found, notes=left_out + listing.notes + about)


def _fifth(every: Part) -> int:
    return max(1, round(len(every.labels) / 5))


def _parted(classes: tuple[str, ...], every: Part, tested: int, purpose: str) -> Content:
    """One part to train on, and a fixed, stratified one of `tested` images to test on."""
    test = stratified(every.labels, tested, generator(0, purpose))
    return Content(classes, every.at(others(len(every.labels), test)), every.at(test))

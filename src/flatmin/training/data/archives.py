"""The data sets as their authors give them away, in archives or unpacked.

One function a set: from the tree of its files and the form that its images are to have to its
content. Each raises InputError naming the file that is missing or broken.
"""

from __future__ import annotations

import csv
import gzip
import io
import pickle
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatmin.training.data.decoding import Encoded, Form, Part
from flatmin.training.data.folders import Tree
from flatmin.training.data.layouts import (
    VALIDATED,
    Content,
    PathList,
    content,
    images_of,
    listed,
    split,
)
from flatmin.training.data.wnids import WNIDS
from flatmin.training.errors import InputError


def cifar10(tree: Tree, form: Form) -> Content:
    """cifar-10-python.tar.gz or cifar-10-binary.tar.gz (Krizhevsky, 2009)."""
    del form
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    if tree.get("data_batch_1.bin"):
        names = _lines(tree["batches.meta.txt"])
        read = partial(_cifar_binary, labels=1)
        train, test = [read(tree[f"{name}.bin"]) for name in batches], read(tree["test_batch.bin"])
    else:
        names = _decoded(*_unpickled(tree["batches.meta"], b"label_names"))
        read = partial(_cifar_python, labels=b"labels")
        train, test = [read(tree[name]) for name in batches], read(tree["test_batch"])
    pixels, labels = (torch.cat(pieces) for pieces in zip(*train, strict=True))
    return Content(tuple(names), Part.held(labels, pixels), Part.held(test[1], test[0]))


def cifar100(tree: Tree, form: Form) -> Content:
    """cifar-100-python.tar.gz or cifar-100-binary.tar.gz (Krizhevsky, 2009): the fine labels."""
    del form
    if tree.get("train.bin"):
        names = _lines(tree["fine_label_names.txt"])
        train, test = (_cifar_binary(tree[f"{part}.bin"], labels=2) for part in ("train", "test"))
    else:
        names = _decoded(*_unpickled(tree["meta"], b"fine_label_names"))
        train, test = (_cifar_python(tree[part], b"fine_labels") for part in ("train", "test"))
    return Content(tuple(names), Part.held(train[1], train[0]), Part.held(test[1], test[0]))


def mnist(tree: Tree, form: Form) -> Content:
    """The four idx files, compressed or not (LeCun, Cortes and Burges)."""
    del form

    def part(name: str) -> Part:
        labels = _idx(tree, f"{name}-labels-idx1-ubyte").long()
        return Part.held(labels, _idx(tree, f"{name}-images-idx3-ubyte").unsqueeze(1))

    return Content(tuple(map(str, range(10))), part("train"), part("t10k"))


def flowers17(tree: Tree, form: Form) -> Content:
    """17flowers.tgz and datasplits.mat (Nilsback and Zisserman, 2006).

    The first of its three splits; its validation images, 340, are added to the training images.
    """
    splits, images = _matlab(tree["datasplits.mat"]), tree.below("jpg")

    def listing(*names: str) -> PathList:
        rows = np.concatenate([np.ravel(splits[name]) for name in names]).tolist()
        files = [images[f"image_{row:04d}.jpg"] for row in rows]
        return PathList(files, [str((row - 1) // 80 + 1) for row in rows])

    classes = tuple(str(number) for number in range(1, 18))
    return content(listing("trn1", "val1"), listing("tst1"), form, classes)


def flowers102(tree: Tree, form: Form) -> Content:
    """102flowers.tgz, imagelabels.mat and setid.mat (Nilsback and Zisserman, 2008).

    1,020 training and 6,149 test images; the 1,020 for validation are left out.
    """
    splits, images = _matlab(tree["setid.mat"]), tree.below("jpg")
    labels = np.ravel(_matlab(tree["imagelabels.mat"])["labels"])

    def listing(name: str) -> PathList:
        rows = np.ravel(splits[name]).tolist()
        files = [images[f"image_{row:05d}.jpg"] for row in rows]
        return PathList(files, [str(labels[row - 1]) for row in rows])

    classes = tuple(str(number) for number in range(1, int(labels.max()) + 1))
    return content(listing("trnid"), listing("tstid"), form, classes)


def pets(tree: Tree, form: Form) -> Content:
    """images.tar.gz and annotations.tar.gz of Oxford-IIIT Pet (Parkhi et al., 2012): 37 breeds."""
    images = tree.below("images")

    def listing(part: str) -> PathList:
        names = [line.split()[0] for line in _lines(tree[f"annotations/{part}.txt"])]
        return PathList(
            [images[f"{name}.jpg"] for name in names], [name.rpartition("_")[0] for name in names]
        )

    return content(listing("trainval"), listing("test"), form)


def aircraft(tree: Tree, form: Form) -> Content:
    """fgvc-aircraft-2013b.tar.gz (Maji et al., 2013): 100 variants, validation images included."""
    images = tree.below("data/images")

    def listing(part: str) -> PathList:
        lines = [line.split(" ", 1) for line in _lines(tree[f"data/images_variant_{part}.txt"])]
        return PathList([images[f"{name}.jpg"] for name, _ in lines], [name for _, name in lines])

    return content(listing("trainval"), listing("test"), form)


def cars(tree: Tree, form: Form) -> Content:
    """cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat.

    The 196 classes of Stanford Cars (Krause et al., 2013).
    """
    names = [str(name) for name in np.ravel(_matlab(tree["cars_meta.mat"])["class_names"])]

    def listing(part: str, annotations: str) -> PathList:
        images, rows = tree.below(part), np.ravel(_matlab(tree[annotations])["annotations"])
        files = [images[str(row["fname"])] for row in rows]
        return PathList(files, [names[int(row["class"]) - 1] for row in rows])

    test = listing("cars_test", "cars_test_annos_withlabels.mat")
    return content(listing("cars_train", "cars_train_annos.mat"), test, form, names)


def food101(tree: Tree, form: Form) -> Content:
    """food-101.tar.gz (Bossard et al., 2014)."""
    images = tree.below("images")

    def listing(part: str) -> PathList:
        names = _lines(tree[f"meta/{part}.txt"])
        return PathList(
            [images[f"{name}.jpg"] for name in names], [name.partition("/")[0] for name in names]
        )

    return content(listing("train"), listing("test"), form)


def imagenet(tree: Tree, form: Form) -> Content:
    """ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz.

    Unpacked they are train/<wnid>/*, and val/ with the images by class, or flat as they are. The
    classes are the WordNet numbers, in their order (Russakovsky et al., 2015).
    """
    train = tree.below("train") if _has_classes(tree.below("train")) else tree
    training = _of_wnids(train, alone=train is not tree)
    validation = tree.below("val")
    test = _of_wnids(validation) if _has_classes(validation) else _flat_validation(tree)
    return content(training, test, form, WNIDS)


def imagenet_r(tree: Tree, form: Form) -> Content:
    """imagenet-r.tar (Hendrycks et al., 2021): renditions of 200 of ImageNet's classes, to test."""
    return content(PathList([], []), _of_wnids(tree.unwrapped()), form)


def omniglot(tree: Tree, form: Form) -> Content:
    """images_background.zip and images_evaluation.zip (Lake et al., 2015).

    1,623 characters, named `<alphabet>/<character>`: 964 for training episodes, 659 for tests.
    """

    def listing(folder: str) -> PathList:
        drawings = tree.below(folder)
        paths = images_of(drawings)
        if not paths:
            raise InputError(f"no {folder} in {tree.where}: put {folder}.zip there")
        return PathList(
            [drawings.files[path] for path in paths], [path.rpartition("/")[0] for path in paths]
        )

    train, test = listing("images_background"), listing("images_evaluation")
    classes = [*dict.fromkeys(train.labels), *dict.fromkeys(test.labels)]
    return content(train, test, form, classes)


def mini_imagenet(tree: Tree, form: Form) -> Content:
    """images/ with train.csv, val.csv and test.csv (Ravi and Larochelle, 2017), or train/ … test/.

    64 classes for training episodes, 20 others for tests, and 16 to validate on, which are part of
    the training images and named apart. Copies without the latter are read as well.
    """
    parts = split(tree.unwrapped(), ("test",))
    if parts:
        train, test = map(listed, parts)
        folder = next((name for name in VALIDATED if name in tree.unwrapped().folders), None)
        held = listed(tree.unwrapped().below(folder)) if folder else PathList([], [])
        return content(_joined(train, held), test, form, validation=set(held.labels))
    images = tree.below("images")

    def listing(part: str) -> PathList:
        rows = list(csv.reader(_lines(tree[f"{part}.csv"])))[1:]
        return PathList([images[row[0]] for row in rows], [row[1] for row in rows])

    held = listing("val") if tree.get("val.csv") else PathList([], [])
    train = _joined(listing("train"), held)
    return content(train, listing("test"), form, validation=set(held.labels))


def _joined(first: PathList, second: PathList) -> PathList:
    return PathList([*first.images, *second.images], [*first.labels, *second.labels])


def _has_classes(tree: Tree) -> bool:
    return WNIDS[0] in tree.folders or len(tree.folders & set(WNIDS)) > 1


def _of_wnids(tree: Tree, *, alone: bool = True) -> PathList:
    """The folders that are named by a WordNet number of ImageNet, and, if `alone`, no others."""
    strange = sorted({name.partition("/")[0] for name in tree.folders} - set(WNIDS))
    if strange and not alone:
        return listed(tree.without(strange))
    if strange:
        raise InputError(
            f"{tree.where}/{strange[0]} is none of ImageNet's 1,000 classes: remove it"
        )
    return listed(tree)


def _flat_validation(tree: Tree) -> PathList:
    known = set(WNIDS)
    marked = "ILSVRC2012_val_"
    paths = [path for path in images_of(tree) if path.rpartition("/")[2].startswith(marked)]
    if not paths:
        raise InputError(
            f"no validation images in {tree.where}: put val/ or ILSVRC2012_img_val.tar there"
        )
    answers = [wnid for wnid in _validation_answers(tree) if wnid in known]
    if len(answers) != len(paths):
        raise InputError(
            f"{len(paths)} validation images in {tree.where} but {len(answers)} answers: put "
            f"ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz there, whole"
        )
    return PathList([tree.files[path] for path in paths], answers)


def _validation_answers(tree: Tree) -> list[str]:
    """By the number of the image, from the table of the Kaggle copy or from the devkit."""
    table = tree.get("LOC_val_solution.csv")
    if table:
        rows = sorted(list(csv.reader(_lines(table)))[1:])
        return [row[1].split()[0] for row in rows]
    synsets = np.ravel(_matlab(tree["data/meta.mat"])["synsets"])
    names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    return [
        names[int(line)] for line in _lines(tree["data/ILSVRC2012_validation_ground_truth.txt"])
    ]


def _cifar_python(file: Encoded, labels: bytes) -> tuple[Tensor, Tensor]:
    pixels, answers = _unpickled(file, b"data", labels)
    return _cifar(file, torch.tensor(pixels, dtype=torch.uint8), torch.tensor(answers))


def _cifar_binary(file: Encoded, labels: int) -> tuple[Tensor, Tensor]:
    """Rows of one or two labels, of which the last is the fine one, and 3,072 pixels."""
    content = bytearray(file.read())
    if not content or len(content) % (labels + 3072):
        raise InputError(f"{file.name} is cut short: fetch the archive again")
    rows = torch.frombuffer(content, dtype=torch.uint8).reshape(-1, labels + 3072)
    return _cifar(file, rows[:, labels:], rows[:, labels - 1])


def _cifar(file: Encoded, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if pixels.shape != (len(labels), 3072):
        raise InputError(
            f"{file.name} has images of shape {tuple(pixels.shape)} and {len(labels)} labels: "
            f"expected 3,072 numbers for each label"
        )
    return pixels.reshape(-1, 3, 32, 32).contiguous(), labels.long()


class _Arrays(pickle.Unpickler):
    """Makes arrays, and nothing that could run."""

    allowed = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self.allowed:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):  # how bytes are written in Python 3
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickled(file: Encoded, *keys: bytes) -> tuple[Any, ...]:
    """What the dictionary in `file` has under `keys`."""
    try:
        batch = _Arrays(io.BytesIO(file.read()), encoding="bytes").load()
        return tuple(batch[key] for key in keys)
    except (pickle.UnpicklingError, EOFError, ImportError, LookupError, TypeError, ValueError) as e:
        raise InputError(f"{file.name} is no batch of CIFAR ({e}): fetch it again") from None


def _idx(tree: Tree, name: str) -> Tensor:
    """An array in idx format: two zeros, its type, its number of dimensions, those, the content."""
    dotted = name.replace("-idx", ".idx")
    names = (name, f"{name}.gz", dotted, f"{dotted}.gz")
    file = next((found for found in map(tree.get, names) if found), None) or tree[f"{name}.gz"]
    try:
        packed = file.read()
        content = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    except (EOFError, OSError):
        content = b""
    dimensions = content[3] if content[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if not shape or len(content) != start + np.prod(shape):
        raise InputError(f"{file.name} is no whole idx file of bytes: fetch it again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)


def _matlab(file: Encoded) -> dict[str, NDArray[Any]]:
    from scipy import io as matlab

    try:
        return cast("Any", matlab).loadmat(io.BytesIO(file.read()), squeeze_me=True)
    except (matlab.matlab.MatReadError, ValueError, TypeError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file.name} is no MATLAB file ({reason}): fetch it again") from None


def _lines(file: Encoded) -> list[str]:
    return [line for line in file.read().decode().splitlines() if line.strip()]


def _decoded(names: Iterable[bytes]) -> Sequence[str]:
    return [name.decode() for name in names]

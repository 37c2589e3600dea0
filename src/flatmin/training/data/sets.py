"""The data sets known by name: what they are, where they are looked for, how to get them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from flatmin.training.data import archives, corruptions, layouts, parquet
from flatmin.training.data.decoding import Form, OpenForm
from flatmin.training.data.folders import Tree
from flatmin.training.data.layouts import Content, by_class, split
from flatmin.training.data.wnids import WNIDS
from flatmin.training.errors import InputError


@dataclass(frozen=True)
class NamedSet:
    """A data set.

    Fields:
        form: of its images; for photographs, unless another size is asked for.
        get: the original files, and where they are.
        original: reads these; None where they are folders by class.
        photographs: whether the images have many sizes, and so can be decoded to any.
        tested: names of the part to test on, the preferred one first.
        validated: names of a part of other classes to validate on.
    """

    form: Form
    get: str
    original: Callable[[Tree, Form], Content] | None = None
    photographs: bool = False
    tested: Sequence[str] = layouts.TESTED
    validated: Sequence[str] = ()


NAMED_SETS: Mapping[str, NamedSet] = {
    "mnist": NamedSet(
        Form(1, 28),
        "the four idx files of MNIST from https://ossci-datasets.s3.amazonaws.com/mnist/",
        archives.mnist,
    ),
    "cifar10": NamedSet(
        Form(3, 32),
        "cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
        archives.cifar10,
    ),
    "cifar100": NamedSet(
        Form(3, 32),
        "cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html",
        archives.cifar100,
    ),
    "flowers17": NamedSet(
        Form(3, 64),
        "17flowers.tgz and datasplits.mat from https://www.robots.ox.ac.uk/~vgg/data/flowers/17/",
        archives.flowers17,
        photographs=True,
    ),
    "flowers102": NamedSet(
        Form(3, 224),
        "102flowers.tgz, imagelabels.mat and setid.mat from "
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        archives.flowers102,
        photographs=True,
    ),
    "pets": NamedSet(
        Form(3, 224),
        "images.tar.gz and annotations.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/pets/",
        archives.pets,
        photographs=True,
    ),
    "cars": NamedSet(
        Form(3, 224),
        "cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat of "
        "Stanford Cars",
        archives.cars,
        photographs=True,
    ),
    "aircraft": NamedSet(
        Form(3, 224),
        "fgvc-aircraft-2013b.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        archives.aircraft,
        photographs=True,
    ),
    "food101": NamedSet(
        Form(3, 224),
        "food-101.tar.gz from https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        archives.food101,
        photographs=True,
    ),
    "country211": NamedSet(
        Form(3, 224),
        "country211.tgz from https://github.com/openai/CLIP/blob/main/data/country211.md",
        photographs=True,
    ),
    "imagenet": NamedSet(
        Form(3, 224),
        "train/ and val/ by class, or ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
        "ILSVRC2012_devkit_t12.tar.gz from https://image-net.org/",
        archives.imagenet,
        photographs=True,
        tested=("val", "validation"),
    ),
    "imagenet-r": NamedSet(
        Form(3, 224),
        "imagenet-r.tar from https://github.com/hendrycks/imagenet-r",
        archives.imagenet_r,
        photographs=True,
    ),
    "omniglot": NamedSet(
        Form(1, 28),
        "images_background.zip and images_evaluation.zip from "
        "https://github.com/brendenlake/omniglot",
        archives.omniglot,
        photographs=True,
    ),
    "mini-imagenet": NamedSet(
        Form(3, 84),
        "train/, val/ and test/ by class, or images/ with train.csv, val.csv and test.csv from "
        "https://github.com/twitter-research/meta-learning-lstm",
        archives.mini_imagenet,
        photographs=True,
        validated=layouts.VALIDATED,
    ),
}
"""By name."""

SMALLEST_WITH_MARGIN = 96
"""Pixels to a side from which photographs are stored with a margin; see `margin`."""


def margin(size: int) -> int:
    """Pixels by which the stored side of photographs exceeds `size`: 256 are stored for 224.

    The middle is what a model is measured on, and random crops are cut from the whole. Small images
    have none: they are padded and shifted instead.
    """
    return round(size / 7) if size >= SMALLEST_WITH_MARGIN else 0


def folder_of(name: str, root: Path | None = None) -> Path:
    """The folder of the set `name` under `root`, or under $FLATMIN_DATA.

    Raises InputError saying how to get the data where it is missing.
    """
    given = root or os.environ.get("FLATMIN_DATA")
    if name == "cifar10n":
        files = "train.parquet"
    elif name == "imagenet-c":
        files = "the unpacked folders of ImageNet-C from https://zenodo.org/record/2235448"
    elif name == "imagenet-r":
        files = NAMED_SETS[name].get
    else:
        files = f"train.parquet and test.parquet, or {NAMED_SETS[name].get},"
    recipe = f"put {files} in <folder>/{name} and set FLATMIN_DATA=<folder>"
    if not given:
        raise InputError(f"{name} is not at hand and FLATMIN_DATA is not set: {recipe}")
    folder = Path(given) / name
    if not folder.is_dir() or not any(folder.iterdir()):
        reason = "is empty" if folder.is_dir() else "does not exist"
        raise InputError(f"no data for {name}: {folder} {reason}; {recipe}")
    return folder


def read(name: str, root: Path | None = None, size: int | None = None) -> Content:
    """The set `name` under `root` or $FLATMIN_DATA, from whatever form it has there.

    Args:
        name: one of `NAMED_SETS`, or `imagenet-c:<corruption>:<severity>`.
        root: of all sets.
        size: of the images, if they are photographs.
    """
    if name.startswith("imagenet-c:"):
        return _imagenet_c(name, root, size)
    wanted = NAMED_SETS[name]
    form = wanted.form
    if wanted.photographs:
        side = size or form.size
        form = Form(form.channels, side + margin(side))
    folder = folder_of(name, root)
    if parquet.holds(folder):
        content = parquet.read_images(folder, form, wanted.tested, wanted.validated)
        return _numbered(content, folder) if name == "imagenet" else content
    tree = Tree.of(folder)
    parts = split(tree.unwrapped(), wanted.tested)
    if parts and wanted.original not in (archives.imagenet, archives.mini_imagenet):
        return by_class(*parts, form)
    if wanted.original is None:
        raise InputError(f"no train/ and test/ in {folder}: put {wanted.get} there")
    return wanted.original(tree, form)


def _numbered(content: Content, folder: Path) -> Content:
    """ImageNet with WordNet numbers for classes, in whose order its labels are everywhere."""
    if len(content.classes) != len(WNIDS):
        raise InputError(f"{folder} has {len(content.classes)} classes: expected {len(WNIDS)}")
    return replace(content, classes=WNIDS)


def _imagenet_c(name: str, root: Path | None, size: int | None) -> Content:
    """One corruption at one severity: its images have 224 pixels to a side, without a margin."""
    kind, severity = corruptions.parse(name)
    folder = folder_of("imagenet-c", root)
    inside = f"{kind.replace('-', '_')}/{severity}"
    found = next((place for place in sorted(folder.glob(f"**/{inside}")) if place.is_dir()), None)
    if found is None:
        raise InputError(f"no {inside} in {folder}: unpack the archives of ImageNet-C there")
    content = archives.imagenet_r(Tree.of(found), Form(3, size or 224))
    if content.classes != WNIDS:
        raise InputError(f"{found} has {len(content.classes)} of {len(WNIDS)} classes: unpack it")
    return content


def of_hub(repository: str, form: OpenForm) -> Content:
    """A data set of images on the hub, in Parquet files, fetched once and kept there.

    Args:
        repository: its name there, `<owner>/<name>`.
        form: what settles that of its images.

    Raises InputError where it cannot be had.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise InputError("data from the hub: pip install huggingface_hub") from None
    try:
        folder = cast("Any", huggingface_hub).snapshot_download(
            repository, repo_type="dataset", allow_patterns="*.parquet"
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"hub:{repository} cannot be fetched ({reason}): check the name and the network, or "
            f"put its Parquet files in a folder and give that"
        ) from None
    return parquet.read_images(Path(folder), form)

"""Further measurements of a final model, by name.

"top-5"              % of the test images whose label is among the model's five best guesses
"imagenet-r"         % of the test images of another data set with the same classes, or some of them
"imagenet-r:top-5"   both
"cifar10-c:fog:3"    % of the test images of CIFAR-10, corrupted: see `data.corruptions`
"cifar10-c"          the mean over the 15 standard corruptions at their 5 severities

The last two also go with "cifar100-c", and with "imagenet-c", whose images are read, not made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin.training.data import corruptions, sets
from flatmin.training.data.batches import ImageSet, RunData
from flatmin.training.data.images import ImageData, load
from flatmin.training.errors import InputError


@dataclass(frozen=True, eq=False)
class Examination:
    """What to measure.

    Fields:
        sets: the images, set by set, made when they are needed; the result is the mean over sets.
        top: how many guesses the model has at each image.
        among: the classes between which it may choose, int64 (c,), which the labels number; None
            for all.
    """

    sets: Callable[[], Iterator[ImageSet]]
    top: int = 1
    among: Tensor | None = None

    def of(self, scores: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The scores of the classes that count, (b, c), from those of all."""
        return scores if self.among is None else lambda images: scores(images)[:, self.among]


def find(name: str, data: ImageData, run_data: RunData) -> Examination:
    """The examination called `name`, of a model that learns from `data`.

    Raises InputError where its images do not exist, or have other classes or channels.
    """
    other = name.removesuffix("top-5").removesuffix(":")
    top = 5 if name.endswith("top-5") else 1
    if top >= len(data.classes):
        raise InputError(f"{name} says nothing about {len(data.classes)} classes: leave it away")
    if not other:
        return Examination(lambda: iter([run_data.examined]), top)
    found, _, kind = other.partition(":")
    if found.endswith("-c"):
        return Examination(_corrupted(found, kind, data, run_data), top)
    images = load(other, size=run_data.size)
    return Examination(lambda: iter([_test(images, run_data)]), top, _among(images, data))


def _among(other: ImageData, data: ImageData) -> Tensor | None:
    """Where the classes of the `other` data set are among those of `data`; None for all.

    Raises InputError if there are others.
    """
    if other.channels != data.channels or not set(other.classes) <= set(data.classes):
        raise InputError(
            f"a model of {data.name} cannot be examined on {other.name}: their classes or channels "
            f"differ"
        )
    if other.classes == data.classes:
        return None
    return torch.tensor([data.classes.index(name) for name in other.classes])


def _corrupted(
    name: str, kind: str, data: ImageData, run_data: RunData
) -> Callable[[], Iterator[ImageSet]]:
    """Of the corrupted set `name`, one `kind` with its severity, or all standard ones."""
    if name not in ("cifar10-c", "cifar100-c", "imagenet-c") or data.name != name[:-2]:
        raise InputError(
            f"a model of {data.name} cannot be examined on {name}: there are cifar10-c, "
            f"cifar100-c and imagenet-c, each for models of its set"
        )
    chosen = [corruptions.parse(f"{name}:{kind}")] if kind else corruptions.ALL
    if name == "imagenet-c":
        sets.folder_of(name)

    def made(kind: str, severity: int) -> ImageSet:
        if name == "imagenet-c":
            return _test(load(f"{name}:{kind}:{severity}", size=run_data.size), run_data)
        pixels = corruptions.corrupt(data.test_images, kind, severity)
        return run_data.set(pixels, data.test_labels)

    return lambda: (made(*each) for each in chosen)


def _test(images: ImageData, run_data: RunData) -> ImageSet:
    return run_data.set(images.test_images, images.test_labels, margin=images.margin)

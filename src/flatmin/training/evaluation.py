"""Further measurements of a final model, by name.

"top-5"              % of the test images whose label is among the model's five best guesses
"imagenet-r"         % of the test images of another data set with the same classes, or some of them
"imagenet-r:top-5"   both
"cifar10-c:fog:3"    % of the test images of CIFAR-10, corrupted: see `data.corruptions`
"cifar10-c"          the mean over the 15 standard corruptions at their 5 severities
"shifted/birds"      % of the images in a folder by class, of its test part where it has one; or in
                     Parquet files: the classes are matched by name

The last two also go with "cifar100-c", and with "imagenet-c", whose images are read, not made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatmin.training.data import corruptions, sets
from flatmin.training.data.batches import ImageSet, RunData
from flatmin.training.data.images import ImageData, load, load_test, test_classes
from flatmin.training.data.sample_batches import SampleRun, SampleSet
from flatmin.training.data.samples import AnyData, SampleData
from flatmin.training.errors import InputError, unknown


@dataclass(frozen=True, eq=False)
class Examination:
    """Images to look at, and what is measured on them.

    Fields:
        guesses: how many the model has at each image, by name of the measurement.
        sets: the images, set by set, made when they are needed; each result is the mean over sets.
        among: the classes between which it may choose, int64 (c,), which the labels number; None
            for all.
    """

    guesses: Mapping[str, int]
    sets: Callable[[], Iterator[ImageSet | SampleSet]]
    among: Tensor | None = None

    def of(self, scores: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The scores of the classes that count, (b, c), from those of all."""
        return scores if self.among is None else lambda images: scores(images)[:, self.among]


def facts(data: AnyData, size: int) -> dict[str, int]:
    """What a network may be made for: channels, side and number of classes of the data.

    Of a user's own data those that can be told; `size` is the side of images in the run.
    """
    if isinstance(data, ImageData):
        return {"channels": data.channels, "size": size, "classes": len(data.classes)}
    found = {"classes": len(data.classes)} if data.classes else {}
    shape = data.shape
    if len(shape) == 3 and shape[1] == shape[2]:
        found |= {"channels": shape[0], "size": shape[1]}
    return found


def require(name: str, data: AnyData) -> None:
    """Raise InputError where a model of `data` cannot be examined on `name`, as far as names tell.

    Nothing is decoded for it.
    """
    if isinstance(data, SampleData):
        _further(name, data)
        return
    other, guesses = _parsed(name, data)
    found, _, kind = other.partition(":")
    if not other or other == "digits" or other.startswith("hub:"):
        return
    if is_folder(other):
        classes = test_classes(other)
        _matched(other, classes, data)
        _require_choice(name, guesses, len(classes))
    elif found.endswith("-c"):
        _require_corrupted(found, kind, data)
    elif other in sets.NAMED_SETS:
        sets.folder_of(other)
    else:
        raise unknown("data set", other, ["digits", *sets.NAMED_SETS])


def split(name: str) -> tuple[str, int]:
    """The further set in the name of a measurement, and the number of guesses at each image.

    The set is empty for the test images themselves.
    """
    other = name.removesuffix("top-5").removesuffix(":")
    return other, 5 if name.endswith("top-5") else 1


def _parsed(name: str, data: ImageData) -> tuple[str, int]:
    """As `split` has it; InputError where so many guesses say nothing."""
    other, guesses = split(name)
    _require_choice(name, guesses, len(data.classes))
    return other, guesses


def _require_choice(name: str, guesses: int, classes: int) -> None:
    if guesses >= classes:
        among = "1 class" if classes == 1 else f"{classes} classes"
        raise InputError(f"{name} says nothing about {among}: leave it away")


def is_folder(name: str) -> bool:
    """Whether `name` is a path, of a folder or an archive of images, or of Parquet files."""
    return name not in sets.NAMED_SETS and Path(name).exists()


def _further(name: str, data: SampleData) -> Any:
    if name not in data.further:
        raise unknown("further test set", name, data.further or ["none: give some by examine="])
    return data.further[name]


def find(names: Iterable[str], data: AnyData, run_data: RunData | SampleRun) -> list[Examination]:
    """What the names ask of a model that learns from `data`; the same images are looked at once.

    Raises InputError where images do not exist, or have other classes or channels.
    """
    if isinstance(data, SampleData) or isinstance(run_data, SampleRun):
        assert isinstance(data, SampleData)
        assert isinstance(run_data, SampleRun)
        samples, ours = data, run_data
        return [
            Examination({name: 1}, partial(_alone, ours, _further(name, samples))) for name in names
        ]
    return [
        _examination(other, guesses, data, run_data)
        for other, guesses in together(names, data).items()
    ]


def together(names: Iterable[str], data: ImageData) -> dict[str, dict[str, int]]:
    """By further set, empty for the test images themselves: the names with their guesses."""
    found: dict[str, dict[str, int]] = {}
    for name in names:
        other, guesses = _parsed(name, data)
        found.setdefault(other, {})[name] = guesses
    return found


def _alone(run_data: SampleRun, samples: Any) -> Iterator[SampleSet]:
    yield run_data.set(samples)


def _examination(
    other: str, guesses: Mapping[str, int], data: ImageData, run_data: RunData
) -> Examination:
    if not other:
        return Examination(guesses, lambda: iter([run_data.examined]))
    found, _, kind = other.partition(":")
    if found.endswith("-c"):
        return Examination(guesses, _corrupted(found, kind, data, run_data))
    if is_folder(other):
        images = load_test(other, channels=data.channels, size=run_data.size)
    else:
        images = load(other, size=run_data.size)
    if images.channels != data.channels:
        raise InputError(
            f"a model of {data.name} cannot be examined on {other}: it has images of "
            f"{data.channels} channels, not of {images.channels}"
        )
    among = _matched(other, images.classes, data)
    for name, count in guesses.items():
        _require_choice(name, count, len(images.classes))
    return Examination(guesses, lambda: iter([_test(images, run_data)]), among)


def _matched(name: str, classes: tuple[str, ...], data: ImageData) -> Tensor | None:
    """Where the classes of the set `name` are among those of `data`; None for all, in order.

    Raises InputError if there are others.
    """
    others = [each for each in classes if each not in data.classes]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise InputError(
            f"a model of {data.name} cannot be examined on {name}: its classes "
            f"{', '.join(others[:3])}{more} are not among {', '.join(data.classes[:5])}"
            f"{', …' if len(data.classes) > 5 else ''}; name its folders as those"
        )
    if classes == data.classes:
        return None
    return torch.tensor([data.classes.index(each) for each in classes])


def _corrupted(
    name: str, kind: str, data: ImageData, run_data: RunData
) -> Callable[[], Iterator[ImageSet]]:
    """Of the corrupted set `name`, one `kind` with its severity, or all standard ones."""
    chosen = _require_corrupted(name, kind, data)

    def made(kind: str, severity: int) -> ImageSet:
        if name == "imagenet-c":
            return _test(load(f"{name}:{kind}:{severity}", size=run_data.size), run_data)
        pixels = corruptions.corrupt(data.test_images, kind, severity)
        return run_data.set(pixels, data.test_labels)

    return lambda: (made(*each) for each in chosen)


def _require_corrupted(name: str, kind: str, data: ImageData) -> Sequence[tuple[str, int]]:
    """The corruptions with their severities. Raises InputError where they are not for `data`."""
    if name not in ("cifar10-c", "cifar100-c", "imagenet-c") or data.name != name[:-2]:
        raise InputError(
            f"a model of {data.name} cannot be examined on {name}: there are cifar10-c, "
            f"cifar100-c and imagenet-c, each for models of its set"
        )
    chosen = [corruptions.parse(f"{name}:{kind}")] if kind else corruptions.ALL
    if name == "imagenet-c":
        sets.folder_of(name)
    return chosen


def _test(images: ImageData, run_data: RunData) -> ImageSet:
    return run_data.set(images.test_images, images.test_labels, margin=images.margin)

"""Real images as tasks: the conventions of the few-shot literature."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from flatmin.meta import EpisodeSampler, Task, splits
from flatmin.meta.episodes import Rotations
from flatmin.studies.plan.fewshot import FewShot
from flatmin.training import seeds
from flatmin.training.data import images
from flatmin.training.data.decoding import Form, decode
from flatmin.training.data.folders import Tree
from flatmin.training.data.images import ImageData
from flatmin.training.errors import InputError


@dataclass(frozen=True, eq=False)
class Pools:
    """Where the tasks of a training come from.

    Fields:
        train, validation, test: samplers of tasks, of classes that no other has. The tests are the
            same for every seed and method.
        channels, size: of the images.
        fingerprint: changes with any pixel and any label.
    """

    train: EpisodeSampler
    validation: EpisodeSampler
    test: EpisodeSampler
    channels: int
    size: int
    fingerprint: str

    @classmethod
    def load(cls, wanted: FewShot, root: Path | None = None) -> Pools:
        """The tasks of a training. Raises InputError where the data are missing or too few."""
        data, fingerprint = _loaded("cifar100" if wanted.data == "cifar-fs" else wanted.data, root)
        pixels = torch.cat([_whole(data.train_images), _whole(data.test_images)])
        labels = torch.cat([data.train_labels, data.test_labels])
        try:
            split = _split(wanted, data)
            numbers = {name: label for label, name in enumerate(data.classes)}
            prepare = Prepare(wanted.data == "omniglot")
            train, validation, test = (
                _sampler(wanted, part, pixels, labels, [numbers[n] for n in names], prepare)
                for part, names in zip(split._fields, split, strict=True)
            )
        except ValueError as error:
            raise InputError(f"{wanted.data}: {error}") from None
        return cls(train, validation, test, data.channels, data.size, fingerprint)


@dataclass(frozen=True)
class Prepare:
    """From stored pixels to numbers in [0, 1]; ink, stored as black, is 1 where `inverted`."""

    inverted: bool

    def __call__(self, pixels: Tensor) -> Tensor:
        values = pixels.float() / 255
        return 1 - values if self.inverted else values


@functools.lru_cache(maxsize=1)
def _loaded(name: str, root: Path | None) -> tuple[ImageData, str]:
    """A set and its fingerprint: the cells of a table share it."""
    data = images.load(name, root)
    assert not data.margin, "tasks are made of whole images"
    return data, data.fingerprint()


def _sampler(
    wanted: FewShot,
    part: str,
    pixels: Tensor,
    labels: Tensor,
    classes: Sequence[int],
    prepare: Prepare,
) -> EpisodeSampler:
    kept = torch.isin(labels, torch.tensor(classes))
    # the weights' seed has no part in what is validated and tested on
    seed = seeds.derive(wanted.seed if part == "train" else 0, f"episodes {part}")
    try:
        return EpisodeSampler(
            pixels[kept],
            labels[kept],
            wanted.ways,
            wanted.shots,
            wanted.queries,
            seed=seed,
            rotations="none" if part == "test" else cast(Rotations, wanted.rotations),
            prepare=prepare,
        )
    except ValueError as error:
        raise ValueError(f"{part} classes: {error}") from None


def _split(wanted: FewShot, data: ImageData) -> splits.Split:
    if wanted.data == "cifar-fs":
        return splits.cifar_fs(data.classes)
    train, test = (
        [data.classes[label] for label in sorted(set(map(int, labels)))]
        for labels in (data.train_labels, data.test_labels)
    )
    if wanted.data == "omniglot":
        return splits.omniglot(train, test, cast(splits.Omniglot, wanted.split))
    if not data.validation:
        raise ValueError(
            "there are no classes to validate on: put val/ beside train/ and test/, or val.csv "
            "beside train.csv"
        )
    return splits.named(
        [name for name in train if name not in data.validation], data.validation, test
    )


def _whole(pixels: object) -> Tensor:
    """Images in memory: tasks take a few of each class, from anywhere."""
    if not isinstance(pixels, Tensor):
        raise InputError(
            "tasks are drawn from images in memory, and these are more than $FLATMIN_MEMORY: "
            "raise it"
        )
    return pixels


RUNS = 20
"""One-shot runs of Omniglot."""


def one_shot_runs(folder: Path) -> list[Task]:
    """The official one-shot runs of Omniglot: 20 ways, 1 shot, 1 query a class.

    Args:
        folder: that holds all_runs.zip of https://github.com/brendenlake/omniglot, or run01 to
            run20 unpacked.

    Raises InputError where a run is missing or not whole.
    """

    def shown(paths: Sequence[str]) -> Tensor:
        return Prepare(inverted=True)(decode([tree[path] for path in paths], Form(1, 28)))

    tree = Tree.of(folder)
    found: list[Task] = []
    for number in range(1, RUNS + 1):
        run = f"run{number:02d}"
        listing = tree.get(f"{run}/class_labels.txt")
        if listing is None:
            raise InputError(f"no {run}/class_labels.txt in {folder}: put all_runs.zip there")
        lines = listing.read().decode().splitlines()
        pairs = [line.split() for line in lines if line.strip()]
        classes = sorted({train for _, train in pairs})
        query = shown([test for test, _ in pairs])
        answers = torch.tensor([classes.index(train) for _, train in pairs])
        found.append(Task(shown(classes), torch.arange(len(classes)), query, answers))
    return found

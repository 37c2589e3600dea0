"""Wrong labels on purpose: `parse("0.6").labels(data, seed)`, `parse("human:worse_label")`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flatmin.training.data import parquet, sets
from flatmin.training.data.images import ImageData
from flatmin.training.errors import InputError, unknown
from flatmin.training.seeds import generator

HUMAN_COLUMNS = ("worse_label", "aggre_label", "random_label1", "random_label2", "random_label3")
"""The label columns of CIFAR-10N (Wei et al., ICLR 2022): 40, 9, 17, 18 and 18 % wrong."""


@dataclass(frozen=True)
class Symmetric:
    """Exactly `round(share * n)` labels move to another class, each class equally likely.

    Fields:
        share: of the training labels made wrong, in [0, 1).
    """

    share: float

    def labels(self, data: ImageData, seed: int) -> Tensor:
        """The training labels with this noise; another `seed` makes other labels wrong."""
        return symmetric(data.train_labels, self.share, len(data.classes), seed)


@dataclass(frozen=True)
class Human:
    """What people answered for CIFAR-10, mistakes included; the same for every seed.

    Fields:
        column: of CIFAR-10N; one of `HUMAN_COLUMNS`.
        root: the folder that holds `cifar10n/`; $FLATMIN_DATA when not given.
    """

    column: str
    root: Path | None = None

    def labels(self, data: ImageData, seed: int) -> Tensor:
        """The training labels as people gave them, int64 (n,)."""
        del seed
        return human(data, self.column, self.root)


Noise = Symmetric | Human


def parse(text: str) -> Noise:
    """The noise that `text` describes: a share in [0, 1), or `human:<column>`.

    Raises InputError for anything else.
    """
    kind, _, column = text.partition(":")
    if kind == "human":
        if column not in HUMAN_COLUMNS:
            raise unknown("column of human labels", column, HUMAN_COLUMNS)
        return Human(column)
    try:
        share = float(text)
    except ValueError:
        raise InputError(
            f"noise {text!r} is neither a share nor human labels: give a number in [0, 1), "
            f"or human:worse_label"
        ) from None
    if not 0 <= share < 1:
        raise InputError(f"noise {text} is outside [0, 1): give the share of wrong labels, say 0.6")
    return Symmetric(share)


def symmetric(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """A copy of int64 `labels` (n,) with exactly `round(share * n)` of them wrong.

    Which ones, and to which of the `classes - 1` others, comes from a generator of its own.
    """
    source = generator(seed, "noise")
    chosen = torch.randperm(len(labels), generator=source)[: round(share * len(labels))]
    shift = torch.randint(1, classes, (len(chosen),), generator=source)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + shift) % classes
    return noisy


def human(data: ImageData, column: str, root: Path | None = None) -> Tensor:
    """The labels in `column` of CIFAR-10N for the training images of `data` (CIFAR-10 only).

    Raises InputError for other data, and where the clean labels there and here disagree.
    """
    if data.name != "cifar10":
        raise InputError(
            f"human labels belong to cifar10, not to {data.name}: use --data cifar10, "
            f"or a share such as --noise 0.4"
        )
    folder = sets.folder_of("cifar10n", root)
    table = parquet.read_labels(folder, ("clean_label", column))
    rows = data.train_rows
    if len(table["clean_label"]) <= int(rows.max()) or not torch.equal(
        table["clean_label"][rows], data.train_labels
    ):
        raise InputError(
            f"the clean labels in {folder} do not match cifar10's: both must keep the original "
            f"order of the training set"
        )
    return table[column][rows]

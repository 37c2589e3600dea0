"""Which classes the literature trains, validates and tests on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from flatmin.engine import check
from flatmin.meta.episodes import refuse_overlap


class Split(NamedTuple):
    """Class names to train, to validate and to test on; no class is in two of them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def named(train: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> Split:
    """A split; ValueError if a class is in two of its parts."""
    refuse_overlap(train=train, validation=validation, test=test)
    return Split(tuple(train), tuple(validation), tuple(test))


CIFAR_FS_VALIDATION = (
    *("beaver", "beetle", "butterfly", "camel", "cattle", "crab", "crocodile", "flatfish"),
    *("lamp", "maple_tree", "motorcycle", "otter", "sea", "shark", "television", "tractor"),
)
CIFAR_FS_TEST = (
    *("baby", "bed", "bicycle", "chimpanzee", "fox", "leopard", "man", "pickup_truck", "plain"),
    *("poppy", "rocket", "rose", "snail", "sweet_pepper", "table", "telephone", "wardrobe"),
    *("whale", "woman", "worm"),
)


def cifar_fs(classes: Sequence[str]) -> Split:
    """CIFAR-FS: 64/16/20 of CIFAR-100's classes (Bertinetto et al. 2019, arXiv:1805.08136).

    Args:
        classes: the fine names of CIFAR-100.
    """
    missing = sorted({*CIFAR_FS_VALIDATION, *CIFAR_FS_TEST} - set(classes))
    if missing:
        raise ValueError(
            f"CIFAR-FS is a split of CIFAR-100's fine classes, and {missing[0]} is not among the "
            f"{len(classes)} given: give those of cifar100"
        )
    held_out = {*CIFAR_FS_VALIDATION, *CIFAR_FS_TEST}
    train = [name for name in classes if name not in held_out]
    return named(train, CIFAR_FS_VALIDATION, CIFAR_FS_TEST)


Omniglot: TypeAlias = Literal["vinyals", "finn", "lake", "at-hand"]
OMNIGLOTS: tuple[Omniglot, ...] = ("vinyals", "finn", "lake", "at-hand")

VINYALS_VALIDATION = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
VINYALS_TEST = (
    "Kannada",
    "Keble",
    "Malayalam",
    "Manipuri",
    "Mongolian",
    "Old_Church_Slavonic_(Cyrillic)",
    "Oriya",
    "Sylheti",
    "Syriac_(Serto)",
    "Tengwar",
    "Tibetan",
    "ULOG",
)
VINYALS_TEST_TOO = tuple(f"Gurmukhi/character{number}" for number in (42, 43, 44, 45))
"""Four characters of an alphabet whose others are trained on."""

WHOLE = 1623
"""Characters of Omniglot."""


def omniglot(background: Sequence[str], evaluation: Sequence[str], split: Omniglot) -> Split:
    """Omniglot's characters, named `<alphabet>/<character>`.

    Args:
        background: those of `images_background`.
        evaluation: those of `images_evaluation`.
        split: "vinyals": 1,028/172/423, by alphabet but for four characters (Vinyals et al. 2016,
            as published with prototypical networks); "finn": 1,100/100/423 at random (Finn et
            al. 2017, whose draw depends on the order of a folder: here that of a seed); "lake":
            background and evaluation alphabets as Lake et al. 2015 have them, five of the former
            for validation; "at-hand": the same with one alphabet for validation, for parts of the
            set.

    Raises ValueError where a split needs all 1,623 characters and there are fewer.
    """
    check.one_of("split", split, OMNIGLOTS)
    names = [*background, *evaluation]
    if split in ("vinyals", "finn") and len(names) != WHOLE:
        raise ValueError(
            f"the {split} split needs all {WHOLE} characters of Omniglot, and {len(names)} are at "
            'hand: use split "at-hand", or get both archives'
        )
    if split == "finn":
        drawn = sorted(names)
        random.Random(1).shuffle(drawn)
        return named(drawn[:1100], drawn[1100:1200], drawn[1200:])
    if split == "vinyals":
        test = [n for n in names if _alphabet(n) in VINYALS_TEST or n in VINYALS_TEST_TOO]
        validation = [n for n in names if _alphabet(n) in VINYALS_VALIDATION]
    else:
        known = sorted({_alphabet(name) for name in background})
        wanted = {name for name in VINYALS_VALIDATION if name in known} or {known[-1]}
        if len(known) < 2:
            raise ValueError(
                f"one alphabet to train on ({known[0]}) leaves none for validation: give more"
            )
        if split == "at-hand":
            wanted = {min(wanted)}
        validation = [n for n in background if _alphabet(n) in wanted]
        test = list(evaluation)
    held_out = {*validation, *test}
    return named([n for n in names if n not in held_out], validation, test)


def _alphabet(name: str) -> str:
    return name.rpartition("/")[0].rpartition("/")[2].replace(" ", "_")


__all__ = ["OMNIGLOTS", "Omniglot", "Split", "cifar_fs", "named", "omniglot"]

"""Images sorted into folders by class, and what any layout becomes: a `Content`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from flatmin.training.data.decoding import Encoded, Form, OpenForm, Part, common_form
from flatmin.training.data.folders import Tree
from flatmin.training.errors import InputError

TESTED = ("test", "val", "validation", "valid")
"""What the part to test on may be called; the first that is there counts."""

VALIDATED = ("validation", "val", "valid")
"""What a part of other classes may be called, to validate on."""


@dataclass(frozen=True)
class Content:
    """A data set, not yet decoded.

    Fields:
        classes: their names, by label.
        train, test: one of them may be empty.
        validation: names of the classes of `train` that are to validate on, where tasks are drawn
            from classes.
        notes: what a user should know of it, line by line.
    """

    classes: tuple[str, ...]
    train: Part
    test: Part
    validation: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PathList:
    """Images and what they show.

    Fields:
        images: in the order of the set.
        labels: the name of the class of each.
        notes: what a user should know of it, line by line.
    """

    images: Sequence[Encoded]
    labels: Sequence[str]
    notes: tuple[str, ...] = ()

    def part(self, classes: Sequence[str], form: Form) -> Part:
        """With the labels as positions in `classes`."""
        position = {name: label for label, name in enumerate(classes)}
        labels = torch.tensor([position[name] for name in self.labels], dtype=torch.int64)
        return Part.encoded(labels, self.images, form)


def content(
    train: PathList,
    test: PathList,
    form: Form,
    classes: Sequence[str] = (),
    validation: Iterable[str] = (),
) -> Content:
    """Two listings with `classes`, or the classes of both in alphabetical order."""
    classes = tuple(classes or sorted({*train.labels, *test.labels}))
    return Content(
        classes, train.part(classes, form), test.part(classes, form), tuple(sorted(validation))
    )


def split(tree: Tree, names: Sequence[str] = TESTED) -> tuple[Tree, Tree] | None:
    """The folders train/ and, under one of `names`, test/ of `tree`, if it has both."""
    for name in names:
        if {"train", name} <= tree.folders:
            return tree.below("train"), tree.below(name)
    return None


def by_class(train: Tree, test: Tree, form: Form | OpenForm) -> Content:
    """The images of `<class>/*` in two trees.

    Args:
        train: folders of classes.
        test: the same.
        form: of the images, or what settles it.

    Raises InputError where the classes do not fit together.
    """
    listings = listed(train), listed(test)
    found, others = (set(listing.labels) for listing in listings)
    if found != others:
        differing = ", ".join(sorted(found ^ others)[:10])
        raise InputError(f"{train.where} and {test.where} differ in the classes {differing}")
    notes = tuple(note for listing in listings for note in listing.notes)
    if isinstance(form, OpenForm):
        every = [image for listing in listings for image in listing.images]
        form, about = common_form(every, form)
        notes += about
    return replace(content(*listings, form), notes=notes)


def listed(tree: Tree, least: int = 2) -> PathList:
    """The images of `<class>/*`, class by class, both in alphabetical order.

    Folders without an image are passed over, with a note. Raises InputError where fewer than
    `least` classes are left, or one has fewer images.
    """
    inside: dict[str, list[str]] = {name: [] for name in sorted(tree.folders) if "/" not in name}
    for path in images_of(tree):
        folder, within, _ = path.partition("/")
        if within:
            inside[folder].append(path)
    empty = [name for name, paths in inside.items() if not paths]
    inside = {name: paths for name, paths in inside.items() if paths}
    if len(inside) < least:
        without = f", and {len(empty)} without an image" if empty else ""
        raise InputError(
            f"{tree.where} holds {len(inside)} class folders{without}: expected one folder of "
            f"images for each class, at least {least}, or train/ and test/ with such folders inside"
        )
    for name, paths in inside.items():
        if len(paths) < least:
            raise InputError(
                f"{tree.where}/{name} holds {len(paths)} images: expected at least {least}"
            )
    return PathList(
        [tree.files[path] for paths in inside.values() for path in paths],
        [name for name, paths in inside.items() for _ in paths],
        tuple(f"{tree.where}/{name} holds no image and is left out" for name in empty),
    )


def images_of(tree: Tree) -> list[str]:
    """The paths of all images, in alphabetical order."""
    endings = tuple(Image.registered_extensions())
    return sorted(path for path in tree.files if path.lower().endswith(endings))

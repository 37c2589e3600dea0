"""Encoded images, wherever they lie, become one uint8 tensor."""

from __future__ import annotations

import io
import os
import statistics
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flatmin.training.errors import InputError


class Encoded(Protocol):
    """An image as it is stored, or any other file of a data set."""

    @property
    def name(self) -> str:
        """What a message calls it."""
        ...

    def read(self) -> bytes:
        """All of it."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes in memory."""

    content: bytes
    name: str = "an image of the data set"

    def read(self) -> bytes:
        return self.content


@dataclass(frozen=True, slots=True)
class File:
    """A file by itself."""

    name: str

    def read(self) -> bytes:
        return Path(self.name).read_bytes()


@dataclass(frozen=True)
class Form:
    """What images become: `channels` (1 or 3) and a square of `size` pixels."""

    channels: int
    size: int


@dataclass(frozen=True)
class OpenForm:
    """A form that the images settle: grey if all of them are, and of the size that most have.

    Fields:
        size: in pixels, the largest that it may be.
        exact: whether it is `size`, whatever the images have.
    """

    size: int
    exact: bool = False


@dataclass(frozen=True)
class Part:
    """The training or the test images of a set, not yet decoded.

    Fields:
        labels: int64 (n,).
        pixels: from rows, int64 (m,), to their images, uint8 (m, channels, size, size).
        form: of all images.
    """

    labels: Tensor
    pixels: Callable[[Tensor], Tensor]
    form: Form

    @classmethod
    def held(cls, labels: Tensor, pixels: Tensor) -> Part:
        """Images that are decoded already: uint8 (n, channels, size, size)."""
        return cls(labels, lambda rows: pixels[rows], Form(pixels.shape[1], pixels.shape[2]))

    @classmethod
    def encoded(cls, labels: Tensor, images: Sequence[Encoded], form: Form) -> Part:
        """Images that are decoded when they are asked for."""

        def pixels(rows: Tensor) -> Tensor:
            return decode([images[int(row)] for row in rows], form)

        return cls(labels, pixels, form)

    def at(self, rows: Tensor) -> Part:
        """Some of the images."""
        return Part(self.labels[rows], lambda chosen: self.pixels(rows[chosen]), self.form)


def decode(encoded: Sequence[Encoded], form: Form) -> Tensor:
    """The images, uint8 (n, channels, size, size), upright as their EXIF data says.

    Images of another shape are resized to the shorter side and cropped to the central square.

    Raises InputError naming an image that cannot be decoded.
    """
    images = torch.empty(len(encoded), form.channels, form.size, form.size, dtype=torch.uint8)

    def fill(rows: range) -> None:
        for row in rows:
            images[row] = _decode(encoded[row], form)

    count = len(encoded)
    # Pillow decodes and resizes outside the interpreter's lock
    with ThreadPoolExecutor(processors()) as pool:
        for _ in pool.map(fill, (range(i, min(i + 8, count)) for i in range(0, count, 8))):
            pass
    return images


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


LOOKED_AT = 2000
"""Images, at most, that `common_form` opens."""


def common_form(images: Sequence[Encoded], wanted: OpenForm) -> tuple[Form, tuple[str, ...]]:
    """A form for all images, and a line about those that it does not suit, if there are any.

    The side is the median of the shorter sides found, so that a few small images do not decide for
    all. Of more than `LOOKED_AT` images, that many, evenly spaced, are opened.
    """
    sides: list[tuple[int, Encoded]] = []
    grey = True
    for image in images[:: -(-len(images) // LOOKED_AT)]:
        with opened(image) as content:
            sides.append((min(content.size), image))
            grey = grey and (content.mode in ("1", "L") or _deep(content))
    median = statistics.median_low(side for side, _ in sides)
    size = wanted.size if wanted.exact else min(median, wanted.size)
    small = sorted((each for each in sides if 2 * each[0] < size), key=lambda each: each[0])
    return Form(1 if grey else 3, size), _about(small, len(sides), size)


def _about(small: Sequence[tuple[int, Encoded]], looked_at: int, size: int) -> tuple[str, ...]:
    if not small:
        return ()
    named = ", ".join(f"{image.name} ({side} pixels)" for side, image in small[:3])
    more = f" and {len(small) - 3} more" if len(small) > 3 else ""
    line = (
        f"{len(small)} of {looked_at} images are less than half of the {size} pixels to a side "
        f"that all are resized to: {named}{more}: remove them, or give --size"
    )
    return (line,)


@contextmanager
def opened(source: Encoded) -> Generator[Image.Image, None, None]:
    """A Pillow image; whatever goes wrong with it becomes one line that names it."""
    try:
        with closing(Image.open(io.BytesIO(source.read()))) as image:
            yield image
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InputError(f"{source.name} cannot be decoded: remove or replace it") from None


def _decode(encoded: Encoded, form: Form) -> Tensor:
    mode = "L" if form.channels == 1 else "RGB"
    with opened(encoded) as image:
        deep = _deep(image)
        if image.mode in ("I", "F") and not deep:
            raise InputError(f"{encoded.name} has 32-bit pixels: save it with 8 or 16 bits")
        # a JPEG much larger than asked for is decoded at half its size or less, which is faster
        image.draft(None, (2 * form.size, 2 * form.size))
        upright = ImageOps.exif_transpose(image)
        upright = (_shallow(upright) if deep else upright).convert(mode)
        square = (form.size, form.size)
        if upright.size != square:
            upright = ImageOps.fit(upright, square, Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(upright))
    return pixels.view(form.size, form.size, form.channels).permute(2, 0, 1)


def _deep(image: Image.Image) -> bool:
    """Whether the pixels are shades of grey of 16 bits."""
    # Pillow calls them 32-bit integers in a PGM and, before version 11, in a PNG
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _shallow(image: Image.Image) -> Image.Image:
    """The nearest shades of 8 bits; Pillow would clip those of 16."""
    shades = np.asarray(image).astype(np.int32)
    return Image.fromarray(((shades + 128) // 257).astype(np.uint8))

"""Whole batches of images, cropped, flipped, cut out and normalised as tensor code.

Crop and flip of small images are one gather: an image lies in memory as one 32-bit word per pixel,
padding included, and a batch is the list of the words to fetch. Photographs are cropped at any size
and place, and resampled, in one go too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flatmin.training.data.stream import Ahead, Pixels, Streamed, pieces, spaced
from flatmin.training.errors import InputError

ALL = slice(None)


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image each time it is drawn.

    Fields:
        padding: black pixels added on every side before a random crop to the original size.
        flip: mirror left to right, with probability 1/2.
        cutout: side in pixels of a square set to the mean colour, its centre anywhere in the
            image (DeVries and Taylor, arXiv:1708.04552); 0 for none.
        zoom: take, in place of a padded crop, a crop of 8 to 100 % of the area with sides in a
            ratio from 3/4 to 4/3, and resample it to the full size (Szegedy et al.,
            arXiv:1409.4842), bilinearly.
    """

    padding: int = 0
    flip: bool = False
    cutout: int = 0
    zoom: bool = False

    @classmethod
    def standard(cls, size: int, margin: int = 0) -> Augmentation:
        """Crop and flip as usual: padding 4 for CIFAR's 32 pixels, zoom where there is a margin."""
        return cls(flip=True, zoom=True) if margin else cls(padding=size // 8, flip=True)


@dataclass(frozen=True)
class Choice:
    """What chance has chosen for each image of a batch.

    Fields:
        boxes: float (b, 4), top, left, height and width of what is seen of each stored image.
        mirrored: bool (b, 1).
        centres: of the squares cut out, int64 (2, b, 1); None for none.
    """

    boxes: Tensor
    mirrored: Tensor
    centres: Tensor | None = None

    def at(self, part: slice) -> Choice:
        """Some of the images."""
        centres = None if self.centres is None else self.centres[:, part]
        return Choice(self.boxes[part], self.mirrored[part], centres)


class Images:
    """Images held or streamed as uint8 and handed out as normalised float batches.

    Args:
        pixels: uint8 (n, channels, side, side), with 1 to 4 channels; they stay on their device.
        mean, std: float (channels,), in the units of `pixels`; see `moments`.
        augmentation: of the batches that `draw` gives.
        margin: pixels by which the side stored exceeds the one handed out: the middle is seen.

    Cost: one 32-bit word a pixel for colour images, one byte for grey ones; photographs that are
    zoomed take one byte a pixel and channel. Streamed images take a few batches.
    """

    def __init__(
        self,
        pixels: Pixels,
        mean: Tensor,
        std: Tensor,
        augmentation: Augmentation | None = None,
        margin: int = 0,
    ) -> None:
        self.augmentation = augmentation or Augmentation()
        self.count, self.channels, stored, width = pixels.shape
        if not 1 <= self.channels <= 4 or width != stored:
            raise InputError(
                f"images have the shape {tuple(pixels.shape[1:])}: expected 1 to 4 channels, square"
            )
        self.margin, self.size = margin, stored - margin
        self.side = stored + 2 * self.augmentation.padding
        self.device = pixels.device
        self.mean = mean.float().view(-1, 1, 1).to(self.device)
        self.scale = (1 / std.float()).view(-1, 1, 1).to(self.device)
        self._line = torch.arange(self.size, dtype=torch.int32, device=self.device)
        self._down = self._line.unsqueeze(1) * self.side
        # the images themselves, or who reads them
        self._source = Ahead(pixels) if isinstance(pixels, Streamed) else self._stored(pixels)

    def __len__(self) -> int:
        return self.count

    def plain(self, rows: Tensor) -> Tensor:
        """Images `rows` (b,) as they are, normalised: float (b, channels, size, size)."""
        return self._seen(rows, self._middle(len(rows)))

    def draw(self, rows: Tensor, source: torch.Generator, part: slice = ALL) -> Tensor:
        """Images `rows` (b,), augmented and normalised: float (b, channels, size, size).

        How many numbers are drawn from `source` depends on the length of `rows` alone. Of a `part`
        of the rows, the images are those that they would be among all.
        """
        if self.augmentation == Augmentation():
            return self.plain(rows[part])
        return self._seen(rows[part], self._chosen(len(rows), source).at(part))

    def expect(self, rows: Tensor) -> None:
        """Begin to decode the images `rows`, if they are streamed: they will be asked for."""
        if isinstance(self._source, Ahead):
            self._source.expect(rows)

    def _stored(self, pixels: Tensor) -> Tensor:
        return pixels if self.augmentation.zoom else _words(pixels, self.augmentation.padding)

    def _middle(self, count: int) -> Choice:
        start = self.margin // 2 + self.augmentation.padding
        box = torch.tensor([start, start, self.size, self.size], dtype=torch.float32)
        return Choice(box.expand(count, 4), torch.zeros(count, 1, dtype=torch.bool))

    def _chosen(self, count: int, source: torch.Generator) -> Choice:
        if self.augmentation.zoom:
            boxes = _crops(count, self.size + self.margin, source)
        else:
            room = self.margin + 2 * self.augmentation.padding + 1
            corners = torch.randint(room, (2, count, 1), generator=source)
            sides = torch.full((2, count, 1), self.size)
            boxes = torch.cat([*corners, *sides], 1).float()
        mirrored = torch.rand(count, 1, generator=source) < (0.5 if self.augmentation.flip else 0.0)
        if not self.augmentation.cutout:
            return Choice(boxes, mirrored)
        return Choice(boxes, mirrored, torch.randint(self.size, (2, count, 1), generator=source))

    def _seen(self, rows: Tensor, choice: Choice) -> Tensor:
        if isinstance(self._source, Ahead):
            stored, rows = self._stored(self._source.read(rows)), torch.arange(len(rows))
        else:
            stored = self._source
        batch = torch.empty(len(rows), self.channels, self.size, self.size, device=self.device)
        rows, step = rows.to(self.device), self._at_once(len(rows))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            self._see(stored, rows[part], choice.at(part), batch[part])
        return batch

    def _at_once(self, count: int) -> int:
        """How many images are made at once.

        On a CPU what lies between must be small: memory that is taken from the system anew for
        every batch costs more than all the arithmetic.
        """
        return max(16, 2**18 // self.size**2) if self.device.type == "cpu" else max(1, count)

    def _see(self, stored: Tensor, rows: Tensor, choice: Choice, out: Tensor) -> None:
        if self.augmentation.zoom:
            self._zoom(stored, rows, choice, out)
        else:
            self._shift(stored, rows, choice, out)
        out.sub_(self.mean).mul_(self.scale)
        if choice.centres is not None:
            out.mul_(self._kept(choice.centres.to(self.device)))

    def _shift(self, words: Tensor, rows: Tensor, choice: Choice, out: Tensor) -> None:
        whole = torch.int32 if len(words) < 2**31 else torch.int64
        top, left, *_ = choice.boxes.to(self.device, whole).unbind(1)
        first = (rows.to(whole) * self.side + top) * self.side + left
        index = (first.unsqueeze(1) + self._across(choice)).unsqueeze(1) + self._down
        pixels = words.index_select(0, index.flatten()).view(index.shape)
        for channel in range(self.channels):
            if channel:
                pixels >>= 8
            out[:, channel] = pixels & 255

    def _zoom(self, pixels: Tensor, rows: Tensor, choice: Choice, out: Tensor) -> None:
        top, left, height, width = choice.boxes.to(self.device).unsqueeze(2).unbind(1)
        # where in the stored image each row and column is seen, from -1 to 1
        down = 2 * (top + height * (self._line + 0.5) / self.size) / self.side - 1
        across = 2 * (left + width * (self._across(choice) + 0.5) / self.size) / self.side - 1
        shape = (len(rows), self.size, self.size)
        places = torch.stack(
            [across.unsqueeze(1).expand(shape), down.unsqueeze(2).expand(shape)], 3
        )
        out.copy_(
            F.grid_sample(pixels[rows].float(), places, padding_mode="border", align_corners=False)
        )

    def _across(self, choice: Choice) -> Tensor:
        """Which column of its crop each image shows in each of its own: int32 (b, size)."""
        return torch.where(choice.mirrored.to(self.device), self._line.flip(0), self._line)

    def _kept(self, centres: Tensor) -> Tensor:
        """0 in squares that the border may cut, 1 elsewhere: float (b, 1, size, size)."""
        first = centres - self.augmentation.cutout // 2
        outside = (self._line < first) | (self._line >= first + self.augmentation.cutout)
        down, across = outside.float().unsqueeze(2)
        return torch.maximum(down.unsqueeze(3), across.unsqueeze(2))


def _crops(count: int, side: int, source: torch.Generator, tries: int = 10) -> Tensor:
    """Boxes of 8 to 100 % of the area of a square, sides in a ratio from 3/4 to 4/3: float (b, 4).

    The first of ten that fits into the square counts, as everywhere; the whole if none does.
    """
    share, ratio, top, left = torch.rand(4, count, tries, generator=source)
    area = (0.08 + 0.92 * share) * side**2
    stretch = torch.exp((2 * ratio - 1) * math.log(4 / 3) / 2)
    height, width = ((area.sqrt() * s).round() for s in (stretch, 1 / stretch))
    boxes = torch.stack(
        [(top * (side - height + 1)).floor(), (left * (side - width + 1)).floor(), height, width], 2
    )
    fits = (height <= side) & (width <= side)
    first = fits.int().argmax(1)
    whole = torch.tensor([0.0, 0.0, side, side])
    return torch.where(fits.any(1, keepdim=True), boxes[torch.arange(count), first], whole)


def moments(pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 (n, channels, h, w), as float64.

    Of more than 2^29 numbers, only evenly spaced images are looked at. A channel without any
    spread gets a standard deviation of 1.
    """
    counts = sum(
        map(_counted, pieces(spaced(pixels, 2**29))),
        torch.zeros(pixels.shape[1], 256, dtype=torch.int64),
    )
    shares = counts.double() / counts.sum(1, keepdim=True)
    shades = torch.arange(256, dtype=torch.float64)
    mean = shares @ shades
    std = (shares @ shades.square() - mean.square()).clamp_min(0).sqrt()
    return mean, torch.where(std > 1e-6, std, torch.ones_like(std))


def _counted(pixels: Tensor) -> Tensor:
    """How often each shade occurs in each channel, int64 (channels, 256)."""
    return torch.stack([torch.bincount(c.flatten(), minlength=256) for c in pixels.unbind(1)])


def _words(pixels: Tensor, padding: int) -> Tensor:
    """One word a pixel, row by row, image by image: uint8 for grey images, else int32."""
    padded = F.pad(pixels, (padding,) * 4)
    if pixels.shape[1] == 1:
        return padded.flatten()
    empty = padded.new_zeros(len(pixels), 4 - pixels.shape[1], *padded.shape[2:])
    return (
        torch.cat([padded, empty], 1).permute(0, 2, 3, 1).contiguous().view(torch.int32).flatten()
    )

"""Images that do not fit in memory: decoded when they are wanted, or a little ahead of that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class Streamed:
    """Images that are decoded anew each time.

    Args:
        decoded: from rows, int64 (m,), on the CPU, to uint8 (m, channels, size, size).
        rows: int64 (n,), which of them these are.
        channels, size: of each image.
        device: on which they are wanted.
    """

    def __init__(
        self,
        decoded: Callable[[Tensor], Tensor],
        rows: Tensor,
        channels: int,
        size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._decoded, self._rows = decoded, rows
        self.shape = (len(rows), channels, size, size)
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Tensor) -> Streamed:
        """Some of them, still not decoded."""
        return Streamed(self._decoded, self._rows[rows], *self.shape[1:3], self.device)

    def to(self, device: torch.device | str) -> Streamed:
        """The same on another device."""
        return Streamed(self._decoded, self._rows, *self.shape[1:3], device)

    def then(self, change: Callable[[Tensor], Tensor], size: int) -> Streamed:
        """Each image changed after it is decoded, to one of `size` pixels to a side."""
        return Streamed(
            lambda rows: change(self._decoded(rows)), self._rows, self.shape[1], size, self.device
        )

    def read(self, rows: Tensor) -> Tensor:
        """The images `rows`: uint8 (m, channels, size, size)."""
        return self._decoded(self._rows[rows.cpu()]).to(self.device)


Pixels = Tensor | Streamed
"""Images as uint8 (n, channels, size, size), in memory or not."""


def pieces(pixels: Pixels, size: int = 1000) -> Iterator[Tensor]:
    """All images in their order, at most `size` at a time."""
    for start in range(0, len(pixels), size):
        if isinstance(pixels, Streamed):
            yield pixels.read(torch.arange(start, min(start + size, len(pixels))))
        else:
            yield pixels[start : start + size]


def spaced(pixels: Pixels, most: int) -> Pixels:
    """All images, or evenly spaced ones of them that together have at most `most` numbers."""
    count, channels, side, _ = pixels.shape
    kept = max(1, most // (channels * side * side))
    if count <= kept:
        return pixels
    return pixels[torch.arange(kept) * count // kept]


class Ahead:
    """Reads images before they are asked for, in the background.

    Args:
        images: to be read.
        depth: batches that may wait, at most.
    """

    def __init__(self, images: Streamed, depth: int = 2) -> None:
        self._images, self._depth = images, depth
        self._waiting: OrderedDict[bytes, Future[Tensor]] = OrderedDict()
        self._reader: ThreadPoolExecutor | None = None

    def expect(self, rows: Tensor) -> None:
        """Begin to read the images `rows`: they will be asked for."""
        key = _key(rows)
        if key in self._waiting:
            return
        self._reader = self._reader or ThreadPoolExecutor(1, "images")
        self._waiting[key] = self._reader.submit(self._images.read, rows)
        while len(self._waiting) > self._depth:
            self._waiting.popitem(last=False)[1].cancel()

    def read(self, rows: Tensor) -> Tensor:
        """The images `rows`: uint8 (m, channels, size, size)."""
        coming = self._waiting.pop(_key(rows), None)
        return coming.result() if coming else self._images.read(rows)


def _key(rows: Tensor) -> bytes:
    return rows.cpu().numpy().tobytes()

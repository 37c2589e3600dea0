"""Numbers on a grid of points, in a file that grows with them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from flatmin.analysis.lanczos import Array


class Grid:
    """Some numbers for each point of a grid.

    Args:
        axes: the coordinates, by direction.
        names: of the numbers; the first is the loss.
        identity: by name, texts that make this grid what it is; another has others.
    """

    def __init__(
        self, axes: Sequence[Array], names: Sequence[str], identity: Mapping[str, str]
    ) -> None:
        self.axes = tuple(axes)
        self.names = tuple(names)
        self.identity = dict(identity)
        self._points = list(itertools.product(*(axis.tolist() for axis in axes)))
        self.known: Array = np.zeros(len(self._points), dtype=bool)
        self.values: Array = np.full((len(self._points), len(names)), np.nan)

    @property
    def width(self) -> int:
        return len(self.names)

    def point(self, index: int) -> tuple[float, ...]:
        """Its coordinates."""
        return self._points[index]

    def put(self, indices: Sequence[int], values: Array) -> None:
        self.values[indices] = values
        self.known[indices] = True

    def tables(self) -> list[Array]:
        """By name, the numbers in the form of the grid."""
        shape = tuple(len(axis) for axis in self.axes)
        return [self.values[:, i].reshape(shape).copy() for i in range(self.width)]

    def require(
        self, value: Callable[[int], list[float]], tolerance: float, path: Path | None
    ) -> None:
        """Raise ValueError where a point that is known has another value when evaluated again.

        That is how a file of another loss shows itself.
        """
        finite = self.known & np.isfinite(self.values).all(1)
        if not finite.any():
            return
        index = int(np.flatnonzero(finite)[0])
        known, found = self.values[index], np.asarray(value(index))
        if not np.allclose(found, known, rtol=tolerance, atol=tolerance):
            raise ValueError(
                f"{path} holds a grid of another loss: it has {known[0]:.6g} where this one is "
                f"{found[0]:.6g}; give another file, or remove it"
            )


class GridFile:
    """A grid in a file, which is whole whenever it is read.

    Args:
        path: of the file; None to keep nothing.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)

    def load(self, grid: Grid, *, shared: bool = False) -> None:
        """Take what the file knows, if there is one; `shared`: the first rank reads for all.

        Raises ValueError where it is of another grid, or damaged.
        """
        if self.path is None:
            return
        if not shared:
            self._read(grid)
            return
        told: list[Any] = [None, None, ""]
        if dist.get_rank() == 0:
            try:
                self._read(grid)
            except ValueError as error:
                told[2] = str(error)
            told[:2] = grid.known, grid.values
        dist.broadcast_object_list(told, src=0)
        if told[2]:
            raise ValueError(told[2])
        grid.known, grid.values = told[0], told[1]

    def _read(self, grid: Grid) -> None:
        assert self.path is not None
        if not self.path.exists():
            return
        try:
            with np.load(self.path, allow_pickle=False) as content:
                identity: dict[str, str] = json.loads(str(content["identity"]))
                known, values = content["known"], content["values"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise ValueError(
                f"{self.path} holds no grid of losses: give another file, or remove it"
            ) from None
        names = {**identity, **grid.identity}
        differing = [n for n in names if identity.get(n) != grid.identity.get(n)]
        if differing or known.shape != grid.known.shape or values.shape != grid.values.shape:
            raise ValueError(
                f"{self.path} holds a grid with other {', '.join(differing) or 'points'}: give "
                "another file, or remove it"
            )
        grid.known, grid.values = known, values

    def save(self, grid: Grid) -> None:
        """Replace the file."""
        if self.path is None:
            return
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                arrays: dict[str, Any] = {f"at{i}": axis for i, axis in enumerate(grid.axes)}
                arrays["identity"] = np.array(json.dumps(grid.identity))
                arrays["names"] = np.array(grid.names)
                np.savez(file, known=grid.known, values=grid.values, **arrays)
            Path(name).chmod(0o644)  # mkstemp keeps the file from everyone else
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def digest(tensors: Iterable[Tensor]) -> str:
    """A text that differs where shape, type or a bit of a tensor does."""
    found = hashlib.sha256()
    for t in tensors:
        whole: Any = t.detach()
        whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
        found.update(f"{t.dtype} {tuple(t.shape)}".encode())
        found.update(whole.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def same_on_all(identity: Mapping[str, str], device: torch.device) -> None:
    """Raise ValueError, on every rank, where ranks that share a grid do not have the same."""
    numbers = torch.tensor(
        [int(hashlib.sha256(x.encode()).hexdigest()[:15], 16) for x in identity.values()],
        device=device,
    )
    low, high = numbers.clone(), numbers.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    unlike = cast("list[bool]", (low != high).tolist())
    differing = [name for name, x in zip(identity, unlike, strict=True) if x]
    if differing:
        raise ValueError(
            f"the processes do not have the same {', '.join(differing)}, and so cannot share the "
            "points of one grid: give all the same, or wrap the model in DistributedDataParallel, "
            "where each brings its share of the data"
        )

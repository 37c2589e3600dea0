"""Data as batches, and batches in chunks weighted by their size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from flatmin.engine import check
from flatmin.pairs import part_of, sizes_of


@dataclass(frozen=True)
class Chunk:
    """Some samples that are evaluated together.

    Fields:
        batch: in the structure in which the data gave it.
        size: number of samples.
        weight: their share of all samples; the weights of all chunks (on all ranks) add up to 1.
    """

    batch: Any
    size: int
    weight: float


def batches_of(data: Any) -> list[Any]:
    """The batches of `data`, read once.

    Args:
        data: one batch (a tensor, a tuple, a mapping, or a list of tensors that differ in type or
            shape, as a `DataLoader` yields them); or several: a list of batches, a `DataLoader` or
            anything else that is iterated, a data set of batches.

    Raises:
        TypeError: `data` is nothing of the kind.
        ValueError: there is no batch in it: an exhausted generator, or an empty list.
    """
    if _is_one_batch(data):
        return [data]
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not hasattr(data, "__iter__"):
        found = [data[i] for i in range(len(data))]
    elif hasattr(data, "__iter__") and not isinstance(data, (str, bytes)):
        found: list[Any] = list(data)
    else:
        raise TypeError(
            "data must be a batch, a list of batches, a DataLoader or a data set of batches, got "
            + check.describe(data)
        )
    if not found:
        is_list = isinstance(data, (Sized, IterableDataset))
        raise ValueError(
            f"data holds no batch: {'it is empty' if is_list else 'this iterator is exhausted'}; "
            "pass a list of batches or a DataLoader, which can be read again"
        )
    return found


def _is_one_batch(data: Any) -> bool:
    if isinstance(data, (Tensor, tuple, Mapping)):
        return True
    if not isinstance(data, list) or not data:
        return False
    items = cast("list[Any]", data)
    if not all(isinstance(x, Tensor) for x in items):
        return False
    # tensors alike are batches of one tensor each; others are the parts of one batch
    return len({(x.dtype, x.shape[1:]) for x in items}) > 1


def chunks_of(batches: Sequence[Any], chunk: int | None, total: int | None = None) -> list[Chunk]:
    """Batches in parts of at most `chunk` samples, as equal as can be; None: as they are.

    Args:
        batches: see `batches_of`.
        chunk: most samples to evaluate at once.
        total: number of samples that the weights refer to; default those of `batches`.
    """
    if chunk is not None:
        check.positive_int("chunk", chunk)
    sizes = [size_of(batch) for batch in batches]
    total = total or sum(sizes)
    chunks: list[Chunk] = []
    for batch, size in zip(batches, sizes, strict=True):
        if chunk is None or size <= chunk:
            chunks.append(Chunk(batch, size, size / total))
            continue
        count = -(-size // chunk)
        ends = [size * i // count for i in range(count + 1)]
        for start, end in itertools.pairwise(ends):
            part = part_of(batch, slice(start, end))
            chunks.append(Chunk(part, end - start, (end - start) / total))
    return chunks


def size_of(batch: Any) -> int:
    """How many samples a batch holds.

    Raises ValueError where that cannot be told, or where there is none.
    """
    try:
        sizes = set(sizes_of(batch))
    except ValueError:
        raise ValueError(
            "a batch holds a tensor of shape (), whose samples cannot be counted: a data set of "
            "single samples goes into a DataLoader first, which makes batches of them"
        ) from None
    if len(sizes) != 1:
        raise ValueError(
            "the samples of a batch are counted along the first dimension of its tensors: "
            + (f"got lengths {sorted(sizes)}" if sizes else "found no tensor in it")
        )
    size = sizes.pop()
    if size == 0:
        raise ValueError("a batch of no samples has no mean loss: leave it out of the data")
    return size


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """The tensors in a batch of any structure."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in cast("Mapping[Any, Any]", batch).values():
            yield from tensors_of(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        for value in cast("Sequence[Any]", batch):
            yield from tensors_of(value)


def in_type(batch: Any, dtype: torch.dtype) -> Any:
    """A batch whose floating-point tensors are of type `dtype`, in the same structure."""
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        items = cast("Mapping[Any, Any]", batch).items()
        return {key: in_type(value, dtype) for key, value in items}
    if isinstance(batch, (list, tuple)):
        pieces = [in_type(value, dtype) for value in cast("Sequence[Any]", batch)]
        kind = cast(Any, type(batch))  # pyright: ignore[reportUnknownArgumentType]
        return kind(*pieces) if hasattr(kind, "_fields") else kind(pieces)
    return batch

"""Primary and auxiliary batches, in pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from copy import copy
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from flatmin.engine import check


def paired(
    loader: DataLoader[Any], fraction: float = 0.25, *, seed: int = 0, containing: bool = False
) -> PairedLoader:
    """Batches of `loader`, each with an auxiliary batch drawn independently from the same data set.

        B from the loader, as it would yield alone;   A, |A| = fraction |B|, from the same samples
        containing=True:  A = B and (fraction - 1) |B| further samples

    The auxiliary batches come from a sampler of their own over what the loader samples from
    (`S^t = S^v` in the papers), seeded apart from it; everything else (collation, workers, pinning)
    is the loader's. The loader's own batches hold the samples that it would yield alone; random
    transforms in the main process (`num_workers=0`) share one stream of random numbers.

    Args:
        loader: any `DataLoader` over a map-style data set, or timm's `PrefetchLoader` of one, which
            then prepares the auxiliary batches too.
        fraction: size of an auxiliary batch against a primary one, in (0, 1]; default 0.25, that
            of the papers. A larger one has less noise, and each step of Agnostic-SAM costs two
            gradients on it.
        seed: of the auxiliary sampler, any whole number; default 0. With the epoch it decides the
            batches; see `PairedLoader.set_epoch`.
        containing: whether the auxiliary batch begins with the primary one, as it was loaded, so
            that `fraction` is at least 1; default False. The further samples are drawn
            independently, and a few of them may be among the primary ones.

    Returns:
        A `PairedLoader`, which yields `(primary, auxiliary)`.

    Cost: the auxiliary samples are loaded beside the primary ones, by workers of their own: as many
    as the loader has.

    Raises:
        TypeError: `loader` is not a `DataLoader`, or its data set is iterable and cannot be
            sampled.
        ValueError: `fraction` is out of range, or the loader's sampler is of an unknown kind.

    Reference: Nguyen et al., Agnostic Sharpness-Aware Minimization, 2024, arXiv:2406.07107, §3
    (`S^t = S^v = S`) and §4 (`4 |B^v| = |B^t|`); containing: Li et al., Friendly Sharpness-Aware
    Minimization, CVPR 2024, arXiv:2403.12350, figure 2c.

    Examples:
        >>> import torch, flatmin
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(64, 3), torch.randint(2, (64,)))
        >>> loader = DataLoader(data, batch_size=16, shuffle=True)
        >>> for (x, y), (x_aux, y_aux) in flatmin.paired(loader):
        ...     assert len(x) == 16 and len(x_aux) == 4
    """
    return PairedLoader(loader, fraction, seed, containing=containing)


class PairedLoader:
    """What `paired` returns: as long as the loader, and with its attributes.

    Each pass over it begins the next epoch, with other auxiliary batches.

    Args:
        loader: any `DataLoader` over a map-style data set.
        fraction: size of an auxiliary batch against a primary one, in (0, 1].
        seed: of the auxiliary sampler, any whole number.
        containing: whether it holds the primary one, so that `fraction` is at least 1; default
            False.

    Raises:
        TypeError: `loader` is not a `DataLoader`, or its data set is iterable.
        ValueError: `fraction` is out of range, or the loader's sampler is of an unknown kind.

    Examples:
        >>> import torch, flatmin
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> loader = DataLoader(TensorDataset(torch.arange(64)), batch_size=16)
        >>> pairs = flatmin.paired(loader)
        >>> len(pairs), pairs.batch_size
        (4, 16)
        >>> pairs.set_epoch(7)
    """

    def __init__(
        self, loader: DataLoader[Any], fraction: float, seed: int, *, containing: bool = False
    ) -> None:
        given, loader = loader, _prefetched(loader)
        if not isinstance(loader, DataLoader):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"paired() takes a torch.utils.data.DataLoader, got a {type(loader).__name__}: for "
                "batches of another kind use flatmin.split(batch, fraction)"
            )
        if containing:
            check.in_range("fraction", fraction, 1.0, float("inf"), open_high=True)
        else:
            check.in_range("fraction", fraction, 0.0, 1.0, open_low=True)
        if isinstance(loader.dataset, IterableDataset):
            raise TypeError(
                "an iterable data set cannot be sampled a second time: split each batch in two "
                "with flatmin.split(batch, fraction)"
            )
        self.loader = given
        self.epoch = 0
        self._containing, self._fraction = containing, fraction
        batches = cast(object, loader.batch_sampler)
        size = loader.batch_size or getattr(batches, "batch_size", None)
        if not isinstance(size, int):
            raise ValueError(
                "the loader's batch_sampler has no batch_size to take a fraction of: split each "
                "batch in two with flatmin.split(batch, fraction)"
            )
        sampler = cast(object, loader.sampler)
        if loader.batch_size is None:
            sampler = getattr(batches, "sampler", sampler)
        self._sampler = _Auxiliary(
            _drawn_from(sampler, loader.dataset), seed + 7919 * _rank(sampler)
        )
        auxiliary: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_size=max(1, round((fraction - containing) * size)),
            sampler=self._sampler,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            generator=torch.Generator().manual_seed(seed),
        )
        self._auxiliary: Any = auxiliary
        if given is not loader:  # on the device, and in the colours, of the primary batches
            self._auxiliary = copy(cast(Any, given))
            self._auxiliary.loader = auxiliary
            self._auxiliary.stream = None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        self._sampler.epoch = self.epoch
        self.epoch += 1
        auxiliary: Iterator[Any] | None = None
        for primary in self.loader:
            if self._containing and self._fraction == 1:  # nothing around it
                yield primary, primary
                continue
            # Begun after the loader's own iterator, so that it draws what it would alone.
            if auxiliary is None:
                auxiliary = iter(self._auxiliary)
            other = next(auxiliary)
            yield primary, joined(primary, other) if self._containing else other

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, of the loader's sampler too if it has one: call it before resuming.

        Args:
            epoch: number of the epoch that comes next, from 0.
        """
        self.epoch = epoch
        loader = _prefetched(self.loader)
        batches = cast(object, loader.batch_sampler)
        own = cast(object, loader.sampler)
        for sampler in (own, batches, getattr(batches, "sampler", None)):
            set_epoch = getattr(sampler, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not there yet, while unpickling
            raise AttributeError(name)
        return getattr(self.loader, name)


def _prefetched(loader: Any) -> Any:
    """What timm's `PrefetchLoader` reads from; any other loader itself."""
    named = {kind.__name__ for kind in type(loader).__mro__}
    return loader.loader if "PrefetchLoader" in named else loader


class _Auxiliary(Sampler[int]):
    """Endless shuffled rounds over some indices, or endless weighted draws among them."""

    def __init__(self, drawn: tuple[Tensor, Tensor | None], seed: int) -> None:
        self._indices, self._weights = drawn
        self._seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self._seed + 1_000_003 * self.epoch) % (1 << 63))
        while True:
            if self._weights is None:
                order = torch.randperm(len(self._indices), generator=generator)
            else:
                order = torch.multinomial(
                    self._weights, len(self._indices), True, generator=generator
                )
            yield from cast("list[int]", self._indices[order].tolist())


def _drawn_from(sampler: object, dataset: object) -> tuple[Tensor, Tensor | None]:
    """The indices that a sampler draws from, and their weights if they differ."""
    if isinstance(sampler, SubsetRandomSampler):
        return torch.as_tensor(list(sampler.indices)), None
    if isinstance(sampler, WeightedRandomSampler):
        return torch.arange(len(sampler.weights)), sampler.weights
    if isinstance(sampler, (RandomSampler, SequentialSampler, DistributedSampler)) or (
        type(sampler).__name__ == "RepeatAugSampler"  # timm's: all, each several times
    ):
        return torch.arange(len(cast(Sized, dataset))), None
    raise ValueError(
        f"paired() does not know what a {type(sampler).__name__} draws from: use one of torch's "
        "own samplers, or split each batch in two with flatmin.split(batch, fraction)"
    )


def _rank(sampler: object) -> int:
    """Ranks draw different auxiliary batches, as they do primary ones."""
    if isinstance(sampler, DistributedSampler) or type(sampler).__name__ == "RepeatAugSampler":
        return cast(Any, sampler).rank
    return 0


def split(batch: Any, fraction: float = 0.25) -> tuple[Any, Any]:
    """Split a batch in two: `(primary, auxiliary)`, without a sample in common.

    Args:
        batch: a tensor whose first dimension counts samples, or a tuple, named tuple, list or dict
            of them (nested as you like); lists of other things count as one item a sample.
        fraction: the share of samples that the auxiliary part gets, in (0, 1); default 0.25, which
            leaves three quarters to the gradient that is descended. Each part gets at least one.

    Returns:
        Two batches of the same structure; tensors are views of the batch's, the auxiliary one
        of its end.

    Cost: nothing is copied.

    Raises:
        ValueError: `fraction` is out of range, the batch has fewer than two samples, or its parts
            differ in length.
        TypeError: the batch holds arrays that are no tensors.

    Examples:
        >>> import torch, flatmin
        >>> (x, y), (x_aux, y_aux) = flatmin.split((torch.randn(8, 3), torch.arange(8)))
        >>> y.tolist(), y_aux.tolist()
        ([0, 1, 2, 3, 4, 5], [6, 7])
    """
    check.in_range("fraction", fraction, 0.0, 1.0, open_low=True, open_high=True)
    sizes = set(sizes_of(batch))
    if len(sizes) != 1:
        raise ValueError(
            "a batch to split needs tensors of one length, counted along their first dimension; "
            + (f"got lengths {sorted(sizes)}" if sizes else "found no tensor in it")
        )
    size = sizes.pop()
    if size < 2:
        raise ValueError(f"a batch of {size} cannot be split in two: use a larger batch")
    cut = size - min(max(1, round(fraction * size)), size - 1)
    return part_of(batch, slice(None, cut)), part_of(batch, slice(cut, None))


def sizes_of(batch: Any) -> Iterator[int]:
    """The number of samples in each part of a batch of any structure."""
    if isinstance(batch, Tensor):
        if batch.ndim == 0:
            raise ValueError(
                "a batch to split needs tensors whose first dimension counts samples, got a number "
                "in a tensor of shape ()"
            )
        yield len(batch)
    elif isinstance(batch, Mapping):
        for value in cast("Mapping[Any, Any]", batch).values():
            yield from sizes_of(value)
    elif _is_samples(batch):
        yield len(batch)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        for value in cast("Sequence[Any]", batch):
            yield from sizes_of(value)
    elif hasattr(batch, "shape"):
        raise TypeError(
            f"a batch to split holds tensors, got a {type(batch).__name__}: convert it with "
            "torch.as_tensor"
        )


def part_of(batch: Any, part: slice) -> Any:
    """The samples `part` of a batch of any structure, in the same structure."""
    if isinstance(batch, Tensor) or _is_samples(batch):
        return batch[part]
    if isinstance(batch, Mapping):
        items = cast("Mapping[Any, Any]", batch).items()
        cut = cast(Any, copy(cast(object, batch)))
        for key, value in items:
            cut[key] = part_of(value, part)
        return cut
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        pieces = [part_of(value, part) for value in cast("Sequence[Any]", batch)]
        kind = cast(Any, type(batch))  # pyright: ignore[reportUnknownArgumentType]
        return kind(*pieces) if hasattr(kind, "_fields") else kind(pieces)
    return batch


def joined(batch: Any, other: Any) -> Any:
    """The samples of two batches of one structure, in that structure.

    What does not count samples, such as a number, is the first one's.
    """
    if isinstance(batch, Tensor):
        return torch.cat((batch, other)) if batch.ndim else batch
    if _is_samples(batch):
        whole = [*batch, *other]
        return tuple(whole) if isinstance(batch, tuple) else whole
    if isinstance(batch, Mapping):
        whole = cast(Any, copy(cast(object, batch)))
        for key, value in cast("Mapping[Any, Any]", batch).items():
            whole[key] = joined(value, other[key])
        return whole
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        parts = [joined(a, b) for a, b in zip(cast("Sequence[Any]", batch), other, strict=True)]
        kind = cast(Any, type(batch))  # pyright: ignore[reportUnknownArgumentType]
        return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
    return batch


def _is_samples(batch: Any) -> bool:
    """A sequence with no tensor or container in it, such as file names: one item a sample."""
    if not isinstance(batch, Sequence) or isinstance(batch, (str, bytes)):
        return False
    items = cast("Sequence[Any]", batch)
    return not any(isinstance(x, (Tensor, Mapping, list, tuple)) for x in items)


__all__ = ["PairedLoader", "paired", "split"]

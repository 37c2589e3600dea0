"""Data of a user's own: any map-style dataset, or tensors, batch by batch as images are.

    SampleData.of("flowers", (inputs, targets), (test_inputs, test_targets))

A sample is (inputs, target), (input, input, …, target), or a mapping with "labels"; a `collate_fn`
makes batches of the same form. Which samples a batch has, and the random numbers that the dataset
and the collation draw for it, come from the seed of the run alone: all methods see the same ones,
however many processes load them, and a run that is taken up again goes on with them.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from flatmin.training import own
from flatmin.training.data import noise
from flatmin.training.data.batches import (
    Batch,
    BatchSampler,
    RunData,
    changed,
    require_batch,
    split_rows,
)
from flatmin.training.data.images import ImageData, load, stratified
from flatmin.training.errors import InputError
from flatmin.training.processes import ProcessGroup
from flatmin.training.seeds import derive, generator
from flatmin.training.settings import Training

LOADER = (
    "collate_fn",
    "num_workers",
    "pin_memory",
    "prefetch_factor",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
)
"""Arguments of `torch.utils.data.DataLoader` that a user sets; the order is the comparison's."""

TARGETS = ("labels", "label", "targets", "target")
"""Under which of these a mapping has what the outputs are held against."""

_LOOKED_AT = 16
"""Samples of each part that the fingerprint has, evenly spaced, where there are more."""

_HASHED_BYTES = 2**28
"""Bytes of tensors that the fingerprint has in full."""


@dataclass(frozen=True, eq=False)
class SampleData:
    """A data set of a user's own.

    Fields:
        name: by which a training knows it.
        train, test: map-style datasets.
        further: other test sets, by name.
        loader: arguments of the DataLoader, some of `LOADER`.
        rows: of the training samples, those that are used; None for all.
    """

    name: str
    train: Dataset[Any]
    test: Dataset[Any]
    further: Mapping[str, Dataset[Any]] = field(default_factory=dict[str, Dataset[Any]])
    loader: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rows: Tensor | None = None

    @classmethod
    def of(
        cls,
        name: str,
        train: Any,
        test: Any,
        further: Mapping[str, Any] | None = None,
        loader: Mapping[str, Any] | None = None,
    ) -> SampleData:
        """From datasets or tuples of tensors. Raises InputError where they cannot be used."""
        for argument in loader or {}:
            if argument not in LOADER:
                raise InputError(
                    f"the loader takes no {argument}: batch= is the size, the order is the same for "
                    f"all methods, and {', '.join(LOADER)} are yours"
                )
        return cls(
            name,
            dataset(train, "train"),
            dataset(test, "test"),
            {str(each): dataset(data, str(each)) for each, data in (further or {}).items()},
            dict(loader or {}),
        )

    @property
    def train_count(self) -> int:
        return _count(self.train) if self.rows is None else len(self.rows)

    @property
    def test_count(self) -> int:
        return _count(self.test)

    @property
    def described(self) -> str:
        """How much of what it has: "200 training and 100 test samples"."""
        return f"{self.train_count:,} training and {self.test_count:,} test samples"

    @property
    def labels(self) -> Tensor | None:
        """The classes of all training samples, int64 (n,), where they can be had without them."""
        return known_labels(self.train)

    @property
    def classes(self) -> tuple[str, ...]:
        """By their numbers, as far as labels are known."""
        found = [known_labels(part) for part in (self.train, self.test)]
        counts = [1 + int(labels.max()) for labels in found if labels is not None and len(labels)]
        return tuple(map(str, range(max(counts, default=0))))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's input, where that is a tensor; else empty."""
        if type(self.train) is TensorDataset:
            return tuple(self.train.tensors[0].shape[1:])
        with _seeded(0):
            first = _samples(self.train, [0])[0]
        seen = cast("Sequence[Any]", first)[0] if isinstance(first, list | tuple) else None
        return tuple(seen.shape) if isinstance(seen, Tensor) else ()

    def limited(self, limit: int | None) -> SampleData:
        """With `limit` of the training samples, a fixed choice, of every class its share."""
        if limit is None:
            return self
        count = self.train_count
        if limit > count:
            raise InputError(
                f"--limit {limit} is more than the {count} training samples of "
                f"{own.title(self.name)}: give at most {count}, or leave it away"
            )
        source = generator(0, "limit samples")
        rows = _chosen(self.labels, count, limit, source)
        return SampleData(self.name, self.train, self.test, self.further, self.loader, rows)

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits: of tensors' content, or else of sizes and some samples.

        A dataset that is no `TensorDataset` is looked at in `_LOOKED_AT` places of each part, its
        random numbers being fixed.
        """
        found = hashlib.blake2b(digest_size=6)
        rows = "" if self.rows is None else own.checksum(self.rows)
        found.update(f"{self.train_count} {self.test_count} {rows}".encode())
        found.update(own.described(self.loader.get("collate_fn", default_collate)).encode())
        for part in (self.train, self.test):
            if type(part) is TensorDataset and _bytes(part) <= _HASHED_BYTES:
                found.update(" ".join(map(own.described, part.tensors)).encode())
                continue
            count = _count(part)
            at = torch.arange(min(_LOOKED_AT, count)) * count // min(_LOOKED_AT, count)
            with _seeded(0):
                seen = [_samples(part, [row])[0] for row in at.tolist()]
            found.update(f"{type(part).__qualname__} {_content(seen)}".encode())
        return found.hexdigest()


AnyData = ImageData | SampleData


def load_any(name: str, *, limit: int | None = None, size: int | None = None) -> AnyData:
    """The data set called `name`: as `flatmin.training.load` knows it, or a user's own.

    A user's function returns (train, test), or a mapping with "train", "test" and, if need be,
    "examine", further test sets by name, and "loader", arguments of the DataLoader.

    Raises InputError where it cannot be had, or the limit is impossible.
    """
    if not own.is_own(name):
        return load(name, limit=limit, size=size)
    if size is not None:
        raise InputError(
            f"size {size} is for images that flatmin loads: resize those of {own.title(name)} yourself"
        )
    return _own(name).limited(limit)


def _own(name: str) -> SampleData:
    found = own.find(name)
    if isinstance(found, SampleData):
        return found
    try:
        made = found() if callable(found) else found
    except InputError:
        raise
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the data {own.title(name)} cannot be made: {said}") from None
    if isinstance(made, SampleData):
        return made
    if isinstance(made, Mapping) and {"train", "test"} <= made.keys():
        parts = cast("Mapping[str, Any]", made)
        return SampleData.of(
            name, parts["train"], parts["test"], parts.get("examine"), parts.get("loader")
        )
    if isinstance(made, list | tuple) and len(cast("Sequence[Any]", made)) == 2:
        train, test = cast("Sequence[Any]", made)
        return SampleData.of(name, train, test)
    raise InputError(
        f"the data {own.title(name)} made a {type(made).__name__}: return (train, test), or a "
        f"mapping with train, test, examine and loader"
    )


def dataset(data: Any, what: str) -> Dataset[Any]:
    """A map-style dataset, from one or from a tuple of tensors. Raises InputError for others."""
    if isinstance(data, list | tuple) and all(isinstance(each, Tensor) for each in data):  # pyright: ignore[reportUnknownVariableType]
        tensors = cast("Sequence[Tensor]", data)
        if len(tensors) < 2 or len({len(each) for each in tensors}) != 1:
            sizes = ", ".join(str(len(each)) for each in tensors)
            raise InputError(f"{what} has tensors of {sizes} rows: give inputs and targets, as many")
        data = TensorDataset(*tensors)
    for needed in ("__getitem__", "__len__"):
        if not hasattr(type(data), needed):
            raise InputError(
                f"{what} is a {type(data).__name__} without {needed}: give a map-style dataset, whose "
                f"samples have numbers, or a tuple of tensors"
            )
    try:
        count = len(data)
    except Exception as error:
        raise InputError(f"{what} cannot tell how long it is: {error}") from None
    if not count:
        raise InputError(f"{what} is empty: give at least one sample")
    return data


def known_labels(data: Dataset[Any]) -> Tensor | None:
    """The class of each sample, int64 (n,); None where only the samples themselves could tell."""
    found = data.tensors[-1] if type(data) is TensorDataset else getattr(data, "targets", None)
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() != 1 or not whole or len(labels) != _count(data) or int(labels.min()) < 0:
        return None
    return labels.cpu().to(torch.int64)


# Of a run -------------------------------------------------------------------------------------


class SampleSet:
    """Samples that a run draws from; see `ImageSet`, whose place it takes.

    Args:
        data: what they are of.
        rows: which of them, int64 (n,).
        training: says how many are evaluated at once, and the seed.
        loader: as in `SampleData`.
        device: on which batches are wanted.
        labels, wrong: in place of the targets, and where they are wrong, by row of `data`.
    """

    def __init__(
        self,
        data: Dataset[Any],
        rows: Tensor,
        training: Training,
        loader: Mapping[str, Any],
        device: torch.device,
        labels: Tensor | None = None,
        wrong: Tensor | None = None,
    ) -> None:
        self._data, self._rows, self._device = data, rows, device
        self._labels, self._wrong = labels, wrong
        self._seed, self.chunk = training.seed, training.batch
        self._loader = dict(loader)
        self._collate = self._loader.pop("collate_fn", None) or default_collate
        if multiprocessing.current_process().daemon:  # a worker must not have any of its own
            self._loader.clear()

    def __len__(self) -> int:
        return len(self._rows)

    def each(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        """The samples of each part of the rows, as a dataset without random numbers has them."""
        seed = derive(self._seed, "evaluation")
        return self.batches([(seed, rows) for rows in parts])

    def batches(self, wanted: Sequence[tuple[int, Tensor]]) -> Iterator[Batch]:
        """A batch for each seed and rows, in order; loaded ahead where there are workers."""
        asked = [(seed, self._rows[rows]) for seed, rows in wanted]
        fetch = _Fetch(self._data, self._collate)
        if not self._loader.get("num_workers"):
            loaded: Any = map(fetch.__getitem__, asked)
        else:
            loaded = DataLoader(
                fetch,
                batch_size=None,
                sampler=cast("Any", asked),
                collate_fn=_as_it_is,
                generator=torch.Generator(),  # not the run's random numbers
                **self._loader,
            )
        for (_, rows), content in zip(asked, loaded, strict=True):
            yield self._batch(content, rows)

    def _batch(self, content: Any, rows: Tensor) -> Batch:
        inputs, targets = changed(_parts(content), lambda each: each.to(self._device))
        wrong = torch.zeros(len(rows), dtype=torch.bool)
        if self._labels is not None and self._wrong is not None:
            targets, wrong = self._labels[rows].to(self._device), self._wrong[rows]
        return Batch(inputs, targets, wrong.to(self._device))


class SampleSampler(BatchSampler):
    """Full batches in a random order, loaded in order by whatever loads them.

    Args as for `BatchSampler`.
    """

    def __init__(self, samples: SampleSet, size: int, share: slice, seed: int, purpose: str) -> None:
        super().__init__(cast("Any", samples), size, share, seed, purpose)
        self._samples = samples
        self._coming: Iterator[Batch] | None = None

    def _shuffle(self) -> None:
        super()._shuffle()
        self._coming = None  # of an earlier round

    def _draw(self) -> Batch:
        if self._coming is None:
            # The random numbers of a batch come from the round and its place in it: they are the
            # same whoever loads it, and after the run was taken up again amid a round.
            base = hashlib.blake2b(self._before.numpy().tobytes(), digest_size=8).hexdigest()
            left = list(enumerate(self._rest))[::-1]  # the last is taken first
            wanted = [(derive(at, base), rows[self._share]) for at, rows in left]
            self._coming = self._samples.batches(wanted)
        self._rest.pop()
        return next(self._coming)


class SampleRun:
    """The samples of one run; see `RunData`, whose place it takes."""

    size = 0

    def __init__(self, training: Training, data: SampleData, group: ProcessGroup) -> None:
        for name, usual in (("augment", False), ("cutout", 0), ("size", None)):
            if getattr(training, name) != usual:
                raise InputError(
                    f"{name} is for images that flatmin loads: let the dataset or the collation of "
                    f"{own.title(data.name)} do it"
                )
        rows = torch.arange(data.train_count) if data.rows is None else data.rows
        labels, wrong = _noisy(training, data, rows)
        kept, held = split_rows(training, len(rows), None if labels is None else labels[rows])
        self._training, self._group = training, group
        self._loader = data.loader
        self._samples = SampleSet(
            data.train, rows[kept], training, data.loader, group.device, labels, wrong
        )
        self.examined = (
            self.set(data.test)
            if held is None
            else SampleSet(
                data.train, rows[held], training, data.loader, group.device, labels, wrong
            )
        )
        self.steps = require_batch(training, len(kept))
        self.count = self.steps * training.batch
        self.primary = self._stream(training.batch, "")

    def auxiliary(self) -> SampleSampler:
        """Batches from a stream of their own over the same training samples."""
        size = max(1, round(self._training.fraction * self._training.batch))
        return self._stream(min(size, len(self._samples)), "auxiliary ")

    def set(self, data: Dataset[Any]) -> SampleSet:
        """All samples of a further test set."""
        rows = torch.arange(_count(data))
        return SampleSet(data, rows, self._training, self._loader, self._group.device)

    def _stream(self, size: int, purpose: str) -> SampleSampler:
        share = self._group.share(size)
        return SampleSampler(self._samples, size, share, self._training.seed, purpose)


def run_data(training: Training, data: AnyData, group: ProcessGroup) -> RunData | SampleRun:
    """What one run learns from and is measured on. Raises InputError where it does not fit."""
    if isinstance(data, ImageData):
        return RunData(training, data, group)
    return SampleRun(training, data, group)


def _noisy(
    training: Training, data: SampleData, rows: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Labels with the noise of a run, by row of the whole set; None where there is none."""
    found, labels = noise.parse(training.noise), data.labels
    if isinstance(found, noise.Symmetric) and not found.share:
        return labels, None
    if labels is None or not isinstance(found, noise.Symmetric):
        raise InputError(
            f"noise {training.noise} needs to know all labels: give tensors, or a dataset with "
            f"`targets`, and a share such as 0.4"
        )
    noisy = labels.clone()
    noisy[rows] = noise.symmetric(labels[rows], found.share, len(data.classes), training.seed)
    return noisy, noisy != labels


def _chosen(labels: Tensor | None, count: int, wanted: int, source: torch.Generator) -> Tensor:
    if labels is None:
        return torch.randperm(count, generator=source)[:wanted].sort().values
    return stratified(labels, wanted, source)


def _count(data: Dataset[Any]) -> int:
    return len(cast("Any", data))


def _bytes(data: TensorDataset) -> int:
    return sum(each.numel() * each.element_size() for each in data.tensors)


# Samples ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fetch(Dataset[Any]):
    """Batches of a dataset, by a seed and rows."""

    data: Dataset[Any]
    collate: Callable[[list[Any]], Any]

    def __getitem__(self, at: tuple[int, Tensor]) -> Any:
        seed, rows = at
        if type(self.data) is TensorDataset and self.collate is default_collate:
            return tuple(each[rows] for each in self.data.tensors)
        with _seeded(seed):
            return self.collate(_samples(self.data, rows.tolist()))


def _samples(data: Dataset[Any], rows: list[int]) -> list[Any]:
    several = getattr(data, "__getitems__", None)
    return several(rows) if several else [data[row] for row in rows]


def _as_it_is(content: Any) -> Any:
    return content


@contextmanager
def _seeded(seed: int) -> Generator[None, None, None]:
    """Random numbers of torch, Python and NumPy that start from `seed`; then as if nothing were."""
    numpy: Any = sys.modules.get("numpy")
    python = random.getstate()
    arrays = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            if numpy:
                numpy.random.set_state(arrays)


def _parts(content: Any) -> tuple[Any, Any]:
    """The inputs and the targets of a collated batch."""
    if isinstance(content, Mapping):
        batch = dict(cast("Mapping[Any, Any]", content))
        found = next((name for name in TARGETS if name in batch), None)
        if found is not None and len(batch) > 1:
            targets = batch.pop(found)
            return batch, targets
    elif isinstance(content, list | tuple) and len(cast("Sequence[Any]", content)) > 1:
        *inputs, targets = cast("Sequence[Any]", content)
        return inputs[0] if len(inputs) == 1 else tuple(inputs), targets
    raise InputError(
        f"a batch is a {type(content).__name__}: expected (inputs, targets), or a mapping with "
        f"{' or '.join(TARGETS[:2])}; a collate_fn in loader= can make it so"
    )


def _content(value: Any) -> str:
    """A digest of nested values, by their content."""
    if isinstance(value, Tensor):
        return own.described(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return "{" + ", ".join(f"{name}: {_content(each)}" for name, each in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_content, cast("Sequence[Any]", value))) + "]"
    if hasattr(value, "tobytes"):  # a NumPy array, a Pillow image
        return own.digest(value.tobytes())
    return own.described(value)

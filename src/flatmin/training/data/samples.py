"""Data of a user's own: any map-style dataset, or tensors, batch by batch as images are.

    SampleData.of("flowers", (inputs, targets), (test_inputs, test_targets))

A sample is (inputs, target), (input, input, …, target), or a mapping with "labels"; a `collate_fn`
makes batches of the same form. Which samples a batch has, and the random numbers that the dataset
and the collation draw for it, come from the seed of the run alone: all methods see the same ones,
however many processes load them, and a run that is taken up again goes on with them.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate  # pyright: ignore[reportUnknownVariableType]

from flatmin.training import digests, own
from flatmin.training.data.images import ImageData, load, stratified
from flatmin.training.errors import InputError
from flatmin.training.seeds import generator

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
        notes: what a user should know of it, line by line.
    """

    name: str
    train: Dataset[Any]
    test: Dataset[Any]
    further: Mapping[str, Dataset[Any]] = field(default_factory=dict[str, Dataset[Any]])
    loader: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rows: Tensor | None = None
    notes: tuple[str, ...] = ()

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
                    f"the loader takes no {argument}: batch= is the size, the order is the same "
                    f"for all methods, and {', '.join(LOADER)} are yours"
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
        return count_of(self.train) if self.rows is None else len(self.rows)

    @property
    def test_count(self) -> int:
        return count_of(self.test)

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
        with seeded(0):
            first = samples_of(self.train, [0])[0]
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
        rows = "" if self.rows is None else digests.checksum(self.rows)
        found.update(f"{self.train_count} {self.test_count} {rows}".encode())
        found.update(digests.described(self.loader.get("collate_fn", default_collate)).encode())
        for part in (self.train, self.test):
            if type(part) is TensorDataset and _bytes(part) <= _HASHED_BYTES:
                found.update(" ".join(map(digests.described, part.tensors)).encode())
                continue
            count = count_of(part)
            at = torch.arange(min(_LOOKED_AT, count)) * count // min(_LOOKED_AT, count)
            with seeded(0):
                seen = [samples_of(part, [int(row)])[0] for row in at]
            found.update(f"{type(part).__qualname__} {digests.described(seen)}".encode())
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
            f"size {size} is for images that flatmin loads: let {own.title(name)} resize its own"
        )
    return _own(name).limited(limit)


def _own(name: str) -> SampleData:
    found = own.find(name)
    if isinstance(found, SampleData):
        return found
    try:
        made: Any = found() if callable(found) else found
    except InputError:
        raise
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the data {own.title(name)} cannot be made: {said}") from None
    if isinstance(made, SampleData):
        return made
    parts = cast("Mapping[str, Any]", made if isinstance(made, Mapping) else {})
    if {"train", "test"} <= parts.keys():
        return SampleData.of(
            name, parts["train"], parts["test"], parts.get("examine"), parts.get("loader")
        )
    if isinstance(made, list | tuple) and len(cast("Sequence[Any]", made)) == 2:
        train, test = cast("Sequence[Any]", made)
        return SampleData.of(name, train, test)
    raise InputError(
        f"the data {own.title(name)} made a {own.kind(made)}: return (train, test), or a "
        f"mapping with train, test, examine and loader"
    )


def dataset(data: Any, what: str) -> Dataset[Any]:
    """A map-style dataset, from one or from a tuple of tensors. Raises InputError for others."""
    tensors = _tensors(data)
    if tensors:
        if len(tensors) < 2 or len({len(each) for each in tensors}) != 1:
            sizes = ", ".join(str(len(each)) for each in tensors)
            raise InputError(
                f"{what} has tensors of {sizes} rows: give inputs and targets, as many"
            )
        return _some_of(TensorDataset(*tensors), len(tensors[0]), what)
    for needed in ("__getitem__", "__len__"):
        if not hasattr(data.__class__, needed):
            raise InputError(
                f"{what} is a {own.kind(data)} without {needed}: give a map-style dataset, "
                f"whose samples have numbers, or a tuple of tensors"
            )
    try:
        count = count_of(data)
    except Exception as error:
        raise InputError(f"{what} cannot tell how long it is: {error}") from None
    return _some_of(data, count, what)


def _some_of(data: Dataset[Any], count: int, what: str) -> Dataset[Any]:
    if not count:
        raise InputError(f"{what} is empty: give at least one sample")
    return data


def _tensors(data: Any) -> Sequence[Tensor]:
    """Those of a tuple or a list of nothing else; else none."""
    several = cast("Sequence[Any]", data if isinstance(data, list | tuple) else ())
    return several if all(isinstance(each, Tensor) for each in several) else ()


def known_labels(data: Dataset[Any]) -> Tensor | None:
    """The class of each sample, int64 (n,); None where only the samples themselves could tell."""
    found = data.tensors[-1] if type(data) is TensorDataset else getattr(data, "targets", None)
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() != 1 or not whole or len(labels) != count_of(data) or int(labels.min()) < 0:
        return None
    return labels.cpu().to(torch.int64)


def _chosen(labels: Tensor | None, count: int, wanted: int, source: torch.Generator) -> Tensor:
    if labels is None:
        return torch.randperm(count, generator=source)[:wanted].sort().values
    return stratified(labels, wanted, source)


def count_of(data: Dataset[Any]) -> int:
    """Samples of a map-style dataset."""
    return len(cast("Any", data))


def _bytes(data: TensorDataset) -> int:
    return sum(each.numel() * each.element_size() for each in data.tensors)


# Samples --------------------------------------------------------------------------------------


def samples_of(data: Dataset[Any], rows: list[int]) -> list[Any]:
    """Some of them, at once where the dataset can."""
    several = getattr(data, "__getitems__", None)
    return several(rows) if several else [data[row] for row in rows]


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
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

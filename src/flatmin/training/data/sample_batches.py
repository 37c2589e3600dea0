"""The batches of one run from data of a user's own: what `batches` does for images."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate  # pyright: ignore[reportUnknownVariableType]

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
from flatmin.training.data.images import ImageData, stratified
from flatmin.training.data.samples import AnyData, SampleData, count_of, samples_of, seeded
from flatmin.training.errors import InputError
from flatmin.training.processes import ProcessGroup
from flatmin.training.seeds import derive, generator
from flatmin.training.settings import Training

TARGETS = ("labels", "label", "targets", "target")
"""Under which of these a mapping has what the outputs are held against."""


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
        self._collate: Any = self._loader.pop("collate_fn", None) or default_collate
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

    def __init__(
        self, samples: SampleSet, size: int, share: slice, seed: int, purpose: str
    ) -> None:
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
        for name, usual in (
            ("augment", False),
            ("auxiliary", "own"),
            ("cutout", 0),
            ("size", None),
        ):
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
        self._known = None if labels is None else labels[rows[kept]]
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

    def sample(self, count: int) -> Batch:
        """At most `count` of the samples that it learns from, a fixed choice, as they are."""
        labels = self._known
        count = min(count, len(self._samples))
        if labels is None:
            source = generator(0, "sample")
            rows = torch.randperm(len(self._samples), generator=source)[:count].sort().values
        else:
            rows = stratified(labels, count, generator(0, "sample"))
        return next(self._samples.each([rows]))

    def set(self, data: Dataset[Any]) -> SampleSet:
        """All samples of a further test set."""
        rows = torch.arange(count_of(data))
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


@dataclass(frozen=True)
class _Fetch(Dataset[Any]):
    """Batches of a dataset, by a seed and rows."""

    data: Dataset[Any]
    collate: Callable[[list[Any]], Any]

    def __getitem__(self, at: tuple[int, Tensor]) -> Any:
        seed, rows = at
        if type(self.data) is TensorDataset and self.collate is default_collate:
            return tuple(each[rows] for each in self.data.tensors)
        with seeded(seed):
            return self.collate(samples_of(self.data, [int(row) for row in rows]))


def _as_it_is(content: Any) -> Any:
    return content


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
        f"a batch is a {own.kind(content)}: expected (inputs, targets), or a mapping with "
        f"{' or '.join(TARGETS[:2])}; a collate_fn in loader= can make it so"
    )

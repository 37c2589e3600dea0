"""The images of one run, and the batches that it draws from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from flatmin.training import models, own
from flatmin.training.data import noise
from flatmin.training.data.augmentation import Augmentation, Images, moments
from flatmin.training.data.images import ImageData, others, stratified
from flatmin.training.data.stream import Pixels, Streamed
from flatmin.training.errors import InputError
from flatmin.training.processes import ProcessGroup
from flatmin.training.seeds import generator
from flatmin.training.settings import Training


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one step, as this rank sees them.

    Fields:
        inputs: images, normalised, float (b, channels, size, size); of a user's own data whatever
            the model takes, tensors or nested ones, with the samples along the first dimension.
        targets: labels as given, int64 (b,); of a user's own data whatever the loss takes.
        wrong: where noise has moved the label, bool (b,).
    """

    inputs: Any
    targets: Any
    wrong: Tensor

    def __len__(self) -> int:
        return len(self.wrong)

    def at(self, rows: Tensor | slice | None) -> Batch:
        """Some of the samples; all of them for None."""
        if rows is None:
            return self
        return Batch(*changed((self.inputs, self.targets, self.wrong), lambda each: each[rows]))

    def with_others(self, others: Batch) -> Batch:
        """These images, and behind them those of another batch."""
        mine = (self.inputs, self.targets, self.wrong)
        theirs = (others.inputs, others.targets, others.wrong)
        return Batch(*(torch.cat(pair) for pair in zip(mine, theirs, strict=True)))

    def parts(self, size: int) -> Iterator[Batch]:
        """The batch in even parts of at most `size` images; itself if it is no larger."""
        if len(self) <= size:
            yield self
            return
        for rows in torch.arange(len(self)).tensor_split(-(-len(self) // size)):
            yield self.at(slice(int(rows[0]), int(rows[-1]) + 1))


def changed(content: Any, change: Callable[[Tensor], Any]) -> Any:
    """Nested tuples, lists and mappings with every tensor in them changed."""
    if isinstance(content, Tensor):
        return change(content)
    if isinstance(content, Mapping):
        items = cast("Mapping[Any, Any]", content).items()
        return {name: changed(each, change) for name, each in items}
    if isinstance(content, list | tuple):
        several = cast("Any", content)
        parts = [changed(each, change) for each in several]
        if hasattr(several, "_fields"):  # a named tuple
            return type(several)(*parts)
        return parts if isinstance(content, list) else tuple(parts)
    if callable(getattr(content, "to", None)) and hasattr(content, "items"):  # as transformers has
        return changed(dict(content.items()), change)
    return content


class ImageSet:
    """Images with their labels, normalised and brought to the size of the run.

    Smaller images are kept as they are and enlarged batch by batch; larger ones are made smaller
    once and for all.

    Args:
        pixels: uint8 (n, channels, side, side).
        labels: int64 (n,).
        mean, std: of each channel, in the units of `pixels`.
        size: side of the images in a batch, in pixels.
        margin: pixels by which the images are larger than what a model sees of them.
        augmentation: of the batches that `draw` gives; the side of its cutout is one of `size`.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: Tensor,
        mean: Tensor,
        std: Tensor,
        *,
        size: int,
        margin: int = 0,
        augmentation: Augmentation | None = None,
        wrong: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not margin:
            pixels = _stored(pixels.to(device), min(size, pixels.shape[2]))
        augmentation = augmentation or Augmentation()
        hole = round(augmentation.cutout * (pixels.shape[2] - margin) / size)
        self._size = size
        self._images = Images(
            pixels.to(device), mean, std, replace(augmentation, cutout=hole), margin
        )
        self._labels = labels.to(device)
        self._wrong = (torch.zeros_like(labels, dtype=torch.bool) if wrong is None else wrong).to(
            device
        )

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> Tensor:
        """As given, int64 (n,)."""
        return self._labels

    @property
    def chunk(self) -> int:
        """How many images are evaluated at once: fewer where they are large.

        On a CPU what one layer makes of them should stay in its cache.
        """
        most = 64 * 32**2 if self._labels.device.type == "cpu" else 500 * 64**2
        return max(16, min(500, most // self._size**2))

    def plain(self, rows: Tensor) -> Batch:
        """The images `rows` (b,) as they are."""
        return self._batch(self._images.plain(rows), rows)

    def draw(self, rows: Tensor, source: torch.Generator, part: slice) -> Batch:
        """A `part` of the images `rows` (b,), augmented; all draw the same numbers."""
        return self._batch(self._images.draw(rows, source, part), rows[part])

    def each(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        """The images of each part of the rows, as they are."""
        for at, rows in enumerate(parts):
            # Streamed images are decoded while the model is at work, two batches ahead.
            for coming in parts[at + 1 : at + 3]:
                self.expect(coming)
            yield self.plain(rows)

    def expect(self, rows: Tensor) -> None:
        """Begin to decode the images `rows`, if they are streamed: they will be asked for."""
        self._images.expect(rows)

    def _batch(self, images: Tensor, rows: Tensor) -> Batch:
        rows = rows.to(self._labels.device)
        return Batch(_resized(images, self._size), self._labels[rows], self._wrong[rows])


class Stream(Protocol):
    """Batches, one after the other; where it stands can be saved."""

    def next(self) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class BatchSampler:
    """Full batches in a random order, round after round; where it stands can be saved.

    Args:
        images: what is drawn from.
        size: images a batch, of all ranks together.
        share: the part of each batch that is this rank's.
        seed, purpose: of the two generators, one for the order and one for the augmentation.

    Attributes:
        rows: of the images in the last batch, on all ranks together.
        batch: the last one.
    """

    rows: Tensor
    batch: Batch

    def __init__(self, images: ImageSet, size: int, share: slice, seed: int, purpose: str) -> None:
        self._images, self._size, self._share = images, size, share
        self._order = generator(seed, f"{purpose}order")
        self._augmentation = generator(seed, f"{purpose}augmentation")
        self._before = self._order.get_state()
        self._rest: list[Tensor] = []

    def round(self) -> Iterator[Batch]:
        """A new round: every image at most once."""
        self._shuffle()
        while self._rest:
            yield self._draw()

    def next(self) -> Batch:
        """The next batch, of a new round if this one is at its end."""
        if not self._rest:
            self._shuffle()
        return self._draw()

    def state(self) -> dict[str, Any]:
        """Where it stands."""
        return {
            "order": self._before,
            "left": len(self._rest),
            "augmentation": self._augmentation.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._order.set_state(state["order"])
        self._shuffle()
        del self._rest[state["left"] :]
        self._augmentation.set_state(state["augmentation"])

    def _shuffle(self) -> None:
        self._before = self._order.get_state()
        count = len(self._images)
        order = torch.randperm(count, generator=self._order)
        full = order[: count // self._size * self._size].view(-1, self._size)
        self._rest = list(full.flip(0).unbind())  # the last is taken first

    def _draw(self) -> Batch:
        rows = self._rest.pop()
        for coming in self._rest[-1:-3:-1]:
            self._images.expect(coming[self._share])
        self.rows = rows
        self.batch = self._images.draw(rows, self._augmentation, self._share)
        return self.batch


class ContainingSampler:
    """The primary batch of each step, and further images that are not in it.

    Args:
        primary: whose last batch, as it was augmented, stands in front.
        images: what the further ones are drawn from.
        further: how many, of all ranks together.
        share: the part of them that is this rank's.
        seed, purpose: of the two generators, as in `BatchSampler`.
    """

    def __init__(
        self,
        primary: BatchSampler,
        images: ImageSet,
        further: int,
        share: slice,
        seed: int,
        purpose: str,
    ) -> None:
        self._primary, self._images = primary, images
        self._further, self._share = further, share
        self._order = generator(seed, f"{purpose}order")
        self._augmentation = generator(seed, f"{purpose}augmentation")

    def next(self) -> Batch:
        """The batch around the last primary one."""
        if not self._further:
            return self._primary.batch
        others = torch.ones(len(self._images), dtype=torch.bool)
        others[self._primary.rows] = False
        rows = others.nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=self._order)[: self._further]]
        further = self._images.draw(rows, self._augmentation, self._share)
        return self._primary.batch.with_others(further)

    def state(self) -> dict[str, Any]:
        """Where it stands; the primary batches have a state of their own."""
        return {
            "order": self._order.get_state(),
            "augmentation": self._augmentation.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._order.set_state(state["order"])
        self._augmentation.set_state(state["augmentation"])


class RunData:
    """The images of one run: what it learns from, and what it is measured on.

    Attributes:
        size: side of the images, in pixels.
        steps: of an epoch.
        count: images in the primary batches of an epoch.
        primary: the stream of primary batches, a round an epoch.
        examined: the test images, or the held-out ones.
    """

    def __init__(self, training: Training, data: ImageData, group: ProcessGroup) -> None:
        labels = noise.parse(training.noise).labels(data, training.seed)
        self.size = training.size or data.size
        self._moments = _moments(training, data)
        self._group = group
        self._training = training
        kept, held = split_rows(training, len(labels), labels)
        if not torch.isin(data.test_labels, data.train_labels).any():
            raise InputError(
                f"no class of the test images of {data.name} is among those of its training "
                f"images: it is a set for episodes, on which accuracy would always be 0 %"
            )
        augmentation = Augmentation.standard(min(self.size, data.size), data.margin)
        self._images = self.set(
            data.train_images[kept],
            labels[kept],
            wrong=(labels != data.train_labels)[kept],
            margin=data.margin,
            augmentation=replace(
                augmentation if training.augment else Augmentation(), cutout=training.cutout
            ),
        )
        self.examined = (
            self.set(data.test_images, data.test_labels, margin=data.margin)
            if held is None
            else self.set(data.train_images[held], labels[held], margin=data.margin)
        )
        self.steps = require_batch(training, len(kept))
        self.count = self.steps * training.batch
        self.primary = self._stream(training.batch, "")

    def auxiliary(self) -> Stream:
        """Batches from the same training images: a stream of their own, or around the primary."""
        training, count = self._training, len(self._images)
        size = min(max(1, round(training.fraction * training.batch)), count)
        if training.auxiliary == "own":
            return self._stream(size, "auxiliary ")
        further = size - training.batch
        share = self._group.share(further) if further else slice(0)
        return ContainingSampler(
            self.primary, self._images, further, share, training.seed, "auxiliary "
        )

    def sample(self, count: int) -> Batch:
        """At most `count` of the images that it learns from, as they are, with the labels as given.

        A fixed choice, with every class in its share.
        """
        labels = self._images.labels.cpu()
        chosen = stratified(labels, min(count, len(labels)), generator(0, "sample"))
        return self._images.plain(chosen)

    def plain_batches(self, count: int | None, size: int) -> Iterator[Batch]:
        """Training images as they are, not augmented, in batches of `size`: the same every time.

        Args:
            count: how many batches, of as many random partitions as that takes; None for one
                partition, whose last batch may be smaller.
            size: of a batch.
        """
        source = generator(self._training.seed, "analysis")
        size = min(size, len(self._images))
        left = math.inf if count is None else count
        while left > 0:
            order = torch.randperm(len(self._images), generator=source)
            whole = len(order) if count is None else len(order) // size * size
            parts = cast("tuple[Tensor, ...]", order[:whole].split(size))
            for rows in parts:
                if left > 0:
                    yield self._images.plain(rows)
                left -= 1
            if count is None:
                return

    def set(
        self,
        pixels: Pixels,
        labels: Tensor,
        *,
        margin: int = 0,
        wrong: Tensor | None = None,
        augmentation: Augmentation | None = None,
    ) -> ImageSet:
        """Images with the normalisation and the size of this run."""
        return ImageSet(
            pixels,
            labels,
            *self._moments,
            size=self.size,
            margin=margin,
            augmentation=augmentation,
            wrong=wrong,
            device=self._group.device,
        )

    def _stream(self, size: int, purpose: str) -> BatchSampler:
        share = self._group.share(size)
        return BatchSampler(self._images, size, share, self._training.seed, purpose)


def _moments(training: Training, data: ImageData) -> tuple[Tensor, Tensor]:
    """By what images are normalised, in the units of their pixels.

    Published weights go on seeing what they were trained to see; all others see the training
    images with mean 0 and standard deviation 1.
    """
    if training.pretrained is None or data.channels != 3 or own.is_own(training.model):
        return moments(data.train_images)
    network = models.find(training.model)
    if network.hub is None:
        return moments(data.train_images)
    mean, std = 255 * torch.tensor(network.colours, dtype=torch.float64)
    return mean, std


def require_batch(training: Training, count: int) -> int:
    """Steps of an epoch over `count` samples. Raises InputError where there is none."""
    steps = count // training.batch
    if not steps:
        raise InputError(
            f"a batch of {training.batch} is more than the {count} images to train on: "
            f"give a smaller --batch"
        )
    return steps


def split_rows(
    training: Training, count: int, labels: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The rows to train on and, if some are held out, those; stratified where labels are known."""
    if not training.holdout:
        return torch.arange(count), None
    held_out = round(training.holdout * count)
    if not 0 < held_out < count:
        raise InputError(
            f"holdout {training.holdout} of {count} training images leaves {held_out} to judge "
            f"by: hold out at least one, and not all"
        )
    source = generator(training.seed, "holdout")
    if labels is None:
        held = torch.randperm(count, generator=source)[:held_out].sort().values
    else:
        held = stratified(labels, held_out, source)
    return others(count, held), held


def _resized(images: Tensor, size: int) -> Tensor:
    """Images (n, channels, side, side), uint8 or float, with sides of `size` pixels, bilinearly."""
    if images.shape[2] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _stored(pixels: Pixels, size: int) -> Pixels:
    """Images with sides of `size` pixels; streamed ones are resized when they are decoded."""
    if isinstance(pixels, Streamed):
        return pixels.then(partial(_resized, size=size), size)
    return _resized(pixels, size)

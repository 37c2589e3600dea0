"""What a model makes of samples, and how much of it is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from flatmin.training import losses
from flatmin.training.data.batches import Batch, ImageSet
from flatmin.training.data.sample_batches import SampleSet
from flatmin.training.processes import ProcessGroup


def called(model: nn.Module, inputs: Any) -> Any:
    """What a model makes of the inputs of a batch: one, several in their order, or by name."""
    if isinstance(inputs, Mapping):
        return model(**cast("Mapping[str, Any]", inputs))
    if isinstance(inputs, list | tuple):
        return model(*cast("Sequence[Any]", inputs))
    return model(inputs)


def widened(outputs: Tensor) -> Tensor:
    """In float32, if it was narrower."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


Scores = Callable[[Any], Any]
"""From the inputs of a batch to what the model makes of them."""


def accuracies(
    scores: Scores,
    model: nn.Module,
    samples: ImageSet | SampleSet,
    group: ProcessGroup,
    guesses: Sequence[int] = (1,),
) -> list[float]:
    """% of `samples` that `model`, in evaluation mode, gives their label in so many guesses."""
    right = torch.zeros(len(guesses), dtype=torch.int64, device=group.device)
    count = torch.zeros((), dtype=torch.int64, device=group.device)
    # Whole numbers, so that any number of ranks finds the same; a share may be empty.
    for outputs, batch in evaluated(scores, model, samples, group):
        targets = batch.targets.unsqueeze(1)
        right += torch.stack([(_best(outputs, each) == targets).sum() for each in guesses])
        count += (batch.targets >= 0).sum()  # padded places are labelled below 0
    images, right = max(1, int(group.total(count))), group.total(right)
    return [100 * int(each) / images for each in right]


def _best(outputs: Tensor, guesses: int) -> Tensor:
    # of equal scores, argmax takes the first and topk any
    return outputs.topk(guesses, 1).indices if guesses > 1 else outputs.argmax(1, keepdim=True)


@torch.no_grad()
def evaluated(
    scores: Scores, model: nn.Module, samples: ImageSet | SampleSet, group: ProcessGroup
) -> Iterator[tuple[Any, Batch]]:
    """What the model, in evaluation mode, makes of this rank's share of the samples."""
    model.eval()
    rows, size = torch.arange(len(samples)), samples.chunk * group.world
    shares = [
        rows[start : start + size].tensor_split(group.world)[group.rank]
        for start in range(0, len(rows), size)
    ]
    for batch in samples.each([share for share in shares if len(share)]):
        yield scores(batch.inputs), batch


@torch.no_grad()
def metric_of(metric: str, parts: Sequence[tuple[Any, Any, int]]) -> float:
    """A user's metric of (outputs, targets, samples) of every batch.

    It is asked once, about everything; where batches cannot be joined, since their samples are of
    several lengths, about each batch, and the mean over the samples counts.
    """
    outputs, targets, counts = zip(*parts, strict=True)
    joined = [_joined(outputs), _joined(targets)]
    if all(each is not None for each in joined):
        return losses.measure(metric, *joined)
    values = [losses.measure(metric, out, right) for out, right, _ in parts]
    return math.fsum(v * n for v, n in zip(values, counts, strict=True)) / sum(counts)


def _joined(parts: Sequence[Any]) -> Tensor | None:
    """One tensor of all samples, where there can be one."""
    if not all(isinstance(part, Tensor) and part.dim() for part in parts):
        return None
    return torch.cat(list(parts)) if len({part.shape[1:] for part in parts}) == 1 else None

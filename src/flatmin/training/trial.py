"""What a user brings, tried on a few samples before hours of training; each mistake is one line."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatmin.training import digests, evaluation, losses, own
from flatmin.training.data.batches import changed
from flatmin.training.data.images import ImageData
from flatmin.training.data.sample_batches import run_data
from flatmin.training.data.samples import AnyData, SampleData
from flatmin.training.data.stream import pieces
from flatmin.training.errors import InputError
from flatmin.training.learner import base_optimizer, network
from flatmin.training.processes import ProcessGroup
from flatmin.training.scores import called
from flatmin.training.settings import Training

_SAMPLES = 8
"""How many are tried, at most."""


def require(training: Training, data: AnyData) -> None:
    """Raise InputError where model, data, loss, metric, base optimizer and method do not fit.

    Takes two networks, and a forward and a backward pass over a few samples; nothing of it stays.
    """
    loss = losses.find(training.loss, training.label_smoothing)
    with torch.random.fork_rng():
        model = _new_network(training, data)
        device = ProcessGroup.here().device
        inputs, targets = changed(_some(training, data), lambda each: each.to(device))
        model.to(device).train()
        with _one_line(f"the model {own.title(training.model)} does not take a batch"):
            outputs = called(model, inputs)
        with _one_line(f"the loss {loss.name} does not take what the model gives"):
            value = loss.mean(outputs, targets)
        if not value.requires_grad:
            raise InputError(
                f"the loss {loss.name} does not depend on the weights of "
                f"{own.title(training.model)}: expected one that can be differentiated"
            )
        with _one_line(f"the loss {loss.name} cannot be differentiated"):
            value.backward()
        if training.metric == losses.ACCURACY:
            _require_answers(outputs, targets)
        else:
            with torch.no_grad():
                losses.number(training.metric, outputs, targets)
        base_optimizer(training, model)


def require_method(training: Training) -> None:
    """Raise InputError where the method cannot be built, or needs another loss."""
    method = own.method(training.method)
    losses.find(training.loss, training.label_smoothing).require(method)
    weight = torch.zeros(1, requires_grad=True)
    base = torch.optim.SGD([weight], 0.1)
    settings = dict(training.options)
    with _one_line(f"an option of {method.title} does not fit"):
        method.build(base, training.rho, total_steps=1, settings=settings)


def network_digest(training: Training, data: AnyData) -> str:
    """Eight hexadecimal digits of a user's network: its structure, its parameters and buffers.

    Names, shapes and types count; so do the values that it starts from, where torch's seed is all
    that they depend on, and plain attributes, where those of the next one are the same.
    """
    facts = _facts(training, data)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = network(training, facts)
        said = digests.structure(first)
        torch.manual_seed(0)
        second = network(training, facts)
    if said != digests.structure(second):  # it counts its instances, for one
        said = digests.structure(first, values=False)
    own_state, other = first.state_dict(), second.state_dict()
    tensors = {name: each for name, each in own_state.items() if isinstance(each, Tensor)}
    shapes = [f"{name} {tuple(each.shape)} {each.dtype}" for name, each in tensors.items()]
    alike = all(torch.equal(each, other[name]) for name, each in tensors.items())
    values = [digests.checksum(each) for each in tensors.values()] if alike else []
    return digests.digest(f"{type(first).__qualname__} {said} {shapes} {values}")


def _facts(training: Training, data: AnyData) -> dict[str, int]:
    size = training.size or (data.size if isinstance(data, ImageData) else 0)
    return evaluation.facts(data, size)


def _new_network(training: Training, data: AnyData) -> nn.Module:
    """A network. Raises InputError unless each is a new one."""
    facts = _facts(training, data)
    first, second = (network(training, facts) for _ in range(2))
    ours = {id(each) for each in first.parameters()}
    if first is second or any(id(each) in ours for each in second.parameters()):
        raise InputError(
            f"the model {own.title(training.model)} is the same module each time: every run needs "
            f"new weights, so give a function that makes one, such as lambda: Net()"
        )
    if not ours:
        raise InputError(f"the model {own.title(training.model)} has no parameters to train")
    return first


def _some(training: Training, data: AnyData) -> tuple[Any, Any]:
    """Inputs and targets of a few training samples."""
    if isinstance(data, SampleData):
        few = replace(training, batch=min(_SAMPLES, data.train_count), holdout=0.0)
        batch = run_data(few, data, ProcessGroup(torch.device("cpu"))).primary.next()
        return batch.inputs, batch.targets
    rows = torch.arange(min(_SAMPLES, data.train_count))
    size = training.size or data.size
    pixels = next(pieces(data.train_images[rows])).float() / 255
    return F.interpolate(pixels, (size, size)), data.train_labels[rows]


def _require_answers(outputs: Any, targets: Any) -> None:
    """Raise InputError where accuracy says nothing: a metric of the user's own is needed then."""
    remedy = "give another metric, and say whether more or less of it is better"
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise InputError(
            f"accuracy needs labels that are whole numbers, these are {kind}: {remedy}"
        )
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        raise InputError(f"accuracy needs outputs of shape (batch, classes): {remedy}")
    if outputs.argmax(1).shape != targets.shape:
        raise InputError(
            f"accuracy needs outputs of shape (batch, classes) and labels of shape (batch,), these "
            f"are {tuple(outputs.shape)} and {tuple(targets.shape)}: {remedy}"
        )


@contextmanager
def _one_line(what: str) -> Generator[None, None, None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{what}: {type(error).__name__}: {said}") from None

"""What a run descends and what it is measured by: cross-entropy and accuracy, or a user's own.

A loss is a function of (outputs, targets) to a scalar, such as `torch.nn.functional.mse_loss`; a
metric one to a number, with its direction: "min:torch.nn.functional:l1_loss".
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatmin.methods import Method
from flatmin.training import own
from flatmin.training.errors import InputError, unknown

CROSS_ENTROPY = "cross-entropy"
ACCURACY = "accuracy"
_DIRECTIONS = ("max", "min")

Function = Callable[[Any, Any], Any]
"""Of (outputs, targets)."""


def require(loss: str, metric: str) -> None:
    """Raise InputError where these name no loss or no metric."""
    if loss != CROSS_ENTROPY and not own.is_own(loss):
        raise unknown("loss", loss, [CROSS_ENTROPY, "torch.nn.functional:mse_loss"])
    direction, _, name = metric.partition(":")
    if metric != ACCURACY and not (direction in _DIRECTIONS and own.is_own(name)):
        raise InputError(
            f"metric {metric!r} is neither accuracy nor one with its direction: give "
            f"min:module:name or max:module:name, whichever is better"
        )


def lower_is_better(metric: str) -> bool:
    """Whether of two runs the one with less of `metric` is the better one."""
    return metric.startswith("min:")


def metric_name(metric: str) -> str:
    """Of "min:module:name", what stands behind the direction; "accuracy" stays."""
    return metric if metric == ACCURACY else metric.partition(":")[2]


@dataclass(frozen=True)
class Loss:
    """What is descended.

    Fields:
        name: for messages.
        mean: the loss of a batch, a scalar.
        each: one loss a sample; None where only the mean can be had.
    """

    name: str
    mean: Function
    each: Function | None

    def require(self, method: Method) -> None:
        """Raise InputError where `method` needs more than the mean."""
        if method.per_sample and self.each is None:
            raise InputError(
                f"{method.title} looks at the loss of each sample, and {self.name} takes no "
                f"reduction= as torch's losses do: leave {method.title} out"
            )


def find(name: str, label_smoothing: float = 0.0) -> Loss:
    """The loss called `name`. Raises InputError where it is not here, or cannot be smoothed."""
    if name == CROSS_ENTROPY:
        each = partial(F.cross_entropy, reduction="none", label_smoothing=label_smoothing)
        return Loss(name, partial(_cross_entropy, smoothing=label_smoothing), each)
    if label_smoothing:
        raise InputError(
            f"label_smoothing {label_smoothing:g} belongs to the cross-entropy: leave it away, or "
            f"smooth the labels in {own.title(name)}"
        )
    function = own.find(name)
    if isinstance(function, type):  # torch.nn:MSELoss
        function = function()
    if not callable(function):
        raise InputError(f"the loss {own.title(name)} is no function of (outputs, targets)")
    return Loss(own.title(name), partial(_scalar, own.title(name), function), _each(function))


def _cross_entropy(outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    if targets.dim() > 1:  # padded places, labelled -100, have no part in the mean
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing)
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing).mean()


def _scalar(name: str, function: Function, outputs: Any, targets: Any) -> Tensor:
    loss = function(outputs, targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"the loss {name} gave {found}: expected a scalar, the mean of the batch")
    return loss.reshape(())


def _each(function: Any) -> Function | None:
    """The same loss for each sample, where it takes `reduction` as torch's do."""
    if isinstance(function, nn.Module) and hasattr(function, "reduction"):
        function = copy.copy(function)
        function.reduction = "none"
        return partial(_by_sample, function)
    try:
        reducible = "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    return partial(_by_sample, partial(function, reduction="none")) if reducible else None


def _by_sample(function: Function, outputs: Any, targets: Any) -> Tensor:
    losses: Tensor = function(outputs, targets)
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def number(metric: str, outputs: Any, targets: Any) -> float:
    """What a user's metric gives. Raises InputError where that is no number."""
    name = metric_name(metric)
    function = own.find(name)
    if isinstance(function, type):  # a class of torch or torchmetrics
        function = function()
    try:
        return float(function(outputs, targets))
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the metric {own.title(name)} gives no number: {said}") from None


def measure(metric: str, outputs: Any, targets: Any) -> float:
    """The same, of all test samples: nan is for a model that has diverged, and a mistake else."""
    value = number(metric, outputs, targets)
    if not math.isfinite(value) and _sound(outputs):
        raise InputError(
            f"the metric {own.title(metric_name(metric))} gave {value} for outputs that are "
            f"finite: it must tell runs apart"
        )
    return value


def _sound(outputs: Any) -> bool:
    return isinstance(outputs, Tensor) and bool(torch.isfinite(outputs).all())

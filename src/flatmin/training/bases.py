"""Base optimizers by name: `bases.build("sgd", model.parameters(), lr=0.1, momentum=0.9)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

Base = Callable[[Iterable[Parameter], float, float, float], Optimizer]
"""From (parameters, lr, momentum, weight decay)."""


def build(
    name: str,
    parameters: Iterable[Parameter],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Optimizer:
    """The base optimizer called `name` in `BASES`."""
    return BASES[name](parameters, lr, momentum, weight_decay)


def sgd(
    parameters: Iterable[Parameter],
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
) -> Optimizer:
    """Stochastic gradient descent with momentum; the weight decay is added to the gradient."""
    return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=nesterov)


def nesterov(
    parameters: Iterable[Parameter], lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    """SGD with Nesterov's momentum."""
    return sgd(parameters, lr, momentum, weight_decay, nesterov=True)


def adam(
    parameters: Iterable[Parameter], lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    """Adam with the betas `momentum` and 0.999; the weight decay is added to the gradient."""
    return torch.optim.Adam(parameters, lr, (momentum, 0.999), weight_decay=weight_decay)


def adamw(
    parameters: Iterable[Parameter], lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    """AdamW with the betas `momentum` and 0.999; the weight decay acts on the weights."""
    return torch.optim.AdamW(parameters, lr, (momentum, 0.999), weight_decay=weight_decay)


BASES: Mapping[str, Base] = {"sgd": sgd, "nesterov": nesterov, "adam": adam, "adamw": adamw}
"""Every base optimizer by its name in a recipe."""

"""Base optimizers by name: `bases.build(model.parameters(), training)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

if TYPE_CHECKING:
    from flatmin.training.settings import Training

Base = Callable[[Iterable[Parameter], "Training"], Optimizer]


def build(parameters: Iterable[Parameter], training: Training) -> Optimizer:
    """The base optimizer that `training` names, with its hyperparameters."""
    return table[training.base](parameters, training)


def sgd(parameters: Iterable[Parameter], training: Training, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent with momentum; the weight decay is added to the gradient."""
    return torch.optim.SGD(
        parameters,
        training.lr,
        training.momentum,
        weight_decay=training.weight_decay,
        nesterov=nesterov,
    )


def nesterov(parameters: Iterable[Parameter], training: Training) -> Optimizer:
    """SGD with Nesterov's momentum."""
    return sgd(parameters, training, nesterov=True)


def adam(parameters: Iterable[Parameter], training: Training) -> Optimizer:
    """Adam with the betas `momentum` and 0.999; the weight decay is added to the gradient."""
    return torch.optim.Adam(
        parameters, training.lr, (training.momentum, 0.999), weight_decay=training.weight_decay
    )


def adamw(parameters: Iterable[Parameter], training: Training) -> Optimizer:
    """AdamW with the betas `momentum` and 0.999; the weight decay acts on the weights."""
    return torch.optim.AdamW(
        parameters, training.lr, (training.momentum, 0.999), weight_decay=training.weight_decay
    )


table: Mapping[str, Base] = {"sgd": sgd, "nesterov": nesterov, "adam": adam, "adamw": adamw}
"""Every base optimizer by its name in a recipe."""

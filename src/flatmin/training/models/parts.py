"""What the networks share."""

from __future__ import annotations

import torch
from torch import nn


def scaled(channels: float, width: float) -> int:
    """`channels` times `width`, a whole number of at least 1."""
    return max(1, round(channels * width))


def convolution(inner: int, outer: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps height and width, but for its stride, and has no bias."""
    return nn.Conv2d(inner, outer, kernel, stride, padding=kernel // 2, bias=False)


def normalised(inner: int, outer: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution, batch normalization and relu."""
    return [convolution(inner, outer, stride), nn.BatchNorm2d(outer), nn.ReLU()]


def preactivated(layers: list[nn.Module], inner: int, classes: int) -> nn.Module:
    """A network of blocks that normalise what comes in, so that what they leave is normalised."""
    model = nn.Sequential(
        *layers,
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inner, classes),
    )
    return model.apply(he_initialise)


def he_initialise(module: nn.Module) -> None:
    """He et al.'s initialisation of convolutions, for `Module.apply`."""
    if isinstance(module, nn.Conv2d):
        # torch counts all channels as fed by each, also where they are convolved by group
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.groups > 1:
            with torch.no_grad():
                module.weight *= module.groups**0.5

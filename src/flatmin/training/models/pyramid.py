"""Pyramidal networks: Han, Kim and Kim, Deep Pyramidal Residual Networks, CVPR 2017."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from flatmin.training.models.parts import convolution, preactivated, scaled


def pyramidnet110_48(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """PyramidNet-110 with alpha 48: 1.8 M parameters."""
    return _pyramid(110, 48, channels, classes, width)


def pyramidnet110_270(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """PyramidNet-110 with alpha 270: 28.5 M parameters."""
    return _pyramid(110, 270, channels, classes, width)


def _pyramid(depth: int, alpha: int, channels: int, classes: int, width: float) -> nn.Module:
    """Every block has `alpha` / (number of blocks) channels more than the one before."""
    count = (depth - 2) // 2
    inner = scaled(16, width)
    layers: list[nn.Module] = [convolution(channels, inner), nn.BatchNorm2d(inner)]
    for block in range(1, count + 1):
        outer = scaled(16 + alpha * block / count, width)
        stride = 2 if block in (count // 3 + 1, 2 * count // 3 + 1) else 1
        layers.append(PyramidBlock(inner, outer, stride))
        inner = outer
    return preactivated(layers, inner, classes)


class PyramidBlock(nn.Module):
    """x + two 3x3 convolutions, normalised before, between and after.

    To fit, x gets further channels of zeros.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inner),
            convolution(inner, outer, stride),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            convolution(outer, outer),
            nn.BatchNorm2d(outer),
        )
        self.shrink = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.further = outer - inner

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + F.pad(self.shrink(x), (0, 0, 0, 0, 0, self.further))

"""Wide residual networks: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016."""

from __future__ import annotations

from torch import Tensor, nn

from flatmin.training.models.parts import convolution, preactivated, scaled


def wrn_16_4(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """WRN-16-4: 2.75 M parameters."""
    return _wide(16, 4 * width, channels, classes)


def wrn_28_10(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """WRN-28-10: 36.5 M parameters."""
    return _wide(28, 10 * width, channels, classes)


def _wide(depth: int, factor: float, channels: int, classes: int) -> nn.Module:
    blocks = (depth - 4) // 6
    inner = 16
    layers: list[nn.Module] = [convolution(channels, inner)]
    for planes, stride in ((16, 1), (32, 2), (64, 2)):
        outer = scaled(planes, factor)
        layers += [
            WideBlock(outer if i else inner, outer, 1 if i else stride) for i in range(blocks)
        ]
        inner = outer
    return preactivated(layers, inner, classes)


class WideBlock(nn.Module):
    """x + two 3x3 convolutions of it, normalised before each.

    Where the shape changes, a 1x1 convolution of the normalised input takes the place of x.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inner), nn.ReLU())
        self.residual = nn.Sequential(
            convolution(inner, outer, stride),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            convolution(outer, outer),
        )
        changes = stride != 1 or inner != outer
        self.shortcut = convolution(inner, outer, stride, kernel=1) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        return (x if self.shortcut is None else self.shortcut(y)) + self.residual(y)

"""EfficientNets: Tan and Le, EfficientNet: Rethinking Model Scaling, ICML 2019."""

from __future__ import annotations

import math

from torch import Tensor, nn

from flatmin.training.models.parts import convolution, he_initialise


def b2(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """EfficientNet-B2: 9.11 M parameters for 1,000 classes; made for 260x260 pixels."""
    return EfficientNet(channels, classes, 1.1 * width, 1.2)


def b3(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """EfficientNet-B3: 12.23 M parameters for 1,000 classes; made for 300x300 pixels."""
    return EfficientNet(channels, classes, 1.2 * width, 1.4)


def b4(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """EfficientNet-B4: 19.34 M parameters for 1,000 classes; made for 380x380 pixels."""
    return EfficientNet(channels, classes, 1.4 * width, 1.8)


STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Of EfficientNet-B0; the others have more of both."""


class EfficientNet(nn.Module):
    """Inverted bottlenecks, in which each channel is weighed by what all of the image says.

    Its modules are called as in timm, so that its weights fit. Without dropout and stochastic
    depth, as there unless asked for.

    Args:
        width, depth: factors of the channels and of the blocks of EfficientNet-B0.
    """

    def __init__(self, channels: int, classes: int, width: float, depth: float) -> None:
        super().__init__()
        inner = _rounded(32 * width)
        self.conv_stem = convolution(channels, inner, stride=2)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act = nn.SiLU()
        self.blocks = nn.Sequential()
        for count, kernel, stride, expansion, planes in STAGES:
            stage = nn.Sequential()
            outer = _rounded(planes * width)
            for position in range(math.ceil(count * depth)):
                shape = (inner, outer, kernel, 1 if position else stride)
                stage.append(Separable(*shape) if expansion == 1 else Inverted(*shape, expansion))
                inner = outer
            self.blocks.append(stage)
        last = _rounded(1280 * width)
        self.conv_head = convolution(inner, last, kernel=1)
        self.bn2 = nn.BatchNorm2d(last)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, classes)
        self.apply(he_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        x = self.act(self.bn2(self.conv_head(x)))
        return self.classifier(self.pool(x).flatten(1))


class Separable(nn.Module):
    """A convolution of each channel by itself, then one of each pixel by itself."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _by_channel(inner, kernel, stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act = nn.SiLU()
        self.se = SqueezeExcite(inner, inner)
        self.conv_pw = convolution(inner, outer, kernel=1)
        self.bn2 = nn.BatchNorm2d(outer)
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.act(self.bn1(self.conv_dw(x))))
        y = self.bn2(self.conv_pw(y))
        return x + y if self.residual else y


class Inverted(nn.Module):
    """`Separable` on `expansion` times as many channels as there are outside."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        many = expansion * inner
        self.conv_pw = convolution(inner, many, kernel=1)
        self.bn1 = nn.BatchNorm2d(many)
        self.conv_dw = _by_channel(many, kernel, stride)
        self.bn2 = nn.BatchNorm2d(many)
        self.act = nn.SiLU()
        self.se = SqueezeExcite(many, inner)
        self.conv_pwl = convolution(many, outer, kernel=1)
        self.bn3 = nn.BatchNorm2d(outer)
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv_pw(x)))
        y = self.se(self.act(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


class SqueezeExcite(nn.Module):
    """Each channel times a weight in (0, 1) that depends on the means of all channels."""

    def __init__(self, channels: int, outside: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, max(1, round(outside / 4)), 1)
        self.act = nn.SiLU()
        self.conv_expand = nn.Conv2d(max(1, round(outside / 4)), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.conv_expand(self.act(self.conv_reduce(means))).sigmoid()


def _by_channel(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth below."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8

"""Densely connected networks: Huang et al., Densely Connected Convolutional Networks, CVPR 2017."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatmin.training.models.parts import convolution, he_initialise, scaled


def densenet121(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """DenseNet-121 with a stem for images of 32x32 pixels, 6.96 M parameters for 10 classes."""
    return DenseNet(channels, classes, scaled(32, width), large=False)


def densenet121_imagenet(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """DenseNet-121 as for ImageNet, 7.98 M parameters for its 1,000 classes."""
    return DenseNet(channels, classes, scaled(32, width), large=True)


class DenseNet(nn.Module):
    """Four blocks of 6, 12, 24 and 16 layers, each layer seeing all earlier ones of its block.

    Its modules are called as in torchvision and timm, so that their weights fit.

    Args:
        growth: channels that a layer adds.
        large: a stem for images of 224x224 pixels, which shrinks them fourfold; else one 3x3
            convolution.
    """

    def __init__(self, channels: int, classes: int, growth: int, *, large: bool) -> None:
        super().__init__()
        inner = 2 * growth
        self.features = nn.Sequential()
        if large:
            self.features.add_module("conv0", convolution(channels, inner, 2, 7))
            self.features.add_module("norm0", nn.BatchNorm2d(inner))
            self.features.add_module("relu0", nn.ReLU())
            self.features.add_module("pool0", nn.MaxPool2d(3, 2, padding=1))
        else:
            self.features.add_module("conv0", convolution(channels, inner))
        for number, count in enumerate((6, 12, 24, 16), 1):
            if number > 1:
                self.features.add_module(f"transition{number - 1}", Transition(inner, inner // 2))
                inner //= 2
            block = nn.Sequential()
            for layer in range(1, count + 1):
                block.add_module(f"denselayer{layer}", DenseLayer(inner, growth))
                inner += growth
            self.features.add_module(f"denseblock{number}", block)
        self.features.add_module("norm5", nn.BatchNorm2d(inner))
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inner, classes)
        self.apply(he_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.relu(self.features(x))).flatten(1))


class DenseLayer(nn.Module):
    """x and, beside it, `growth` channels: a 1x1 and a 3x3 convolution, normalised before each."""

    def __init__(self, inner: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv1 = convolution(inner, 4 * growth, kernel=1)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = convolution(4 * growth, growth)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu(self.norm2(y)))], 1)


class Transition(nn.Sequential):
    """Half the channels, half the height and width."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.add_module("norm", nn.BatchNorm2d(inner))
        self.add_module("relu", nn.ReLU())
        self.add_module("conv", convolution(inner, outer, kernel=1))
        self.add_module("pool", nn.AvgPool2d(2, ceil_mode=True))

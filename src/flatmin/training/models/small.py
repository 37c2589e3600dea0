"""Plain networks: a multilayer perceptron and stacks of convolutions."""

from __future__ import annotations

from torch import nn

from flatmin.training.models.parts import he_initialise, normalised, scaled


def mlp(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """Two hidden layers of 256 units; memorises noisy labels within seconds."""
    units = scaled(256, width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, units),
        nn.ReLU(),
        nn.Linear(units, units),
        nn.ReLU(),
        nn.Linear(units, classes),
    )


def cnn(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """Three convolutions (32, 32, 64 channels) with batch normalization and one linear layer."""
    del size  # the pooling makes every size fit
    few, many = scaled(32, width), scaled(64, width)
    return nn.Sequential(
        *normalised(channels, few),
        *normalised(few, few),
        nn.MaxPool2d(2),
        *normalised(few, many),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(many * 4 * 4, classes),
    )


def cnn_2m(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """Two convolutions and a large hidden layer, 2 M parameters: small labels sets are memorised.

    A network for studies of label noise in minutes on a CPU: most of its parameters, and little of
    its work, are in the hidden layer of 480 units.
    """
    del size
    few, many, units = scaled(32, width), scaled(64, width), scaled(480, width)
    return nn.Sequential(
        *normalised(channels, few),
        nn.MaxPool2d(2),
        *normalised(few, many),
        nn.AdaptiveMaxPool2d(8),
        nn.Flatten(),
        nn.Linear(many * 8 * 8, units),
        nn.BatchNorm1d(units),
        nn.ReLU(),
        nn.Linear(units, classes),
    )


def vgg16_bn(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """VGG-16 with batch normalization in the CIFAR form: 13 convolutions and one linear layer.

    Reference: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
    Recognition, ICLR 2015, configuration D; 14.7 M parameters for 10 classes.
    """
    del size
    layers: list[nn.Module] = []
    inner = channels
    for outer, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += normalised(inner, scaled(outer, width))
            inner = scaled(outer, width)
        layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, classes))
    return model.apply(he_initialise)

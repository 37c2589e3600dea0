"""Residual networks: He et al., Deep Residual Learning for Image Recognition, CVPR 2016."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flatmin.training.models.parts import convolution, he_initialise, normalised, scaled


def resnet8(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-8 in the CIFAR form: 3 stages of 1 block, 0.08 M parameters."""
    return CifarResNet(1, channels, classes, width)


def resnet20(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-20 in the CIFAR form: 3 stages of 3 blocks, 0.27 M parameters."""
    return CifarResNet(3, channels, classes, width)


def resnet32(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-32 in the CIFAR form: 3 stages of 5 blocks, 0.47 M parameters."""
    return CifarResNet(5, channels, classes, width)


def resnet18(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-18 with a stem for images of 32x32 pixels, 11.17 M parameters."""
    return ResNet(Basic, (2, 2, 2, 2), channels, classes, width, large=False)


def resnet34(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-34 with a stem for images of 32x32 pixels, 21.28 M parameters."""
    return ResNet(Basic, (3, 4, 6, 3), channels, classes, width, large=False)


def resnet50(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-50 with a stem for images of 32x32 pixels, 23.5 M parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), channels, classes, width, large=False)


def resnet18_imagenet(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-18 as for ImageNet, 11.69 M parameters for its 1,000 classes."""
    return ResNet(Basic, (2, 2, 2, 2), channels, classes, width, large=True)


def resnet34_imagenet(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-34 as for ImageNet, 21.80 M parameters for its 1,000 classes."""
    return ResNet(Basic, (3, 4, 6, 3), channels, classes, width, large=True)


def resnet50_imagenet(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-50 as for ImageNet, 25.56 M parameters for its 1,000 classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), channels, classes, width, large=True)


class CifarResNet(nn.Sequential):
    """A residual network of 6 x `blocks` + 2 layers with 16, 32 and 64 channels (section 4.2).

    Differs from the paper in the two shortcuts that change the shape: a 1x1 convolution with batch
    normalization (its option B) where the paper subsamples and pads with zeros (option A).
    """

    def __init__(self, blocks: int, channels: int, classes: int, width: float = 1.0) -> None:
        first, second, third = (scaled(count, width) for count in (16, 32, 64))
        stages = [
            *_stage(first, first, blocks, stride=1),
            *_stage(first, second, blocks, stride=2),
            *_stage(second, third, blocks, stride=2),
        ]
        super().__init__(
            *normalised(channels, first),
            *stages,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(third, classes),
        )
        self.apply(he_initialise)


class BasicBlock(nn.Module):
    """relu(shortcut(x) + two 3x3 convolutions of x); `stride` 2 halves height and width."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *normalised(inner, outer, stride), convolution(outer, outer), nn.BatchNorm2d(outer)
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut.append(convolution(inner, outer, stride, kernel=1))
            self.shortcut.append(nn.BatchNorm2d(outer))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.shortcut(x) + self.residual(x))


def _stage(inner: int, outer: int, blocks: int, stride: int) -> list[BasicBlock]:
    first = BasicBlock(inner, outer, stride)
    return [first, *(BasicBlock(outer, outer) for _ in range(blocks - 1))]


class ResNet(nn.Module):
    """A residual network of four stages with 64, 128, 256 and 512 channels (section 4.1).

    Its modules are called as in torchvision and timm, so that their weights fit. A bottleneck has
    its stride in the 3x3 convolution, as theirs has and the paper's has not.

    Args:
        block: what a stage is made of.
        counts: blocks of each stage.
        large: a stem for images of 224x224 pixels, which shrinks them fourfold; else one 3x3
            convolution.
    """

    def __init__(
        self,
        block: type[Basic | Bottleneck],
        counts: Sequence[int],
        channels: int,
        classes: int,
        width: float,
        *,
        large: bool,
    ) -> None:
        super().__init__()
        inner = scaled(64, width)
        self.conv1 = convolution(channels, inner, 2, 7) if large else convolution(channels, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        stages: list[nn.Module] = []
        for number, count in enumerate(counts):
            planes = scaled(64 * 2**number, width)
            stage = nn.Sequential()
            for position in range(count):
                stage.append(block(inner, planes, 2 if number and not position else 1))
                inner = planes * block.expansion
            stages.append(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inner, classes)
        self.apply(he_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class Basic(nn.Module):
    """Two 3x3 convolutions around which the input goes."""

    expansion = 1

    def __init__(self, inner: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inner, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = convolution(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inner, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution around which the input goes; four times wider outside."""

    expansion = 4

    def __init__(self, inner: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inner, planes, kernel=1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = convolution(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = convolution(planes, 4 * planes, kernel=1)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inner, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _shortcut(inner: int, outer: int, stride: int) -> nn.Module:
    if stride == 1 and inner == outer:
        return nn.Identity()
    return nn.Sequential(convolution(inner, outer, stride, kernel=1), nn.BatchNorm2d(outer))

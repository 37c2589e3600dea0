"""The network of the few-shot literature."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from flatmin.engine import check

Down: TypeAlias = Literal["stride", "pool"]


class Mean(nn.Module):
    """The mean over height and width."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


def conv4(
    channels: int,
    size: int,
    ways: int,
    *,
    filters: int = 64,
    down: Down = "pool",
) -> nn.Sequential:
    """Four blocks of convolution, normalization by batch statistics and ReLU, and a linear layer.

    Args:
        channels: of the images.
        size: of their side, in pixels; at least 16.
        ways: classes of a task.
        filters: of each convolution; 64 for Omniglot, and 64 or 32 for Mini-ImageNet; default 64.
        down: how each block halves the image: "pool" by 2 x 2 max-pooling, "stride" by
            convolutions with stride 2, followed by the mean over the image (the Omniglot network
            of the MAML paper); default "pool".

    With 64 filters it has 112,261 parameters for Omniglot at 5 ways, 113,236 at 20 ways and 121,093
    for Mini-ImageNet at 5 ways.

    Reference: Vinyals et al. 2016, arXiv:1606.04080; Finn et al. 2017, arXiv:1703.03400, §5.2.

    Examples:
        >>> import flatmin
        >>> model = flatmin.meta.conv4(channels=1, size=28, ways=5, down="stride")
        >>> sum(p.numel() for p in model.parameters())
        112261
    """
    check.one_of("down", down, ("stride", "pool"))
    for name, value in (("channels", channels), ("ways", ways), ("filters", filters)):
        check.positive_int(name, value)
    if size < 16:
        raise ValueError(f"four blocks halve the image four times: size must be >= 16, got {size}")
    layers: list[nn.Module] = []
    inner, side = channels, size
    for _ in range(4):
        layers += [
            nn.Conv2d(inner, filters, 3, stride=2 if down == "stride" else 1, padding=1),
            nn.BatchNorm2d(filters, track_running_stats=False),
            nn.ReLU(),
        ]
        if down == "pool":
            layers.append(nn.MaxPool2d(2))
            side //= 2
        inner = filters
    if down == "stride":
        layers += [Mean(), nn.Linear(filters, ways)]
    else:
        layers += [nn.Flatten(), nn.Linear(filters * side * side, ways)]
    return nn.Sequential(*layers).apply(_initialise)


def _initialise(module: nn.Module) -> None:
    """Glorot's uniform weights and zero biases, as the released networks start."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        with torch.no_grad():
            module.bias.zero_()

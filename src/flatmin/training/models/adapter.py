"""A vision transformer beside a small convolutional network, with which it exchanges features.

Reference: Chen et al., Vision Transformer Adapter for Dense Predictions, ICLR 2023,
arXiv:2205.08534.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatmin.training.models.parts import he_initialise, normalised, scaled
from flatmin.training.models.transformer import VisionTransformer

Shape = tuple[int, int]
"""Height and width of a map of features."""


def vit_adapter_s(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ViT-Adapter-S for classification: ViT-S/16 and 4.4 M parameters beside it."""
    return ViTAdapter(channels, size, classes, heads=scaled(6, width))


class ViTAdapter(VisionTransformer):
    """A vision transformer, every quarter of which is told of local features and tells them back.

    The paper makes maps for detection and segmentation. For classes, this network adds the mean of
    the convolutional features to the class token before the last layer, which is our own choice:
    no paper says how. The backbone's modules are called as in timm, so that its weights fit; those
    of the adapter start anew.
    """

    fresh = ("adapter.",)
    """Modules that weights of a plain transformer do not have."""

    def __init__(self, channels: int, size: int, classes: int, heads: int) -> None:
        super().__init__(channels, size, classes, heads)
        self.grid = (size // 16, size // 16)
        self.adapter = Adapter(channels, 64 * heads, heads)

    def forward(self, x: Tensor) -> Tensor:
        side = self.grid[0]
        features, shapes = self.adapter.prior(x)
        token = self.cls_token.expand(len(x), -1, -1)
        x = torch.cat([token, self.patch_embed(x)], 1) + self.pos_embed
        own, all_scales = centres([self.grid], x), centres(shapes, x)
        interactions = cast("list[Interaction]", list(self.adapter.interactions))
        quarter = len(self.blocks) // len(interactions)
        for number, exchange in enumerate(interactions):
            patches = exchange.inject(x[:, 1:], own, features, shapes)
            x = self.blocks[quarter * number : quarter * (number + 1)](
                torch.cat([x[:, :1], patches], 1)
            )
            features = exchange.extract(features, all_scales, x[:, 1:], [(side, side)], shapes)
        return self.head(self.norm(x)[:, 0] + self.adapter.norm(features).mean(1))


class Adapter(nn.Module):
    """What stands beside the transformer: the convolutions, and the four places of exchange."""

    def __init__(self, channels: int, dim: int, heads: int) -> None:
        super().__init__()
        self.prior = SpatialPrior(channels, dim)
        self.interactions = nn.ModuleList(Interaction(dim, heads) for _ in range(4))
        self.norm = nn.LayerNorm(dim, eps=1e-6)


class SpatialPrior(nn.Module):
    """Convolutional features at an eighth, a sixteenth and a thirty-second of the image's size.

    From (n, channels, size, size) to (n, places, dim), all scales in a row, and their shapes.
    """

    def __init__(self, channels: int, dim: int, planes: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *normalised(channels, planes, 2),
            *normalised(planes, planes),
            *normalised(planes, planes),
            nn.MaxPool2d(3, 2, padding=1),
        )
        widths = (planes, 2 * planes, 4 * planes, 4 * planes)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Sequential(*normalised(a, b, 2)) for a, b in pairs)
        self.project = nn.ModuleList(nn.Conv2d(b, dim, 1) for _, b in pairs)
        self.level = nn.Parameter(torch.randn(3, dim))
        self.apply(he_initialise)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Shape]]:
        x = self.stem(x)
        rows: list[Tensor] = []
        shapes: list[Shape] = []
        for down, project, level in zip(self.down, self.project, self.level, strict=True):
            x = down(x)
            rows.append(project(x).flatten(2).transpose(1, 2) + level)
            shapes.append((x.shape[2], x.shape[3]))
        return torch.cat(rows, 1), shapes


class Interaction(nn.Module):
    """Features go to the transformer before some of its blocks, and come back after them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.to_patches = Look(dim, heads, levels=3)
        self.gamma = nn.Parameter(torch.zeros(dim))  # at first, the transformer is as it was
        self.to_features = Look(dim, heads, levels=1)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, dim // 4)
        self.mix = nn.Conv2d(dim // 4, dim // 4, 3, padding=1, groups=dim // 4)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim // 4, dim)

    def inject(
        self, patches: Tensor, places: Tensor, features: Tensor, shapes: Sequence[Shape]
    ) -> Tensor:
        """The patches (n, p, dim), told of the features (n, f, dim)."""
        return patches + self.gamma * self.to_patches(patches, places, features, shapes)

    def extract(
        self,
        features: Tensor,
        places: Tensor,
        patches: Tensor,
        grid: Sequence[Shape],
        shapes: Sequence[Shape],
    ) -> Tensor:
        """The features (n, f, dim), told of the patches (n, p, dim) and of their neighbours."""
        features = features + self.to_features(features, places, patches, grid)
        hidden = self.fc1(self.norm(features))
        mixed = [
            self.mix(part.transpose(1, 2).unflatten(2, shape)).flatten(2).transpose(1, 2)
            for part, shape in zip(by_level(hidden, shapes), shapes, strict=True)
        ]
        return features + self.fc2(self.act(torch.cat(mixed, 1)))


class Look(nn.Module):
    """Deformable attention: each place looks at a few points near it, at every level.

    Reference: Zhu et al., Deformable DETR, ICLR 2021, arXiv:2010.04159.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feature_norm = nn.LayerNorm(dim, eps=1e-6)
        self.offsets = nn.Linear(dim, heads * levels * points * 2)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.offsets.weight)
        with torch.no_grad():
            self.offsets.bias.copy_(self._star().flatten())

    def forward(
        self, queries: Tensor, places: Tensor, features: Tensor, shapes: Sequence[Shape]
    ) -> Tensor:
        """Queries (n, q, dim) at `places` (q, 2), x and y in [0, 1]; features (n, f, dim)."""
        queries = self.query_norm(queries)
        count, many, _ = queries.shape
        offsets = self.offsets(queries).view(count, many, self.heads, self.levels, self.points, 2)
        weights = self.weights(queries).view(count, many, self.heads, -1).softmax(-1)
        values = self.value(self.feature_norm(features))
        seen: list[Tensor] = []
        for level, (part, shape) in enumerate(zip(by_level(values, shapes), shapes, strict=True)):
            maps = part.transpose(1, 2).reshape(count * self.heads, -1, *shape)
            unit = torch.tensor((shape[1], shape[0]), device=queries.device, dtype=offsets.dtype)
            points = places[:, None, None] + offsets[:, :, :, level] / unit
            points = points.transpose(1, 2).flatten(0, 1)
            seen.append(F.grid_sample(maps, 2 * points.to(maps.dtype) - 1, align_corners=False))
        # (n * heads, dim / heads, q, levels * points), weighed and summed over the last
        shares = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)
        mean = (torch.cat(seen, -1) * shares).sum(-1)
        return self.out(mean.view(count, -1, many).transpose(1, 2))

    def _star(self) -> Tensor:
        """At first, each head looks along a direction of its own, point by point farther."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        rays = torch.stack([angles.cos(), angles.sin()], -1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        star = rays.view(-1, 1, 1, 2) * steps.view(1, 1, -1, 1)
        return star.expand(self.heads, self.levels, self.points, 2)


def by_level(rows: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Rows (n, places, dim) of all scales, scale by scale."""
    sizes = [height * width for height, width in shapes]
    return cast("tuple[Tensor, ...]", rows.split(sizes, 1))


def centres(shapes: Sequence[Shape], like: Tensor) -> Tensor:
    """The centres of all places of maps, x and y in [0, 1]: (places, 2)."""
    found: list[Tensor] = []
    for height, width in shapes:
        y = (torch.arange(height, device=like.device) + 0.5) / height
        x = (torch.arange(width, device=like.device) + 0.5) / width
        found.append(torch.cartesian_prod(y, x).flip(-1))
    return torch.cat(found)

"""Vision transformers: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatmin.training.models.parts import scaled


def vit_s16(channels: int, size: int, classes: int, width: float = 1.0) -> nn.Module:
    """ViT-S/16, which is also DeiT-S: 22.05 M parameters for 224x224 pixels and 1,000 classes."""
    return VisionTransformer(channels, size, classes, heads=scaled(6, width))


class VisionTransformer(nn.Module):
    """Patches of an image, and one token for its class, attending to each other.

    Its modules are called as in timm, so that its weights fit.

    Args:
        size: side of the images, a multiple of `patch`, in pixels.
        heads: of each attention, with 64 channels each.
        depth: number of blocks.
        patch: side of a patch, in pixels.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        classes: int,
        heads: int,
        depth: int = 12,
        patch: int = 16,
    ) -> None:
        super().__init__()
        dim = 64 * heads
        self.patch_embed = Patches(channels, dim, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        self.apply(_initialise)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        token = self.cls_token.expand(len(x), -1, -1)
        x = self.blocks(torch.cat([token, patches], 1) + self.pos_embed)
        return self.head(self.norm(x)[:, 0])


class Patches(nn.Module):
    """From (n, channels, size, size) to one vector a patch, (n, patches, dim)."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class EncoderBlock(nn.Module):
    """x + attention, then x + two layers, normalised before each."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Every token, (n, tokens, dim), looks at all of them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*parts.unbind())
        return self.proj(seen.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers on each token by itself, four times wider between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)

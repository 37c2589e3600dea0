"""Small networks with a dense Hessian, against which operators are held.

The reference is `grad(grad)`, row by row, without any of the shortcuts of `flatmin.analysis`.
`torch.func.hessian` is none: it is wrong with LayerNorm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]
SIZES = (7, 4)
"""Of the batches: uneven ones."""


class Attention(nn.Module):
    """Attention through the module, which takes a fused kernel where it can, and by function."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        q = x.unflatten(2, (2, 3)).transpose(1, 2)
        x = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)
        return self.out(x.mean(1))


class Tied(nn.Module):
    """One matrix goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.embedding(x).mean(1))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3, stride=2, groups=1),
        nn.BatchNorm2d(4, affine=False),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def layer_norms() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU(), nn.GroupNorm(2, 8), nn.Linear(8, 3)
    )


@dataclass(frozen=True)
class Case:
    """A network and what goes in: the shape of one sample, or the number of words."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    words: int = 0
    classes: int = 3

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(0)
        model = self.build().to(dtype)
        with torch.no_grad():  # statistics and gains as after training
            for name, x in [*model.named_parameters(), *model.named_buffers()]:
                if x.is_floating_point():
                    x.add_(0.1 * torch.rand_like(x)) if "var" in name or x.ndim == 1 else None
        return model.eval()

    def batches(self, dtype: torch.dtype = torch.float64) -> list[Batch]:
        source = torch.Generator().manual_seed(1)
        found: list[Batch] = []
        for n in SIZES:
            if self.words:
                x = torch.randint(self.words, (n, *self.sample), generator=source)
            else:
                x = torch.randn(n, *self.sample, generator=source, dtype=torch.float64).to(dtype)
            found.append((x, torch.randint(self.classes, (n,), generator=source)))
        return found


CASES = {
    "convolutions, BatchNorm": Case(convolutions, (2, 6, 6)),
    "LayerNorm, GroupNorm": Case(layer_norms, (6,)),
    "attention": Case(Attention, (4, 6)),
    "tied weights": Case(Tied, (3,), words=5, classes=5),
    "LSTM": Case(Recurrent, (3, 2)),
}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def mean_loss(model: nn.Module, batches: list[Batch]) -> Tensor:
    total = sum(len(b[1]) for b in batches)
    return torch.stack([loss(model, b) * (len(b[1]) / total) for b in batches]).sum()


def dense_hessian(value: Tensor, params: list[Tensor]) -> Tensor:
    """Row by row, by `grad(grad)`."""
    grads = torch.autograd.grad(value, params, create_graph=True)
    rows = [
        flat(torch.autograd.grad(g, params, retain_graph=True, allow_unused=True), params)
        for grad in grads
        for g in grad.reshape(-1)
    ]
    return torch.stack(rows)


def jacobian(outputs: Tensor, params: list[Tensor]) -> Tensor:
    rows = [
        flat(torch.autograd.grad(z, params, retain_graph=True, allow_unused=True), params)
        for z in outputs.reshape(-1)
    ]
    return torch.stack(rows).view(*outputs.shape, -1)


def flat(grads: Any, params: list[Tensor]) -> Tensor:
    pairs = zip(grads, params, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])


def error(operator: Any, dense: Tensor) -> float:
    """How far products with some random vectors are from those of a dense matrix, relatively."""
    source = torch.Generator().manual_seed(2)
    V = torch.randn(len(dense), 3, generator=source, dtype=torch.float64)
    return distance(operator @ V, dense @ V)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, against the largest number."""
    return float((a - b).abs().max() / b.abs().max())

"""DDP as users have it, with all of its defaults, and models that hold more than weights."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tables import IMAGES, LABELS, METHODS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from distributed.common import Findings, mine
from flatmin import methods


class Seen(nn.Module):
    """Counts and averages what passes through, in training mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.data.lerp_(x.mean(0), 0.1)
            self.count += len(x)
        return x + 0.1 * self.mean


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(32, 12), nn.BatchNorm1d(12), Seen(12), nn.Tanh(), nn.Linear(12, 10)
    return nn.Sequential(*layers).double()


def losses(model: nn.Module, start: int, row: Any, chosen: Tensor | None = None) -> Tensor:
    x, y = (mine(t[start : start + 24]) for t in (IMAGES.double(), LABELS))
    x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
    found = cross_entropy(model(x), y, reduction="none")
    if not row.per_sample:
        found.mean().backward()
    return found if row.per_sample else found.mean()


def train(method: str, ascent: str) -> dict[str, Any]:
    """Three steps; a forward pass of a copy says what each should leave.

    It is taken where the first pass of the step is: at `w`, or at `w + eps` if it begins there.
    """
    row = methods.TABLE[method]
    model = DistributedDataParallel(network())
    weights = list(model.parameters())
    base = torch.optim.SGD(weights, lr=0.05, momentum=0.9)
    optimizer = row.build(base, 0.1, total_steps=9, model=model, ascent=ascent)
    once = DistributedDataParallel(network())
    wrong: list[str] = []
    for t in range(3):
        passes: list[int] = []

        def primary(chosen: Tensor | None = None, t: int = t, passes: list[int] = passes) -> Tensor:
            if not passes:
                once.load_state_dict(model.state_dict())
                once(mine(IMAGES[24 * t : 24 * t + 24].double()))
            passes.append(t)
            return losses(model, 24 * t, row, chosen)

        auxiliary = partial(losses, model, 900, row)
        optimizer.step(*(primary, auxiliary)[: 1 + row.auxiliary])
        expected = dict(once.named_buffers())
        wrong += [n for n, b in model.named_buffers() if not torch.equal(b, expected[n])]
    flat = torch.cat([p.detach().flatten() for p in weights])
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, flat)
    return {
        "wrong": wrong,
        "alike": all(torch.equal(found[0], other) for other in found),
        "norm": flat.norm().item(),
        "samples": optimizer.cost.samples,
    }


def by_hand() -> float:
    """SAM over two ranks, written by hand: the length of the weights after three steps."""
    model = DistributedDataParallel(network())
    params = list(model.parameters())
    base = torch.optim.SGD(params, lr=0.05, momentum=0.9)
    row = methods.TABLE["sam"]
    for t in range(3):
        buffers = copy.deepcopy(dict(model.named_buffers()))
        base.zero_grad()
        losses(model, 24 * t, row)
        after = copy.deepcopy(dict(model.named_buffers()))
        g = [p.grad.clone() for p in params]
        norm = torch.sqrt(sum((x**2).sum() for x in g))
        was = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, x in zip(params, g, strict=True):
                p.add_(0.1 * x / norm)
            for name, b in model.named_buffers():
                b.copy_(buffers[name])
        base.zero_grad()
        losses(model, 24 * t, row)
        with torch.no_grad():
            for p, w in zip(params, was, strict=True):
                p.copy_(w)
            for name, b in model.named_buffers():
                b.copy_(after[name])
        base.step()
    return torch.cat([p.detach().flatten() for p in params]).norm().item()


def scenarios(findings: Findings, folder: Path) -> None:
    for method in METHODS:
        for ascent in ("global", "local"):
            findings.note(f"{method} {ascent}", train, method, ascent)
    findings.note("by hand", lambda: {"norm": by_hand()})

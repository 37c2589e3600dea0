"""What the scripts of this folder share. `test_distributed.py` launches them by torchrun.

A script runs on every rank and writes what it found to `<script>-<rank>.json`; the tests judge it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tables import BASES, IMAGES, LABELS, starting
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import flatmin
from flatmin import geometry, methods, selection

SOME = ("sam", "agnostic-asam", "ae-sam", "friendly-sam", "gsam", "look-sam", "lookbehind-sam")
"""Methods of every kind of part, for what need not be shown of all."""

BATCH = {"primary": 24, "auxiliary": 6}
RHO = 0.1


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Large and small tensors, shards of unequal size, and one that rank 1 has nothing of."""
    torch.manual_seed(0)
    layers = nn.Linear(32, 2101), nn.Tanh(), nn.Linear(2101, 5), nn.PReLU(), nn.Linear(5, 10)
    return nn.Sequential(*layers).to(dtype)


def small(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 10)).to(dtype)


def sharded(model: nn.Sequential, **options: Any) -> nn.Module:
    fully_shard(model[0], **options)
    return fully_shard(model, **options)


def alone(model: nn.Module) -> nn.Module:
    return model


WRAPPINGS: dict[str, Callable[[Any], nn.Module]] = {
    "alone": alone,
    "ddp": DistributedDataParallel,
    "ddp with views": partial(DistributedDataParallel, gradient_as_bucket_view=True),
    "ddp with a static graph": partial(DistributedDataParallel, static_graph=True),
    "fsdp": partial(sharded, reshard_after_forward=True),
    "fsdp without resharding": partial(sharded, reshard_after_forward=False),
}


@dataclass(frozen=True)
class RiseOnEachRank(selection.Selection):
    """What two ranks of ESAM choose from a batch of two halves, each from its own."""

    gamma: float = 0.5

    @property
    def per_sample(self) -> bool:
        return True

    def choose(self, at, eps):
        before = at.losses
        after = yield from at.losses_at(eps)
        half = len(before) // 2
        rise = (after - before).view(2, half)
        chosen = rise.topk(int(self.gamma * half), dim=1).indices
        return (chosen + torch.tensor([[0], [half]])).flatten().sort().values


class Worker:
    """A method on this rank: `step` takes the rank's share of the next batch."""

    def __init__(
        self,
        method: str,
        wrapping: str = "alone",
        dtype: torch.dtype = torch.float32,
        *,
        base: str = "sgd",
        build: Callable[[torch.dtype], nn.Module] = network,
        total: int = 6,
        know_model: bool = True,
        **options: Any,
    ) -> None:
        self.method = methods.TABLE[method]
        self.dtype = dtype
        self.whole = wrapping == "alone"
        self.model = WRAPPINGS[wrapping](build(dtype))
        self.base = BASES[base](p for p in self.model.parameters() if p.requires_grad)
        if know_model:
            options["model"] = self.model
        if self.method.per_sample and self.whole:
            options.update(geometry=geometry.RandomSubset(), selection=RiseOnEachRank())
            self.optimizer = flatmin.SharpnessAware(self.base, RHO, **options)
        else:
            settings = starting(self.method, 0.4)
            self.optimizer = self.method.build(
                self.base, RHO, total_steps=total, settings=settings, **options
            )
        self.steps = 0
        self.calls: list[str] = []
        self.factor: Callable[[str, int], float] = lambda batch, call: 1.0
        self.around: Callable[[str], Any] = lambda batch: nullcontext()
        self.after_backward: Callable[[str, int], None] = lambda batch, call: None

    def batch(self, kind: str) -> tuple[Tensor, Tensor]:
        size = BATCH[kind]
        start = (0 if kind == "primary" else 900) + self.steps * size
        x, y = IMAGES[start : start + size].to(self.dtype), LABELS[start : start + size]
        return (x, y) if self.whole else (mine(x), mine(y))

    def losses(self, kind: str, chosen: Tensor | None, call: int) -> Tensor:
        x, y = self.batch(kind)
        x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
        factor = self.factor(kind, call)
        if len(x) and factor != 0.0:
            return cross_entropy(self.model(x), y, reduction="none") * factor
        return cross_entropy(self.model(x[:0]), y[:0], reduction="none")

    def closure(self, kind: str, chosen: Tensor | None = None) -> Tensor:
        call = len(self.calls)
        self.calls.append(kind)
        with self.around(kind):
            losses = self.losses(kind, chosen, call)
            if self.method.per_sample:
                return losses
            loss = losses.mean()
            loss.backward()
        self.after_backward(kind, call)
        return loss

    def closures(self) -> tuple[Callable[..., Tensor], ...]:
        kinds = ("primary", "auxiliary") if self.method.auxiliary else ("primary",)
        return tuple(partial(self.closure, kind) for kind in kinds)

    def step(self) -> Tensor:
        torch.manual_seed(1000 + self.steps)
        self.calls.clear()
        loss = self.optimizer.step(*self.closures())
        self.steps += 1
        return loss

    def run(self, steps: int = 6) -> Worker:
        for _ in range(steps):
            self.step()
        return self

    @property
    def params(self) -> list[Tensor]:
        return list(self.model.parameters())

    def numbers(self) -> dict[str, float]:
        """The counts and what policies keep; samples are each rank's own."""
        kept = self.optimizer.param_groups[0]["flatmin"]
        return {name: x for name, x in kept.items() if "samples" not in name}

    def buffers(self) -> dict[str, Tensor]:
        """All that stands in the state of the parameters, by number and name, whole."""
        state = self.optimizer.state
        return {
            f"{i}.{name}": full(torch.as_tensor(x))
            for i, p in enumerate(self.params)
            for name, x in sorted(state.get(p, {}).items())
        }

    def bits(self) -> str:
        """A name for everything that training has made; it must be asked for on every rank."""
        seen = hashlib.sha1(json.dumps(self.numbers(), sort_keys=True).encode())
        weights = {str(i): full(p.detach()) for i, p in enumerate(self.params)}
        for name, x in {**weights, **self.buffers()}.items():
            seen.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
            seen.update(x.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return seen.hexdigest()


def mine(x: Tensor) -> Tensor:
    """This rank's share of a batch."""
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def full(x: Tensor) -> Tensor:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([full(x.detach()).flatten() for x in tensors])


def deviation(a: Iterable[Tensor], b: Iterable[Tensor], start: Iterable[Tensor] = ()) -> float:
    """The distance of two networks against the length of the second or, given, of its way."""
    u, v = flat(a).double(), flat(b).double()
    way = v - flat(start).double() if start else v
    return ((u - v).norm() / way.norm()).item()


def on_all_ranks(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def ranks_agree(value: Any) -> bool:
    first, *others = on_all_ranks(value)
    return all(other == first for other in others)


class Findings(dict[str, Any]):
    """What the scenarios of a script return, or how they failed."""

    def note(self, key: str, scenario: Callable[..., Any], *args: Any, **options: Any) -> None:
        try:
            self[key] = scenario(*args, **options)
        except Exception:  # the other scenarios may still have something to say
            self[key] = {"error": traceback.format_exc()}


Scenarios = Callable[[Findings, Path], None]


def main(scripts: Mapping[str, Scenarios]) -> None:
    """Join the others, run the scenarios of each script, write down what they found."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank = dist.get_rank()
    for name, scenarios in scripts.items():
        found = Findings()
        try:
            scenarios(found, folder)
        finally:
            (folder / f"{name}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # after a collective has failed, threads of its process group may never end

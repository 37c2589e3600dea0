"""Tensor parallelism, two-dimensional meshes, and shards beside plain parameters."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tables import BASES, BEGIN_PERTURBED, IMAGES, LABELS, METHODS, starting
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy

import flatmin
from distributed.common import RHO, SOME, Findings, deviation, full, main, mine, sharded, small
from flatmin import methods

STEPS = 6


class Network(nn.Module):
    """A normalisation that stays plain, a pair of layers to be split, and a plain last one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.first = nn.Linear(32, 14)
        self.second = nn.Linear(14, 12)
        self.last = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(self.norm(x))))))


def network() -> Network:
    torch.manual_seed(0)
    return Network().double()


# Each wrapper takes the network, and says whether ranks see the whole batch or their shares of it.
Wrap = Callable[[Network], bool]


def tensor_parallel(model: Network) -> bool:
    mesh = init_device_mesh("cpu", (2,))
    plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
    parallelize_module(model, mesh, plan)
    return True


def sequence_parallel(model: Network) -> bool:
    """Each rank normalises its share; the gradients of the norm are sums yet to be taken."""
    mesh = init_device_mesh("cpu", (2,))
    plan = {
        "norm": SequenceParallel(sequence_dim=0),
        "first": ColwiseParallel(input_layouts=Shard(0)),
        "second": RowwiseParallel(),
    }
    parallelize_module(model, mesh, plan)

    def take_share(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (mine(args[0]),)

    model.norm.register_forward_pre_hook(take_share, prepend=True)
    return True


def hybrid(replicas: int, shards: int) -> Wrap:
    def wrap(model: Network) -> bool:
        mesh = init_device_mesh("cpu", (replicas, shards), mesh_dim_names=("replicate", "shard"))
        fully_shard(model.first, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return False

    return wrap


def two_dimensional(data: int, tensor: int) -> Wrap:
    """FSDP2 over tensor parallelism, as in large language models."""

    def wrap(model: Network) -> bool:
        mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data", "tensor"))
        plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        parallelize_module(model, mesh["tensor"], plan)
        for layer in (model.first, model.second):
            fully_shard(layer, mesh=mesh["data"])
        fully_shard(model, mesh=mesh["data"])
        model.data_rank = mesh.get_local_rank("data")
        model.data_ranks = data
        return data == 1

    return wrap


def beside_plain(model: Network) -> bool:
    """Only one layer is sharded; the loop itself averages the gradients of the others."""
    fully_shard(model.first)

    def average(p: Tensor) -> None:
        assert p.grad is not None
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()

    for p in model.parameters():
        if not hasattr(p, "full_tensor"):
            p.register_post_accumulate_grad_hook(average)
    return False


# --- training


class Trainer:
    def __init__(self, method: str, wrap: Wrap | None, *, know_model: bool = True, **options: Any):
        self.method = methods.TABLE[method]
        self.model = network()
        self.whole = wrap(self.model) if wrap else True
        self.shares = getattr(self.model, "data_ranks", dist.get_world_size())
        self.share = getattr(self.model, "data_rank", dist.get_rank())
        base = BASES["sgd"](self.model.parameters())
        if know_model:
            options["model"] = self.model
        options["measure_radius"] = True
        settings = starting(self.method, 0.4)
        self.optimizer = self.method.build(
            base, RHO, total_steps=STEPS, settings=settings, **options
        )
        if self.method.per_sample:  # all samples, whichever rank they are on
            self.optimizer.selection = flatmin.selection.LossRise(gamma=1.0)
        self.steps = 0

    def losses(self, start: int, size: int) -> Tensor:
        """Every third step they are small, so that the adaptive policy takes both branches."""
        x, y = IMAGES[start : start + size].double(), LABELS[start : start + size]
        if not self.whole:
            x, y = x.chunk(self.shares)[self.share], y.chunk(self.shares)[self.share]
        factor = 0.05 if self.steps % 3 == 2 else 1.0
        return full(factor * cross_entropy(self.model(x), y, reduction="none"))

    def primary(self, chosen: Tensor | None = None) -> Tensor:
        losses = self.losses(24 * self.steps, 24)
        return losses if self.method.per_sample else backward(losses.mean())

    def auxiliary(self) -> Tensor:
        return backward(self.losses(900 + 8 * self.steps, 8).mean())

    def run(self) -> Trainer:
        for _ in range(STEPS):
            closures = [self.primary, self.auxiliary] if self.method.auxiliary else [self.primary]
            self.optimizer.step(*closures)
            self.steps += 1
        return self


def backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss


def equal(method: str, wrap: Wrap, **options: Any) -> dict[str, Any]:
    """Against one process with the whole batch."""
    ours, alone = Trainer(method, wrap, **options).run(), by_one(method, **options)
    params = list(ours.model.parameters())
    return {
        "of the way": deviation(params, alone.model.parameters(), network().parameters()),
        "perturbed": [x.optimizer.cost.perturbed for x in (ours, alone)],
        "radius": [x.optimizer.cost.distance for x in (ours, alone)],
        "kinds": sorted({"shards" if hasattr(p, "full_tensor") else "plain" for p in params}),
    }


@cache
def by_one(method: str, **options: Any) -> Trainer:
    return Trainer(method, None, **options).run()


def placements(wrap: Wrap) -> list[str]:
    """What the parameters are, and what their gradients are."""
    model = network()
    wrap(model)
    model(IMAGES[:4].double()).square().mean().backward()
    return sorted(
        {
            f"{getattr(p, 'placements', None)} <- {getattr(p.grad, 'placements', None)}"
            for p in model.parameters()
        }
    )


def norms(wrap: Wrap) -> list[tuple[float, float]]:
    """The length of the first step that is climbed, and of the same in one process."""
    found = []
    for geometry in (flatmin.geometry.Euclidean(), flatmin.geometry.Adaptive(0.1)):
        lengths = []
        for how in (wrap, None):
            trainer = Trainer("sam", how)
            trainer.optimizer.geometry = geometry
            trainer.optimizer.step(trainer.primary)
            lengths.append(trainer.optimizer.cost.radius)
        found.append((lengths[0], lengths[1]))
    return found


def in_bfloat16() -> list[float]:
    """FSDP2 keeps float32 shards of a model that computes in bfloat16: the radius is exact."""
    lengths = []
    for options in ({}, {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}):
        model = sharded(small(), **options)
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = flatmin.SAM(base, rho=0.5, model=model, measure_radius=True)

        def closure(model: nn.Module = model) -> Tensor:
            loss = cross_entropy(model(mine(IMAGES[:24])).float(), mine(LABELS[:24]))
            loss.backward()
            return loss

        optimizer.step(closure)
        lengths.append(optimizer.cost.radius)
    return lengths


def wholly_on_one_rank() -> dict[str, Any]:
    """A sharded parameter of which rank 1 holds nothing, and nothing else in its group."""

    def group(model: nn.Module) -> Sequence[dict[str, Any]]:
        scale, others = model[-1].scale, [p for p in model.parameters() if p.numel() > 1]
        return [{"params": [scale]}, {"params": others, "rho": 0.3}]

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    found = []
    for wrap in (True, False):
        model = small(torch.float64).append(Scale())
        if wrap:
            sharded(model)
        optimizer = flatmin.FriendlySAM(torch.optim.Adam(group(model), lr=0.01), rho=0.1)
        for t in range(STEPS):
            x, y = IMAGES[24 * t : 24 * t + 24].double(), LABELS[24 * t : 24 * t + 24]

            def closure(x: Tensor = x, y: Tensor = y, model: nn.Module = model) -> Tensor:
                share = mine if wrap else (lambda batch: batch)
                loss = cross_entropy(model(share(x)), share(y))
                loss.backward()
                return loss

            optimizer.step(closure)
        found.append([p.detach() for p in model.parameters()])
    local = found[0][-1].to_local().numel()
    return {"held": local, "deviation": deviation(*found)}


def two_meshes() -> dict[str, Any]:
    """Shards over two process groups, of a size that makes the ranks lay them out differently."""
    mesh = init_device_mesh("cpu", (2,))
    other = DeviceMesh.from_group(dist.new_group([0, 1]), "cpu")
    torch.manual_seed(0)
    wholes = [torch.randn(2 * (1 << 15) + 1), torch.randn(10)]
    grads = [torch.randn_like(w) for w in wholes]
    params = [
        nn.Parameter(distribute_tensor(w, m, [Shard(0)]))
        for w, m in zip(wholes, (mesh, other), strict=True)
    ]
    optimizer = flatmin.SAM(torch.optim.SGD(params, lr=0.1), rho=0.5, measure_radius=True)

    def closure() -> Tensor:
        for p, g, m in zip(params, grads, (mesh, other), strict=True):
            p.grad = distribute_tensor(g, m, [Shard(0)])
        return torch.tensor(1.0)

    optimizer.step(closure)
    return {"radius": optimizer.cost.radius}


LAYOUTS: dict[str, Wrap] = {
    "tensor parallel": tensor_parallel,
    "sequence parallel": sequence_parallel,
    "two replicas of one shard": hybrid(2, 1),
    "one replica of two shards": hybrid(1, 2),
    "data over tensor": two_dimensional(2, 1),
    "tensor over data": two_dimensional(1, 2),
    "beside plain": beside_plain,
}


FOUR: dict[str, Wrap] = {
    "two by two": two_dimensional(2, 2),
    "two replicas of two shards": hybrid(2, 2),
}
"""Layouts for four processes."""

OF_FOUR = (*SOME[:3], *BEGIN_PERTURBED, "mixed-rwp", "wsam", "late-agnostic-sam")
"""The methods that are trained in them: also what looks at weights or the base's buffers."""


def scenarios(found: Findings, folder: Path) -> None:
    for name, wrap in LAYOUTS.items():
        found.note(f"placements, {name}", placements, wrap)
        found.note(f"norms, {name}", norms, wrap)
        for method in METHODS if name == "tensor parallel" else SOME[:4]:
            found.note(f"{name}, {method}", equal, method, wrap)
        found.note(f"{name}, without the model", equal, "gsam", wrap, know_model=False)
        found.note(f"{name}, clipped", equal, "sam", wrap, max_norm=0.05)
    found.note("bfloat16", in_bfloat16)
    found.note("on one rank", wholly_on_one_rank)
    found.note("two meshes", two_meshes)


def four(found: Findings, folder: Path) -> None:
    for name, wrap in FOUR.items():
        found.note(f"placements, {name}", placements, wrap)
        found.note(f"norms, {name}", norms, wrap)
        for method in OF_FOUR:
            found.note(f"{name}, {method}", equal, method, wrap)


if __name__ == "__main__":
    main({"four": four} if os.environ["WORLD_SIZE"] == "4" else {"sharding": scenarios})

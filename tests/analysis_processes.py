"""What two processes see of a loss, each with its own part of the data; torchrun launches it."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from curvatures import CASES, Batch, loss
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import flatmin
from flatmin import analysis

CASE = CASES["convolutions, BatchNorm"]
SHARDED = CASES["LayerNorm, GroupNorm"]


def shares(batches: list[Batch], rank: int, ranks: int) -> list[Batch]:
    """Uneven parts: the batches of the table differ in size."""
    return batches[rank::ranks]


def vector(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def found(rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    torch.use_deterministic_algorithms(True)
    result: dict[str, Any] = {}
    model: nn.Module = CASE.model()
    if ranks > 1:
        model = DistributedDataParallel(model)
    batches = shares(CASE.batches(), rank, ranks)
    for which in (analysis.Hessian, analysis.GaussNewton, analysis.EmpiricalFisher):
        operator = which(model, loss, batches, mode="eval")
        result[which.__name__] = (operator @ vector(operator.shape[0])).tolist()
    H = analysis.Hessian(model, loss, batches, mode="eval")
    result["samples"] = H.objective.samples
    result["eigenvalues"] = analysis.eigenvalues(H, 3, tol=1e-6).values.tolist()
    value, gradient = H.objective.value_and_gradient()
    result["value"], result["gradient"] = value, gradient.tolist()
    noise = analysis.gradient_noise(model, loss, batches, batch=2, mode="eval")
    result["noise"] = [noise.full, noise.variance, *sorted(noise.squared_norms.tolist())]
    result["alignment"] = alignment(rank, ranks)
    if ranks > 1:  # the model trains on as if nothing had been
        model.train()
        loss(model, batches[0]).backward()
        result["trains"] = all(p.grad is not None for p in model.parameters())
    return result | surfaces(rank, ranks) | sharded(rank, ranks)


def surfaces(rank: int, ranks: int) -> dict[str, Any]:
    """Points shared by processes that have the same data, and data shared by replicas."""
    model: nn.Module = CASE.model()
    batches = CASE.batches()
    file = Path(sys.argv[1]) / "surface.npz" if ranks > 1 else None
    options: dict[str, Any] = {"at": 3, "statistics": "reestimated", "metrics": "accuracy"}
    shared = analysis.surface(model, loss, batches, file=file, **options)
    result: dict[str, Any] = {
        "shared": [shared.losses.tolist(), shared.metrics["accuracy"].tolist()]
    }
    if ranks > 1:

        def counted(model: nn.Module, batch: Batch) -> torch.Tensor:
            result["evaluated again"] = result.get("evaluated again", 0) + 1
            return loss(model, batch)

        analysis.surface(model, counted, batches, file=file, **options)
        try:
            analysis.surface(model, loss, batches[rank:], **options)
        except ValueError as error:
            result["other data"] = str(error)
        try:
            analysis.surface(model, loss, batches, file=file, **(options | {"at": 4}))
        except ValueError as error:
            result["other grid"] = str(error)

        def failing(model: nn.Module, batch: Batch) -> torch.Tensor:
            if rank == 1 and model[0].weight[0, 0, 0, 0] != CASE.model()[0].weight[0, 0, 0, 0]:
                raise ArithmeticError("of rank 1")
            return loss(model, batch)

        try:
            analysis.surface(model, failing, batches, **options)
        except (ArithmeticError, RuntimeError) as error:
            result["failed"] = str(error)
        model = DistributedDataParallel(model)
    mine = shares(batches, rank, ranks)
    file = file and file.with_name("replicas.npz")
    result["replicas"] = analysis.surface(model, loss, mine, file=file, **options).losses.tolist()
    again = analysis.surface(model, loss, mine, file=file, **options).losses.tolist()
    result["replicas again"] = again
    return result


def alignment(rank: int, ranks: int) -> list[float]:
    """Cosines along three steps, each rank with its half of both batches."""
    model: nn.Module = SHARDED.model()
    inputs, labels = (torch.cat(part) for part in zip(*SHARDED.batches(), strict=True))
    if ranks > 1:
        model = DistributedDataParallel(model)
    base = torch.optim.SGD(model.parameters(), lr=0.3)
    optimizer = flatmin.AgnosticSAM(base, rho=0.1, model=model)
    monitor = analysis.AlignmentMonitor(model, every=1, optimizer=optimizer)

    def on(start: int, count: int) -> Any:
        part = slice(start + rank * count // ranks, start + (rank + 1) * count // ranks)

        def closure() -> torch.Tensor:
            value = loss(model, (inputs[part], labels[part]))
            value.backward()
            return value

        return closure

    for _ in range(3):
        optimizer.step(*monitor.wrap(on(0, 6), on(6, 4)))
    return [*monitor.alignment.before.tolist(), *monitor.alignment.after.tolist()]


def sharded(rank: int, ranks: int) -> dict[str, Any]:
    model: Any = SHARDED.model()
    batches = shares(SHARDED.batches(), rank, ranks)
    result: dict[str, Any] = {}
    if ranks > 1:
        fully_shard(model[0])
        fully_shard(model)
        try:
            analysis.Hessian(model, loss, batches)
        except ValueError as error:
            result["refused"] = str(error)
    objective = analysis.Objective(model, loss, batches)
    value, gradient = objective.value_and_gradient()
    result["sharded value"], result["sharded gradient"] = value, gradient.tolist()
    H = analysis.Hessian(model, loss, batches, differences=ranks > 1)
    result["sharded product"] = (H @ vector(H.shape[0])).tolist()
    result["sharded value again"] = objective.value()
    return result


def main() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    path = Path(sys.argv[1]) / f"{rank}.json"
    path.write_text(json.dumps(found(rank, ranks)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

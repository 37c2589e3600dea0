"""Two processes against one process on the joined batch: every method, wrapped in every way."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tables import METHODS

from distributed.common import (
    SOME,
    WRAPPINGS,
    Findings,
    Worker,
    deviation,
    main,
    network,
)

STEPS = 6

CLIPPED = {"max_norm": 0.05, "measure_radius": True, "base": "adamw"}


def compare(method: str, wrapping: str, reference: Worker, **options: Any) -> dict[str, Any]:
    worker = Worker(method, wrapping, reference.dtype, **options)
    storage = [local_address(p) for p in worker.params]
    replicated = wrapping.startswith("ddp")
    steps = []
    for _ in range(STEPS):
        worker.step()
        steps.append(worker.bits() if replicated else worker.numbers())
    return {
        "steps": steps,
        "deviation": deviation(worker.params, reference.params),
        "of the way": deviation(
            worker.params, reference.params, network(reference.dtype).parameters()
        ),
        "same counts": counts(worker) == counts(reference),
        "perturbed": worker.optimizer.cost.perturbed,
        "same storage": storage == [local_address(p) for p in worker.params],
    }


def local_address(p: torch.Tensor) -> int:
    return (p.to_local() if hasattr(p, "to_local") else p).data_ptr()


def counts(worker: Worker) -> dict[str, float]:
    """Each rank differentiates its share of the samples, and all look equally far."""
    cost = asdict(worker.optimizer.cost)
    share = 1 if worker.whole else 2
    cost.update(samples=share * cost["samples"], primary_samples=share * cost["primary_samples"])
    cost["distance"] = round(cost["distance"], 4)
    return cost


def wrappings(method: str) -> list[str]:
    """All, for methods of every kind; the most different two for the others."""
    every = [name for name in WRAPPINGS if name != "alone"]
    return every if method in SOME else ["ddp with views", "fsdp"]


def scenarios(found: Findings, folder: Path) -> None:
    for method in METHODS:
        reference = Worker(method, dtype=torch.float64).run(STEPS)
        for wrapping in wrappings(method):
            found.note(f"{method}, {wrapping}, float64", compare, method, wrapping, reference)
        reference = Worker(method).run(STEPS)
        for wrapping in ("ddp", "fsdp") if method in SOME else ("ddp",):
            found.note(f"{method}, {wrapping}, float32", compare, method, wrapping, reference)
    for method in SOME:
        reference = Worker(method, dtype=torch.float64, **CLIPPED).run(STEPS)
        for wrapping in ("ddp with views", "fsdp without resharding"):
            key = f"{method}, {wrapping}, clipped AdamW"
            found.note(key, compare, method, wrapping, reference, **CLIPPED)


if __name__ == "__main__":
    main({"equality": scenarios})

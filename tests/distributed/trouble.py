"""Numbers that are not finite on one rank, empty batches, overflows, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tables import METHODS
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.functional import cross_entropy

import flatmin.engine.distributed
from distributed.common import SOME, Findings, Worker, full, main, ranks_agree, sharded, small
from flatmin import amp

WRAPPINGS = ("ddp", "fsdp")


def rank() -> int:
    return dist.get_rank()


def locals_of(worker: Worker) -> list[Tensor]:
    """What this rank holds, which can be looked at without the others."""
    return [p.to_local() if hasattr(p, "to_local") else p for p in worker.params]


def snapshot(worker: Worker) -> list[Tensor]:
    return [x.detach().clone() for x in locals_of(worker)]


def unmoved(worker: Worker, before: list[Tensor]) -> bool:
    return all(map(torch.equal, before, locals_of(worker)))


def counts(worker: Worker) -> dict[str, int]:
    cost = worker.optimizer.cost
    return {"steps": cost.steps, "skipped": cost.skipped, "perturbed": cost.perturbed}


# --- not finite on one rank


def spoiled(
    method: str, wrapping: str, spoil: Callable[[Worker], None], **options: Any
) -> dict[str, Any]:
    """Two good steps, a spoiled one, two good ones, against four good ones."""
    worker = Worker(method, wrapping, build=small, **options).run(2)
    before, state = snapshot(worker), worker.buffers()
    spoil(worker)
    said: list[str] = []
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            worker.step()
        except FloatingPointError as floating:
            error = str(floating)
    said += [str(w.message) for w in caught if "skipped" in str(w.message)]
    after = worker.buffers()
    found = {
        "unmoved": unmoved(worker, before) and state.keys() == after.keys(),
        "state": all(torch.equal(x, after[name]) for name, x in state.items()),
        "counts": counts(worker),
        "said": said,
        "raised": error,
    }
    worker.factor = lambda batch, call: 1.0
    worker.steps = 2
    worker.run(2)
    found["as if nothing had been"] = all(
        map(torch.equal, map(full, worker.params), unspoiled(method, wrapping, **options))
    )
    found["agree"] = ranks_agree(worker.bits())
    return found


@cache
def unspoiled(method: str, wrapping: str, **options: Any) -> list[Tensor]:
    """The weights after four good steps, and no other."""
    return [full(p) for p in Worker(method, wrapping, build=small, **options).run(4).params]


def empty_batch(worker: Worker) -> None:
    """Rank 1 has nothing to see in this step: a mean over nothing is nan."""
    if rank() == 1:
        worker.factor = lambda batch, call: 0.0


def inf_at(call: int) -> Callable[[Worker], None]:
    def spoil(worker: Worker) -> None:
        if rank() == 1:
            worker.factor = lambda batch, i: float("inf") if i == call else 1.0

    return spoil


def passes_of(method: str) -> int:
    """The passes of the third step that run backward."""
    worker = Worker(method, build=small).run(3)
    return 2 if worker.method.per_sample else len(worker.calls)


# --- loss scaling


class Scaled(Worker):
    """Under float16 autocast, with a scaler."""

    scaler: GradScaler

    def closure(self, kind: str, chosen: Tensor | None = None) -> Tensor:
        call = len(self.calls)
        self.calls.append(kind)
        x, y = self.batch(kind)
        with torch.autocast("cpu", torch.float16):
            loss = cross_entropy(self.model(x), y) * self.factor(kind, call)
        self.scaler.scale(loss).backward()
        return loss

    def step(self) -> Tensor:
        self.calls.clear()
        loss = amp.step(self.optimizer, self.scaler, *self.closures())
        self.steps += 1
        return loss


def overflow_on_one_rank(wrapping: str, ascent: str, call: int) -> dict[str, Any]:
    worker = Scaled("sam", wrapping, build=small, ascent=ascent)
    worker.scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    worker.run(1)
    before = snapshot(worker)
    if rank() == 1:
        worker.factor = lambda batch, i: 1e30 if i == call else 1.0
    worker.step()
    still = unmoved(worker, before)
    scale = worker.scaler.get_scale()
    worker.factor = lambda batch, i: 1.0
    worker.run(2)
    scales = [scale, worker.scaler.get_scale()]
    return {
        "unmoved": still,
        "scales": scales,
        "counts": counts(worker),
        "agree": ranks_agree((worker.bits(), worker.scaler.state_dict())),
    }


# --- what is refused


def refused(attempt: Callable[[], Any]) -> dict[str, str]:
    try:
        attempt()
    except Exception as error:
        return {"type": type(error).__name__, "message": str(error)}
    return {"type": "", "message": "nothing was raised"}


def build(model: nn.Module, *, know_model: bool = True, **options: Any) -> flatmin.SharpnessAware:
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return flatmin.SAM(base, model=model if know_model else None, **options)


def fsdp1(**options: bool) -> nn.Module:
    return FullyShardedDataParallel(small(), device_id=torch.device("cpu"), **options)


REFUSED: dict[str, Callable[[], Any]] = {
    "local, sharded": lambda: build(sharded(small()), ascent="local"),
    "local, sharded, unknown": lambda: build(sharded(small()), know_model=False, ascent="local"),
    "local, static graph": lambda: Worker("sam", "ddp with a static graph", ascent="local"),
    "FSDP1": lambda: build(fsdp1()),
    "FSDP1, unknown": lambda: build(fsdp1(), know_model=False),
    "FSDP1, its own parameters": lambda: build(fsdp1(use_orig_params=True), know_model=False),
}


def scenarios(found: Findings, folder: Path) -> None:
    for method in METHODS:
        for wrapping in WRAPPINGS if method in SOME else ("ddp",):
            found.note(f"empty, {method}, {wrapping}", spoiled, method, wrapping, empty_batch)
    for method in SOME:
        for call in range(passes_of(method)):
            key = f"inf, {method}, pass {call}"
            found.note(key, spoiled, method, "ddp", inf_at(call))
        key = f"inf, {method}, local"
        found.note(key, spoiled, method, "ddp", inf_at(0), ascent="local")
    for wrapping in WRAPPINGS:
        raising = {"nonfinite": "raise"}
        found.note(f"raise, {wrapping}", spoiled, "sam", wrapping, empty_batch, **raising)
    for call in (0, 1):
        for wrapping, ascent in (("ddp", "global"), ("fsdp", "global"), ("ddp", "local")):
            key = f"overflow, {wrapping}, {ascent}, pass {call}"
            found.note(key, overflow_on_one_rank, wrapping, ascent, call)
    for key, attempt in REFUSED.items():
        found.note(f"refused, {key}", refused, attempt)


if __name__ == "__main__":
    main({"trouble": scenarios})

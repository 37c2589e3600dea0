"""Numbers that are not finite on one rank, empty batches, and closures that raise."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tables import METHODS
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.functional import cross_entropy

import flatmin.engine.distributed
from distributed.common import SOME, Findings, Worker, full, main, ranks_agree, sharded, small
from flatmin import amp

WRAPPINGS = ("ddp", "fsdp")
PATIENCE = 3.0
"""Seconds that a rank waits for another."""


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


# --- a closure that raises


class Broken(Exception):
    pass


def again(store: Any, scenario: str) -> None:
    """Begin with a new process group: where a collective has failed, the old one is of no use."""
    store.set(f"{scenario} {RANK}", "ready")
    store.wait([f"{scenario} {r}" for r in range(2)], timedelta(seconds=60))
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore(scenario, store),
        rank=RANK,
        world_size=2,
        timeout=timedelta(seconds=PATIENCE),
    )
    dist.barrier()


def failing(
    method: str,
    wrapping: str,
    at: int,
    *,
    after_backward: bool = False,
    hangs: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Rank 1 breaks down in pass `at` of the third step; or it hangs, longer than others wait."""
    worker = Worker(method, wrapping, build=small, **options).run(2)
    before, cost = snapshot(worker), worker.optimizer.cost
    dist.barrier()

    def break_down(batch: str, call: int) -> None:
        if RANK == 1 and call == at:
            if hangs:
                time.sleep(PATIENCE + 3 * flatmin.engine.distributed.PATIENCE.total_seconds())
            raise Broken("the data of this rank are gone")

    if after_backward:
        worker.after_backward = break_down
    else:
        worker.factor = lambda batch, call: break_down(batch, call) or 1.0
    begin = time.monotonic()
    try:
        worker.step()
    except Exception as error:
        raised = {"type": type(error).__name__, "message": str(error)}
    else:
        raised = None
    return {
        "raised": raised,
        "seconds": time.monotonic() - begin,
        "unmoved": unmoved(worker, before),
        "same cost": worker.optimizer.cost == cost,
    }


def failing_alike() -> dict[str, Any]:
    """Both ranks meet the same error, as with a batch that is too large: it is each one's own."""
    worker = Worker("sam", "ddp", build=small).run(2)
    before = snapshot(worker)

    def break_down(batch: str, call: int) -> float:
        time.sleep(0.5 * RANK)
        raise Broken("too large")

    worker.factor = break_down
    try:
        worker.step()
    except Exception as error:
        raised = {"type": type(error).__name__, "message": str(error)}
    still = unmoved(worker, before)
    worker.factor = lambda batch, call: 1.0
    worker.run(2)
    goes_on = all(map(torch.equal, worker.params, unspoiled("sam", "ddp")))
    return {"raised": raised, "unmoved": still, "as if nothing had been": goes_on}


def failing_once_more() -> dict[str, Any]:
    """An error that both ranks have caught is no excuse for the next one."""
    worker = Worker("sam", "ddp", build=small).run(2)
    errors = [Broken("too large"), ValueError("something else")]
    raised = []

    def break_down(batch: str, call: int) -> float:
        raise errors[len(raised)]

    worker.factor = break_down
    for _ in errors:
        try:
            worker.step()
        except Exception as error:
            raised.append(f"{type(error).__name__}: {error}")
        dist.barrier()
    return {"raised": raised}


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

    flatmin.engine.distributed.PATIENCE = timedelta(seconds=0.5)
    store = dist.distributed_c10d._get_default_store()
    for i, (key, scenario) in enumerate(FAILURES.items()):
        again(store, str(i))
        found.note(key, scenario)
    again(store, "end")


RANK = int(os.environ.get("RANK", "0"))
"""Known also where there is no process group any more."""

FAILURES: dict[str, Callable[[], Any]] = {
    "failing alike": failing_alike,
    "failing once more": failing_once_more,
    "two meshes": two_meshes,
    "failing, ddp, first pass": lambda: failing("sam", "ddp", 0),
    "failing, ddp, second pass": lambda: failing("sam", "ddp", 1),
    "hanging": lambda: failing("sam", "ddp", 1, hangs=True),
    "failing, ddp, last backward": lambda: failing("sam", "ddp", 1, after_backward=True),
    "failing, local": lambda: failing("agnostic-sam", "ddp", 1, ascent="local"),
    "failing, fsdp, second pass": lambda: failing("sam", "fsdp", 1),
    "failing, fsdp, first backward": lambda: failing("sam", "fsdp", 0, after_backward=True),
}


if __name__ == "__main__":
    main({"trouble": scenarios})

"""Closures that raise, or hang, on one rank: what breaks a process group.

A launch of their own: where a collective was given up, threads of gloo are left behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import flatmin.engine.distributed
from distributed.common import Findings, Worker, main, small
from distributed.trouble import snapshot, unmoved, unspoiled

PATIENCE = 3.0
"""Seconds that a rank waits for another."""

RANK = int(os.environ.get("RANK", "0"))
"""Known also where there is no process group any more."""

BROKEN: list[Any] = []
"""Groups that were left. They are kept: a rank has crashed once, about when one was freed, and the
other rank closes its end then."""


class Broken(Exception):
    pass


def again(store: Any, scenario: str) -> None:
    """Begin with a new process group: where a collective has failed, the old one is of no use."""
    store.set(f"{scenario} {RANK}", "ready")
    store.wait([f"{scenario} {r}" for r in range(2)], timedelta(seconds=60))
    if dist.is_initialized():
        BROKEN.extend(dist.distributed_c10d._world.pg_map)
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


FAILURES: dict[str, Callable[[], Any]] = {
    "failing alike": failing_alike,
    "failing once more": failing_once_more,
    "failing, ddp, first pass": lambda: failing("sam", "ddp", 0),
    "failing, ddp, second pass": lambda: failing("sam", "ddp", 1),
    "hanging": lambda: failing("sam", "ddp", 1, hangs=True),
    "failing, ddp, last backward": lambda: failing("sam", "ddp", 1, after_backward=True),
    "failing, local": lambda: failing("agnostic-sam", "ddp", 1, ascent="local"),
    "failing, fsdp, second pass": lambda: failing("sam", "fsdp", 1),
    "failing, fsdp, first backward": lambda: failing("sam", "fsdp", 0, after_backward=True),
}


def scenarios(found: Findings, folder: Path) -> None:
    flatmin.engine.distributed.PATIENCE = timedelta(seconds=0.5)
    store = dist.distributed_c10d._get_default_store()
    for i, (key, scenario) in enumerate(FAILURES.items()):
        again(store, str(i))
        found.note(key, scenario)
    again(store, "end")


if __name__ == "__main__":
    main({"failing": scenarios})

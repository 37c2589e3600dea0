"""Training that stops and goes on: on as many ranks, on fewer, on more."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from distributed.common import SOME, Findings, Worker, deviation, full, main, small

BEFORE, AFTER = 3, 4
REMEMBERING = (*SOME, "vasso", "ae-agnostic-sam-previous", "look-friendly-sam")
"""Among them all that keep something from step to step."""
WRAPPINGS = ("ddp", "fsdp")


def worker(method: str, wrapping: str, **options: Any) -> Worker:
    options = {"base": "adamw", "build": small, "dtype": torch.float64, **options}
    return Worker(method, wrapping, **options)


def elsewhere(dtype: torch.dtype) -> nn.Module:
    """Other weights, so that the checkpoint must bring all of them."""
    model = small(dtype)
    for p in model.parameters():
        nn.init.normal_(p)
    return model


def save(worker: Worker, folder: Path, **options: bool) -> None:
    state = get_state_dict(worker.model, worker.optimizer, options=StateDictOptions(**options))
    parts = dict(zip(("model", "optimizer"), state, strict=True))
    dcp.save(parts, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load(worker: Worker, folder: Path, **options: bool) -> Worker:
    known = StateDictOptions(**options)
    state = get_state_dict(worker.model, worker.optimizer, options=known)
    parts = dict(zip(("model", "optimizer"), state, strict=True))
    dcp.load(parts, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_state_dict(
        worker.model,
        worker.optimizer,
        model_state_dict=parts["model"],
        optim_state_dict=parts["optimizer"],
        options=known,
    )
    worker.steps = BEFORE
    return worker


def same_world(method: str, wrapping: str, folder: Path, **options: bool) -> dict[str, Any]:
    whole = worker(method, wrapping).run(BEFORE)
    save(whole, folder, **options)
    resumed = load(worker(method, wrapping, build=elsewhere), folder, **options)
    then = [w.bits() for w in (whole, resumed)]
    later = [w.run(AFTER).bits() for w in (whole, resumed)]
    costs = [asdict(w.optimizer.cost) for w in (whole, resumed)]
    return {"then": then, "later": later, "costs": costs}


def leave(method: str, wrapping: str, folder: Path) -> None:
    """Leave a checkpoint, and what has become of the run that it was taken from."""
    whole = worker(method, wrapping).run(BEFORE)
    save(whole, folder)
    tensors = [full(p.detach()) for p in whole.run(AFTER).params]
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(tensors, folder / "later.pt")


def take_up(method: str, wrapping: str, folder: Path) -> float:
    """Go on from a checkpoint of another number of processes; how far from where they ended?"""
    resumed = load(worker(method, wrapping, build=elsewhere), folder).run(AFTER)
    expected: list[Tensor] = torch.load(folder / "later.pt")
    return deviation(resumed.params, expected, small(torch.float64).parameters())


def copied(method: str, clone: Callable[[Any], Any], **options: Any) -> dict[str, bool]:
    """DDP survives copies and pickle, and so does the optimizer that knows it."""
    original = worker(method, "ddp", **options).run(BEFORE)
    other = worker(method, "ddp", **options)
    other.model, other.optimizer = clone((original.model, original.optimizer))
    other.base, other.steps = other.optimizer.base, original.steps
    then = original.bits() == other.bits()
    apart = other.params[0].data_ptr() != original.params[0].data_ptr()
    original.run(AFTER), other.run(AFTER)
    return {"then": then, "apart": apart, "later": original.bits() == other.bits()}


def scenarios(found: Findings, folder: Path) -> None:
    def note(kind: str, scenario: Callable[..., Any], *case: str, **options: Any) -> None:
        key = f"{kind}, {', '.join(case)}"
        found.note(key, scenario, *case, folder / key, **options)

    for method in REMEMBERING:
        note("same", same_world, method, "fsdp")
    for method in SOME:
        note("same", same_world, method, "ddp")
        note("to one", leave, method, "fsdp")
        one = folder / f"from one, {method}"
        found.note(f"from one, {method}", take_up, method, "fsdp", one)
    for wrapping in WRAPPINGS:
        flat = {"flatten_optimizer_state_dict": True}
        note("flattened", same_world, "friendly-sam", wrapping, **flat)
    for method in SOME:
        for name, clone in (("deepcopy", copy.deepcopy), ("pickle", through_pickle)):
            found.note(f"{name}, {method}", copied, method, clone, ascent="local")


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


if __name__ == "__main__":
    main({"checkpoint": scenarios})

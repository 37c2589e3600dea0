"""One run on many processes: each rank takes its share of every batch.

    torchrun --nproc-per-node 2 script.py        # that calls processes.started() and train()

Two ranks do the steps of one process on the same batches, but for rounding, with three exceptions:
batch normalization normalises each share by itself (the running statistics are the mean over
ranks), random layers draw for each share by themselves, and ESAM chooses among each share.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from flatmin.training.data.augmentation import ALL
from flatmin.training.errors import InputError

Parallel = Literal["ddp", "fsdp2"]
"""Replicas of the model, or shards of it."""

_DDP = nn.parallel.DistributedDataParallel
# torch 2.13 warns of the name that earlier versions know
_KNOWN = inspect.signature(_DDP).parameters
_ALONE: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers": False
}

States = tuple[dict[str, Any], dict[str, Any]]
"""Of a model and its optimizer, whole and on the CPU."""


@contextmanager
def started() -> Generator[None, None, None]:
    """Join the processes that torchrun has started, if it has; leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    # DDP imports this module: then its functions would take the group for a default, and keep it
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        dist.barrier()  # a rank that leaves early takes its end of the connections with it
    finally:
        _let_go()
        dist.destroy_process_group()


def _let_go() -> None:
    """Free the default group of what would keep its threads beyond its end.

    A thread of gloo that lets go of its last tensor while Python shuts down aborts the process.
    """
    from torch.distributed.device_mesh import DeviceMesh

    gc.collect()  # models that are gone but in a cycle
    for thing in gc.get_objects():
        if type(thing) is DeviceMesh:  # of FSDP2; DTensor's caches remember it
            getattr(thing, "_pg_registry", {}).clear()


@dataclass(frozen=True)
class ProcessGroup:
    """The ranks that train one model together; one process is a group as well.

    Fields:
        device: of this rank.
        kind: what each rank holds of the model.
        rank, world: number of this rank, from 0, and of all.
    """

    device: torch.device
    kind: Parallel = "ddp"
    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls, device: torch.device | str | None = None, kind: Parallel = "ddp") -> ProcessGroup:
        """The ranks of the default process group, if there is one, on `device` or the best one.

        Raises InputError where there is no such device.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if _many() else (0, 1)
        if device is None and torch.cuda.is_available():
            device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
        try:
            usable = torch.empty(0, device=device or "cpu").device
        except (RuntimeError, AssertionError) as error:  # as torch says that it was built without
            said = str(error).partition("\n")[0]
            raise InputError(f"device {device} cannot be used: {said}") from None
        return cls(usable, kind, rank, world)

    @property
    def leads(self) -> bool:
        """Does this rank write and watch for all?"""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Does each rank hold a part of the model?"""
        return self.kind == "fsdp2" and self.world > 1

    @property
    def name(self) -> str:
        """Of the device, as a row of results has it."""
        cuda = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if cuda else self.device.type

    def share(self, count: int) -> slice:
        """The part of `count` images that is this rank's, all being equal.

        Raises InputError where they cannot be.
        """
        if self.world == 1:
            return ALL
        if count % self.world:
            raise InputError(
                f"a batch of {count} cannot be shared by {self.world} processes: choose batch and "
                f"fraction so that both kinds of batches are multiples of {self.world}"
            )
        size = count // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as this group evaluates it."""
        if self.world == 1:
            return model
        if self.kind == "fsdp2":
            from torch.distributed.fsdp import fully_shard

            for child in model.children():
                if any(True for _ in child.parameters()):
                    fully_shard(child)
            fully_shard(model)
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        return _DDP(model, ids, **_ALONE)

    def bare(self, model: nn.Module) -> nn.Module:
        """The model that `wrap` was given, without the machinery of its backward pass."""
        if isinstance(model, _DDP):
            return cast("nn.Module", model.module)
        return model

    def total(self, number: Tensor) -> Tensor:
        """The sum of a tensor over the ranks."""
        if self.world > 1:
            dist.all_reduce(number)
        return number

    @torch.no_grad()
    def agree(self, model: nn.Module) -> None:
        """Average what ranks counted apart: the running statistics of batch normalization."""
        if self.world == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.total(buffer.clone()) / self.world)

    def from_leader(self, value: Any) -> Any:
        """What the leader has as `value`."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def from_all(self, value: Any) -> list[Any]:
        """The `value` of every rank, in their order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def states(self, model: nn.Module, optimizer: Optimizer) -> States:
        """Of the whole model and its optimizer; complete at the leader, called by all."""
        if not self.sharded:
            return self.bare(model).state_dict(), optimizer.state_dict()
        from torch.distributed.checkpoint import state_dict

        whole = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
        return (
            state_dict.get_model_state_dict(model, options=whole),
            state_dict.get_optimizer_state_dict(model, optimizer, options=whole),
        )

    def load(self, model: nn.Module, optimizer: Optimizer, states: States) -> None:
        """Take up what `states` gave, in a group of any size; every rank has the whole of it."""
        if not self.sharded:
            self.bare(model).load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
            return
        from torch.distributed.checkpoint import state_dict

        whole = state_dict.StateDictOptions(full_state_dict=True)
        state_dict.set_model_state_dict(model, states[0], options=whole)
        state_dict.set_optimizer_state_dict(model, optimizer, states[1], options=whole)


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

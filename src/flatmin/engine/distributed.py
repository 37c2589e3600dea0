"""Many processes that train one model: who they are, what they agree on, when they are silent."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import count
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatmin.engine import check

AscentMode: TypeAlias = Literal["global", "local"]

PATIENCE = timedelta(seconds=5)
"""How long a rank that has waited in vain gives the others to say why."""

_GLOO = ("/gloo/", "Application timeout caused pair closure")
"""What stands in gloo's errors, which have no type of their own."""

_STEPS = count()
"""Numbers the steps that this process takes together with others, which take as many."""


class Ranks:
    """The processes that hold copies or shards of the same parameters.

    They are known by `model=` (a `DistributedDataParallel`) or by parameters that are `DTensor`s
    (FSDP2, tensor parallelism). In "local" ascent each climbs the gradient of its own batch
    (m-sharpness), without communication, and only the gradient to descend is everybody's.

    Raises ValueError for FSDP1 and DeepSpeed, whose parameters are not what they seem, and where
    local ascent is impossible: over shards, without replicas, with a static graph.
    """

    def __init__(
        self, params: Sequence[Tensor], model: nn.Module | None, ascent: AscentMode
    ) -> None:
        check.one_of("ascent", ascent, ("global", "local"))
        _refuse_foreign_shards(params, model)
        self._replicas = model if _is_ddp(model) else None
        sharded = any(_is_dtensor(p) for p in params)
        self.many = _world() > 1 and (sharded or self._replicas is not None)
        self.local = ascent == "local"
        self.apart = self.many and self.local
        self._device = params[0].device if params else torch.device("cpu")
        self._group: Any = getattr(self._replicas, "process_group", None)
        if self.local and sharded:
            raise ValueError(
                'ascent="local" perturbs a whole copy of the weights on every rank, and these are '
                'sharded: use ascent="global", or DistributedDataParallel'
            )
        if self.local and self._replicas is None:
            raise ValueError(
                'ascent="local" needs to know the replicas, to keep them silent while they climb: '
                "pass the DistributedDataParallel module as model="
            )
        if self.local and getattr(self._replicas, "static_graph", False):
            raise ValueError(
                'ascent="local" begins with a silent pass, after which static_graph=True never '
                'reduces rightly: use ascent="global", or DistributedDataParallel without it'
            )

    @property
    def share_memory(self) -> bool:
        """May the next backward pass overwrite gradients that the last one has left?

        Also in a world of one, whose buckets are as real, and where the model was not named.
        """
        return dist.is_available() and dist.is_initialized()

    @property
    def number(self) -> int:
        """Which of those that climb apart this process is; 0 where all climb together."""
        return dist.get_rank(self._group) if self.apart else 0

    def silence(self, communicate: bool) -> AbstractContextManager[Any]:
        """A pass that is not to communicate; forward and backward belong inside."""
        if communicate or self._replicas is None:
            return nullcontext()
        no_sync: Any = self._replicas.no_sync
        return no_sync()

    def all_finite(self, finite: bool | Tensor) -> bool:
        """Is it finite on every rank? One decision, so that all take the same branch."""
        if not self.many:
            return bool(finite)  # host sync, where a device knows: the step is dropped, or not
        bad = 1.0 - torch.as_tensor(finite, device=self._device).float()
        dist.all_reduce(bad, group=self._group)
        return not bad.item()  # host sync: the step is dropped, or not

    def mean(self, number: float) -> float:
        """The mean over ranks of what differs between them in local ascent."""
        if not self.apart:
            return number
        total = torch.tensor(number, dtype=torch.float64, device=self._device)
        dist.all_reduce(total, group=self._group)
        return total.item() / dist.get_world_size(self._group)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Average tensors over the ranks, in place, where local ascent made them differ."""
        if self.apart:
            for x in tensors:
                dist.all_reduce(x, group=self._group)
                x.div_(dist.get_world_size(self._group))

    def anywhere(self, here: Sequence[bool]) -> list[bool]:
        """Which of these hold on some rank, in local ascent."""
        if not self.apart:
            return list(here)
        total = torch.tensor(here, dtype=torch.int32, device=self._device)
        dist.all_reduce(total, group=self._group)
        counts = cast("list[int]", total.tolist())  # host sync: which gradients are to be None
        return [n > 0 for n in counts]

    @contextmanager
    def together(self) -> Generator[None]:
        """One step, from beginning to end: if a rank fails, the others say which one, and why.

        They are left waiting for it in a collective, until that runs into its timeout.
        """
        if not self.many:
            yield
            return
        step = next(_STEPS)
        try:
            yield
        except BaseException as error:
            board = _Board(step, dist.get_process_group_ranks(self._group or dist.group.WORLD))
            if not _is_in_vain(error):
                board.post(f"{type(error).__name__}: {error}")
                raise
            reason = board.explain()
            if reason is None:
                raise
            raise RuntimeError(f"{reason}; the weights of this rank are restored") from error


class _Board:
    """What ranks that fail in a step tell the others, in the store that brought them together."""

    def __init__(self, step: int, ranks: list[int]) -> None:
        self._prefix = f"flatmin/{step}/"
        self._ranks = ranks

    def post(self, said: str) -> None:
        """Say why this rank cannot go on; nothing, if it only waits for others."""
        with suppress(RuntimeError):  # the store may be gone with the rank that held it
            self._store().set(str(dist.get_rank()), said[:1000])

    def explain(self) -> str | None:
        """Which rank has failed, or has fallen silent; None if that cannot be known."""
        self.post("")
        with suppress(RuntimeError):
            if not self._failures():
                with suppress(dist.DistStoreError):  # some rank says nothing
                    self._store().wait([str(rank) for rank in self._ranks], PATIENCE)
            for rank, why in self._failures().items():
                return f"rank {rank} failed in this step ({why}), and the others waited in vain"
            silent = [str(rank) for rank in self._ranks if not self._has_spoken(rank)]
            if silent:
                return (
                    f"the wait for rank {', '.join(silent)} has timed out in this step: it hangs, "
                    "or is gone without a word"
                )
        return None

    def _failures(self) -> dict[int, str]:
        said = {r: self._store().get(str(r)).decode() for r in self._ranks if self._has_spoken(r)}
        return {rank: why for rank, why in said.items() if why}

    def _has_spoken(self, rank: int) -> bool:
        return self._store().check([str(rank)])

    def _store(self) -> Any:
        return dist.PrefixStore(self._prefix, dist.distributed_c10d._get_default_store())


def _is_in_vain(error: BaseException) -> bool:
    """Does this say that a collective was given up, for whatever reason others may have had?"""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _GLOO)


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _is_ddp(model: nn.Module | None) -> bool:
    return isinstance(model, nn.parallel.DistributedDataParallel)


def _is_dtensor(p: Tensor) -> bool:
    return hasattr(p, "device_mesh") and hasattr(p, "placements")


def _refuse_foreign_shards(params: Sequence[Tensor], model: nn.Module | None) -> None:
    if any(
        hasattr(p, "_fsdp_flattened") or type(p).__name__ == "FlatParameter" for p in params
    ) or (type(model).__name__ == "FullyShardedDataParallel"):
        raise ValueError(
            "FSDP1 (FullyShardedDataParallel) hides its shards in plain tensors, of which no norm "
            "over all shards can be taken: wrap the model with torch.distributed.fsdp.fully_shard "
            "(FSDP2)"
        )
    if any(hasattr(p, "ds_id") for p in params) or type(model).__name__ == "DeepSpeedEngine":
        raise ValueError(
            "DeepSpeed owns the backward pass and the step, and its shards are not torch's: use "
            "DistributedDataParallel or torch.distributed.fsdp.fully_shard"
        )

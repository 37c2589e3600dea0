"""What a method remembers from step to step, where every checkpoint finds it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatmin.engine.distributed import Ranks
from flatmin.engine.space import Space, local
from flatmin.engine.vec import Term, Vector

KEY = "flatmin"
"""The entry of every parameter group that holds the numbers: counts, and what policies keep."""


@dataclass(frozen=True)
class _Kept:
    """A remembered vector: its blocks, and its buffers in `state[p]`, which are views of them."""

    blocks: list[Tensor]
    buffers: list[Tensor]


class Memory:
    """Vectors in `state[p]` beside the base optimizer's buffers, numbers in the parameter groups.

    Nothing is written before the step is sure to succeed, and so a failed one leaves no trace. New
    buffers are written only after the base optimizer has stepped: several base optimizers set
    themselves up only where they find a parameter's state empty. The buffers of small tensors are
    views of one block; those that a checkpoint has brought are laid out so when first used.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        buffers: MutableMapping[Tensor, dict[str, Any]],
        space: Space,
    ) -> None:
        self._base = base
        self._space = space
        self._kept: dict[str, _Kept] = {}
        self.begin(buffers)

    def begin(
        self, buffers: MutableMapping[Tensor, dict[str, Any]], moving: Sequence[str] = ()
    ) -> None:
        """A step begins: nothing is staged, and the buffers are still to be looked up.

        Args:
            buffers: where they stand now: loading a state gives the base optimizer another one.
            moving: those that every step writes, perturbed or not.
        """
        self._moving = moving
        self._buffers = buffers
        self.numbers: Mapping[str, Any] = self._base.param_groups[0][KEY]
        self._vectors: dict[str, Vector] = {}
        self._alike: set[str] = set()
        self._notes: dict[str, float] = {}
        self._found: dict[str, list[Tensor | None]] = {}
        self._new: dict[str, _Kept] = {}
        self._beside: dict[tuple[str, ...], list[Tensor | None]] = {}

    def recall(self, name: str) -> Vector | None:
        """The vector kept under `name`, zero where a parameter has none; None before the first."""
        # Before the first that wrote it, there may be zeros that a checkpoint loader has set up.
        written = self.numbers["steps" if name in self._moving else "perturbed"]
        kept = self._look_up(name) if written else None
        return kept and Vector(Term(kept.blocks))

    def keep(self, name: str, value: Vector, *, alike: bool = False) -> None:
        self._vectors[name] = value
        if alike:
            self._alike.add(name)

    def found(self, names: tuple[str, ...]) -> list[Tensor | None]:
        """For each parameter the first of these buffers that it has, the base optimizer's or ours.

        None where it has none, or none in its own shape.
        """
        if names not in self._beside:
            self._beside[names] = [self._first_of(p, names) for p in self._space.params]
        return self._beside[names]

    def lacks(self, names: tuple[str, ...], promised: Callable[[Mapping[str, Any]], bool]) -> bool:
        """Is there a parameter for which the base optimizer keeps none of these?

        Args:
            names: of the buffers.
            promised: whether the options of a group say that it will, of parameters for which it
                has kept nothing at all yet.
        """
        if all(x is not None for x in self.found(names)):
            return False
        ours = {*self._found, *self._kept, *self._vectors}
        for group in self._base.param_groups:
            for p in group["params"]:
                if not p.requires_grad or self._first_of(p, names) is not None:
                    continue
                kept = self._base.state.get(p, _EMPTY).items()
                stepped = any(isinstance(x, Tensor) and x.ndim for n, x in kept if n not in ours)
                if stepped or not promised(group):
                    return True
        return False

    def _first_of(self, p: Tensor, names: Sequence[str]) -> Tensor | None:
        state: Mapping[Tensor, Any] = self._base.state
        for beside in (state,) if self._buffers is state else (state, self._buffers):
            kept = beside.get(p, _EMPTY)
            for name in names:
                x = kept.get(name)
                if isinstance(x, Tensor) and x.shape == p.shape:
                    return x
        return None

    def note(self, name: str, value: float) -> None:
        self._notes[name] = value

    def evaluate(self, ranks: Ranks) -> None:
        """Bring the buffers up to date: the step can fail no more, and its vectors are still there.

        Buffers that are there change in place. New ones wait for `commit`. Where ranks climb
        gradients of their own, what they keep is the mean, so that all have one memory, unless it
        is made of what they have reduced already.
        """
        for name, value in self._vectors.items():
            kept = self._look_up(name)
            indices = range(len(self._space.blocks))
            if kept is None:
                blocks = [value.into(None, j) for j in indices]
                self._new[name] = self._laid_out(blocks)
            else:
                blocks = [value.into(kept.blocks[j], j) for j in indices]
            if name not in self._alike:
                ranks.average(blocks)

    def commit(self, counts: Mapping[str, float], failed: bool) -> None:
        """Write the counts and, unless the step has failed, new buffers and what was noted."""
        self._kept.update(self._new)
        for name in () if failed else self._vectors:
            self._write(name, self._kept[name])
        notes = {} if failed else self._notes
        for group in self._base.param_groups:  # a new dict: saved state dicts hold the old one
            group[KEY] = {**self.numbers, **notes, **counts}

    def _write(self, name: str, kept: _Kept) -> None:
        """Put buffers beside the parameters that the base optimizer has set up, or at zero."""
        for i in [i for i, buffer in enumerate(self._found[name]) if buffer is None]:
            p, buffer = self._space.params[i], kept.buffers[i]
            if p.grad is not None or self._base.state.get(p) or self._buffers.get(p):
                self._buffers[p][name] = buffer
            else:
                local(buffer).zero_()

    def _look_up(self, name: str) -> _Kept | None:
        """The buffers in `state[p]` as they are now; None if there are none."""
        if name in self._found:
            return self._kept.get(name)
        found = [self._buffers.get(p, _EMPTY).get(name) for p in self._space.params]
        self._found[name] = found
        kept = self._kept.get(name)
        if kept is not None and all(map(operator.is_, found, kept.buffers)):
            return kept  # as they were left
        if kept is None or any(
            b is not None and b is not mine for b, mine in zip(found, kept.buffers, strict=True)
        ):
            kept = self._adopt(name, found)
        elif all(b is None for b in found):
            kept = None
        if kept is None:
            self._kept.pop(name, None)
        else:
            self._kept[name] = kept
        return kept

    def _adopt(self, name: str, found: list[Tensor | None]) -> _Kept | None:
        """Lay out buffers that came from elsewhere."""
        if all(b is None for b in found):
            return None
        pieces = [
            torch.zeros_like(x) if b is None else self._space.piece(i, self._fitted(i, name, b))
            for i, (x, b) in enumerate(zip(self._space.pieces, found, strict=True))
        ]
        kept = self._laid_out(self._space.join(pieces))
        for p, was, buffer in zip(self._space.params, found, kept.buffers, strict=True):
            if was is not None:
                self._buffers[p][name] = buffer
        return kept

    def _fitted(self, i: int, name: str, buffer: Tensor) -> Tensor:
        """A buffer as parameter `i` needs it, which may have grown since, or changed its type."""
        p = self._space.params[i]
        return fitted(buffer, p.shape, p.dtype, f"the buffer {name!r}", self._space.name_of(p))

    def _laid_out(self, blocks: list[Tensor]) -> _Kept:
        return _Kept(blocks, self._space.spread(blocks))


def fitted(buffer: Tensor, shape: torch.Size, dtype: torch.dtype, what: str, whose: str) -> Tensor:
    """A buffer in another shape and type: where its parameter has grown, it is zero.

    Raises ValueError where the parameter has not grown but become another.
    """
    if buffer.shape != shape:
        grown = buffer.ndim == len(shape) and all(
            old <= new for old, new in zip(buffer.shape, shape, strict=True)
        )
        if not grown or hasattr(buffer, "device_mesh"):
            raise ValueError(
                f"{what} of the parameter {whose} has the shape {tuple(buffer.shape)}, and the "
                f"parameter {tuple(shape)}: remove it from optimizer.state, or build a new "
                "optimizer"
            )
        larger = buffer.new_zeros(shape)
        larger[tuple(slice(n) for n in buffer.shape)] = buffer
        buffer = larger
    return buffer.to(dtype) if buffer.is_floating_point() else buffer


_EMPTY: dict[str, Any] = {}

"""The parameters of an optimizer as one vector.

A `Space` lays the trainable parameters out in blocks: one for each large tensor, and one flat block
for all small tensors of a parameter group, since a call costs more than their numbers. Of a sharded
parameter it holds this rank's shard, so that all that is done element by element is local; what
must be summed over the whole vector (`dot`, `norm`) goes over all shards.
"""

# pyright: reportPrivateUsage=false
# The foreach kernels carry an underscore, yet they are what torch's own optimizers are made of.
from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import (
    _flatten_dense_tensors,  # pyright: ignore[reportUnknownVariableType]
    _unflatten_dense_tensors,  # pyright: ignore[reportUnknownVariableType]
)

from flatmin.engine.vec import NARROW, Scalar, Term, Vector

try:
    from torch.distributed.tensor import DTensor
except ImportError:  # torch built without distributed: nothing is ever sharded
    DTensor = None  # type: ignore[assignment,misc]

LARGE = 1 << 15
"""Tensors of more elements than this are blocks of their own."""

HUGE = 1 << 22
"""Tensors of more elements than this are evaluated in memory that is given back at once."""


@dataclass(frozen=True)
class Block:
    """A part of the vector.

    Fields:
        members: the parameters in it, by position.
        group: their parameter group.
        shared_by: the process groups over which they are split.
        joined: whether they are small tensors, held end to end.
        runs: where among the members those begin and end that are alike but for their first
            dimension, and so can be joined as they are; empty where that would not pay.
    """

    members: tuple[int, ...]
    group: int
    shared_by: tuple[Any, ...]
    joined: bool
    runs: tuple[slice, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A gradient as a vector, and as the tensors that the backward pass has left, or None."""

    vector: Vector
    found: list[Tensor | None]


class Space:
    """The trainable parameters of an optimizer as one vector, whole or in shards.

    Norms and dot products are over all parameters and, of sharded ones, over all shards. They are
    Python floats where the parameters live on the CPU, and tensors on the device elsewhere.
    """

    def __init__(
        self, groups: Sequence[Sequence[Tensor]], evaluated: Mapping[Tensor, Tensor] | None = None
    ) -> None:
        self.params = [p for group in groups for p in group]
        self.evaluated = [evaluated.get(p, p) for p in self.params] if evaluated else self.params
        """What the model evaluates: the parameters, or rounded copies of them."""
        self.sizes = [len(group) for group in groups]
        self.pieces = [local(p) for p in self.params]
        self.plain = all(a is b for a, b in zip(self.params, self.pieces, strict=True))
        self.home = (self.params[0].device, self.params[0].dtype) if self.params else None
        self.on_host = all(x.device.type == "cpu" for x in self.pieces)
        self.blocks = _blocks(groups, self.params, self.pieces)
        self.parts = [[self.pieces[i] for i in b.members] for b in self.blocks]
        """The pieces of each block."""
        self._standing: Seen | None = None
        self._desk = torch.empty(0, dtype=self.home[1] if self.home else None)
        self._bare = self.plain and not any(p.is_complex() for p in self.params)

    @property
    def cheap_to_inspect(self) -> bool:
        """Can weights be looked at without waiting, or must they be, since their type is narrow?"""
        return self.on_host or any(x.dtype in NARROW for x in self.pieces)

    def still_holds(self) -> bool:
        """Are our views of parameters, where we need some, still views of them?"""
        return self.plain or all(
            local(p).data_ptr() == x.data_ptr()
            for p, x in zip(self.params, self.pieces, strict=True)
        )

    # Parameters to blocks and back.

    def join(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """The blocks of a vector that is given as one piece for each parameter."""
        return [
            _flatten([pieces[i] for i in b.members], b.runs) if b.joined else pieces[b.members[0]]
            for b in self.blocks
        ]

    def split(self, j: int, block: Tensor) -> list[Tensor]:
        """The pieces of block `j`, as views of it, in the order of its members."""
        return _unflatten(block, self.parts[j]) if self.blocks[j].joined else [block]

    def split_by_runs(self, j: int, block: Tensor) -> list[Tensor]:
        """The runs of block `j`, each as one tensor: a view of the block."""
        runs = [self.parts[j][run] for run in self.blocks[j].runs]
        sizes = [sum(x.numel() for x in run) for run in runs]
        pieces = cast("tuple[Tensor, ...]", block.split(sizes)) if runs else ()
        return [x.view(-1, *run[0].shape[1:]) for x, run in zip(pieces, runs, strict=True)]

    def each(self, j: int, value: Callable[[int], float]) -> Tensor:
        """A block that holds `value(i)` all over parameter `i`."""
        members = self.blocks[j].members
        pieces = [torch.full_like(self.pieces[i], value(i)) for i in members]
        b = self.blocks[j]
        return _flatten(pieces, b.runs) if b.joined else pieces[0]

    def take(self, *, copy: bool) -> Seen | None:
        """The gradient that the last backward pass has left; zero where it has left none.

        It is copied where the next backward pass would overwrite it. None: it has left none at all.

        Raises TypeError for a sparse gradient.
        """
        found = [p.grad for p in self.evaluated]
        present = [g for g in found if g is not None]
        if not present:
            return None
        if any(map(_SPARSE, present)):
            raise _sparse(self.params, found)
        if not self.plain:
            found = [
                g if g is None else _like(p, g) for p, g in zip(self.params, found, strict=True)
            ]
        if copy:
            found = [g if g is None else g.clone() for g in found]
        if self.evaluated is not self.params:
            found = [
                g if g is None else g.to(p.dtype) for p, g in zip(self.params, found, strict=True)
            ]
        pieces = cast("list[Tensor]", found)
        if len(present) < len(found):
            pieces = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(self.params, found, strict=True)
            ]
        if not self.plain:
            pieces = [local(g) for g in pieces]
        seen = Seen(Vector(Term(self.join(pieces))), found)
        self._standing = seen if not copy and self.evaluated is self.params else None
        return seen

    def seen(self, blocks: Sequence[Tensor], present: Sequence[bool]) -> Seen:
        """Blocks as the gradient of the parameters for which there is one."""
        pieces = self.spread(blocks)
        found = [g if there else None for g, there in zip(pieces, present, strict=True)]
        return Seen(Vector(Term(blocks)), found)

    def spread(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that stand beside the parameters, as views of blocks."""
        pieces = list(self.pieces)
        for j, b in enumerate(self.blocks):
            for i, piece in zip(b.members, self.split(j, blocks[j]), strict=True):
                pieces[i] = self.wrap(self.params[i], piece)
        return pieces

    def clear(self) -> None:
        """Leave no gradient in any parameter."""
        self._standing = None
        for p in self.evaluated:
            p.grad = None

    def write_evaluated(self) -> None:
        """Let the model see the parameters as they are now."""
        if self.evaluated is not self.params:
            for p, rounded in zip(self.params, self.evaluated, strict=True):
                if rounded is not p:
                    rounded.copy_(p)

    def give(self, gradient: Vector, seen: Sequence[Seen]) -> None:
        """Hand a gradient to the parameters, but none where the last of `seen` had none.

        Where it must be computed, this happens in the memory of the first of `seen` that it is made
        of, which is then gone.
        """
        of = {id(s.vector.terms[0].blocks): s for s in seen}
        mine = next((of[id(t.blocks)] for t in gradient.terms if id(t.blocks) in of), None)
        present = seen[-1].found
        if gradient.is_stored and mine is not None and mine is self._standing:
            return
        self._standing = None
        if gradient.is_stored and mine is not None:
            for p, g, last in zip(self.params, mine.found, present, strict=True):
                p.grad = None if last is None else torch.zeros_like(p) if g is None else g
            return
        for j, b in enumerate(self.blocks):
            block = gradient.into(mine.vector.block(j) if mine else None, j)
            for i, piece in zip(b.members, self.split(j, block), strict=True):
                p = self.params[i]
                p.grad = None if present[i] is None else self.wrap(p, piece)

    def wrap(self, like: Tensor, piece: Tensor) -> Tensor:
        """The tensor that stands beside parameter `like`, of which `piece` is what we hold."""
        if self._bare:
            return piece
        if like.is_complex():
            piece = torch.view_as_complex(piece)
        if DTensor is not None and isinstance(like, DTensor):
            return DTensor.from_local(
                piece,
                like.device_mesh,
                like.placements,
                run_check=False,
                shape=like.shape,
                stride=like.stride(),
            )
        return piece

    def _read(self, a: Vector, j: int) -> Tensor:
        """Block `j` of `a`, good until the next is read.

        On the host it is evaluated where the one before was: a fresh allocation there costs as
        much as the arithmetic.
        """
        like = self.parts[j][0]
        if a.is_stored or not (self.on_host and like.dtype == self._desk.dtype):
            return a.block(j)
        if not (LARGE < like.numel() <= HUGE and like.is_contiguous()):
            return a.block(j)
        if self._desk.numel() < like.numel():
            self._desk = torch.empty_like(like).view(-1)
        return a.into(self._desk[: like.numel()].view_as(like), j)

    # Sums over the whole vector.

    def norm(self, a: Vector) -> Scalar:
        total = self.dot(a, a)
        return total.sqrt() if isinstance(total, Tensor) else total**0.5

    def dot(self, a: Vector, b: Vector) -> Scalar:
        if not (a.terms and b.terms and self.blocks):
            return 0.0
        by_groups: dict[tuple[Any, ...], list[Tensor]] = {}
        for j, block in enumerate(self.blocks):
            x = self._read(a, j)
            product = _dot(x, x if a is b else b.block(j))
            by_groups.setdefault(block.shared_by, []).append(product)
        total: Scalar = 0.0
        for groups, products in by_groups.items():
            if self.on_host and not groups:
                total = total + sum(x.item() for x in products)
                continue
            home = products[0].device
            part = torch.stack([_widened(x.to(home)) for x in products]).sum()
            for group in groups:
                dist.all_reduce(part, group=group)
            total = total + (part.item() if self.on_host else part.to(self.pieces[0].device))
        return total


_SPARSE = operator.attrgetter("is_sparse")


def _sparse(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> TypeError:
    p = next(p for p, g in zip(params, grads, strict=True) if g is not None and g.is_sparse)
    return TypeError(
        f"a parameter of shape {tuple(p.shape)} has a sparse gradient, which has no place in a "
        "vector of all parameters: build the layer with sparse=False"
    )


def local(t: Tensor) -> Tensor:
    """What this rank holds of `t`, as real numbers, in the same storage."""
    if DTensor is not None and isinstance(t, DTensor):
        t = t.to_local()
    return torch.view_as_real(t) if t.is_complex() else t


def _like(p: Tensor, g: Tensor) -> Tensor:
    """A gradient laid out as its parameter: sums over ranks that are still due are taken."""
    if DTensor is None or not isinstance(p, DTensor) or not isinstance(g, DTensor):
        return g
    return g if g.placements == p.placements else g.redistribute(placements=p.placements)


def copy_(to: list[Tensor], source: list[Tensor]) -> None:
    """Overwrite tensors, whose storage stays where it is."""
    if len(to) == 1:
        to[0].copy_(source[0])
    else:
        torch._foreach_copy_(to, source)


def _blocks(
    groups: Sequence[Sequence[Tensor]], params: list[Tensor], pieces: list[Tensor]
) -> list[Block]:
    group_of = [k for k, group in enumerate(groups) for _ in group]
    small: dict[tuple[Any, ...], list[int]] = {}
    blocks: list[Block] = []
    for i, (p, x) in enumerate(zip(params, pieces, strict=True)):
        shared_by = _shard_groups(p)
        if not 0 < x.numel() <= LARGE:  # torch unflattens an empty tensor to another shape
            blocks.append(Block((i,), group_of[i], shared_by, joined=False))
        else:
            key = (group_of[i], shared_by, x.device, x.dtype)
            small.setdefault(key, []).append(i)
    joined = [_joined(key[0], key[1], members, pieces) for key, members in small.items()]
    return joined + blocks


def _joined(
    group: int, shared_by: tuple[Any, ...], members: list[int], pieces: list[Tensor]
) -> Block:
    alike: dict[Any, list[int]] = {}
    for i in members:
        shape = pieces[i].shape
        alike.setdefault(shape[1:] if shape else None, []).append(i)
    runs: list[slice] = []
    if None not in alike and 4 * len(alike) <= len(members):
        members = [i for same in alike.values() for i in same]
        ends = list(itertools.accumulate(len(same) for same in alike.values()))
        runs = [slice(*bounds) for bounds in zip([0, *ends], ends, strict=False)]
    return Block(tuple(members), group, shared_by, True, tuple(runs))


def _shard_groups(t: Tensor) -> tuple[Any, ...]:
    """The process groups over which `t` is split; empty for a tensor that is held whole."""
    if DTensor is None or not isinstance(t, DTensor):
        return ()
    mesh = t.device_mesh
    return tuple(
        mesh.get_group(i) for i, placed in enumerate(t.placements) if not placed.is_replicate()
    )


def _flatten(pieces: list[Tensor], runs: Sequence[slice]) -> Tensor:
    if not runs:
        return cast(Tensor, _flatten_dense_tensors(pieces))
    return torch.cat([torch.cat(pieces[run]).reshape(-1) for run in runs])


def _unflatten(block: Tensor, like: list[Tensor]) -> list[Tensor]:
    return cast("list[Tensor]", _unflatten_dense_tensors(block, like))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    if not x.is_contiguous() and x is y:  # channels_last, say: any order of the elements will do
        x = y = torch.as_strided(x, (x.numel(),), (1,)) if _is_dense(x) else x
    x, y = x.reshape(-1), y.reshape(-1)
    return torch.dot(x.float(), y.float()) if x.dtype in NARROW else torch.dot(x, y)


def _is_dense(x: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense.default(x)


def _widened(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()

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
import sys
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

from flatmin.engine import random
from flatmin.engine.vec import NARROW, Scalar, Term, Vector

try:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
except ImportError:  # torch built without distributed: nothing is ever sharded
    DTensor = None  # type: ignore[assignment,misc]
    compute_local_shape_and_global_offset = None

LARGE = 1 << 15
"""Tensors of more elements than this are blocks of their own: to join them would be a copy that
costs more than the call it saves."""

HUGE = 1 << 22
"""Tensors of more elements than this are evaluated in memory that is given back at once: what is
kept for reading, as large as the largest read there, stays within 16 MiB in float32."""


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
    """A gradient as a vector, and for which parameters the backward pass has left one."""

    vector: Vector
    present: Sequence[bool]


class Space:
    """The trainable parameters of an optimizer as one vector, whole or in shards.

    Norms and dot products are over all parameters and, of sharded ones, over all shards. They are
    Python floats where the parameters live on the CPU, and tensors on the device elsewhere.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Tensor]],
        evaluated: Mapping[Tensor, Tensor] | None = None,
        ascending: Sequence[bool] = (),
        names: Mapping[Tensor, str] | None = None,
    ) -> None:
        self.params = [p for group in groups for p in group]
        self.evaluated = [evaluated.get(p, p) for p in self.params] if evaluated else self.params
        """What the model evaluates: the parameters, or rounded copies of them."""
        self.names = [(names or {}).get(p, "") for p in self.evaluated]
        """What the model calls each; empty where no model was given."""
        _require_apart(self.params, self.name_of)
        self.ascending = tuple(ascending) if any(ascending) else ()
        """By group, whether its base optimizer maximises; empty where none does."""
        locals_ = [local(p) for p in self.params]
        self._orders = [_order(x) for x in locals_]
        self.pieces = [_in_order(x, at) for x, at in zip(locals_, self._orders, strict=True)]
        """What this rank holds of each parameter, its dimensions in the order in memory."""
        self.plain = all(
            a is b and a.stride() == _usual_stride(a)
            for a, b in zip(self.params, self.pieces, strict=True)
        )
        self._sharded = any(map(_is_sharded, self.params))
        self._looks = [_look_of(p) for p in self.params]
        self._somewhere = all(map(lies_somewhere, self.params))
        self._addresses = self._lie_at()
        self.on_host = all(x.device.type == "cpu" for x in self.pieces)
        self.blocks = _blocks(groups, self.params, self.pieces)
        self.parts = [[self.pieces[i] for i in b.members] for b in self.blocks]
        """The pieces of each block."""
        self._sharings = list(dict.fromkeys(map(_shard_groups, self.params)))
        self._standing: Seen | None = None
        self._desk = torch.empty(0, dtype=self.params[0].dtype if self.params else None)

    @property
    def cheap_to_inspect(self) -> bool:
        """Can weights be looked at without waiting, or must they be, since their type is narrow?"""
        return self.on_host or any(x.dtype in NARROW for x in self.pieces)

    def still_holds(self) -> bool:
        """Do the parameters still lie where they lay, or else look as they looked?"""
        # `model.to()` and `p.data = ...` give a parameter new storage. Where we hold a view of the
        # old one, a step would move that, and nothing would happen.
        addresses = self._lie_at()
        if addresses == self._addresses and addresses:
            return True
        if not self.plain or self._looks != [_look_of(p) for p in self.params]:
            return False
        self._addresses = addresses  # other numbers in the same form: we hold no view of them
        return True

    def name_of(self, p: Tensor) -> str:
        """What an error calls a parameter: its name in the model, or its shape."""
        at = next((i for i, q in enumerate(self.params) if q is p), None)
        name = "" if at is None else self.names[at]
        return repr(name) if name else f"of shape {tuple(p.shape)}"

    def changed(self, before: Space) -> list[tuple[Tensor, torch.Size, torch.dtype]]:
        """Parameters that looked otherwise in an earlier space, with the shape and type of then."""
        looks = dict(zip(map(id, before.params), before._looks, strict=True))
        return [
            (p, *_form(looks[id(p)]))
            for p in self.params
            if id(p) in looks and _form(looks[id(p)]) != (p.shape, p.dtype)
        ]

    def _lie_at(self) -> list[int]:
        """Where the parameters lie, the cheapest sign of a change; empty where nobody can say."""
        if not self._somewhere:
            return []
        if self._sharded:
            return [local(p).data_ptr() for p in self.params]
        return list(map(Tensor.data_ptr, self.params))

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

    def piece(self, i: int, t: Tensor) -> Tensor:
        """What this rank holds of a tensor like parameter `i`, as its piece lies."""
        return t if self.plain else _in_order(local(t), self._orders[i])

    def take(self, *, keep: bool, shared: bool = False) -> Seen | None:
        """The gradient that the last backward pass has left; zero where it has left none.

        With `keep` it is ours until the step ends: copied where somebody else could write to it,
        all of it where `shared` says that the next backward pass would. None: there is none at all.

        Raises TypeError for a sparse gradient.
        """
        found = [p.grad for p in self.evaluated]
        present = [g is not None for g in found]
        if not any(present):
            return None
        if True in [g.is_sparse for g in found if g is not None]:
            raise _sparse(self.params, found)
        if self._sharded:
            found = [
                g if g is None else _like(p, g) for p, g in zip(self.params, found, strict=True)
            ]
        if self.evaluated is not self.params:
            found = [
                g if g is None else g.to(p.dtype) for p, g in zip(self.params, found, strict=True)
            ]
        as_they_are = cast("list[Tensor]", found) if self.plain and all(present) else None
        blocks: list[Tensor] = []
        for b in self.blocks:
            i = b.members[0]
            # Asked before another reference to it is made; several tensors are joined in a copy.
            theirs = keep and len(b.members) == 1 and (shared or _is_somebodys(found, i))
            if not b.joined:
                block = self._piece_of_gradient(i, found[i])
            elif as_they_are is not None:
                block = _flatten([as_they_are[i] for i in b.members], b.runs)
            else:
                pieces = [self._piece_of_gradient(i, found[i]) for i in b.members]
                block = _flatten(pieces, b.runs)
            if self.ascending and self.ascending[b.group]:
                block = block.neg()
            elif theirs:
                block = block.clone()
            blocks.append(block)
        seen = Seen(Vector(Term(blocks)), present)
        untouched = self.evaluated is self.params and not self.ascending
        self._standing = seen if untouched else None
        return seen

    def _piece_of_gradient(self, i: int, g: Tensor | None) -> Tensor:
        like = self.pieces[i]
        if g is None:
            return torch.zeros_like(like)
        piece = self.piece(i, g)
        # As a closure may have assigned it; fused steps read memory in the parameter's order.
        return piece if piece.stride() == like.stride() else _with_strides_of(like, piece)

    def seen(self, blocks: Sequence[Tensor], present: Sequence[bool]) -> Seen:
        """Blocks as the gradient of the parameters for which there is one."""
        return Seen(Vector(Term(blocks)), present)

    def spread(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that stand beside the parameters, as views of blocks."""
        pieces = list(self.pieces)
        for j, b in enumerate(self.blocks):
            for i, piece in zip(b.members, self.split(j, blocks[j]), strict=True):
                pieces[i] = self.wrap(i, piece)
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
        # A base optimizer passes over a parameter whose gradient is None, weight decay and momentum
        # included; a zero gradient would move it. So None stays None, as without us.
        of = {id(s.vector.terms[0].blocks): s for s in seen}
        mine = next((of[id(t.blocks)] for t in gradient.terms if id(t.blocks) in of), None)
        present = seen[-1].present
        if gradient.is_stored and mine is not None and mine is self._standing:
            return  # it still stands where the last pass has left it
        self._standing = None
        for j, b in enumerate(self.blocks):
            block = gradient.into(mine.vector.block(j) if mine else None, j)
            if self.ascending and self.ascending[b.group]:
                block = block.neg()  # to an optimizer that goes up, in its own sign
            for i, piece in zip(b.members, self.split(j, block), strict=True):
                self.params[i].grad = self.wrap(i, piece) if present[i] else None

    def wrap(self, i: int, piece: Tensor) -> Tensor:
        """The tensor that stands beside parameter `i`, of which `piece` is what we hold."""
        if self.plain:
            return piece
        like, order = self.params[i], self._orders[i]
        if order is not None:
            piece = piece.permute([order.index(d) for d in range(len(order))])
        if like.is_complex():
            piece = torch.view_as_complex(piece)
        whole = not _is_sharded(like)
        if whole and piece.stride() != like.stride() and _is_dense(like):
            piece = piece.as_strided(like.shape, like.stride())  # a dimension has one element
        if DTensor is not None and isinstance(like, DTensor):
            # Its shape is told: alone, a shard would be taken for one of equal ones. Unchecked,
            # since a check is a broadcast.
            return DTensor.from_local(
                piece,
                like.device_mesh,
                like.placements,
                run_check=False,
                shape=like.shape,
                stride=like.stride(),
            )
        return piece

    def gather(self, found: Sequence[Tensor | None]) -> Vector:
        """Tensors that stand beside the parameters as a vector; zero where there is none."""
        usual = [
            x is not None and x.dtype is look[2] for x, look in zip(found, self._looks, strict=True)
        ]
        as_they_are = cast("list[Tensor]", found) if self.plain and all(usual) else None
        blocks: list[Tensor] = []
        for b in self.blocks:
            # Several tensors are joined in a copy, and so may lie as they like.
            if b.joined and as_they_are is not None:
                pieces = [as_they_are[i] for i in b.members]
            else:
                pieces = [self._piece_beside(i, found[i]) for i in b.members]
            blocks.append(_flatten(pieces, b.runs) if b.joined else pieces[0])
        return Vector(Term(blocks))

    def _piece_beside(self, i: int, x: Tensor | None) -> Tensor:
        p = self.params[i]
        return self._piece_of_gradient(i, x if x is None else _like(p, x).to(p.dtype))

    # Filter by filter.

    def normal(self, seed: int, *counters: int) -> Vector:
        """Standard normal numbers; a shard holds its part of what one process would draw."""
        generators: dict[torch.device, torch.Generator] = {}
        pieces: list[Tensor] = []
        for p, like, order in zip(self.params, self.pieces, self._orders, strict=True):
            if like.device not in generators:
                generators[like.device] = random.generator(like.device, seed, *counters)
            if self.plain:
                pieces.append(torch.empty_like(like).normal_(generator=generators[like.device]))
                continue
            shape = (*p.shape, 2) if p.is_complex() else p.shape
            drawn = torch.empty(shape, dtype=like.dtype, device=like.device)
            drawn.normal_(generator=generators[like.device])
            pieces.append(_in_order(_part_of(p, drawn), order))
        return Vector(Term(self.join(pieces)))

    def filter_squares(self, a: Vector) -> list[Tensor]:
        """`Σ a²` over each filter, in a form that spreads over the pieces of the parameters.

        A filter is a row of a tensor with more than one dimension; any other tensor is one.
        """
        squares: list[Tensor] = [torch.empty(0)] * len(self.params)
        for j, b in enumerate(self.blocks):
            for i, x in zip(b.members, self.split(j, a.block(j)), strict=True):
                rows = self._rows(i)
                across = [d for d in range(x.ndim) if d != rows]
                wide = x.float() if x.dtype in NARROW else x
                squares[i] = wide.square().sum(across, keepdim=True) if across else wide.square()
        if self._sharded:
            self._sum_over_shards(squares)
        return squares

    def spread_out(self, j: int, values: Sequence[Tensor]) -> Tensor:
        """A block like block `j` of one value for each filter."""
        b = self.blocks[j]
        pieces = [values[i].expand_as(self.pieces[i]) for i in b.members]
        return _flatten([x.contiguous() for x in pieces], b.runs) if b.joined else pieces[0]

    def _rows(self, i: int) -> int | None:
        """The dimension of piece `i` that counts its filters; None where all of it is one."""
        if self.params[i].ndim < 2:
            return None
        order = self._orders[i]
        return 0 if order is None else order.index(0)

    def _sum_over_shards(self, squares: list[Tensor]) -> None:
        """Add up over the ranks that hold parts of one filter; all in one reduction a group."""
        # In the order of the parameters, which is the same on every rank.
        split: dict[Any, list[int]] = {}
        for i, p in enumerate(self.params):
            for group in _groups_that_split_filters(p):
                split.setdefault(group, []).append(i)
        for group, members in split.items():
            flat = torch.cat([squares[i].reshape(-1) for i in members])
            dist.all_reduce(flat, group=group)
            sizes = [squares[i].numel() for i in members]
            parts = cast("tuple[Tensor, ...]", flat.split(sizes))
            for i, x in zip(members, parts, strict=True):
                squares[i] = x.view_as(squares[i])

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
        # In the order of the parameters, the same on every rank: that of the blocks depends on the
        # size of shards, and ranks that reduced in different orders would add up different things.
        by_groups: dict[tuple[Any, ...], list[Tensor]] = {groups: [] for groups in self._sharings}
        for j, block in enumerate(self.blocks):
            x = self._read(a, j)
            product = _dot(x, x if a is b else b.block(j))  # `b` is not read where `x` is
            by_groups[block.shared_by].append(product)
        total: Scalar = 0.0
        for groups, products in by_groups.items():
            if self.on_host and not groups:
                total = total + sum(x.item() for x in products)
                continue
            home = products[0].device
            part = torch.stack([_widened(x).to(home) for x in products]).sum()
            # One reduction for all blocks that are split alike, none for what every rank holds
            # whole; over a mesh of two dimensions, one dimension after the other.
            for group in groups:
                dist.all_reduce(part, group=group)
            total = total + (part.item() if self.on_host else part.to(self.pieces[0].device))
        return total


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


def lies_somewhere(t: Tensor) -> bool:
    """Has it numbers in memory? Fake tensors have none, nor those on the device meta."""
    return getattr(t, "fake_mode", None) is None and t.device.type != "meta"


def _is_sharded(t: Tensor) -> bool:
    return DTensor is not None and isinstance(t, DTensor)


def _look_of(p: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]:
    return p.shape, p.stride(), p.dtype, p.device


def _order(x: Tensor) -> tuple[int, ...] | None:
    """The dimensions of a dense tensor as they lie in memory; None where that is their own order.

    So a tensor in channels_last, or a transposed one, is a contiguous one with its dimensions in
    another order. All else (gaps, overlaps) is left as it is.
    """
    if x.is_contiguous():
        return None
    order = tuple(sorted(range(x.ndim), key=lambda d: (-x.stride(d), -x.shape[d])))
    return order if x.permute(order).is_contiguous() else None


def _usual_stride(x: Tensor) -> tuple[int, ...]:
    """The strides that torch gives a contiguous tensor of this shape.

    Where a dimension has one element, other strides would say the same.
    """
    below = itertools.accumulate(reversed(x.shape[1:]), operator.mul, initial=1)
    return tuple(max(1, n) for n in below)[::-1] if x.ndim else ()


def _in_order(x: Tensor, order: tuple[int, ...] | None) -> Tensor:
    return x if order is None else x.permute(order)


def _with_strides_of(like: Tensor, x: Tensor) -> Tensor:
    """The same numbers, lying as those of `like` do."""
    if x.is_contiguous() and like.is_contiguous():  # they differ where a dimension has one element
        return x.as_strided(like.shape, like.stride())
    return torch.empty_like(like, dtype=x.dtype).copy_(x)


def _references(found: Sequence[Tensor | None], i: int) -> int:
    return sys.getrefcount(found[i])


def _of_a_fresh_gradient() -> int:
    """How many references there are to a gradient that nobody but its parameter holds."""
    p = torch.zeros(1, requires_grad=True)
    with torch.enable_grad():
        p.mul(2.0).sum().backward()
    return _references([p.grad], 0)


_FRESH = _of_a_fresh_gradient()
"""Measured, since it depends on the versions of Python and torch."""


def _is_somebodys(found: Sequence[Tensor | None], i: int) -> bool:
    """Does somebody beside the parameter hold this gradient, and so may write to it?

    A communication bucket of which it is a view, or a closure that writes into the same tensors at
    each call (static gradients, as with CUDA graphs).
    """
    g = found[i]
    if g is None:
        return False
    del g
    return (
        _references(found, i) > _FRESH
        or cast(Tensor, found[i])._is_view()
        or _is_part(cast(Tensor, found[i]))
    )


def _is_part(g: Tensor) -> bool:
    return not _is_sharded(g) and g.untyped_storage().nbytes() != g.numel() * g.element_size()


def _form(look: tuple[torch.Size, Any, torch.dtype, Any]) -> tuple[torch.Size, torch.dtype]:
    return look[0], look[2]


def _require_apart(params: Sequence[Tensor], name: Callable[[Tensor], str]) -> None:
    """Raise ValueError if two parameters lie, in part, in one place in memory."""
    spans: list[tuple[int, int, int, Tensor]] = []
    for p in params:
        x = local(p)
        if x.numel() and x.layout == torch.strided and lies_somewhere(x):
            last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
            start = x.data_ptr()
            storage = x.untyped_storage().data_ptr()
            spans.append((start, start + (last + 1) * x.element_size(), storage, p))
    spans.sort(key=operator.itemgetter(0, 1))
    reach: list[tuple[int, int, int, Tensor]] = []  # those that may reach into the next
    for span in spans:
        reach = [r for r in reach if r[1] > span[0]]
        for other in reach:
            if other[2] == span[2] and _overlap(local(other[3]), local(span[3])):
                raise ValueError(
                    f"the parameters {name(other[3])} and {name(span[3])} share memory, so that "
                    "moving one moves the other: tie them by using one Parameter in both places "
                    "(as in decoder.weight = encoder.weight, transposed in forward)"
                )
        reach.append(span)


def _overlap(x: Tensor, y: Tensor) -> bool:
    """Is there an element in memory that belongs to both? Their spans may be interleaved."""
    begin = min(x.data_ptr(), y.data_ptr())
    size = x.element_size()
    if y.element_size() != size:
        return True
    ends = [
        (t.data_ptr() - begin) // size
        + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
        for t in (x, y)
    ]
    marks = torch.zeros(max(ends) + 1, dtype=torch.bool)
    at_x, at_y = (
        marks.as_strided(t.shape, t.stride(), (t.data_ptr() - begin) // size) for t in (x, y)
    )
    at_x.fill_(True)
    return bool(at_y.any())


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
            # One block has one radius, one way of summing, one memory.
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
    # Tensors alike but for their first dimension are concatenated as they are, which saves a view
    # of each: that pays where four or more are alike on average. A 0-d one cannot be concatenated.
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


def _groups_that_split_filters(t: Tensor) -> list[Any]:
    """The process groups between whose ranks a filter of `t` is split."""
    if DTensor is None or not isinstance(t, DTensor):
        return []
    # By its dimension: a strided shard of torch says that it is no `Shard`.
    rows = 0 if t.ndim > 1 else None
    return [
        t.device_mesh.get_group(i)
        for i, placed in enumerate(t.placements)
        if not placed.is_replicate() and (rows is None or getattr(placed, "dim", None) != rows)
    ]


def _part_of(p: Tensor, whole: Tensor) -> Tensor:
    """What this rank holds of a tensor that is like the whole of `p`."""
    if DTensor is None or not isinstance(p, DTensor):
        return whole
    assert compute_local_shape_and_global_offset is not None
    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    return whole[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]


def _flatten(pieces: list[Tensor], runs: Sequence[slice]) -> Tensor:
    if not runs:
        return cast(Tensor, _flatten_dense_tensors(pieces))
    return torch.cat([torch.cat(pieces[run]).reshape(-1) for run in runs])


def _unflatten(block: Tensor, like: list[Tensor]) -> list[Tensor]:
    return cast("list[Tensor]", _unflatten_dense_tensors(block, like))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    if x is y and x.ndim == 1 and x.dtype not in NARROW:  # a block of small tensors
        return torch.dot(x, x)
    if not x.is_contiguous() and x is y:  # channels_last, say: any order of the elements will do
        x = y = torch.as_strided(x, (x.numel(),), (1,)) if _is_dense(x) else x
    x, y = x.reshape(-1), y.reshape(-1)
    return torch.dot(x.float(), y.float()) if x.dtype in NARROW else torch.dot(x, y)


def _is_dense(x: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense.default(x)


def _widened(x: Tensor) -> Tensor:
    # Many blocks are summed in float64, which mps has not.
    return x if x.device.type == "mps" else x.double()

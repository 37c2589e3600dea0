"""A gradient, a perturbation or a running mean as a vector, written as on paper.

A `Vector` is a linear combination of stored blocks, as `flatmin.engine.space` lays them out. It is
evaluated where it is used, block by block, and so `g - sigma * (lmbda * m + (1 - lmbda) * g)` costs
no copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

Scalar: TypeAlias = "float | Tensor"
"""A number: on the host where the vector is, on the device where asking for it would wait."""

Metric: TypeAlias = Callable[[int], "Tensor | float"]
"""A diagonal: the factors of block `j`, a tensor like it or one number."""

TINY = 1e-12
"""Added to every norm that is divided by: a zero vector climbs nowhere, and not to nan."""

NARROW = (torch.float16, torch.bfloat16)
"""Types that have no room for sums."""


@dataclass(frozen=True)
class Term:
    """`c_j * T_j * x_j` for every block `j`."""

    blocks: Sequence[Tensor]
    coefficients: Scalar | Sequence[Scalar] = 1.0
    metric: Metric | None = None

    def at(self, j: int) -> Scalar:
        c = self.coefficients
        c = c[j] if isinstance(c, Sequence) else c
        if isinstance(c, Tensor) and c.device != self.blocks[j].device:  # a model on two devices
            c = c.to(self.blocks[j].device)
        return c

    def scaled(self, factor: Scalar) -> Term:
        c = self.coefficients
        scaled = [x * factor for x in c] if isinstance(c, Sequence) else c * factor
        return Term(self.blocks, scaled, self.metric)


class Vector:
    """A linear combination of stored blocks; `Vector()` is zero.

    Vectors add, subtract and are multiplied with numbers, as on paper. What they refer to must stay
    as it is until they are used.

    Args:
        *terms: what it is the sum of; a part gets its vectors from the probe.

    Examples:
        >>> import torch
        >>> from flatmin.engine import Vector
        >>> from flatmin.engine.vec import Term
        >>> g, m = Vector(Term([torch.ones(3)])), Vector(Term([torch.arange(3.0)]))
        >>> (g - 0.5 * m).block(0)
        tensor([1.0000, 0.5000, 0.0000])
    """

    __slots__ = ("terms",)

    def __init__(self, *terms: Term) -> None:
        self.terms = terms

    def __add__(self, other: Vector) -> Vector:
        return Vector(*_merged((*self.terms, *other.terms)))

    def __sub__(self, other: Vector) -> Vector:
        return self + other * -1.0

    def __mul__(self, factor: Scalar) -> Vector:
        if _is(0.0, factor):
            # Dropped, not multiplied: 0 * inf is nan, and a method whose factor is 0 is then the
            # simpler one bit for bit, and costs as little.
            return ZERO
        return Vector(*(term.scaled(factor) for term in self.terms))

    __rmul__ = __mul__

    def scaled(self, by_block: Sequence[Scalar]) -> Vector:
        """Each block multiplied with a number of its own, the one in `by_block`."""
        # Tensors compare as objects, which asks no device; those of one group are one object.
        if len(set(by_block)) == 1:
            return self * by_block[0]
        return Vector(
            *(
                Term(t.blocks, [c * t.at(j) for j, c in enumerate(by_block)], t.metric)
                for t in self.terms
            )
        )

    def in_metric(self, metric: Metric) -> Vector:
        """`T x` in a `metric`, of a vector `x` that is in no metric yet."""
        return Vector(*(Term(t.blocks, t.coefficients, metric) for t in self.terms))

    def block(self, j: int) -> Tensor:
        """Block `j`: a fresh tensor, or the stored one where it is all that the vector is."""
        if not self.terms:
            raise ValueError("the zero vector has no blocks of its own")
        if self.is_stored:
            return self.terms[0].blocks[j]
        return self.into(None, j)

    def into(self, out: Tensor | None, j: int) -> Tensor:
        """Evaluate block `j` into `out`, which may be part of this vector; None: a new tensor.

        Terms of one metric must stand together.
        """
        if self.terms and self.terms[0].blocks[j].dtype in NARROW:
            value = self._wide_at(j)
            return value.to(self.terms[0].blocks[j].dtype) if out is None else out.copy_(value)
        terms = list(self.terms)
        if out is not None and len(terms) > 1:
            home = out.data_ptr()
            # Plain terms are summed in `out` before the others are read: one of these in the
            # memory of `out` would be gone by then.
            if any(t.metric is not None and t.blocks[j].data_ptr() == home for t in terms):
                return out.copy_(self.into(None, j))
            terms.sort(key=lambda t: t.blocks[j].data_ptr() != home)  # it is read first
        # Asked before anything is written: a metric may be made of what `out` holds, as Fisher's is
        # of the gradient.
        metrics = dict.fromkeys(t.metric for t in terms if t.metric is not None)
        factors = [(metric, metric(j)) for metric in metrics]
        total = _plain(out, [t for t in terms if t.metric is None], j)
        for metric, factor in factors:
            inside = [t for t in terms if t.metric is metric]
            c, x = inside[0].at(j), inside[0].blocks[j]
            if len(inside) > 1:
                part = _plain(None, inside, j)
                assert part is not None
                part.mul_(factor)
            elif total is not None and isinstance(c, float):
                if isinstance(factor, Tensor):
                    total.addcmul_(x, factor, value=c)
                else:
                    total.add_(x, alpha=c * factor)
                continue
            else:
                part = torch.mul(x, factor, out=out if len(terms) == 1 else None)
                if not _is(1.0, c):
                    part.mul_(c)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total if out is None or total is out else out.copy_(total)

    def _wide_at(self, j: int) -> Tensor:
        """Block `j` in float32: narrow types have no room for sums, nor for `rho / norm`."""

        def widened(metric: Metric | None) -> Metric | None:
            if metric is None:
                return None
            factor = metric(j)
            wide = factor.float() if isinstance(factor, Tensor) else factor
            return lambda _: wide

        metrics = {id(t.metric): widened(t.metric) for t in self.terms}
        wide = (Term([t.blocks[j].float()], [t.at(j)], metrics[id(t.metric)]) for t in self.terms)
        return Vector(*wide).into(None, 0)

    @property
    def is_stored(self) -> bool:
        """Is it one stored vector, with nothing to compute?"""
        if len(self.terms) != 1 or self.terms[0].metric is not None:
            return False
        c = self.terms[0].coefficients
        return not isinstance(c, Sequence) and _is(1.0, c)


ZERO = Vector()
"""The zero vector: what a direction returns that looks nowhere, and where a memory starts."""


def _is(value: float, *summands: Scalar) -> bool:
    """Do these numbers add up to `value`, as far as one can tell without asking the device?"""
    total = 0.0
    for x in summands:
        if isinstance(x, Tensor):
            return False
        total += x
    return total == value


def _merged(terms: Sequence[Term]) -> list[Term]:
    """Terms over the same blocks in the same metric as one."""
    # By identity: equal numbers would be a sweep to find, and what is one gradient is one list of
    # blocks. The terms hold both objects, so that no id is used twice meanwhile.
    merged: dict[tuple[int, int], Term] = {}
    for term in terms:
        key = (id(term.blocks), id(term.metric))
        known = merged.get(key)
        if known is None:
            merged[key] = term
        else:
            a, b = known.coefficients, term.coefficients
            if isinstance(a, Sequence) or isinstance(b, Sequence):
                total: Any = [known.at(j) + term.at(j) for j in range(len(term.blocks))]
            else:
                total = a + b
            merged[key] = Term(term.blocks, total, term.metric)
    return list(merged.values())


def _plain(out: Tensor | None, terms: list[Term], j: int) -> Tensor | None:
    """`sum_i c_i x_i` in `out`, or in a new tensor; `out` may be the first `x`."""
    if not terms:
        return None
    (c, x), *others = [(t.at(j), t.blocks[j]) for t in terms]
    if out is None:
        total = torch.mul(x, c)
    elif out.data_ptr() != x.data_ptr():
        total = out.copy_(x) if _is(1.0, c) else torch.mul(x, c, out=out)
    elif len(others) == 1 and _is(1.0, c, others[0][0]):
        # A running mean is one sweep over memory in place of two.
        return out.lerp_(others[0][1], cast(float, others[0][0]))
    else:
        total = out if _is(1.0, c) else out.mul_(c)
    for c, x in others:
        # `alpha` is a number of the host: to make one of a tensor would wait for the device.
        total = total.addcmul_(x, c) if isinstance(c, Tensor) else total.add_(x, alpha=c)
    return total

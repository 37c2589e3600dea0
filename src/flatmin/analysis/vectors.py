"""Flat vectors of any type, summed in double precision without a wide copy of them."""

from __future__ import annotations

from torch import Tensor

from flatmin.analysis.curvature import PIECE


def dot(x: Tensor, y: Tensor) -> float:
    """`xᵀy`."""
    total = 0.0
    for begin in range(0, len(x), PIECE):
        piece = slice(begin, begin + PIECE)
        total += float(x[piece].double() @ y[piece].double())
    return total


def norm(x: Tensor) -> float:
    """`‖x‖`."""
    return dot(x, x) ** 0.5


def cosine(x: Tensor, y: Tensor) -> float:
    """`cos(x, y)`; nan where one of them is zero."""
    lengths = norm(x) * norm(y)
    return dot(x, y) / lengths if lengths else float("nan")

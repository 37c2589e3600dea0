"""A geometry of `flatmin.geometry` at weights that no optimizer holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flatmin.analysis.parameters import Parameters
from flatmin.analysis.vectors import norm
from flatmin.engine.space import Space
from flatmin.engine.vec import TINY, Term, Vector
from flatmin.geometry import Geometry


def metric_of(
    parameters: Parameters,
    geometry: Geometry,
    grad: Tensor,
    leaves: Sequence[Tensor] | None = None,
) -> Tensor:
    """The diagonal `T` of a geometry at the weights, as a flat vector in double precision.

    Args:
        parameters: which.
        geometry: any of `flatmin.geometry`.
        grad: the gradient there, as a flat vector.
        leaves: what stands for the parameters; default None: they themselves.
    """
    if geometry.trivial:
        return torch.ones((), dtype=torch.float64, device=grad.device)
    geometry.require(dict(zip(parameters.names, parameters.tensors, strict=True)))
    home: Any = _Home(parameters, leaves or parameters.tensors, grad)
    blocks: list[Tensor] = []
    for j in range(home.blocks):
        factor = geometry.metric(home, j)
        ones = torch.ones_like(home.like(j))
        blocks.append(ones * factor)
    return parameters.flatten(home.spread(blocks), torch.float64)


def ascent(T: Tensor, d: Tensor, gain: float = 1.0) -> Tensor:
    """`Γ(d) = T² d / ‖T d‖`, times the gain of the geometry."""
    scaled = T * d
    return T * scaled * (gain / (norm(scaled) + TINY))


class _Home:
    """What a geometry asks of a step."""

    step = 0

    def __init__(self, parameters: Parameters, leaves: Sequence[Tensor], grad: Tensor) -> None:
        here = [p.detach() for p in leaves]
        self._space = Space([here], names=dict(zip(here, parameters.names, strict=True)))
        self._params = parameters.tensors
        self._names = parameters.names
        self.weights = Vector(Term(self._space.join(self._space.pieces)))
        self.grad = parameters.displacement(self._space, grad, leaves)
        self.each = self._space.each
        self.spread = self._space.spread

    @property
    def blocks(self) -> int:
        return len(self._space.blocks)

    def members(self, j: int) -> Sequence[int]:
        return self._space.blocks[j].members

    def parameter(self, i: int) -> Tensor:
        return self._params[i]

    def name(self, i: int) -> str:
        return self._names[i]

    def like(self, j: int) -> Tensor:
        return self.weights.block(j)

"""What a direction or a geometry asks of the point at which it stands."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from torch import Tensor

from flatmin.engine.vec import Scalar, Vector


class Viewpoint(Protocol):
    """The weights, the gradient, the climb, further gradients, and memory: all that a rule needs.

    Two things keep it, and so a direction or a geometry that asks for nothing else works in both,
    unchanged: `flatmin.engine.Probe`, in which an optimizer moves parameters in place, and
    `flatmin.meta.FunctionalProbe`, in which nothing is changed, gradients flow through every
    number, and many tasks stand at points of their own. A number is then a tensor, one a task:
    combine it with vectors as on paper, and don't branch on it.

    Attributes:
        grad: the primary gradient `g` at the unperturbed weights.
        rho: the radius of each parameter group.
    """

    grad: Vector
    rho: Sequence[float]

    @property
    def weights(self) -> Vector:
        """The unperturbed weights."""
        ...

    @property
    def step(self) -> int:
        """How many steps were taken before this one."""
        ...

    def norm(self, a: Vector) -> Scalar:
        """`‖a‖` over all parameters."""
        ...

    def dot(self, a: Vector, b: Vector) -> Scalar:
        """`aᵀb` over all parameters."""
        ...

    def cosine(self, a: Vector, b: Vector) -> Scalar:
        """`cos(a, b)`; 0 if either is zero."""
        ...

    def climb(self, d: Vector, rho: float | None = None) -> Vector:
        """`rho Γ(d)`: the step of length `rho` along `d` in the metric at hand."""
        ...

    def members(self, j: int) -> Sequence[int]:
        """The parameters that block `j` holds, by position."""
        ...

    def parameter(self, i: int) -> Tensor:
        """Parameter `i`, as the model holds it."""
        ...

    def name(self, i: int) -> str:
        """The name of parameter `i` in the model; empty where no model was given."""
        ...

    def each(self, j: int, value: Callable[[int], float]) -> Tensor:
        """A block like block `j` that holds `value(i)` all over parameter `i`."""
        ...

    def primary(
        self, at: Vector | None = None, samples: Tensor | None = None, *, last: bool = False
    ) -> Generator[Any, Any, Vector]:
        """The gradient on the primary batch at `w + at`."""
        ...

    def auxiliary(self, at: Vector | None = None) -> Generator[Any, Any, Vector]:
        """The gradient on the auxiliary batch at `w + at`."""
        ...

    def recall(self, name: str) -> Vector | None:
        """What an earlier step has kept under `name`; None before the first that did."""
        ...

    def keep(self, name: str, value: Vector) -> None:
        """Keep `value` for later steps, from the moment this one has succeeded."""
        ...


__all__ = ["Viewpoint"]

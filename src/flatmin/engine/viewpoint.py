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

    Examples:
        >>> from dataclasses import dataclass
        >>> import flatmin
        >>> from flatmin.engine import Vector, Viewpoint
        >>> @dataclass(frozen=True)
        ... class Halfway(flatmin.direction.Direction):
        ...     def displacement(self, at: Viewpoint) -> Vector:
        ...         return 0.5 * at.climb(at.grad)
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
        """`‖a‖` over all parameters.

        Args:
            a: any vector.
        """
        ...

    def dot(self, a: Vector, b: Vector) -> Scalar:
        """`aᵀb` over all parameters.

        Args:
            a: any vector.
            b: any vector.
        """
        ...

    def cosine(self, a: Vector, b: Vector) -> Scalar:
        """`cos(a, b)`; 0 if either is zero.

        Args:
            a: any vector.
            b: any vector.
        """
        ...

    def climb(self, d: Vector, rho: float | None = None) -> Vector:
        """`rho Γ(d)`: the step of length `rho` along `d` in the metric at hand.

        Args:
            d: where to; the zero vector climbs nowhere.
            rho: its length; default None, the radius of each parameter group.
        """
        ...

    def members(self, j: int) -> Sequence[int]:
        """The parameters that block `j` holds, by position.

        Args:
            j: position of the block.
        """
        ...

    def parameter(self, i: int) -> Tensor:
        """Parameter `i`, as the model holds it.

        Args:
            i: position of the parameter.
        """
        ...

    def name(self, i: int) -> str:
        """The name of parameter `i` in the model; empty where no model was given.

        Args:
            i: position of the parameter.
        """
        ...

    def each(self, j: int, value: Callable[[int], float]) -> Tensor:
        """A block like block `j` that holds `value(i)` all over parameter `i`.

        Args:
            j: position of the block.
            value: from the position of a parameter.
        """
        ...

    def primary(
        self, at: Vector | None = None, samples: Tensor | None = None, *, last: bool = False
    ) -> Generator[Any, Any, Vector]:
        """The gradient on the primary batch at `w + at`.

        Args:
            at: where; default None, at `w`.
            samples: indices of some samples; default None, all of them.
            last: whether no pass of the step follows; default False.
        """
        ...

    def auxiliary(self, at: Vector | None = None) -> Generator[Any, Any, Vector]:
        """The gradient on the auxiliary batch at `w + at`.

        Args:
            at: where; default None, at `w`.
        """
        ...

    def recall(self, name: str) -> Vector | None:
        """What an earlier step has kept under `name`; None before the first that did.

        Args:
            name: as given to `keep`.
        """
        ...

    def keep(self, name: str, value: Vector) -> None:
        """Keep `value` for later steps, from the moment this one has succeeded.

        Args:
            name: one of the `buffers` that the part names.
            value: the vector.
        """
        ...


__all__ = ["Viewpoint"]

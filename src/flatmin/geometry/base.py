"""What a geometry is, and how two of them meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.engine.viewpoint import Viewpoint


class Geometry:
    """A diagonal metric. A new one is a frozen dataclass with `metric`.

    Two geometries intersect by multiplying their `T`.

    Examples:
        >>> from dataclasses import dataclass
        >>> import flatmin
        >>> @dataclass(frozen=True)
        ... class Magnitude(flatmin.geometry.Geometry):
        ...     def metric(self, at, j):
        ...         return at.weights.block(j).abs()
        >>> both = Magnitude() * flatmin.geometry.RandomSubset(beta=0.5)
    """

    @property
    def gain(self) -> float:
        """What `Γ` is multiplied with in the end; 1 but for subsets."""
        return 1.0

    @property
    def trivial(self) -> bool:
        """Is `T` 1 everywhere?"""
        return False

    @property
    def needs_gradient(self) -> bool:
        """Does `metric` look at `at.grad`?"""
        return False

    def metric(self, at: Viewpoint, j: int) -> Tensor | float:
        """`T` at the unperturbed weights, on block `j` of the vector: element by element.

        `at.weights.block(j)` and `at.grad.block(j)` are the weights and the gradient there; they
        are not to be changed.

        Args:
            at: this step.
            j: number of the block, from 0.
        """
        raise NotImplementedError

    def require(self, params: Mapping[str, Tensor]) -> None:
        """Raise ValueError if it cannot work over these parameters of an optimizer.

        Args:
            params: all of them by their names in the model; where no model was given, the names
                begin with a blank.
        """

    def __mul__(self, other: Geometry) -> Geometry:
        return Product(self, other)


@dataclass(frozen=True)
class Product(Geometry):
    """Two geometries at once: the product of their `T`, and of their gains; `first * second`.

        T = T_first T_second;   Γ(d) = T² d / ‖T d‖

    Args:
        first: a geometry.
        second: another.

    Cost: no pass; what the two ask for.

    Examples:
        >>> from flatmin.geometry import Adaptive, RandomSubset
        >>> Adaptive() * RandomSubset(beta=0.5)
        Product(first=Adaptive(eta=0.01), second=RandomSubset(beta=0.5, seed=0))
    """

    first: Geometry
    second: Geometry

    @property
    def gain(self) -> float:
        return self.first.gain * self.second.gain

    @property
    def trivial(self) -> bool:
        return self.first.trivial and self.second.trivial

    @property
    def needs_gradient(self) -> bool:
        return self.first.needs_gradient or self.second.needs_gradient

    def metric(self, at: Viewpoint, j: int) -> Tensor | float:
        return self.first.metric(at, j) * self.second.metric(at, j)

    def require(self, params: Mapping[str, Tensor]) -> None:
        self.first.require(params)
        self.second.require(params)

"""What a direction is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe, Result
    from flatmin.engine.vec import Vector
    from flatmin.engine.viewpoint import Viewpoint


class Direction:
    """Says where a perturbed step looks. A new one is a frozen dataclass with `displacement`.

    A direction runs on perturbed steps, and so does its memory, unless it asks for the others too
    (`moving`): a step that the policy leaves to the base optimizer costs one gradient.

    Examples:
        >>> from dataclasses import dataclass
        >>> import flatmin
        >>> @dataclass(frozen=True)
        ... class Downhill(flatmin.direction.Direction):
        ...     def displacement(self, at):
        ...         return -1.0 * at.climb(at.grad)
    """

    needs_gradient: ClassVar[bool] = True
    """Does `displacement` look at `at.grad`?

    If not, the first and only pass of a perturbed step is at `w + eps`: it costs one gradient, and
    the step returns the loss there.
    """

    takes_metric: ClassVar[bool] = True
    """Does it climb in the metric of the geometry? If not, it can go with none."""

    @property
    def auxiliary_passes(self) -> int:
        """Gradients on the auxiliary batch that a perturbed step asks for."""
        return 0

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names under which it keeps vectors."""
        return ()

    @property
    def moving(self) -> tuple[str, ...]:
        """Those of `buffers` that move in every step, also in those that the policy skips."""
        return ()

    def kept(self, at: Probe) -> tuple[str, ...]:
        """Those of `buffers` that it keeps over the base optimizer at hand: all, unless it says so.

        Args:
            at: a step after which the base optimizer has set up its state.
        """
        return self.buffers

    def largest_radius(self, rho: float) -> float:
        """The largest radius that it takes in a parameter group; at 0 nothing is perturbed.

        Args:
            rho: the radius of the group, at least 0.
        """
        return rho

    def require(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise ValueError if it cannot work over a base optimizer with these parameter groups.

        Args:
            groups: the parameter groups, with the options of the base optimizer.
        """

    def displacement(self, at: Viewpoint) -> Result[Vector]:
        """The perturbation `eps`, or the looks that end in it (`g = yield from at.auxiliary()`).

        Args:
            at: this step: the weights, the gradient `at.grad`, the climb and what is remembered.
        """
        raise NotImplementedError

    def skipped(self, at: Viewpoint) -> None:
        """Called in a step that the policy skips, for directions that have something `moving`.

        Args:
            at: this step, with the gradient that the base optimizer is to get.
        """

    def learn(self, at: Viewpoint, seen: Vector) -> None:
        """Called with the perturbed gradient, for directions that remember it.

        Args:
            at: this step.
            seen: the gradient at `w + eps`.
        """

"""What a direction is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe, Result
    from flatmin.engine.vec import Vector


class Direction:
    """Says where a perturbed step looks. A new one is a frozen dataclass with `displacement`.

    A direction runs on perturbed steps alone, and so does its memory: a step that the policy
    leaves to the base optimizer costs one gradient and nothing else.
    """

    @property
    def auxiliary_passes(self) -> int:
        """Gradients on the auxiliary batch that a perturbed step asks for."""
        return 0

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names under which it keeps vectors."""
        return ()

    def largest_radius(self, rho: float) -> float:
        """The largest radius in a parameter group with `rho`; at 0 nothing is perturbed."""
        return rho

    def displacement(self, at: Probe) -> Result[Vector]:
        """The perturbation `eps`, or the looks that end in it (`g = yield from at.auxiliary()`)."""
        raise NotImplementedError

    def learn(self, at: Probe, seen: Vector) -> None:
        """Called with the perturbed gradient, for directions that remember it."""

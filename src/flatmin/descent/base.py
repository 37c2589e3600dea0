"""What a descent is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe, Result
    from flatmin.engine.vec import Vector


class Descent:
    """Says which gradient the base optimizer gets. A new one is a frozen dataclass with `after`.

    A base step is taken for each gradient it returns, in order, from the unperturbed weights.

    Examples:
        >>> from dataclasses import dataclass
        >>> import flatmin
        >>> @dataclass(frozen=True)
        ... class HalfWay(flatmin.descent.Descent):
        ...     def after(self, at, seen, eps):
        ...         return [0.5 * at.grad + 0.5 * seen]
    """

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names under which it keeps vectors."""
        return ()

    @property
    def looks_back(self) -> bool:
        """Does `after` need `at.grad` or `eps`? If not, they go before the perturbed pass."""
        return True

    @property
    def asks_for_gradient(self) -> bool:
        """Is the pass at `w` run for it, also under a direction that needs none?

        If not, a descent that looks back cannot go with such a direction.
        """
        return False

    @property
    def further_passes(self) -> int:
        """Gradients on the primary batch beyond the two of a perturbed step."""
        return 0

    @property
    def way(self) -> float:
        """The share of the way, from where the weights were to where the base steps led, to go."""
        return 1.0

    def after(self, at: Probe, seen: Vector, eps: Vector) -> Result[list[Vector]]:
        """The gradients to descend, of a step that has looked.

        Args:
            at: this step; `at.grad` is the gradient at the unperturbed weights.
            seen: the gradient at `w + eps`.
            eps: the perturbation.
        """
        raise NotImplementedError

    def without(self, at: Probe) -> list[Vector]:
        """The gradients to descend, of a step that looked nowhere.

        Args:
            at: this step.
        """
        return [at.grad]

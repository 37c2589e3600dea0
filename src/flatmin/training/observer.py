"""What is looked at beside a training, by whoever knows how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from flatmin.training.data.batches import Batch

Closures: TypeAlias = tuple[Callable[..., Any], ...]
"""Of one step: of the primary batch and, where the method looks at one, of the auxiliary one."""


class Observer(Protocol):
    """Sees every step and every epoch of a training, and leaves both as they are."""

    @property
    def values(self) -> Mapping[str, list[float]]:
        """What was found, by name."""
        ...

    def wrap(self, closures: Closures, batch: Batch, other: Batch | None) -> Closures:
        """The closures of a step, watched.

        Args:
            closures: as the optimizer would call them.
            batch: the primary batch.
            other: the auxiliary one; None where the method has none.
        """
        ...

    def ended(self, epoch: int) -> None:
        """An epoch has ended, the first being 1."""
        ...

    def state(self) -> dict[str, Any]:
        """What was found, and what the next step needs."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        ...

"""What a policy is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe


class Policy:
    """Decides whether a step is perturbed. A new one is a frozen dataclass with `perturbs`.

    A policy decides from the step count or from reduced numbers (`at.norm`, `at.dot`), so that
    every rank takes the same branch. A step it leaves alone costs one gradient.

    Examples:
        >>> from dataclasses import dataclass
        >>> import flatmin
        >>> @dataclass(frozen=True)
        ... class FirstHundred(flatmin.policy.Policy):
        ...     rate = float("nan")
        ...
        ...     def perturbs(self, at):
        ...         return at.step < 100
    """

    @property
    def memory(self) -> Mapping[str, float]:
        """The numbers it keeps between steps, with their start values."""
        return MappingProxyType({})

    @property
    def needs_gradient(self) -> bool:
        """Does `perturbs` look at `at.grad`? If not, it is asked before the first pass."""
        return False

    @property
    def rate(self) -> float:
        """The share of steps it perturbs, in [0, 1]; nan where only training can tell."""
        raise NotImplementedError

    def perturbs(self, at: Probe) -> bool:
        """Is this step perturbed?

        Args:
            at: this step; `at.step` counts from 0, and `at.grad` is there if `needs_gradient`.
        """
        raise NotImplementedError

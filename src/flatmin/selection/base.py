"""What a selection is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.engine.probe import Probe, Result
    from flatmin.engine.vec import Vector


class Selection:
    """Says which samples of the primary batch the perturbed pass evaluates.

    Examples:
        >>> from dataclasses import dataclass
        >>> import flatmin, torch
        >>> @dataclass(frozen=True)
        ... class HighestLoss(flatmin.selection.Selection):
        ...     per_sample = True
        ...     share = 0.5
        ...
        ...     def choose(self, at, eps):
        ...         return at.losses.topk(max(1, len(at.losses) // 2)).indices
    """

    @property
    def per_sample(self) -> bool:
        """Does the closure take sample indices and return per-sample losses, without backward?"""
        return False

    @property
    def share(self) -> float:
        """The share of the batch that the perturbed pass differentiates, in (0, 1]."""
        return 1.0

    def choose(self, at: Probe, eps: Vector) -> Result[Tensor | None]:
        """The indices of the chosen samples, given the perturbation; None for all.

        Args:
            at: this step; `at.losses` are the losses at the unperturbed weights.
            eps: the perturbation; `yield from at.losses_at(eps)` gives the losses there.
        """
        raise NotImplementedError

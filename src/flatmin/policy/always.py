"""The policy of SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.policy.base import Policy

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe


@dataclass(frozen=True)
class Always(Policy):
    """Every step is perturbed."""

    @property
    def rate(self) -> float:
        return 1.0

    def perturbs(self, at: Probe) -> bool:
        return True

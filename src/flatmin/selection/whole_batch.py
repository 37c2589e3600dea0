"""The selection of SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.selection.base import Selection

if TYPE_CHECKING:
    from flatmin.engine.probe import Probe
    from flatmin.engine.vec import Vector


@dataclass(frozen=True)
class WholeBatch(Selection):
    """Every sample."""

    def choose(self, at: Probe, eps: Vector) -> None:
        return None

"""flatmin: sharpness-aware optimizers that find flat minima, for any torch.optim base optimizer.

What users import is here. `methods` has the published methods, each one function and one line of
`methods.TABLE`; `optimizer` takes their steps. The rooms below and above are drawn in
docs/architecture.md.
"""

from importlib import import_module
from typing import Any

from flatmin import amp, descent, direction, geometry, methods, policy, schedules, selection
from flatmin.citing import cite
from flatmin.engine.cost import Cost
from flatmin.methods import (
    AESAM,
    ASAM,
    ESAM,
    GSAM,
    MSAM,
    RWP,
    SAM,
    SSSAM,
    VASSO,
    WSAM,
    AELookSAM,
    AgnosticASAM,
    AgnosticSAM,
    AlignASAM,
    AlignSAM,
    FisherSAM,
    FriendlyASAM,
    FriendlySAM,
    LateAgnosticSAM,
    LateSAM,
    LookbehindSAM,
    LookSAM,
    MixedRWP,
    PreviousSAM,
)
from flatmin.optimizer import SharpnessAware
from flatmin.pairs import paired, split

__version__ = "0.1.0"

_ROOMS = ("analysis", "meta")
"""Rooms that are imported when they are first asked for: `analysis` needs more than torch."""


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'flatmin' has no attribute {name!r}")
    try:
        return import_module(f"flatmin.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("numpy", "scipy"):
            raise
        raise ImportError(
            f"flatmin.{name} needs {package}: pip install 'flatmin[studies]'"
        ) from error


__all__ = [
    "AESAM",
    "ASAM",
    "ESAM",
    "GSAM",
    "MSAM",
    "RWP",
    "SAM",
    "SSSAM",
    "VASSO",
    "WSAM",
    "AELookSAM",
    "AgnosticASAM",
    "AgnosticSAM",
    "AlignASAM",
    "AlignSAM",
    "Cost",
    "FisherSAM",
    "FriendlyASAM",
    "FriendlySAM",
    "LateAgnosticSAM",
    "LateSAM",
    "LookSAM",
    "LookbehindSAM",
    "MixedRWP",
    "PreviousSAM",
    "SharpnessAware",
    "amp",
    "cite",
    "descent",
    "direction",
    "geometry",
    "methods",
    "paired",
    "policy",
    "schedules",
    "selection",
    "split",
]

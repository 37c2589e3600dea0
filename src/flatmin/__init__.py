"""flatmin: sharpness-aware optimizers that find flat minima, for any torch.optim base optimizer."""

import importlib
from typing import Any

from flatmin import amp, descent, direction, geometry, methods, policy, selection
from flatmin.engine.cost import Cost
from flatmin.methods import (
    AESAM,
    ASAM,
    ESAM,
    GSAM,
    SAM,
    SSSAM,
    VASSO,
    AELookSAM,
    AgnosticASAM,
    AgnosticSAM,
    AlignASAM,
    AlignSAM,
    FisherSAM,
    FriendlyASAM,
    FriendlySAM,
    LookbehindSAM,
    LookSAM,
)
from flatmin.optimizer import SharpnessAware
from flatmin.pairs import paired, split

__version__ = "0.1.0"

__all__ = [
    "AESAM",
    "ASAM",
    "ESAM",
    "GSAM",
    "SAM",
    "SSSAM",
    "VASSO",
    "AELookSAM",
    "AgnosticASAM",
    "AgnosticSAM",
    "AlignASAM",
    "AlignSAM",
    "Cost",
    "FisherSAM",
    "FriendlyASAM",
    "FriendlySAM",
    "LookSAM",
    "LookbehindSAM",
    "SharpnessAware",
    "amp",
    "descent",
    "direction",
    "geometry",
    "methods",
    "paired",
    "policy",
    "selection",
    "split",
]


def __getattr__(name: str) -> Any:
    """`flatmin.analysis`, imported when first asked for: it needs more than torch."""
    if name == "analysis":
        try:
            return importlib.import_module("flatmin.analysis")
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in ("numpy", "scipy"):
                raise
            raise ImportError(
                f"flatmin.analysis needs {package}: pip install 'flatmin[studies]'"
            ) from error
    raise AttributeError(f"module 'flatmin' has no attribute {name!r}")

"""flatmin: sharpness-aware optimizers that find flat minima, for any torch.optim base optimizer.

What users import is here. `methods` has the published methods, each one function and one line of
`methods.TABLE`; `optimizer` takes their steps. The rooms below and above are drawn in
docs/architecture.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time, see `__getattr__`
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
        PreviousAgnosticSAM,
        PreviousSAM,
    )
    from flatmin.optimizer import SharpnessAware
    from flatmin.pairs import paired, split

__version__ = "0.1.0"

_ROOMS = (
    *("amp", "descent", "direction", "documentation", "engine", "geometry", "methods"),
    *("optimizer", "pairs", "policy", "schedules", "selection"),
    *("analysis", "meta"),
)
"""Modules that `import flatmin` alone brings along; `analysis` needs more than torch."""

_HOMES = {
    "Cost": "engine.cost",
    "SharpnessAware": "optimizer",
    "cite": "citing",
    "compare": "studies.comparing",
    "load": "studies.comparing",
    "paired": "pairs",
    "split": "pairs",
}
"""Where a public name is defined, if not in `methods`."""

_STUDIES = ("compare", "load")
"""Public names that need more than torch, and so are none of those that `*` brings."""


def __getattr__(name: str) -> Any:
    """What is asked for, imported now: `import flatmin` itself takes no time, and no torch."""
    if name in _ROOMS:
        return _room(name)  # which the import itself puts here
    if name not in __all__ and name not in _STUDIES:
        raise AttributeError(f"module 'flatmin' has no attribute {name!r}")
    found = getattr(_room(_HOMES.get(name, "methods")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS, *_STUDIES})


def _room(name: str) -> Any:
    try:
        return import_module(f"flatmin.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "flatmin"):
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
    "PreviousAgnosticSAM",
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

"""flatmin: sharpness-aware optimizers that find flat minima, for any torch.optim base optimizer.

What users import is here. `methods` has the published methods, each one function and one line of
`methods.TABLE`; `optimizer` takes their steps. The rooms below and above are drawn in
docs/architecture.md.
"""

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

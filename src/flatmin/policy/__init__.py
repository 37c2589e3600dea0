"""When do we look around? At every step, every k-th, by coin, late, or when the gradient is large.

`Policy` is the question, and `EveryK` a short answer. A new one is a module with a frozen dataclass
whose `perturbs` says whether this step looks.
"""

from flatmin.policy.always import Always
from flatmin.policy.base import Policy
from flatmin.policy.bernoulli import Bernoulli
from flatmin.policy.both import Both
from flatmin.policy.early import Early
from flatmin.policy.every_k import EveryK
from flatmin.policy.large_gradient import LargeGradient
from flatmin.policy.late import Late

__all__ = [
    "Always",
    "Bernoulli",
    "Both",
    "Early",
    "EveryK",
    "LargeGradient",
    "Late",
    "Policy",
]

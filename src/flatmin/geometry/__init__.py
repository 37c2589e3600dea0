"""In which metric do we measure a step?

Every geometry is one diagonal metric `T`: `Γ(d) = T² d / ‖T d‖` solves `max ⟨d, eps⟩` subject to
`‖T⁻¹ eps‖ ≤ 1`. Two geometries intersect by multiplying their `T`: `Adaptive() * RandomSubset()`.
`Only` perturbs some parameters alone.

`Geometry` is the question, and `Adaptive` a short answer. A new one is a module with a frozen
dataclass whose `metric` returns `T`, element by element.
"""

from flatmin.geometry.adaptive import Adaptive
from flatmin.geometry.base import Geometry, Product
from flatmin.geometry.euclidean import Euclidean
from flatmin.geometry.fisher import Fisher
from flatmin.geometry.only import Only, norm_parameters
from flatmin.geometry.random_subset import RandomSubset

__all__ = [
    "Adaptive",
    "Euclidean",
    "Fisher",
    "Geometry",
    "Only",
    "Product",
    "RandomSubset",
    "norm_parameters",
]

"""What do we keep of what we saw? All of it, or the part across the gradient.

`Descent` is the question, and `SurrogateGap` a short answer. A new one is a module with a frozen
dataclass whose `after` returns the gradients to descend.
"""

from flatmin.descent.base import Descent
from flatmin.descent.lookbehind import Lookbehind
from flatmin.descent.mixed import Mixed
from flatmin.descent.plain import Plain
from flatmin.descent.reuse import Reuse
from flatmin.descent.surrogate_gap import SurrogateGap

__all__ = ["Descent", "Lookbehind", "Mixed", "Plain", "Reuse", "SurrogateGap"]

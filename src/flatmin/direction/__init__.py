"""Where do we look? Up the gradient, past the noise of the batch, towards a second batch.

`Direction` is the question, and `Ascent`, SAM's, the shortest answer. A new one is a module with a
frozen dataclass whose `displacement` returns `eps`, written like its equation. `Momentum`,
`Random`, `Previous` and `PreviousAgnostic` need no gradient at `w`, and their steps cost one.
"""

from flatmin.direction.agnostic import Agnostic
from flatmin.direction.ascent import Ascent
from flatmin.direction.base import Direction
from flatmin.direction.components import FullComponent, NoiseComponent
from flatmin.direction.friendly import Friendly
from flatmin.direction.momentum import Momentum
from flatmin.direction.other_batch import OtherBatch
from flatmin.direction.previous import Previous
from flatmin.direction.previous_agnostic import PreviousAgnostic
from flatmin.direction.random import Random
from flatmin.direction.suppressed import Suppressed

__all__ = [
    "Agnostic",
    "Ascent",
    "Direction",
    "Friendly",
    "FullComponent",
    "Momentum",
    "NoiseComponent",
    "OtherBatch",
    "Previous",
    "PreviousAgnostic",
    "Random",
    "Suppressed",
]

"""Which samples do we look at again? All of them, or those whose loss rose most.

`Selection` is the question. A new answer is a module with a frozen dataclass whose `choose` returns
the indices of the samples; `LossRise` is one.
"""

from flatmin.selection.base import Selection
from flatmin.selection.loss_rise import LossRise
from flatmin.selection.whole_batch import WholeBatch

__all__ = ["LossRise", "Selection", "WholeBatch"]

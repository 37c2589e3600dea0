"""What a step stands on, for those who write parts of a method.

A direction, geometry, policy, selection or descent sees one step through a `Probe`: the weights,
the gradient, the climb in the metric at hand, further gradients, and memory. What it computes are
`Vector`s, written as on paper; a part that has to look first is a generator of passes.

    from flatmin.engine import Pass, PassGenerator, Probe, Vector, ZERO

    @dataclass(frozen=True)
    class Downhill(flatmin.direction.Direction):
        def displacement(self, at: Probe) -> Vector:
            return at.climb(-1.0 * at.grad)

Where to start reading: `probe` (what a part may see and do), `vec` (the arithmetic), then `walk`
(weights that leave home and come back bit for bit), `space` (how tensors are laid out in blocks)
and `memory` (what outlives a step). `wrapper`, `masters`, `distributed` and `model_state` each keep
one promise; `flatmin.optimizer` runs the step that uses them all.
"""

from flatmin.engine.cost import Cost
from flatmin.engine.probe import Pass, PassGenerator, Probe, Result
from flatmin.engine.vec import ZERO, Scalar, Vector

__all__ = ["ZERO", "Cost", "Pass", "PassGenerator", "Probe", "Result", "Scalar", "Vector"]

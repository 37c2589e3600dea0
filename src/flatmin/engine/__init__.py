"""What a step stands on, for those who write parts of a method.

A direction, geometry, policy, selection or descent sees one step through a `Probe`: the weights,
the gradient, the climb in the metric at hand, further gradients, and memory. What it computes are
`Vector`s, written as on paper; a part that has to look first is a generator of passes. A direction
and a geometry ask for no more than a `Viewpoint`, and so they work in `flatmin.meta` as well.

    Viewpoint: a step, as a direction or a geometry sees it: `at`.
    Probe: the step of an optimizer, with what the other parts see as well.
    Vector: a gradient, a perturbation or a running mean.
    ZERO: the zero vector.
    Scalar: a number, which may be a tensor on the device.
    Pass: one evaluation of the loss.
    PassGenerator: a computation that stops at each pass that it needs.
    Result: what a part returns: the thing itself, or a `PassGenerator` that ends in it.
    Cost: what training has cost so far.

A direction that needs no look of its own, and one that does:

    >>> from dataclasses import dataclass
    >>> import flatmin
    >>> from flatmin.engine import PassGenerator, Vector, Viewpoint
    >>> @dataclass(frozen=True)
    ... class Downhill(flatmin.direction.Direction):
    ...     def displacement(self, at: Viewpoint) -> Vector:
    ...         return -1.0 * at.climb(at.grad)
    >>> @dataclass(frozen=True)
    ... class Ahead(flatmin.direction.Direction):
    ...     def displacement(self, at: Viewpoint) -> PassGenerator[Vector]:
    ...         ahead = yield from at.primary(at.climb(at.grad))
    ...         return at.climb(ahead)

Where to start reading: `viewpoint` and `probe` (what a part may see and do), `vec` (the
arithmetic), then `walk` (weights that leave home and come back bit for bit), `space` (how tensors
are laid out in blocks) and `memory` (what outlives a step). `wrapper`, `masters`, `distributed` and
`model_state` each keep one promise; `flatmin.optimizer` runs the step that uses them all.
"""

from flatmin.engine.cost import Cost
from flatmin.engine.probe import Pass, PassGenerator, Probe, Result
from flatmin.engine.vec import ZERO, Scalar, Vector
from flatmin.engine.viewpoint import Viewpoint

__all__ = [
    "ZERO",
    "Cost",
    "Pass",
    "PassGenerator",
    "Probe",
    "Result",
    "Scalar",
    "Vector",
    "Viewpoint",
]

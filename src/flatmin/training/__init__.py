"""One training run, as a user would write it: models, data, noise, augmentation and the loop.

`loop.train` is where to start: it takes a `settings.Training` from its first image to its last
measurement, and reads in that order; what steps in between is a `learner.Learner`, what comes out a
`result.Run`. `data` makes the batches, `models` the networks; `scores` measures a model and
`evaluation` the final one once more, `recorder` what happens along the way; `resume` and
`checkpoints` take a run up again, bit for bit; `processes` shares one among several. A base
optimizer is an entry of `bases.BASES`, a schedule one of `schedules.SCHEDULES`, an observable one
of `recorder.OBSERVABLES`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time, see `__getattr__`
    from flatmin.training.data.images import ImageData, load
    from flatmin.training.errors import InputError
    from flatmin.training.loop import train
    from flatmin.training.result import Epoch, Run
    from flatmin.training.settings import Training

_HOMES = {
    "Epoch": "result",
    "ImageData": "data.images",
    "InputError": "errors",
    "Run": "result",
    "Training": "settings",
    "load": "data.images",
    "train": "loop",
}
"""Where each public name is defined."""


def __getattr__(name: str) -> Any:
    """What is asked for, imported now: an error in one line takes no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'flatmin.training' has no attribute {name!r}")
    found = getattr(import_module(f"flatmin.training.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = ["Epoch", "ImageData", "InputError", "Run", "Training", "load", "train"]

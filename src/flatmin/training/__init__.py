"""One training run, as a user would write it: models, data, noise, augmentation and the loop.

`loop.train` is where to start: it does a `settings.Training` from its first image to its last
measurement, and reads in that order. `data` makes the batches, `models` the networks; `evaluation`
measures the final model, `recorder` what happens along the way; `resume` and `checkpoints` take a
run up again, bit for bit; `processes` shares one among several. A base optimizer is an entry of
`bases.BASES`, a schedule one of `schedules.SCHEDULES`, an observable one of `recorder.OBSERVABLES`.
"""

from flatmin.training.data.images import ImageData, load
from flatmin.training.errors import InputError
from flatmin.training.loop import Epoch, Run, Training, train

__all__ = ["Epoch", "ImageData", "InputError", "Run", "Training", "load", "train"]

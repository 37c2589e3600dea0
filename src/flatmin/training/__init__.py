"""One training run, as a user would write it: models, data, noise, augmentation and the loop."""

from flatmin.training.data.images import ImageData, load
from flatmin.training.errors import InputError
from flatmin.training.loop import Epoch, Run, Training, train

__all__ = ["Epoch", "ImageData", "InputError", "Run", "Training", "load", "train"]

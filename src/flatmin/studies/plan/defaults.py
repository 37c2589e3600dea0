"""How to train on a data set when nothing else is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flatmin.training import own


@dataclass(frozen=True)
class Regime:
    """Defaults of `flatmin compare` for one data set; fields as in `Comparison`."""

    model: str
    epochs: int
    batch: int
    lr: float
    weight_decay: float = 5e-4
    augment: bool = True
    seeds: int = 3
    tuning_seeds: int = 1


_CIFAR = Regime("resnet20", epochs=20, batch=128, lr=0.1)

REGIMES: Mapping[str, Regime] = {
    # With 60 % wrong labels the network fits many of them within these epochs, so that methods
    # differ; and 144 held-out images need several runs to tell one radius from another.
    "digits": Regime("mlp", epochs=30, batch=128, lr=0.1, augment=False, seeds=5, tuning_seeds=4),
    "mnist": Regime("cnn", epochs=5, batch=128, lr=0.05, augment=False),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "flowers17": Regime("resnet20", epochs=60, batch=32, lr=0.05, tuning_seeds=4),
}

FOLDER_REGIME = Regime("resnet20", epochs=40, batch=32, lr=0.05, tuning_seeds=2)
"""For a folder of images."""


OWN_REGIME = Regime("mlp", epochs=20, batch=64, lr=0.1, augment=False, tuning_seeds=2)
"""For data of a user's own; what they are is not known."""

BASE_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "adam": {"lr": 1e-3},
    "adamw": {"lr": 1e-3, "weight_decay": 1e-2},
}
"""What other base optimizers than SGD take in place of a data set's defaults: torch's own."""


def regime(data: str) -> Regime:
    """The defaults for `data`, a name, a folder or an import path."""
    if own.is_own(data):
        return OWN_REGIME
    return REGIMES.get(data, FOLDER_REGIME)

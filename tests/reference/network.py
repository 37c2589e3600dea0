"""A two-layer tanh network on real digits, with its gradient written out by hand."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

PIXELS, HIDDEN, CLASSES = 16, 8, 4


class Batch(NamedTuple):
    """Images (n, 16) in [-1, 1] and their labels (n,)."""

    x: np.ndarray
    y: np.ndarray


@cache
def digits() -> Batch:
    """The handwritten digits 0 to 3, averaged over blocks to 4 by 4 pixels."""
    images, labels = load_digits(return_X_y=True)
    kept = labels < CLASSES
    blocks = images[kept].reshape(-1, 4, 2, 4, 2)
    return Batch(blocks.mean(axis=(2, 4)).reshape(-1, PIXELS) / 8 - 1, labels[kept])


def batches(steps: int, primary: int = 32, auxiliary: int = 8) -> list[tuple[Batch, Batch]]:
    """One primary and one auxiliary batch a step, drawn independently of each other."""
    x, y = digits()
    rng = np.random.default_rng(0)

    def draw(size: int) -> Batch:
        chosen = rng.choice(len(y), size, replace=False)
        return Batch(x[chosen], y[chosen])

    return [(draw(primary), draw(auxiliary)) for _ in range(steps)]


class Network:
    """Cross-entropy of `W2 tanh(W1 x + b1) + b2`; `w` is W1, b1, W2, b2 end to end.

    `gradients` counts the gradients that were asked for, and `points` are where.
    """

    shapes = ((HIDDEN, PIXELS), (HIDDEN,), (CLASSES, HIDDEN), (CLASSES,))
    sizes = tuple(int(np.prod(shape)) for shape in shapes)

    def __init__(self) -> None:
        self.gradients = 0
        self.points = []

    def split(self, w):
        parts = np.split(w, np.cumsum(self.sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def losses(self, w, batch):
        """One loss a sample, (n,)."""
        _, logp = self.forward(w, batch.x)
        return -logp[np.arange(len(batch.y)), batch.y]

    def grad(self, w, batch):
        """Gradient of the mean loss, as flat as `w`."""
        self.gradients += 1
        self.points.append(w)
        _, _, W2, _ = self.split(w)
        h, logp = self.forward(w, batch.x)
        dz = (np.exp(logp) - np.eye(CLASSES)[batch.y]) / len(batch.y)
        da = (dz @ W2) * (1 - h**2)
        return np.concatenate([(da.T @ batch.x).ravel(), da.sum(0), (dz.T @ h).ravel(), dz.sum(0)])

    def forward(self, w, x):
        W1, b1, W2, b2 = self.split(w)
        h = np.tanh(x @ W1.T + b1)
        z = h @ W2.T + b2
        z = z - z.max(axis=1, keepdims=True)
        return h, z - np.log(np.exp(z).sum(axis=1, keepdims=True))

"""Base optimizers: `step(w, g)` returns the next weights and remembers what it must."""

from __future__ import annotations

import numpy as np


class SGD:
    """Heavy-ball momentum over the gradient of the loss plus `weight_decay / 2 ‖w‖²`."""

    def __init__(self, lr, momentum=0.0, weight_decay=0.0):
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity = 0.0

    @property
    def kept(self):
        """Its momentum; None if it has none."""
        return self.velocity if self.momentum else None

    def step(self, w, g):
        self.velocity = self.momentum * self.velocity + g + self.weight_decay * w
        return w - self.lr * self.velocity


class Adam:
    """Kingma & Ba, 2015; weight decay joins the gradient."""

    def __init__(self, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.mean, self.square, self.t = 0.0, 0.0, 0

    def step(self, w, g):
        return w - self.lr * self.direction(g + self.weight_decay * w)

    @property
    def kept(self):
        """Its momentum."""
        return self.mean

    def direction(self, g):
        b1, b2 = self.betas
        self.t += 1
        self.mean = b1 * self.mean + (1 - b1) * g
        self.square = b2 * self.square + (1 - b2) * g**2
        mean, square = self.mean / (1 - b1**self.t), self.square / (1 - b2**self.t)
        return mean / (np.sqrt(square) + self.eps)


class AdamW(Adam):
    """Loshchilov & Hutter, 2019: weight decay acts on the weights alone."""

    def step(self, w, g):
        return w - self.lr * self.weight_decay * w - self.lr * self.direction(g)

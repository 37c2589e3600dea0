"""Write a direction of your own, and train with it beside a published method.

    python examples/own_direction.py --method sam --epochs 10

A direction says where a step looks. It is a frozen dataclass: its fields are hyperparameters, and
what it remembers is in every checkpoint. Here it climbs a blend of this gradient and the one that
the last step descended.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from plain import accuracy, arguments, digits, loader_of, network, train
from torch import nn
from torch.nn.functional import cross_entropy

import flatmin
from flatmin.direction import Direction
from flatmin.engine import Probe, Vector


@dataclass(frozen=True)
class Blend(Direction):
    """eps = rho Γ(g + share last), where last is what the last perturbed step climbed."""

    share: float = 0.5

    @property
    def buffers(self) -> tuple[str, ...]:
        return ("blend_last",)

    def displacement(self, at: Probe) -> Vector:
        last = at.recall("blend_last")
        at.keep("blend_last", at.grad)
        return at.climb(at.grad if last is None else at.grad + self.share * last)


def blended(epochs: int) -> nn.Module:
    data, _ = digits()
    model, loader = network(), loader_of(data)
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    optimizer = flatmin.SharpnessAware(base, rho=0.05, direction=Blend(), model=model)
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:

            def closure():
                loss = cross_entropy(model(images), labels)
                loss.backward()
                return loss

            optimizer.step(closure)
    return model


if __name__ == "__main__":
    args = arguments(__doc__)
    for name, model in {
        args.method: train(args.method, args.epochs),
        "blend": blended(args.epochs),
    }.items():
        print(f"{name}: {100 * accuracy(model, digits()[1]):.1f} % of the test digits")

"""Train with two base optimizers: Muon for matrices, AdamW for the rest. Needs torch 2.9.

    python examples/muon_digits.py --method agnostic-sam --epochs 10

A list of bases is one base: one perturbation over all parameters, one schedule, one checkpoint.
"""

from __future__ import annotations

import torch
from plain import accuracy, arguments, digits, loader_of, network
from torch import nn
from torch.nn.functional import cross_entropy

import flatmin


def train(method: str, epochs: int) -> nn.Module:
    data, _ = digits()
    model = network()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    bases = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]
    pairs = flatmin.paired(loader_of(data), fraction=0.25)
    row = flatmin.methods.find(method)
    optimizer = row.build(bases, total_steps=epochs * len(pairs), model=model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)

    def loss_on(batch):
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    for epoch in range(epochs):
        pairs.set_epoch(epoch)
        for primary, auxiliary in pairs:
            second = (lambda: loss_on(auxiliary),) if row.auxiliary else ()
            optimizer.step(lambda: loss_on(primary), *second)
        scheduler.step()
    return model


if __name__ == "__main__":
    args = arguments(__doc__)
    trained = train(args.method, args.epochs)
    print(f"{args.method}: {100 * accuracy(trained, digits()[1]):.1f} % of the test digits")

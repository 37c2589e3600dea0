"""Train on real digits in a loop of your own: the reference for the other examples.

    python examples/plain.py --method agnostic-sam --epochs 10

The other examples train this network on these images by other people's trainers, and
`tests/integrations/` holds each of them to the weights that this loop ends with.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import flatmin

BATCH = 64
TRAINED_ON = 1437  # of 1,797 images; the others are the test
METHODS = [name for name, method in flatmin.methods.TABLE.items() if not method.per_sample]
"""All but ESAM, whose closure is of another form."""


def digits() -> tuple[TensorDataset, TensorDataset]:
    """8 × 8 images of handwritten digits, to train and to test on."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target)
    at = TRAINED_ON
    return TensorDataset(images[:at], labels[:at]), TensorDataset(images[at:], labels[at:])


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )


def loader_of(data: TensorDataset, batch: int = BATCH) -> DataLoader[tuple[Tensor, ...]]:
    # This sampler shuffles by the epoch's number, also in one process: a resumed run goes on with
    # the batches that it would have seen.
    sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True)
    return DataLoader(data, batch, sampler=sampler, drop_last=True)


def optimizer_of(
    method: str, model: nn.Module, total_steps: int, **options: Any
) -> flatmin.SharpnessAware:
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    build = flatmin.methods.find(method).build
    return build(base, total_steps=total_steps, model=model, **options)


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    images, labels = data.tensors
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def train(method: str, epochs: int) -> nn.Module:
    data, _ = digits()
    model = network()
    pairs = flatmin.paired(loader_of(data), fraction=0.25)
    optimizer = optimizer_of(method, model, total_steps=epochs * len(pairs))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)

    def loss_on(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        loss = cross_entropy(model(images), labels)
        loss.backward()
        return loss

    for epoch in range(epochs):
        pairs.set_epoch(epoch)
        for primary, auxiliary in pairs:
            if flatmin.methods.find(method).auxiliary:
                optimizer.step(lambda: loss_on(primary), lambda: loss_on(auxiliary))
            else:
                optimizer.step(lambda: loss_on(primary))
        scheduler.step()
    return model


def arguments(description: str, *flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--method", default="agnostic-sam", choices=METHODS)
    parser.add_argument("--epochs", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    args = arguments(__doc__)
    trained = train(args.method, args.epochs)
    print(f"{args.method}: {100 * accuracy(trained, digits()[1]):.1f} % of the test digits")

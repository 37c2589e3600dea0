"""Train on real digits with Accelerate, by any method, over micro-batches.

    python examples/accelerate_digits.py --method agnostic-sam --epochs 10 --micro-batches 2
    accelerate launch --cpu --num_processes 2 examples/accelerate_digits.py

The images, the network and the optimizer are those of `plain.py`, and so are the weights that it
ends with: to the last bit in one process with one micro-batch. (BatchNorm sees a micro-batch at a
time, as it does wherever gradients are accumulated.)
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from plain import METHODS, accuracy, digits, loader_of, network, optimizer_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import flatmin
from flatmin.integrations import accelerate as flat


def train(method: str, epochs: int, micro_batches: int = 1) -> nn.Module:
    accelerator = Accelerator(cpu=True)
    # First the model: an optimizer that knows it as prepared also knows the other processes.
    model, loader = accelerator.prepare(network(), loader_of(digits()[0]))
    optimizer = optimizer_of(method, model, total_steps=epochs * len(loader))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    optimizer = accelerator.prepare(optimizer)
    # Each process draws auxiliary batches of its own.
    pairs = flatmin.paired(loader, fraction=0.25, seed=accelerator.process_index)

    def loss_on(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return cross_entropy(model(images), labels)

    for epoch in range(epochs):
        pairs.set_epoch(epoch)
        for primary, auxiliary in pairs:
            pieces = zip(*(part.chunk(micro_batches) for part in primary), strict=True)
            closures = [flat.accumulated(accelerator, model, loss_on, pieces)]
            if flatmin.methods.find(method).auxiliary:
                auxiliary = send_to_device(auxiliary, accelerator.device)
                closures.append(flat.accumulated(accelerator, model, loss_on, [auxiliary]))
            flat.step(accelerator, optimizer, *closures)
        scheduler.step()
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="agnostic-sam", choices=METHODS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--micro-batches", type=int, default=1)
    args = parser.parse_args()
    trained = train(args.method, args.epochs, args.micro_batches)
    print(f"{args.method}: {100 * accuracy(trained, digits()[1]):.1f} % of the test digits")

"""Train in float16 with loss scaling, on a GPU or, slower than in float32, on a CPU.

    python examples/float16_digits.py --method agnostic-sam --epochs 10

A GradScaler beside the step would unscale one gradient, and there are two: `flatmin.amp.step`
unscales each once, drops the whole step if any has an inf, and updates the scale once.
"""

from __future__ import annotations

import torch
from plain import accuracy, arguments, digits, loader_of, optimizer_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import flatmin


def train(method: str, epochs: int) -> nn.Module:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data, _ = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    pairs = flatmin.paired(loader_of(data), fraction=0.25)
    optimizer = optimizer_of(method, model, total_steps=epochs * len(pairs))
    scaler = torch.amp.GradScaler(device)

    def loss_on(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = (part.to(device) for part in batch)
        with torch.autocast(device, torch.float16):
            loss = cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        return loss

    for epoch in range(epochs):
        pairs.set_epoch(epoch)
        for primary, auxiliary in pairs:
            second = (lambda: loss_on(auxiliary),) if flatmin.methods.find(method).auxiliary else ()
            flatmin.amp.step(optimizer, scaler, lambda: loss_on(primary), *second)
    return model.cpu()


if __name__ == "__main__":
    args = arguments(__doc__)
    trained = train(args.method, args.epochs)
    print(f"{args.method}: {100 * accuracy(trained, digits()[1]):.1f} % of the test digits")

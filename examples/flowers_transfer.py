"""Fine-tune a network that flatmin has pre-trained, on photographs of 17 kinds of flowers.

    export FLATMIN_DATA=FOLDER   # with cifar100/ and flowers17/
    python examples/flowers_transfer.py --method agnostic-sam --epochs 10

A small ResNet learns some of CIFAR-100 first, half a minute; then its body starts the training on
the flowers and its last layer starts anew. The recipe `agnostic-sam/table-4` does the same with
tuned radii, several seeds and a better backbone: `flatmin run beyond/backbone --scale small --keep
weights`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from plain import arguments

from flatmin.training import Training, load, train

MODEL, SIZE = "resnet8", 32


def pretrained(folder: Path, images: int = 2000, epochs: int = 2) -> Path:
    """A file of weights that have seen some of CIFAR-100."""
    settings = Training("cifar100", MODEL, "sgd", epochs=epochs, augment=True, limit=images)
    run = train(settings, load("cifar100", limit=images))
    assert run.model is not None
    torch.save(run.model.state_dict(), folder / "backbone.pt")
    return folder / "backbone.pt"


def fine_tuned(method: str, epochs: int, weights: Path) -> float:
    """% of the test flowers that get their kind."""
    settings = Training(
        "flowers17",
        MODEL,
        method,
        epochs=epochs,
        batch=32,
        lr=0.02,
        augment=True,
        size=SIZE,
        pretrained=str(weights),
    )
    return train(settings, load("flowers17", size=SIZE)).accuracy


if __name__ == "__main__":
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        weights = pretrained(Path(folder))
        print(f"{args.method}: {fine_tuned(args.method, args.epochs, weights):.1f} % ", end="")
    print("of the test flowers")

"""Compare methods on a network and data of your own, with several seeds, a table and a verdict.

    python examples/own_network.py --method agnostic-sam --epochs 10

The images are those of `plain.py`; what is a loop there is one call here. Give `compare` a folder
that stays in place of the temporary one, and the same call goes on where it was interrupted, or
trains what more seeds and other methods take.
"""

from __future__ import annotations

import tempfile

import torch
from plain import BATCH, arguments, digits
from torch import nn

import flatmin
from flatmin.studies.comparing import ComparisonResult


class Net(nn.Sequential):
    """Any module will do; every run makes a new one."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * 4 * 4, 10),
        )


def compared(method: str, epochs: int, out: str) -> ComparisonResult:
    train, test = digits()
    return flatmin.compare(
        model=Net,
        train=train,
        test=test,
        methods=["sgd", method],
        base=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        epochs=epochs,
        batch=BATCH,
        seeds=2,
        keep=True,
        out=out,
    )


if __name__ == "__main__":
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        result = compared(args.method, args.epochs, folder)
        print(f"{result}\n")
        trained = [run.model() for run in result.runs if run.method == args.method]
        images, labels = digits()[1].tensors
        with torch.no_grad():
            hits = torch.stack([model(images).argmax(1) == labels for model in trained])
        print(f"{args.method}: {100 * hits.float().mean():.1f} % of the test digits")

"""timm's `train_one_epoch`, with three new lines around its forward and backward pass.

    python examples/timm_in_three_lines.py --method sam --model timm:resnet10t

`timm_style_digits.py` beside it accumulates and pairs batches too. Here is the smallest change: the
lines marked 1, 2 and 3. What is left out is `optimizer.step()`, which the passes end with, and
`loss_scaler` and `dispatch_clip_grad`, which step or clip with one gradient (use `flatmin.amp` and
`max_norm=`). Methods with an auxiliary batch get it by splitting the batch.

Without `--model`, the images and the network are those of `plain.py`; timm's networks need timm.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from plain import METHODS, accuracy, digits, loader_of, network, optimizer_of
from timm_style_digits import Cosine
from torch import nn

import flatmin


def train_one_epoch(
    epoch: int,
    model: nn.Module,
    loader: Iterable[Any],
    optimizer: flatmin.SharpnessAware,
    loss_fn: nn.Module,
    args: argparse.Namespace,
    amp_autocast: Any = suppress,
) -> OrderedDict[str, float]:
    total = 0.0
    model.train()
    for batch_idx, (input, target) in enumerate(loader):  # noqa: A001 - timm's name
        batches = parts_of((input, target), optimizer)
        with optimizer.passes() as passes:  # 1
            for p in passes:  # 2
                input, target = batches[p.batch]  # noqa: A001
                with amp_autocast():
                    output = model(input)
                    loss = loss_fn(output, target)
                loss.backward()
                p.done(loss)  # 3
        total += (float(passes.loss) - total) / (batch_idx + 1)
    return OrderedDict(loss=total)


def parts_of(batch: Any, optimizer: flatmin.SharpnessAware) -> dict[str, Any]:
    """The batch, for the methods that know one; for the others, a quarter of it is their second."""
    if not optimizer.direction.auxiliary_passes:
        return {"primary": batch}
    primary, auxiliary = flatmin.split(batch, 0.25)
    return {"primary": primary, "auxiliary": auxiliary}


def train(args: argparse.Namespace) -> nn.Module:
    loader = loader_of(digits()[0])
    if args.model is None:
        model: nn.Module = network()
    else:
        from flatmin.training import models  # it needs flatmin[studies]

        torch.manual_seed(0)
        model = models.build(args.model, channels=1, size=8, classes=10)
    optimizer = optimizer_of(args.method, model, total_steps=args.epochs * len(loader))
    scheduler = Cosine(optimizer, args.epochs)
    for epoch in range(args.epochs):
        loader.sampler.set_epoch(epoch)
        train_one_epoch(epoch, model, loader, optimizer, nn.CrossEntropyLoss(), args)
        scheduler.step(epoch + 1)
    return model


def arguments(argv: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="sam", choices=METHODS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--model", help="a network by name, such as timm:resnet10t")
    return parser.parse_args(None if argv is None else list(argv))


if __name__ == "__main__":
    args = arguments()
    trained = train(args)
    print(f"{args.method}: {100 * accuracy(trained, digits()[1]):.1f} % of the test digits")

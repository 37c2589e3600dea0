"""The training loop of timm's `train.py`, on real digits, by any method.

    python examples/timm_style_digits.py --method agnostic-sam --grad-accum-steps 2 --clip-grad 1

timm itself is not used here: it brings torchvision along, and its script is meant to be copied and
changed. What follows has that script's shape and names (`train_one_epoch`, `_forward`, `_backward`,
`need_update`, `model_ema`, `lr_scheduler.step_update`), and differs from it in two places, marked 1
and 2. The images and the network are those of `plain.py`, and so are the weights that it ends
with, with one micro-batch and without clipping.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from plain import METHODS, accuracy, digits, loader_of, network, optimizer_of
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import flatmin

Batch = tuple[Tensor, Tensor]


class Cosine:
    """A schedule in timm's form: it writes into the groups, told how far training has come."""

    def __init__(self, optimizer: flatmin.SharpnessAware, epochs: int) -> None:
        self.groups, self.epochs = optimizer.param_groups, epochs
        self.highest = [group["lr"] for group in self.groups]

    def step_update(self, num_updates: int) -> None:
        """Nothing: it changes by the epoch."""

    def step(self, epoch: int) -> None:
        for group, lr in zip(self.groups, self.highest, strict=True):
            group["lr"] = lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2


def train_one_epoch(
    epoch: int,
    model: nn.Module,
    loader: flatmin.pairs.PairedLoader,
    optimizer: flatmin.SharpnessAware,
    loss_fn: nn.Module,
    args: argparse.Namespace,
    lr_scheduler: Cosine,
    model_ema: AveragedModel,
    amp_autocast: Any,
) -> float:
    second_order = hasattr(optimizer, "is_second_order") and optimizer.is_second_order
    has_no_sync = hasattr(model, "no_sync")
    accum_steps = args.grad_accum_steps
    updates_per_epoch = (len(loader) + accum_steps - 1) // accum_steps
    num_updates = epoch * updates_per_epoch
    last_batch_idx = len(loader) - 1
    losses: list[float] = []
    model.train()

    def _forward(batch: Batch, share: int) -> Tensor:
        input, target = batch  # noqa: A001 - timm's name
        with amp_autocast():
            return loss_fn(model(input), target) / share

    def _backward(_loss: Tensor) -> None:
        _loss.backward(create_graph=second_order)

    def _sync(wanted: bool) -> AbstractContextManager[Any]:
        return model.no_sync() if has_no_sync and not wanted else nullcontext()

    gathered: dict[str, list[Batch]] = {"primary": [], "auxiliary": []}
    for batch_idx, (primary, auxiliary) in enumerate(loader):
        # 1. A micro-batch waits for the others: all are evaluated wherever the method looks.
        gathered["primary"].append(primary)
        gathered["auxiliary"].append(auxiliary)
        need_update = batch_idx == last_batch_idx or (batch_idx + 1) % accum_steps == 0
        if not need_update:
            continue

        # 2. The passes of a step, in place of one forward, one backward, clipping and
        #    optimizer.step(). To clip, the optimizer was built with max_norm=.
        with optimizer.passes() as passes:
            for p in passes:
                micro_batches = gathered[p.batch]
                total = torch.zeros(())
                for i, batch in enumerate(micro_batches, start=1):
                    with _sync(p.communicate and i == len(micro_batches)):
                        loss = _forward(batch, len(micro_batches))
                        _backward(loss)
                    total += loss.detach()
                p.done(total)
        gathered = {"primary": [], "auxiliary": []}

        num_updates += 1
        model_ema.update_parameters(model)
        losses.append(float(passes.loss))
        lr_scheduler.step_update(num_updates=num_updates)
    return sum(losses) / len(losses)


def train(args: argparse.Namespace) -> tuple[nn.Module, AveragedModel]:
    model = network()
    loader = flatmin.paired(loader_of(digits()[0], args.batch_size), fraction=0.25)
    updates = -(-len(loader) // args.grad_accum_steps)
    total = args.epochs * updates
    optimizer = optimizer_of(args.method, model, total, max_norm=args.clip_grad)
    lr_scheduler = Cosine(optimizer, args.epochs)
    model_ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)
    amp_autocast = partial(torch.autocast, "cpu", torch.bfloat16) if args.amp else nullcontext
    loss_fn = nn.CrossEntropyLoss()
    for epoch in range(args.epochs):
        loader.set_epoch(epoch)
        train_one_epoch(
            epoch, model, loader, optimizer, loss_fn, args, lr_scheduler, model_ema, amp_autocast
        )
        lr_scheduler.step(epoch + 1)
    return model, model_ema


def arguments(argv: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="agnostic-sam", choices=METHODS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--grad-accum-steps", type=int, default=1)
    parser.add_argument("--clip-grad", type=float)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    return parser.parse_args(None if argv is None else list(argv))


if __name__ == "__main__":
    args = arguments()
    trained, averaged = train(args)
    test = digits()[1]
    print(
        f"{args.method}: {100 * accuracy(trained, test):.1f} % of the test digits, "
        f"{100 * accuracy(averaged, test):.1f} % with averaged weights"
    )

"""How near the training loop comes to bare forward and backward passes, and what its data cost.

    python benchmarks/training.py [--models resnet20,resnet18] [--batch 128] [--seconds 20]
        [--threads 2] [--device cpu] [--json FILE]

For each model, stretches of the loop (SGD, crop and flip, everything that `train` does but the
evaluation) and of bare passes over ready batches take turns, so that a noisy machine disturbs both
alike; the share is the median over pairs of stretches. The work on the data is timed beside them:
as a share of a step, and in images a second with crop, flip, cutout and normalisation, of one
thread. Memory is kept from step to step, as in the workers of `flatmin run`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from flatmin.studies.run import processes
from flatmin.training import ImageData, Training, models, train
from flatmin.training.data.batches import RunData
from flatmin.training.processes import ProcessGroup

GOALS = {"share of bare passes": 0.9, "data, share of a step": 0.03, "loader, images/s": 200_000}
"""At least, at most, at least."""


@dataclass(frozen=True)
class Result:
    """Of one model.

    Fields:
        loop, bare: images a second.
        share: the loop's of the bare passes', median over pairs.
        data: share of a bare step that drawing its batch would take.
    """

    model: str
    loop: float
    bare: float
    share: float
    data: float


def images(count: int = 10_000) -> ImageData:
    """Random images in the form of CIFAR-10: what they show makes no difference here."""
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 32, 32), generator=source).to(torch.uint8)
    labels = torch.randint(10, (count,), generator=source)
    rows = torch.arange(count)
    return ImageData("noise", tuple("abcdefghij"), pixels, labels, pixels[:1], labels[:1], rows)


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bare(model: torch.nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    """Forward and backward, and no more."""
    for _ in range(steps):
        x, y = next(batches)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()


def draw(material: RunData, count: int) -> None:
    """Batches one after the other, none of which is kept, as in training."""
    for _ in range(count):
        material.primary.next()


def measured(name: str, batch: int, seconds: float, device: torch.device) -> Result:
    """One model, for about so many seconds."""
    training = Training("noise", name, "sgd", epochs=1, batch=batch, augment=True, lr=0.01)
    model = models.build(name, channels=3, size=32, classes=10).to(device)
    model.to(memory_format=torch.channels_last)
    material = RunData(training, images(), ProcessGroup(device))
    ready = [material.primary.next() for _ in range(8)]
    batches = ((batch.inputs, batch.targets) for batch in itertools.cycle(ready))

    bare(model, batches, 3)
    a_step = seconds_of(lambda: bare(model, batches, 5)) / 5
    steps = max(4, int(seconds / 8 / a_step))
    few = images(steps * batch)
    loops: list[float] = []
    bares: list[float] = []
    for _ in range(4):
        loops.append(train(training, few, device=device).epochs[0].seconds)
        bares.append(seconds_of(lambda: bare(model, batches, steps)))
    drawing = seconds_of(lambda: draw(material, 20)) / 20
    count = steps * batch
    return Result(
        model=name,
        loop=count / statistics.median(loops),
        bare=count / statistics.median(bares),
        share=statistics.median(b / a for a, b in zip(loops, bares, strict=True)),
        data=drawing / (statistics.median(bares) / steps),
    )


def loader_speed(batch: int, seconds: float, device: torch.device) -> float:
    """Images a second with crop, flip, cutout and normalisation."""
    training = Training("noise", "mlp", "sgd", batch=batch, augment=True, cutout=16)
    material = RunData(training, images(50_000), ProcessGroup(device))
    draw(material, 10)
    count, spent = 0, 0.0
    while spent < seconds / 4:
        spent += seconds_of(lambda: draw(material, 50))
        count += 50 * batch
    return count / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="resnet20,resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    if not processes.ALLOCATOR.keys() <= os.environ.keys():
        settings = {**processes.ALLOCATOR, **os.environ}  # they are read when a program starts
        os.execve(sys.executable, [sys.executable, *sys.argv], settings)
    torch.set_num_threads(wanted.threads)
    device = torch.device(wanted.device)
    found = [measured(n, wanted.batch, wanted.seconds, device) for n in wanted.models.split(",")]
    torch.set_num_threads(1)
    sizes = (wanted.batch, 4 * wanted.batch)
    speeds = {size: loader_speed(size, wanted.seconds, device) for size in sizes}
    print(f"{'model':20} {'loop img/s':>11} {'bare img/s':>11} {'share':>6} {'data':>6}")
    for row in found:
        print(
            f"{row.model:20} {row.loop:11,.0f} {row.bare:11,.0f} {row.share:6.2f} {row.data:6.1%}"
        )
    for size, speed in speeds.items():
        print(
            f"loader with crop, flip, cutout and normalisation, {size} a batch, one thread: "
            f"{speed:,.0f} images/s"
        )
    print("goals: " + ", ".join(f"{name} {goal:,}" for name, goal in GOALS.items()))
    if wanted.json:
        rows = [asdict(row) for row in found]
        wanted.json.write_text(json.dumps({"models": rows, "loader": speeds}, indent=1))


if __name__ == "__main__":
    main()

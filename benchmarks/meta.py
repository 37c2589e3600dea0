"""What a meta-step takes, beside a plain loop over tasks and, where it is installed, learn2learn.

    python benchmarks/meta.py                       # Omniglot 5-way 1-shot, 16 tasks, 64 filters
    python benchmarks/meta.py --filters 32
    python benchmarks/meta.py --ways 20 --tasks 4

All forms take turns, one meta-step each, so that whatever else the machine does meets all of them;
a figure is the median of the ratios to the plain loop in the same turn, the time is its minimum.
The plain loop is `torch.func.functional_call` on a dict of weights and `torch.autograd.grad`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from flatmin.meta import MetaLearner, Perturbation, Task, conv4

Step = Callable[[], object]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--ways", type=int, default=5)
    asked.add_argument("--shots", type=int, default=1)
    asked.add_argument("--queries", type=int, default=15)
    asked.add_argument("--tasks", type=int, default=16)
    asked.add_argument("--filters", type=int, default=64)
    asked.add_argument("--down", choices=("stride", "pool"), default="stride")
    asked.add_argument("--steps", type=int, default=1)
    asked.add_argument("--rounds", type=int, default=9)
    asked.add_argument("--threads", type=int, default=0)
    asked.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    given = asked.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = conv4(1, 28, given.ways, filters=given.filters, down=given.down)
    tasks = [task(given.ways, given.shots, given.queries) for _ in range(given.tasks)]
    forms = {
        "plain loop": plain(model, tasks, given.steps),
        **{
            f"MAML, {batching if isinstance(batching, str) else f'{batching} at once'}": ours(
                model, tasks, given.steps, batching=batching
            )
            for batching in ("loop", 4, 8, "vmap")
            if not isinstance(batching, int) or batching < given.tasks
        },
        "MAML, auto": ours(model, tasks, given.steps),
        "MAML, auto, first order": ours(model, tasks, given.steps, first=True),
        "Sharp-MAML_low, auto": ours(model, tasks, given.steps, method="sam"),
        "Agnostic_low, auto": ours(model, tasks, given.steps, method="agnostic-sam"),
        "Sharp-MAML_low, auto, eps constant": ours(
            model, tasks, given.steps, method="sam", through=False
        ),
    }
    other = learn2learn(model, tasks, given.steps)
    if other is not None:
        forms["learn2learn"] = other
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(given.rounds + 1):
        for name, step in forms.items():
            model.zero_grad()
            begun = clock()
            step()
            if turn:  # the first sets up, and measures
                seconds[name].append(clock() - begun)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.ways} ways "
        f"{given.shots} shots {given.queries} queries, {given.tasks} tasks, {given.filters} "
        f"filters, {given.down}, {given.steps} inner steps, {given.clock} time of "
        f"{given.rounds} rounds"
    )
    for name, step in forms.items():
        if isinstance(step, Auto):
            print(f"{name}: {step.learner.batching_says}")
    print("| form | ms | speed beside the plain loop | time beside MAML, auto |")
    print("| --- | --- | --- | --- |")
    for name, found in seconds.items():
        speed = ratio(seconds["plain loop"], found)
        own = ratio(found, seconds["MAML, auto"])
        print(f"| {name} | {1000 * min(found):.0f} | {speed:.2f} | {own:.2f} |")
    second = ratio(seconds["MAML, auto"], seconds["MAML, auto, first order"])
    print(f"second order / first order: {second:.2f}")
    print(memory(model, tasks, given.steps))


def ratio(of: list[float], to: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def task(ways: int, shots: int, queries: int) -> Task:
    support, query = torch.rand(ways * shots, 1, 28, 28), torch.rand(ways * queries, 1, 28, 28)
    y = torch.arange(ways)
    return Task(support, y.repeat_interleave(shots), query, y.repeat_interleave(queries))


def plain(model: nn.Module, tasks: list[Task], steps: int, *, first: bool = False) -> Step:
    """One task after another, as in a script of one page."""

    def step() -> None:
        for x, y, qx, qy in tasks:
            w = dict(model.named_parameters())
            for _ in range(steps):
                loss = cross_entropy(functional_call(model, w, (x,)), y)
                slopes = torch.autograd.grad(loss, list(w.values()), create_graph=not first)
                w = {name: p - 0.4 * g for (name, p), g in zip(w.items(), slopes, strict=True)}
            (cross_entropy(functional_call(model, w, (qx,)), qy) / len(tasks)).backward()

    return step


class Auto:
    """A learner's meta-gradient."""

    def __init__(self, learner: MetaLearner, tasks: list[Task]) -> None:
        self.learner, self.tasks = learner, tasks

    def __call__(self) -> object:
        return self.learner.backward(self.tasks)


def ours(
    model: nn.Module,
    tasks: list[Task],
    steps: int,
    *,
    method: str = "sgd",
    first: bool = False,
    through: bool = True,
    batching: str | int = "auto",
) -> Step:
    learner = MetaLearner(
        model,
        cross_entropy,
        0.4,
        steps,
        first,
        lower=Perturbation.named(method, 0.05),
        through_perturbation=through,
        batching=batching,  # pyright: ignore[reportArgumentType]
    )
    return Auto(learner, tasks) if batching == "auto" else (lambda: learner.backward(tasks))


def learn2learn(model: nn.Module, tasks: list[Task], steps: int) -> Step | None:
    """The same by learn2learn, if it is installed."""
    try:
        import learn2learn as l2l
    except ImportError:
        return None
    maml = l2l.algorithms.MAML(model, lr=0.4, first_order=False)

    def step() -> None:
        for x, y, qx, qy in tasks:
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(cross_entropy(learner(x), y))
            (cross_entropy(learner(qx), qy) / len(tasks)).backward()

    return step


def memory(model: nn.Module, tasks: list[Task], steps: int) -> str:
    """Bytes that autograd keeps for the backward pass, at its most, by size of chunk."""
    found: list[str] = []
    for batching in ("loop", 4, "vmap"):
        learner = MetaLearner(model, cross_entropy, 0.4, steps, batching=batching)
        kept = Kept()
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda x: x):
            for chunk in chunks(tasks, 1 if batching == "loop" else batching):
                kept.begin()
                learner(chunk)
        found.append(f"{batching} {kept.most / 2**20:.0f} MiB")
    return "kept for the backward pass, at most: " + ", ".join(found)


def chunks(tasks: list[Task], size: int | str) -> list[list[Task]]:
    step = len(tasks) if isinstance(size, str) else size
    return [tasks[i : i + step] for i in range(0, len(tasks), step)]


class Kept:
    """Counts the storage that is saved for backward, each piece once."""

    def __init__(self) -> None:
        self.most = 0
        self.begin()

    def begin(self) -> None:
        self.storages: dict[int, int] = {}

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        self.most = max(self.most, sum(self.storages.values()))
        return x


if __name__ == "__main__":
    main()

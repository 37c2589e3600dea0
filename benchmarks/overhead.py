"""What a step costs beyond its gradient evaluations and one base step.

    python benchmarks/overhead.py [--models mlp,transformer,resnet18,resnet20] [--methods sam,…]
        [--rounds N] [--threads 2] [--device cpu] [--peers FOLDER] [--markdown FILE] [--json FILE]

The limit of a step is its gradient evaluations plus one base step: the same closures, called as
often, then the base optimizer. In every round each competitor takes one step, in an order drawn
anew, right beside its limit. The figure is the ratio of the two within the round, as median and
quartiles over rounds: machines are noisy, ratios within a round are less so.

With `--peers`, others are measured too: `pytorch_optimizer` where it is installed, and clones of
davda54/sam, nblt/F-SAM, juntang-zhuang/GSAM, BingcongLi/VaSSO and mosaicml/composer in the folders
of these names (`sam`, `F-SAM`, …) below that folder. Of each one file is run, and none of what it
imports beside torch, so nothing has to be installed for them. One that cannot be run is a line that
says why.
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import json
import random
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peers import peers_in, reason_of
from problems import Competitor, Problem
from torch import Tensor, nn

import flatmin
from flatmin.training import models


class Transformer(nn.Module):
    """Six layers of width 512: 19 million parameters and little else to do at a small batch."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6)
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def _images(model: nn.Module, name: str, batch: int, classes: int = 10, size: int = 32) -> Problem:
    def draw(n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 3, size, size), torch.randint(classes, (n,))

    return Problem(name, model, draw(batch), draw(max(1, batch // 4)))


def mlp(batch: int = 0) -> Problem:
    """100 tiny tensors: 50 linear layers of width 16."""
    layers = [layer for _ in range(49) for layer in (nn.Linear(16, 16), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(16, 10))
    n = batch or 32
    return Problem(
        "mlp",
        model,
        (torch.randn(n, 16), torch.randint(10, (n,))),
        (torch.randn(n // 4, 16), torch.randint(10, (n // 4,))),
    )


def transformer(batch: int = 0) -> Problem:
    n = batch or 4
    return Problem(
        "transformer",
        Transformer(),
        (torch.randn(n, 8, 512), torch.randint(10, (n,))),
        (torch.randn(max(1, n // 4), 8, 512), torch.randint(10, (max(1, n // 4),))),
    )


def resnet18(batch: int = 0) -> Problem:
    """In CIFAR form: 11 million parameters."""
    model = models.build("resnet18", channels=3, size=32, classes=10)
    return _images(model, "resnet18", batch or 32)


def resnet20(batch: int = 0) -> Problem:
    """In CIFAR form: 0.27 million parameters."""
    model = models.build("resnet20", channels=3, size=32, classes=10)
    return _images(model, "resnet20", batch or 128)


PROBLEMS = {f.__name__: f for f in (mlp, transformer, resnet18, resnet20)}
ROUNDS = {"mlp": 60, "transformer": 11, "resnet18": 7, "resnet20": 11}
"""As many as let the medians stand still; all methods of all models take a quarter of an hour."""


def ours(name: str) -> Competitor:
    row = flatmin.methods.TABLE[name]

    def build(problem: Problem, base: torch.optim.Optimizer) -> Callable[[], Any]:
        optimizer = row.build(base, total_steps=LONG)  # so late methods have not begun
        primary, auxiliary = problem.evaluations
        if row.per_sample:
            return lambda: optimizer.step(partial(problem.losses, problem.primary))
        if row.auxiliary:
            return lambda: optimizer.step(primary, auxiliary)
        return lambda: optimizer.step(primary)

    return Competitor(name, build, *GRADIENTS[name])


LONG = 1_000_000
"""Steps of the training that is said to be under way."""

GRADIENTS: dict[str, tuple[float, float]] = {
    "sgd": (1, 0),
    "sam": (2, 0),
    "asam": (2, 0),
    "fisher-sam": (2, 0),
    "friendly-sam": (2, 0),
    "friendly-asam": (2, 0),
    "agnostic-sam": (2, 2),
    "agnostic-asam": (2, 2),
    "align-sam": (2, 2),
    "align-asam": (2, 2),
    "vasso": (2, 0),
    "gsam": (2, 0),
    "lookbehind-sam": (6, 0),
    "agnostic-sam-previous": (2, 0),
    "sam-db": (2, 1),
    "sam-full": (2, 1),
    "sam-noise": (2, 1),
    "wsam": (2, 0),
    "mixed-rwp": (2, 0),
    "msam": (1, 0),
    "rwp": (1, 0),
    "previous-sam": (1, 0),
    "previous-agnostic-sam": (1, 0),
    "late-sam": (1, 0),
    "late-agnostic-sam": (1, 0),
}
"""The methods whose steps all cost the same, the late ones before their start; the others are
these, at some steps."""


def limit(problem: Problem, base: torch.optim.Optimizer, primary: float, auxiliary: float):
    """The gradients and one base step, nothing else."""
    on_primary, on_auxiliary = problem.evaluations

    def step() -> None:
        for times, evaluate in ((primary, on_primary), (auxiliary, on_auxiliary)):
            for _ in range(int(times)):
                base.zero_grad()
                evaluate()
        base.step()

    return step


@dataclass(frozen=True)
class Row:
    """One line of the table: the ratio to the limit, and what the optimizer holds between steps."""

    problem: str
    competitor: str
    median: float
    lower: float
    upper: float
    limit_ms: float
    copies: float
    """Bytes held between steps beyond the base optimizer's, in copies of the weights."""

    def __str__(self) -> str:
        return (
            f"| {self.problem} | {self.competitor} | {self.median:.3f} "
            f"| {self.lower:.3f} – {self.upper:.3f} | {self.limit_ms:.2f} | {self.copies:.1f} |"
        )


@dataclass(frozen=True)
class NotMeasured:
    """The line of one that cannot be run."""

    problem: str
    competitor: str
    reason: str

    def __str__(self) -> str:
        return f"| {self.problem} | {self.competitor} | not measured: {self.reason} | | | |"


def _seconds(step: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _tensors(thing: Any, seen: dict[int, int], depth: int = 0) -> dict[int, int]:
    """Storage of every tensor reachable from an optimizer: address -> bytes."""
    if isinstance(thing, Tensor):
        seen[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    elif isinstance(thing, dict):
        for value in thing.values():
            _tensors(value, seen, depth)
    elif isinstance(thing, partial):
        _tensors((thing.func, thing.args), seen, depth)
    elif getattr(thing, "__closure__", None) or getattr(thing, "__self__", None):
        cells = [c.cell_contents for c in getattr(thing, "__closure__", None) or ()]
        _tensors([*cells, getattr(thing, "__self__", None)], seen, depth)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            _tensors(value, seen, depth)
    elif depth < 4 and hasattr(thing, "__dict__") and not isinstance(thing, (nn.Module, type)):
        _tensors(list(vars(thing).values()), seen, depth + 1)
    return seen


def measure(
    problem: Problem, competitors: list[Competitor], rounds: int, device: str
) -> list[Row | NotMeasured]:
    """Interleave all competitors, each beside its limit, and compare within rounds."""
    size = sum(p.numel() * p.element_size() for p in problem.model.parameters())
    steps: list[tuple[Competitor, Callable[[], Any], Callable[[], Any], float]] = []
    failed: list[NotMeasured] = []
    for competitor in competitors:
        mine = copy.deepcopy(problem)
        base = torch.optim.SGD(mine.model.parameters(), lr=1e-3, momentum=0.9)
        try:
            with redirect_stdout(io.StringIO()):
                step = competitor.build(mine, base)
                step()
        except Exception as error:
            if competitor.name in flatmin.methods.TABLE:  # ours: to be mended, not to be told
                raise
            failed.append(NotMeasured(problem.name, competitor.name, reason_of(error)))
            continue
        other = copy.deepcopy(problem)
        beside = torch.optim.SGD(other.model.parameters(), lr=1e-3, momentum=0.9)
        bound = limit(other, beside, competitor.primary, competitor.auxiliary)
        bound()
        for _ in range(2):
            step()
            bound()
        held = _tensors(step, {})
        own = {p.untyped_storage().data_ptr() for p in mine.model.parameters()}
        grads = {
            p.grad.untyped_storage().data_ptr()
            for p in mine.model.parameters()
            if p.grad is not None
        }
        data = {t.untyped_storage().data_ptr() for t in (*mine.primary, *mine.auxiliary)}
        buffers = {b.untyped_storage().data_ptr() for b in mine.model.buffers()}
        beyond = {k: v for k, v in held.items() if k not in own | grads | data | buffers}
        # A momentum buffer a parameter is the base optimizer's own, whoever holds it.
        copies = sum(beyond.values()) / size - 1.0
        steps.append((competitor, step, bound, copies))
    taken: dict[str, list[tuple[float, float]]] = {c.name: [] for c, *_ in steps}
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for competitor, step, bound, _ in random.sample(steps, len(steps)):
            pair = [("step", step), ("limit", bound)]
            random.shuffle(pair)
            seconds = {name: _seconds(run, device) for name, run in pair}
            taken[competitor.name].append((seconds["step"], seconds["limit"]))
    gc.enable()
    rows: list[Row | NotMeasured] = []
    for competitor, _, _, copies in steps:
        pairs = taken[competitor.name]
        low, mid, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        least = 1e3 * statistics.median(b for _, b in pairs)
        rows.append(Row(problem.name, competitor.name, mid, low, high, least, copies))
    return [*rows, *failed]


def table(rows: list[Row | NotMeasured]) -> str:
    lines = [
        "| model | competitor | ratio to limit | quartiles | limit, ms | copies of the weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += map(str, rows)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="mlp,transformer,resnet18,resnet20")
    parser.add_argument("--methods", default=",".join(GRADIENTS))
    parser.add_argument("--rounds", type=int, help="at least 2; default: enough for each model")
    parser.add_argument("--batch", type=int, default=0, help="0: the model's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    peers, missing = peers_in(args.peers)
    competitors = [ours(name) for name in args.methods.split(",") if name] + peers
    rows: list[Row | NotMeasured] = []
    for name in args.models.split(","):
        problem = PROBLEMS[name](args.batch)
        problem.model.to(args.device)
        primary = tuple(t.to(args.device) for t in problem.primary)
        auxiliary = tuple(t.to(args.device) for t in problem.auxiliary)
        problem = Problem(problem.name, problem.model, primary, auxiliary)  # type: ignore[arg-type]
        rows += measure(problem, competitors, args.rounds or ROUNDS[name], args.device)
        rows += [NotMeasured(name, peer, reason) for peer, reason in missing.items()]
        print(table([row for row in rows if row.problem == name]), flush=True)
    if args.markdown:
        args.markdown.write_text(table(rows) + "\n")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()

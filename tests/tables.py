"""The tables over which properties are tested: methods, base optimizers, one group or two."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import flatmin
from flatmin import methods
from flatmin.engine.several import Several

METHODS = list(methods.TABLE)
BEGIN_PERTURBED = ("msam", "rwp", "previous-sam", "previous-agnostic-sam")
"""Methods whose first and only pass is at `w + eps`."""
LOOKING = [name for name in METHODS if name != "sgd"]


def muon_and_adamw(params: Any, lr: float = 0.01) -> Several:
    """Two optimizers as one, since Muon takes matrices alone: as it is used."""
    given = list(params)
    groups = given if isinstance(given[0], dict) else [{"params": given}]

    def of(matrices: bool) -> list[dict[str, Any]]:
        return [
            {**g, "params": [p for p in g["params"] if (p.ndim == 2) is matrices]} for g in groups
        ]

    return Several([torch.optim.Muon(of(True), lr=lr), torch.optim.AdamW(of(False), lr=lr)])


BASES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.05),
}
if hasattr(torch.optim, "Muon"):  # of torch 2.9
    BASES["muon and adamw"] = muon_and_adamw
ALONE = ("sgd", "adamw")
"""Bases where it matters little which: a list of bases is tested with the promises."""
GROUPS = ("one group", "two groups")
BASES_IN_GROUPS = [*((base, GROUPS[0]) for base in BASES), ("sgd", GROUPS[1])]
"""Every base, and one of them over parameters in groups with radii of their own."""


def each_over_one(methods: Sequence[str], bases: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Every method over one base, by turns: for what asks little of the base."""
    chosen = [bases[at % len(bases)] for at in range(len(methods))]
    return [
        (method, *base) if isinstance(base, tuple) else (method, base)
        for method, base in zip(methods, chosen, strict=True)
    ]


TOTAL = 12

_digits = load_digits()
IMAGES = torch.tensor(_digits.data / 16, dtype=torch.float32)[:, 16:48]
LABELS = torch.tensor(_digits.target)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Dropout and BatchNorm: what a second pass must not disturb."""
    layers = (nn.Linear(32, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 10))
    return nn.Sequential(*layers).to(dtype)


def starting(method: methods.Method, start: float) -> dict[str, Any]:
    """So that the steps of a test are on both sides of where a late method begins."""
    return {"start": start} if "start" in method.hyperparameters else {}


class Trainer:
    """A model, an optimizer by name, and real batches; `step` takes the next one.

    The model is fixed by the seed, the batches by the step, so that two trainers differ in what the
    test made different. `spy` counts the closures' calls and may break them.
    """

    def __init__(
        self,
        method: str = "sam",
        base: str = "sgd",
        groups: str = "one group",
        *,
        rho: float = 0.1,
        dtype: torch.dtype = torch.float32,
        know_model: bool = True,
        seed: int = 0,
        lr: float | None = None,
        build: Callable[..., flatmin.SharpnessAware] | None = None,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        torch.manual_seed(seed)
        self.method = methods.TABLE[method]
        self.model = network(dtype).to(device)
        self.dtype = dtype
        self.device = device
        params: Any = list(self.model.parameters())
        if groups == "two groups":
            params = [{"params": params[:3]}, {"params": params[3:], "rho": 3 * rho}]
        self.base = BASES[base](params) if lr is None else BASES[base](params, lr=lr)
        if know_model:
            options["model"] = self.model
        if build is None:
            late = starting(self.method, 0.05)
            self.optimizer = self.method.build(
                self.base, rho, total_steps=TOTAL, settings=late, **options
            )
        else:
            self.optimizer = build(self.base, **options)
        self.steps = 0
        self.calls: list[str] = []
        self.on_call: Callable[[str, int], None] = lambda batch, call: None
        self.factor: Callable[[str, int], float] = lambda batch, call: 1.0

    def batch(self, kind: str) -> tuple[Tensor, Tensor]:
        size, start = (24, 0) if kind == "primary" else (6, 900)
        at = start + self.steps * size
        x, y = IMAGES[at : at + size].to(self.dtype), LABELS[at : at + size]
        return (x, y) if self.device == "cpu" else (x.to(self.device), y.to(self.device))

    def closure(self, kind: str, chosen: Tensor | None = None) -> Tensor:
        call = len(self.calls)
        self.calls.append(kind)
        self.on_call(kind, call)
        x, y = self.batch(kind)
        x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
        losses = self.losses(x, y) * self.factor(kind, call)
        if self.method.per_sample:
            return losses
        loss = losses.mean()
        self.differentiate(loss)
        return loss

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.model(x), y, reduction="none")

    def differentiate(self, loss: Tensor) -> None:
        loss.backward()

    def closures(self) -> tuple[Callable[..., Tensor], ...]:
        primary = partial(self.closure, "primary")
        return (
            (primary, partial(self.closure, "auxiliary")) if self.method.auxiliary else (primary,)
        )

    def step(self) -> Tensor:
        torch.manual_seed(1000 + self.steps)
        self.calls.clear()
        loss = self.advance()
        self.steps += 1
        return loss

    def advance(self) -> Tensor:
        return self.optimizer.step(*self.closures())

    def run(self, steps: int = 4) -> Trainer:
        for _ in range(steps):
            self.step()
        return self

    def bits(self) -> dict[str, Tensor]:
        """Everything that training has made: weights, statistics, buffers, numbers."""
        found = dict(self.model.state_dict())
        packed = self.optimizer.state_dict()
        for index, buffers in packed["state"].items():
            found.update({f"{index}.{name}": torch.as_tensor(x) for name, x in buffers.items()})
        for i, group in enumerate(packed["param_groups"]):
            found.update({f"group {i} {k}": torch.tensor(v) for k, v in group["flatmin"].items()})
        return {name: x.clone() for name, x in found.items()}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert x.dtype == b[name].dtype, name
        assert x.view(-1).numpy().tobytes() == b[name].reshape(-1).numpy().tobytes(), name


def twin(trainer: Trainer) -> Trainer:
    return copy.deepcopy(trainer)

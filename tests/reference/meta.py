"""MAML and Sharp-MAML in their plainest form: one task, one step, one formula at a time.

Everything is a list of tensors and `torch.autograd.grad`, without a probe or a vector. A
perturbation is written out for each direction and geometry as METHODS has it, with the support
set as both batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flatmin.engine.random import uniform

Point = list[Tensor]
Loss = Callable[[Point, Tensor, Tensor], Tensor]
TINY = 1e-12


def slope(loss: Loss, w: Point, x: Tensor, y: Tensor, *, graph: bool = True) -> Point:
    return list(torch.autograd.grad(loss(w, x, y), w, create_graph=graph))


def norm(a: Point) -> Tensor:
    return torch.sqrt(sum(((x * x).sum() for x in a), start=torch.zeros((), dtype=a[0].dtype)))


def inner(a: Point, b: Point) -> Tensor:
    return sum(
        ((x * y).sum() for x, y in zip(a, b, strict=True)), start=torch.zeros((), dtype=a[0].dtype)
    )


def scale(c: Tensor | float, a: Point) -> Point:
    return [c * x for x in a]


def add(*many: Point) -> Point:
    return [sum(xs[1:], start=xs[0]) for xs in zip(*many, strict=True)]


def cosine(a: Point, b: Point) -> Tensor:
    return inner(a, b) / ((norm(a) + TINY) * (norm(b) + TINY))


# T of each geometry, from the weights, the gradient and the number of the step; and its gain.

METRICS: dict[str, Callable[[Point, Point, int], tuple[Point, float]]] = {
    "euclidean": lambda w, g, k: ([torch.ones_like(x) for x in w], 1.0),
    "adaptive": lambda w, g, k: ([x.abs() + 0.01 for x in w], 1.0),
    "fisher": lambda w, g, k: ([(1 + x * x) ** -0.5 for x in g], 1.0),
    "subset": lambda w, g, k: (
        [torch.full_like(x, float(uniform(3, k, i) < 0.6)) for i, x in enumerate(w)],
        1 / 0.6,
    ),
    "only": lambda w, g, k: ([torch.full_like(x, float(x.ndim > 1)) for x in w], 1.0),
    "adaptive x fisher": lambda w, g, k: (
        [(x.abs() + 0.01) * (1 + y * y) ** -0.5 for x, y in zip(w, g, strict=True)],
        1.0,
    ),
}


class Task:
    """The inner loop on one support set: what is remembered lives as long as the task."""

    def __init__(
        self,
        loss: Loss,
        x: Tensor,
        y: Tensor,
        rho: float,
        direction: str,
        geometry: str,
        through: bool,
    ) -> None:
        self.loss, self.x, self.y = loss, x, y
        self.rho, self.direction, self.geometry, self.through = rho, direction, geometry, through
        self.memory: Point | None = None

    def at(self, w: Point) -> Point:
        return slope(self.loss, w, self.x, self.y)

    def climb(self, d: Point, rho: float) -> Point:
        metric, gain = METRICS[self.geometry](self.w, self.g, self.k)
        td = [t * x for t, x in zip(metric, d, strict=True)]
        return scale(
            rho * gain / (norm(td) + TINY), [t * x for t, x in zip(metric, td, strict=True)]
        )

    def perturbation(self, w: Point, k: int) -> Point:
        self.w, self.k, self.g = w, k, self.at(w)
        g, rho, memory = self.g, self.rho, self.memory
        match self.direction:
            case "ascent" | "other batch":
                return self.climb(g, rho)
            case "friendly":
                before = memory or scale(0.0, g)
                self.memory = add(scale(0.9, before), scale(0.1, g))
                return self.climb(add(g, scale(-1.0, self.memory)), rho)
            case "friendly released":
                self.memory = g if memory is None else add(scale(0.9, memory), scale(0.1, g))
                return self.climb(g if memory is None else add(g, scale(-0.7, memory)), rho)
            case "suppressed":
                self.memory = add(scale(0.6, memory or g), scale(0.4, g))
                return self.climb(self.memory, rho)
            case "agnostic" | "align":
                ahead = self.at(add(w, self.climb(g, rho)))
                beta = 0.9 if self.direction == "agnostic" else 0.0
                before = memory or scale(0.0, g)
                self.memory = add(scale(beta, before), scale(1 - beta, ahead))
                return add(self.climb(g, 2 * rho), scale(-1.0, self.climb(self.memory, rho)))
            case "agnostic previous":
                eps = self.climb(g, 2 * rho)
                return eps if memory is None else add(eps, scale(-1.0, self.climb(memory, rho)))
            case "full component":
                return self.climb(scale(cosine(g, g), g), rho)
            case "noise component":
                return self.climb(add(g, scale(-cosine(g, g), g)), rho)
        raise AssertionError(self.direction)

    def step(self, w: Point, k: int, rate: float, *, second: bool) -> Point:
        if self.direction == "none":
            seen = self.at(w)
        else:
            eps = self.perturbation(w, k)
            if not self.through:
                eps = [x.detach() for x in eps]
            seen = self.at(add(w, eps))
            if self.direction == "agnostic previous":
                before = self.memory or scale(0.0, seen)
                self.memory = add(scale(0.9, before), scale(0.1, seen))
        if not second:
            seen = [x.detach() for x in seen]
        return add(w, scale(-rate, seen))


def meta_loss(
    loss: Loss,
    w: Point,
    tasks: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    *,
    rate: float,
    steps: int,
    direction: str = "none",
    geometry: str = "euclidean",
    rho: float = 0.0,
    through: bool = True,
    second: bool = True,
) -> Tensor:
    """The mean query loss after `steps` inner steps."""
    found: list[Tensor] = []
    for x, y, qx, qy in tasks:
        task = Task(loss, x, y, rho, direction, geometry, through)
        moved = w
        for k in range(steps):
            moved = task.step(moved, k, rate, second=second)
        found.append(loss(moved, qx, qy))
    return torch.stack(found).mean()


def meta_gradient(loss: Loss, w: Point, tasks: Sequence[tuple[Tensor, ...]], **setting) -> Point:
    return list(torch.autograd.grad(meta_loss(loss, w, tasks, **setting), w))


def sharp_meta_gradient(
    loss: Loss, w: Point, tasks: Sequence[tuple[Tensor, ...]], alpha: float, **setting
) -> Point:
    """Sharp-MAML_up and _both: the meta-gradient at `w + alpha ∇M/‖∇M‖` (Abbas et al. 2022)."""
    g = meta_gradient(loss, w, tasks, **setting)
    there = [
        (x + alpha * y / (norm(g) + TINY)).detach().requires_grad_()
        for x, y in zip(w, g, strict=True)
    ]
    return meta_gradient(loss, there, tasks, **setting)

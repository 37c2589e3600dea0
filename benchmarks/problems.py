"""What is measured: a model with its batches, and a way to take a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Evaluate = Callable[[], Tensor]


@dataclass(frozen=True)
class Problem:
    """A model with one primary batch, and an auxiliary one of a quarter of its size."""

    name: str
    model: nn.Module
    primary: tuple[Tensor, Tensor]
    auxiliary: tuple[Tensor, Tensor]

    def losses(self, batch: tuple[Tensor, Tensor], chosen: Tensor | None = None) -> Tensor:
        x, y = batch if chosen is None else (batch[0][chosen], batch[1][chosen])
        return functional.cross_entropy(self.model(x), y, reduction="none")

    def evaluate(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = self.losses(batch).mean()
        loss.backward()
        return loss

    @property
    def evaluations(self) -> tuple[Evaluate, Evaluate]:
        return partial(self.evaluate, self.primary), partial(self.evaluate, self.auxiliary)


@dataclass(frozen=True)
class Competitor:
    """A way to take one step, and the gradients that it takes on each of the two batches."""

    name: str
    build: Callable[[Problem, torch.optim.Optimizer], Callable[[], Any]]
    primary: float
    auxiliary: float = 0.0

"""The sharpness-aware optimizers of others, as competitors: read where they lie, never copied."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from problems import Competitor, Problem
from torch import Tensor
from torch.nn import functional

Step = Callable[[], Any]


def _load(folder: Path | None, repository: str, name: str) -> Any:
    """A module of a cloned repository. What it imports and we lack is for its trainer: mocked."""
    if folder is None or not (folder / repository).is_dir():
        return None
    before = set(sys.modules)
    sys.path.insert(0, str(folder / repository))
    try:
        while True:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as missing:  # noqa: PERF203
                sys.modules[str(missing.name)] = MagicMock()
    finally:
        sys.path.pop(0)
        for added in set(sys.modules) - before:  # two of them have a module called utils
            del sys.modules[added]


def _two_steps(make: Callable[[Problem, torch.optim.Optimizer], Any]) -> Callable[..., Step]:
    """The loop of optimizers in the manner of davda54/sam: first_step, second_step."""

    def build(problem: Problem, base: torch.optim.Optimizer) -> Step:
        optimizer = make(problem, base)
        primary, _ = problem.evaluations

        def step() -> None:
            optimizer.zero_grad()
            primary()
            optimizer.first_step(zero_grad=True)
            primary()
            optimizer.second_step(zero_grad=True)

        return step

    return build


def _by_class(make: Callable[..., Any], **hyperparameters: Any) -> Callable[..., Step]:
    """They build the base optimizer themselves, from its class."""

    def optimizer(problem: Problem, base: torch.optim.Optimizer) -> Any:
        options = {k: v for k, v in base.defaults.items() if k in ("lr", "momentum")}
        return make(problem.model.parameters(), type(base), **hyperparameters, **options)

    return _two_steps(optimizer)


def _by_base(make: Callable[..., Any], **hyperparameters: Any) -> Callable[..., Step]:
    """They take the base optimizer, and the parameters once more."""

    def optimizer(problem: Problem, base: torch.optim.Optimizer) -> Any:
        return make(problem.model.parameters(), base, **hyperparameters)

    return _two_steps(optimizer)


def _gsam(module: Any) -> Callable[..., Step]:
    def build(problem: Problem, base: torch.optim.Optimizer) -> Step:
        schedule = MagicMock()
        schedule.step = lambda: 0.05
        optimizer = module.GSAM(problem.model.parameters(), base, problem.model, 0.1, schedule)
        x, y = problem.primary

        def step() -> None:
            optimizer.set_closure(functional.cross_entropy, x, y)
            optimizer.step()
            optimizer.update_rho_t()

        return step

    return build


def _composer(module: Any) -> Callable[..., Step]:
    def build(problem: Problem, base: torch.optim.Optimizer) -> Step:
        optimizer = module.SAMOptimizer(base, rho=0.05)
        primary, _ = problem.evaluations

        def closure(ddp_sync: bool = True, loss_dict: Any = None) -> Tensor:
            base.zero_grad()
            return primary().detach()

        return partial(optimizer.step, closure)

    return build


def peers_in(folder: Path | None) -> list[Competitor]:
    """Every peer that is installed, or cloned below `folder`."""
    found: list[Competitor] = []

    def add(name: str, build: Callable[..., Step]) -> None:
        found.append(Competitor(name, build, 2))

    if (module := _load(folder, "sam", "sam")) is not None:
        add("davda54/sam: SAM", _by_class(module.SAM, rho=0.05))
        add("davda54/sam: ASAM", _by_class(module.SAM, rho=0.5, adaptive=True))
    if (module := _load(folder, "composer", "composer.algorithms.sam.sam")) is not None:
        add("composer: SAM", _composer(module))
    if (module := _load(folder, "F-SAM", "utils")) is not None:
        add("nblt/F-SAM: FriendlySAM", _by_class(module.FriendlySAM, rho=0.05))
    if (module := _load(folder, "GSAM", "gsam")) is not None:
        add("juntang-zhuang/GSAM: GSAM", _gsam(module))
    if (module := _load(folder, "VaSSO", "solver.vasso")) is not None:
        add("BingcongLi/VaSSO: VASSO", _by_base(module.VASSO, rho=0.05, theta=0.9))
    if importlib.util.find_spec("pytorch_optimizer") is not None:
        import pytorch_optimizer as peer

        add("pytorch_optimizer: SAM", _by_class(peer.SAM, rho=0.05))
        add("pytorch_optimizer: ASAM", _by_class(peer.SAM, rho=0.5, adaptive=True))
        add("pytorch_optimizer: FriendlySAM", _by_class(peer.FriendlySAM, rho=0.05))
    return found

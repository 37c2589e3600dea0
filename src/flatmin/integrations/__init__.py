"""Other people's trainers: Lightning, the Hugging Face Trainer and Accelerate.

Each has a module of its own, which imports its trainer; this one needs torch alone. A loop that is
yours needs none of them: `optimizer.step(closure)` is all. `accelerate` is the one to read first; a
further trainer is a module that has its loop evaluate every pass of `optimizer.passes()`.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from flatmin import amp
from flatmin.engine.distributed import Ranks
from flatmin.optimizer import SharpnessAware


@contextmanager
def before_descent(optimizer: SharpnessAware, act: Callable[[], object]) -> Generator[None]:
    """Within it, every step calls `act` when `p.grad` holds the gradient that is descended.

    That is the place to clip or to log a gradient: the weights are back at `w`, the looks around
    are over, and the base optimizer's step comes next. (A descent of several gradients, such as
    Lookbehind-SAM's, calls it before each.)

    Args:
        optimizer: any flatmin optimizer.
        act: called without arguments; what it does to `p.grad` is what the base optimizer sees.

    Examples:
        >>> import torch, flatmin
        >>> from flatmin.integrations import before_descent
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> def closure():
        ...     loss = 1000 * model(torch.ones(2, 4)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> def clip():
        ...     torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        >>> with before_descent(optimizer, clip):
        ...     loss = optimizer.step(closure)
    """

    def hook(*_: object) -> None:
        act()

    handle = optimizer.base.register_step_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def join(optimizer: SharpnessAware, model: nn.Module | None) -> None:
    """Let the processes that share `model` decide together whether a step is dropped.

    For trainers that wrap the model when the optimizer, which is told of it by `model=`, is there.

    Args:
        optimizer: any flatmin optimizer.
        model: the model as the trainer has wrapped it; nothing happens unless it is a
            `DistributedDataParallel`.

    Examples:
        >>> import torch, flatmin
        >>> from flatmin.integrations import join
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> join(optimizer, model)  # one process: nothing to join
    """
    if isinstance(model, DistributedDataParallel) and not optimizer._ranks.many:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer._ranks = Ranks(params, model, optimizer.ascent)


def looking_around(optimizer: Any) -> bool:
    """Whether a step is under way, and in another pass than the first over its primary batch.

    For metrics and logs of a trainer, which are to count a batch once.

    Args:
        optimizer: any optimizer, in a trainer's wrapper or not; one that is not flatmin's looks
            nowhere.

    Examples:
        >>> import torch, flatmin
        >>> from flatmin.integrations import looking_around
        >>> model, away = torch.nn.Linear(4, 1), []
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> def closure():
        ...     away.append(looking_around(optimizer))
        ...     loss = model(torch.ones(2, 4)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> away
        [False, True]
    """
    look = getattr(getattr(optimizer, "optimizer", optimizer), "looking", None)
    return look is not None and not (look.batch == "primary" and look.first)


def stepped(
    optimizer: SharpnessAware, scaler: GradScaler | None, *closures: Callable[..., Any]
) -> Any:
    """Take a step, by `flatmin.amp` where there is a loss scaler that the closures use.

    Args:
        optimizer: any flatmin optimizer.
        scaler: the loss scaler; None without one.
        *closures: the primary closure and, for directions that measure one, the auxiliary.

    Returns:
        The loss at the unperturbed weights.

    Examples:
        >>> import torch, flatmin
        >>> from flatmin.integrations import stepped
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> def closure():
        ...     loss = model(torch.ones(2, 4)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = stepped(optimizer, None, closure)
    """
    if scaler is None:
        return optimizer.step(*closures)
    return amp.step(optimizer, scaler, *closures)


__all__ = ["before_descent", "join", "looking_around", "stepped"]

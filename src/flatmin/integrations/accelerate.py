"""Accelerate: a sharpness-aware step with prepared models, optimizers and loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from flatmin.integrations import stepped
from flatmin.optimizer import SharpnessAware

Batch = TypeVar("Batch")


def step(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    closure: Callable[..., Any],
    aux_closure: Callable[..., Any] | None = None,
) -> Any:
    """Take one step with a prepared flatmin optimizer, and return its loss.

    `AcceleratedOptimizer.step(closure)` works for methods with one batch, outside of fp16; but it
    drops the loss, takes no auxiliary closure, and between accumulated micro-batches never runs the
    closure at all. This works for all; in fp16, `flatmin.amp` takes the step.

    Args:
        accelerator: the one that prepared the optimizer.
        optimizer: what `accelerator.prepare` returned, or the flatmin optimizer inside it.
        closure: as in `optimizer.step`, with `accelerator.backward(loss)` for `loss.backward()`;
            see `accumulated` for several micro-batches.
        aux_closure: the same on the auxiliary batch, for directions that measure one; default None.

    To clip, build the optimizer with `max_norm=`. Clipping inside the closure would clip the
    gradients that are climbed, too.

    Returns:
        The loss at the unperturbed weights.

    Raises:
        TypeError: the optimizer is not flatmin's.
        ValueError: the accelerator uses DeepSpeed, FSDP1 or another engine that owns gradients or
            weights.
        RuntimeError: within `accelerator.accumulate(model)`, between two steps.

    Examples:
        >>> import torch, flatmin
        >>> from accelerate import Accelerator
        >>> from flatmin.integrations import accelerate as flat
        >>> accelerator = Accelerator(cpu=True)
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> x, y = torch.randn(8, 4), torch.randint(2, (8,))
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     accelerator.backward(loss)
        ...     return loss
        >>> loss = flat.step(accelerator, optimizer, closure)
    """
    inside = isinstance(optimizer, AcceleratedOptimizer)
    sharp = cast(object, optimizer.optimizer if inside else optimizer)
    if not isinstance(sharp, SharpnessAware):
        raise TypeError(
            f"this steps flatmin optimizers, got {type(sharp).__name__}: prepare one, as in "
            "accelerator.prepare(flatmin.SAM(base))"
        )
    _refuse(accelerator)
    closures = (closure,) if aux_closure is None else (closure, aux_closure)
    # Schedulers built on the wrapper ask whether it has stepped, and warn if it never did.
    cast(Any, optimizer)._opt_called = True
    return stepped(sharp, cast(Any, accelerator.scaler), *closures)


def accumulated(
    accelerator: Accelerator,
    model: nn.Module,
    loss_on: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
) -> Callable[[], Tensor]:
    """A closure over micro-batches: the mean of their losses, its gradient gathered one by one.

    It equals the closure over the large batch, if the micro-batches are of one size and `loss_on`
    is a mean over samples. Processes exchange gradients once, with the last micro-batch. What
    `Accelerator(gradient_accumulation_steps=...)` says makes no difference here.

    Args:
        accelerator: it runs the backward passes.
        model: the prepared model.
        loss_on: a micro-batch's loss, by the forward pass alone.
        batches: the micro-batches of one step; at least one.

    Returns:
        The closure, for `step`.

    Cost: each micro-batch is evaluated at every point where the method looks.

    Raises:
        ValueError: there is no micro-batch.

    Examples:
        >>> import torch, flatmin
        >>> from accelerate import Accelerator
        >>> from flatmin.integrations import accelerate as flat
        >>> accelerator = Accelerator(cpu=True)
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> x, y = torch.randn(8, 4), torch.randint(2, (8,))
        >>> def loss_on(batch):
        ...     return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> batches = [(x[:4], y[:4]), (x[4:], y[4:])]
        >>> closure = flat.accumulated(accelerator, model, loss_on, batches)
        >>> loss = flat.step(accelerator, optimizer, closure)
    """
    held = list(batches)
    if not held:
        raise ValueError("a step needs at least one micro-batch, got none")

    def closure() -> Tensor:
        losses: list[Tensor] = []
        for i, batch in enumerate(held, start=1):
            with accelerator.no_sync(model) if i < len(held) else nullcontext():
                loss = loss_on(batch) / len(held)
                # backward divides by it, for those who call it once a micro-batch.
                accelerator.backward(loss * accelerator.gradient_accumulation_steps)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    return closure


def _refuse(accelerator: Accelerator) -> None:
    engine = accelerator.distributed_type.value
    if not (engine == "NO" or engine.startswith("MULTI_") or accelerator.is_fsdp2):
        raise ValueError(
            f"with {'FSDP1' if engine == 'FSDP' else engine}, gradients or weights belong to an "
            "engine that evaluates one gradient a step: use DDP, or FSDP2"
        )
    if not accelerator.sync_gradients:
        raise RuntimeError(
            "within accelerator.accumulate(model) a step comes after several batches, but a "
            "sharpness-aware step evaluates all of them at every point: gather the batches, and "
            "step(accelerator, optimizer, accumulated(accelerator, model, loss_on, batches))"
        )


__all__ = ["accumulated", "step"]

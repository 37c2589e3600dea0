"""Loss scaling: steps in float16 with torch's `GradScaler`.

Every pass is unscaled once; one inf or nan in any of them drops the whole step, with weights and
state untouched; and the scale is updated once a step. bfloat16 needs none of this. See `step`;
`scaler.step(optimizer)` beside it is refused, since it would unscale one of the gradients only.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from flatmin.optimizer import Closure, SharpnessAware


def step(
    optimizer: SharpnessAware,
    scaler: GradScaler,
    closure: Closure,
    aux_closure: Closure | None = None,
) -> Any:
    """Take one step whose closures scale the loss before `backward`, and update the scale.

    Args:
        optimizer: any flatmin optimizer.
        scaler: the scaler that the closures use; where it is not enabled, this is
            `optimizer.step`.
        closure: forward, `scaler.scale(loss).backward()`, and return the loss, unscaled. With a
            per-sample selection (ESAM) it returns the losses, and the optimizer scales.
        aux_closure: the same on the auxiliary batch, for directions that measure one; default None.

    Returns:
        The loss at the unperturbed weights.

    Cost: a sweep over the gradients after each pass, and a wait for the device once a step.

    Raises:
        ValueError: parameters are float16 themselves, which torch cannot unscale.
        Exception: whatever `optimizer.step` raises; the scale is then as it was.

    Examples:
        >>> import torch, flatmin
        >>> model, x, y = torch.nn.Linear(4, 2), torch.randn(8, 4), torch.randint(2, (8,))
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> scaler = torch.amp.GradScaler("cpu")  # "cuda" on a GPU
        >>> def closure():
        ...     with torch.autocast("cpu", torch.float16):
        ...         loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     scaler.scale(loss).backward()
        ...     return loss
        >>> loss = flatmin.amp.step(optimizer, scaler, closure)
    """
    if not scaler.is_enabled():
        return optimizer.step(closure, aux_closure)
    if any(p.dtype == torch.float16 for p in optimizer.evaluated):
        raise ValueError(
            "loss scaling needs float32 parameters, these are float16: keep the model in float32 "
            "and run it under torch.autocast"
        )
    passes: list[_Pass] = []  # the scaler knows them by identity: they must live until its update

    def unscale() -> None:
        """Unscale this pass as torch does, noting any inf under a name of its own."""
        passes.append(_Pass(optimizer))
        scaler.unscale_(passes[-1])

    try:
        with optimizer.scaling(scaler.scale, unscale):
            loss = optimizer.step(closure, aux_closure)
    except BaseException:
        for seen in passes:  # what a failed step has met is not held against the next
            scaler._per_optimizer_states.pop(id(seen), None)
        raise
    scaler.update()
    return loss


class _Pass(torch.optim.Optimizer):
    """What a scaler needs to know of an optimizer: its gradients, for the length of one pass."""

    def __init__(self, optimizer: SharpnessAware) -> None:
        self.param_groups = [{"params": optimizer.evaluated}]

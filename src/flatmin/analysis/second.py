"""What makes second derivatives possible, and cheap, and what says why there are none."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import re
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

FUSED = re.compile("ScaledDotProduct|FlashAttention|EfficientAttention|CudnnAttention")
"""Nodes of a graph that are attention as one kernel, which torch cannot differentiate twice."""

_SAID: set[str] = set()
"""The warnings that this process has given."""


def say_once(message: str) -> None:
    """Warn the first time in this process."""
    if message not in _SAID:
        _SAID.add(message)
        warnings.warn(message, UserWarning, stacklevel=3)


def attention_by_math() -> Any:
    """Attention as matrix products and a softmax, which have second derivatives."""
    return cast(Any, sdpa_kernel)(SDPBackend.MATH)


@contextmanager
def light_norms(model: nn.Module) -> Generator[None]:
    """Batch normalization on fixed statistics as one multiply-add.

    It is the same function, and a third cheaper to differentiate twice than torch's own kernel.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and _is_fixed(m)]
    for m in layers:
        m.forward = MethodType(_multiply_add, m)
    try:
        yield
    finally:
        for m in layers:
            del m.forward


def _is_fixed(m: _BatchNorm) -> bool:
    own = type(m).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return own and "forward" not in vars(m) and not m.training and m.running_mean is not None


def _multiply_add(self: _BatchNorm, x: Tensor) -> Tensor:
    assert self.running_mean is not None
    assert self.running_var is not None
    scale = torch.rsqrt(self.running_var + self.eps)
    if self.affine:
        scale = scale * self.weight
    shift = -self.running_mean * scale
    if self.affine:
        shift = shift + self.bias
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


def nodes_of(*tensors: Tensor) -> Iterator[Any]:
    """The operations that these tensors come from."""
    seen: set[Any] = set()
    waiting = [t.grad_fn for t in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(before for before, _ in node.next_functions)


def is_fused(*tensors: Tensor) -> bool:
    """Is there attention as one kernel among the operations behind these tensors?"""
    return any(FUSED.search(node.name()) for node in nodes_of(*tensors))


@contextmanager
def explained(*tensors: Tensor) -> Generator[None]:
    """Where torch has no second derivative of what leads to `tensors`, name the operation."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        missing = re.search(r"derivative for (\S+) is not implemented", said)
        if missing:
            name = missing[1].strip("'")
        elif "once_differentiable" in said:
            name = ", ".join(sorted(set(_once_differentiable(*tensors)))) or "a custom function"
        elif "does not currently support double backward" in said:
            name = "torch.compile"
        else:
            raise
        raise _without(name) from error


def _without(name: str) -> ValueError:
    return ValueError(
        f"the loss has no second derivative: torch has none of {name}. Replace that operation, or "
        "take differences of gradients, Hessian(..., differences=True)"
    )


def refuse_once_differentiable(*tensors: Tensor) -> None:
    """Raise ValueError for a custom function that can be differentiated only once.

    Where what comes in from behind is constant, torch takes its derivative for a constant too,
    without a word.
    """
    for name in _once_differentiable(*tensors):
        raise _without(name)


def _once_differentiable(*tensors: Tensor) -> Iterator[str]:
    for node in nodes_of(*tensors):
        function = cast(Any, getattr(node, "_forward_cls", None))
        if hasattr(getattr(function, "backward", None), "__wrapped__"):
            yield str(function.__name__)


def derivatives(
    of: Tensor | Sequence[Tensor],
    by: Sequence[Tensor],
    along: Sequence[Tensor] | None = None,
    *,
    keep: bool = False,
    create: bool = False,
) -> list[Tensor | None]:
    """`torch.autograd.grad`; None where there is no dependence.

    Args:
        of: what is differentiated.
        by: what it is differentiated by.
        along: what the derivatives are multiplied with, from the left.
        keep: whether the graph is used again.
        create: whether the derivatives are to have derivatives.
    """
    grad = cast(Any, torch.autograd.grad)
    return list(
        grad(of, by, along, retain_graph=keep or create, create_graph=create, allow_unused=True)
    )


class Meter:
    """How many bytes the graphs hold that are built while it measures."""

    def __init__(self, *known: Tensor) -> None:
        self._seen = {t.untyped_storage().data_ptr() for t in known if t.layout == torch.strided}
        self.bytes = 0

    def measuring(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._weigh, lambda t: t)

    def _weigh(self, t: Tensor) -> Tensor:
        if t.layout == torch.strided:
            storage = t.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.bytes += storage.nbytes()
        return t

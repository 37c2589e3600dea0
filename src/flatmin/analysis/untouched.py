"""A model looked at in a chosen mode, with nothing left changed."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeAlias, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from flatmin.engine import check
from flatmin.engine.model_state import RandomNumbers, _CopyOnWrite, _Slot, same_numbers

Mode: TypeAlias = Literal["eval", "train"]
"""In which mode a model is looked at; None, where allowed, leaves each module in its own."""

_WRITTEN: WeakKeyDictionary[nn.Module, dict[bool, frozenset[int]]] = WeakKeyDictionary()
"""Frozen parameters that forward passes of a model write to, by mode; ids, since models hold them.

Models that were not looked at in a mode are not in it.
"""


@contextmanager
def untouched(model: nn.Module, mode: Mode | None = None) -> Generator[Visit]:
    """Look at a model in a chosen mode; afterwards all is as before, also after an exception.

    Modes of all modules, buffers, gradients, `requires_grad`, frozen parameters and the random
    states of torch, Python and numpy come back bit for bit. Weights are not copied: whoever moves
    them brings them back. Within, gradients are recorded, and no parameter has a `.grad`.

    Buffers stay untouched because the model works on copies of them, made anew by `Visit.fresh`: so
    what graphs have saved of them stays too. The same is done with frozen parameters that a forward
    pass writes to (a teacher that follows its student), once a first look has shown which.

    Args:
        model: any module.
        mode: "eval" or "train" for all modules; None (default) leaves each in its own mode.

    Raises:
        ValueError: `mode` is neither.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from flatmin.analysis.untouched import untouched
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
        >>> with untouched(model, "eval"):
        ...     y = model(torch.ones(1, 3))
        >>> model.training
        True
    """
    if mode is not None:
        check.one_of("mode", mode, ("eval", "train"))
    params = list(model.parameters())
    modes = [(m, m.training) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in params]
    grads = [(p, p.grad) for p in params]
    visit = Visit(model, training=model.training if mode is None else mode == "train")
    try:
        if mode is not None:
            model.train(mode == "train")
        for p in params:
            p.grad = None
        visit.fresh()
        with torch.enable_grad(), visit.watching():
            yield visit
        visit.learn()
    finally:
        visit.leave()
        for m, training in modes:
            m.training = training
        for p, flag in flags:
            p.requires_grad_(flag)
        for p, grad in grads:
            p.grad = grad


class Visit:
    """What one look at a model sees: copies of its buffers, and the random states at the door."""

    def __init__(self, model: nn.Module, *, training: bool) -> None:
        self._model = model
        self._frozen = [
            _Slot(cast(Any, m._parameters), name)
            for m in model.modules()
            for name, p in m._parameters.items()
            if p is not None and not p.requires_grad
        ]
        self._known = _WRITTEN.setdefault(model, {})
        self._training = training
        self._looks = 0
        self._own = [(m, dict(m._buffers)) for m in model.modules() if m._buffers]
        self._seen = self._own
        self._streams = RandomNumbers({p.device for p in model.parameters()})
        self._random = self._streams.state()

    def fresh(self) -> None:
        """Let the model see its buffers and the random states as they were at the door.

        Called at the door, and before each evaluation of the model.
        """
        self._looks += 1
        copies: dict[int, Tensor] = {}  # a buffer that two modules share stays one

        def copied(buffer: Tensor | None) -> Tensor | None:
            if buffer is None:
                return None
            if id(buffer) not in copies:
                copies[id(buffer)] = buffer.detach().clone()
            return copies[id(buffer)]

        for module, seen in self._seen:
            for name, buffer in seen.items():
                module._buffers[name] = copied(buffer)
        for slot in self._written():
            assert slot.tensor is not None
            if slot.copy is not None:  # the first look has shown it
                slot.data.copy_(slot.copy)
            if not slot.tensor.requires_grad:  # else it is what is differentiated by
                slot.holder[slot.name] = nn.Parameter(slot.data.clone(), requires_grad=False)
        if self.drew():
            self._streams.set(self._random)

    def hold(self) -> None:
        """Let `fresh` bring back the buffers as the model has them now, until it leaves."""
        self._seen = [(m, dict(m._buffers)) for m, _ in self._own]
        self.fresh()

    def watching(self) -> Any:
        """In a mode that the model was not looked at in: see which frozen parameters it writes."""
        if self._training in self._known or not self._frozen:
            return nullcontext()
        return _CopyOnWrite(self._frozen)

    def _written(self) -> list[_Slot]:
        known = self._known.get(self._training, frozenset[int]())
        return [s for s in self._frozen if s.copy is not None or id(s.tensor) in known]

    def drew(self) -> bool:
        """Has anything drawn random numbers since the door, or since `fresh`?"""
        return not same_numbers(self._random, self._streams.state()[: len(self._random)])

    def learn(self) -> None:
        """Nothing was raised: what the model writes to is known, if it was evaluated."""
        if self._looks > 1:
            self._known[self._training] = frozenset(id(s.tensor) for s in self._written())

    def leave(self) -> None:
        """Put buffers and random states back."""
        for module, own in self._own:
            module._buffers.clear()
            module._buffers.update(own)
        for slot in self._written():
            slot.holder[slot.name] = slot.tensor
            if slot.copy is not None:
                slot.data.copy_(slot.copy)
        self._streams.set(self._random)


def moving_layers(model: nn.Module) -> Iterator[str]:
    """Names of layers whose output for a sample depends, as they stand, on its whole batch."""
    modules: list[tuple[str, nn.Module]] = list(cast(Any, model).named_modules())
    for name, m in modules:
        is_norm = isinstance(m, nn.modules.batchnorm._BatchNorm)
        if is_norm and (m.training or m.running_mean is None):
            yield name or type(m).__name__

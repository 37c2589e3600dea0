"""What a look around must not move: all that a model holds beside the weights, and random numbers.

A step evaluates the model several times but is one visit to the batch. So whatever a forward pass
changes (running statistics, codebooks, queues, momentum encoders, observers, random numbers)
changes once a step: every later pass starts from what the first one found, and in the end the model
is as the first pass left it. After a step that is dropped or raises it is as it was before.

Nothing here knows a kind of layer. What moved is found by looking: at the object that a module
holds, at where its numbers lie, at torch's count of changes in place.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode

from flatmin.engine import check
from flatmin.engine.space import copy_, lies_somewhere

SMALL = 1 << 22
"""Frozen parameters are copied beforehand if they have no more elements than the trainable ones,
or than this; the numbers of larger ones are saved when something first writes to them."""

Generators: TypeAlias = "Sequence[Any]"
"""Random generators of a user's own: of torch, of NumPy, `random.Random`."""


class ModelState:
    """What `model=` lets the optimizer keep still, replay and count.

    Args:
        model: the module that the closures evaluate.
        params: the parameters that the optimizer moves, as the model evaluates them.
        replay: whether a batch that is seen again is seen through the same random numbers.
        generators: random generators of the user's own that are replayed too.
        shares_gradients: whether the next backward pass may overwrite gradients of the last.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Sequence[Tensor],
        *,
        replay: bool,
        generators: Generators = (),
        shares_gradients: bool = False,
    ) -> None:
        self.model = model
        self.samples = 0
        ours = {id(p) for p in params}
        self._held = _Held(model, ours, sum(p.numel() for p in params))
        self._gradients = _ForeignGradients(copy=shares_gradients)
        devices = {p.device for p in params}
        self._random = RandomNumbers(devices, generators) if replay else None
        self._starts: dict[str, list[Any]] = {}
        self._passes = 0
        self._counter = _SampleCounter.on(model)

    def begin(self) -> None:
        """A step begins."""
        self._starts.clear()
        self._passes = 0
        self._held.begin()
        self._gradients.begin(self._held.others)

    @contextmanager
    def visit(self, batch: str) -> Generator[None]:
        """One pass over `batch`, from the state that the first pass of this step has found.

        A batch seen again replays the random numbers of its first pass; then the stream goes on
        from where the first passes had left it.
        """
        if self._passes:
            self._set_back()
        self._passes += 1
        after = self._replay(batch)
        self._counter.begin()
        try:
            with self._held.watch() if self._passes == 1 else nullcontext():
                yield
        finally:
            self.samples = self._counter.end()
            if after is not None and self._random is not None:
                self._random.set(after)

    def finish(self) -> None:
        """The step succeeds: the model is as its first pass left it."""
        if self._passes > 1:
            self._held.set_back()
            self._held.set_forward()
        else:
            self._held.learn()
        self._gradients.finish(self._passes)

    def abort(self) -> None:
        """The step is dropped: all is as `begin` found it, random numbers too."""
        self._held.set_back()
        self._gradients.abort()
        if self._random is not None and "primary" in self._starts:
            self._random.set(self._starts["primary"])

    def _set_back(self) -> None:
        """Before another pass: keep what the first has left, and take everything back."""
        if self._passes == 1:
            self._held.note_first()
            self._gradients.note_first()
        self._held.set_back()
        self._gradients.clear()

    def _replay(self, batch: str) -> list[Any] | None:
        """Set the random numbers for a pass; where they are to go on after it, if not here."""
        if self._random is None:
            return None
        now = self._random.state()
        start = self._starts.setdefault(batch, now)
        if start is now or same_numbers(start, now):
            # Nothing was drawn since this batch was first begun, so its pass draws nothing.
            return None
        self._random.set(start)
        return now


class _Slot:
    """One tensor that a module holds, as the step found it.

    Fields:
        holder, name: the module's dictionary of buffers or parameters, and the key in it.
        tensor: what stood there; None where nothing did.
        data: its numbers, under a count of changes of their own, so that setting them back is no
            change that autograd would hold against a graph of the user's.
        address, version: where the numbers lay, and torch's count of changes in place.
        copy: what they were when the count was `copied`; None if they were never copied.
        moves: whether a pass was ever seen to move it in place.
        silent: whether it moves without being counted (`x.data.mul_()`, batch normalization).
    """

    __slots__ = (
        "address", "after", "copied", "copy", "data", "holder", "moves", "name", "silent",
        "tensor", "version",
    )  # fmt: skip

    def __init__(self, holder: dict[str, Tensor | None], name: str) -> None:
        self.holder = holder
        self.name = name
        # The kernels of normalisation layers move these without telling torch.
        self.moves = self.silent = name in ("running_mean", "running_var")
        self.after: tuple[Tensor | None, Tensor | None, Tensor | None] | None = None
        self.find()

    def find(self) -> None:
        """Look anew at what the module holds."""
        self.tensor = self.holder.get(self.name)
        self.copy: Tensor | None = None
        self.copied = -1
        if self.tensor is None:
            return
        self.data = self.tensor.data
        self.address = _address(self.tensor)
        self.version = self.tensor._version

    def begin(self) -> bool:
        """Note how it stands; is a fresh copy wanted?"""
        tensor = self.holder.get(self.name)
        self.after = None
        if tensor is not self.tensor or (tensor is not None and _address(tensor) != self.address):
            self.find()
        if tensor is None:
            return False
        self.version = tensor._version
        return self.moves or self.copied != self.version

    @property
    def stands(self) -> bool:
        """Is the object the one that was found, with its numbers where they were?"""
        tensor = self.holder.get(self.name)
        return tensor is self.tensor and (tensor is None or _address(tensor) == self.address)

    @property
    def moved(self) -> bool:
        """Was it changed in place?"""
        return self.tensor is not None and (self.silent or self.tensor._version != self.version)


class _Held:
    """The buffers and frozen parameters of a model, and what passes do to them.

    In-place changes need a copy from before. Buffers are copied whenever they have changed since
    they last were; a copy of what stays the same is made once and serves for ever. Of parameters
    that no optimizer of ours moves only the frozen are watched: the others are somebody's to train.
    """

    def __init__(self, model: nn.Module, ours: set[int], trainable: int) -> None:
        self._model = model
        self._ours = ours
        self._trainable = trainable
        self._modules: list[nn.Module] = []
        self._count = -1
        self._lazy = False
        self._training = model.training
        self._slots: list[_Slot] = []
        self._large: list[_Slot] = []
        self._new = True
        self.others: list[Tensor] = []
        """The model's parameters that this optimizer does not move."""

    def begin(self) -> None:
        """Note how everything stands, and copy what may move."""
        if self._lazy or self._count != self._size():
            self._look()
        if self._training != self._model.training:  # in another mode other things move
            self._training, self._new = self._model.training, True
        stale = [p for p in self._slots if p.begin()]
        wanting = [p for p in self._large if p.begin()]
        _copy_all([*stale, *(p for p in wanting if p.moves)])

    @contextmanager
    def watch(self) -> Generator[None]:
        """The first pass: save large frozen parameters before whoever first writes to them does.

        Only in the first step that knows them; whatever moves then is copied beforehand later on.
        """
        unknown = [p for p in self._large if p.tensor is not None] if self._new else []
        if not unknown:
            yield
            return
        with _CopyOnWrite(unknown):
            yield

    def note_first(self) -> None:
        """What the first pass has left, of all that it moved."""
        for slot in (*self._slots, *self._large):
            if not slot.stands:
                tensor = slot.holder.get(slot.name)
                data = None if tensor is None or tensor is not slot.tensor else tensor.data
                slot.after = (tensor, data, None)
            elif slot.moved or (self._new and _moved_in_silence(slot)):
                slot.moves = True
                slot.after = (slot.tensor, None, slot.data.clone())
        self._new = False

    def learn(self) -> None:
        """The only pass of a step is over: see what moves, for later ones."""
        if self._new:
            for slot in (*self._slots, *self._large):
                slot.moves = slot.moved or _moved_in_silence(slot) or slot.moves
            self._new = False

    def set_back(self) -> None:
        """Put everything where `begin` found it."""
        copies: list[tuple[Tensor, Tensor]] = []
        for slot in (*self._slots, *self._large):
            tensor = slot.tensor
            if not slot.stands:
                slot.holder[slot.name] = tensor
                if tensor is not None and _address(tensor) != slot.address:
                    tensor.data = slot.data
            if slot.moved or (self._new and _moved_in_silence(slot)):
                slot.moves = True
                assert tensor is not None
                known = slot.copied == slot.version  # if not, what it was is lost
                if known and slot.copy is not None:
                    copies.append((slot.data, slot.copy))
                slot.version = tensor._version
                slot.copied = slot.version if known else -1
        _write(copies)

    def set_forward(self) -> None:
        """Put everything where the first pass left it."""
        copies: list[tuple[Tensor, Tensor]] = []
        for slot in (*self._slots, *self._large):
            if slot.after is None:
                continue
            tensor, data, numbers = slot.after
            slot.holder[slot.name] = tensor
            if tensor is not None and data is not None:
                tensor.data = data
            if numbers is not None:
                copies.append((slot.data, numbers))
                slot.copied = -1
            slot.after = None
        _write(copies)

    def _size(self) -> int:
        """How many tensors and modules there are: a cheap sign that one was added or taken away."""
        return sum(len(m._buffers) + len(m._parameters) + len(m._modules) for m in self._modules)

    def _look(self) -> None:
        """Find every slot, keeping what is known of those that are known."""
        known = {(id(p.holder), p.name): p for p in (*self._slots, *self._large)}

        def slot(holder: Any, name: str) -> _Slot:
            return known.get((id(holder), name)) or _Slot(holder, name)

        def watched(x: Tensor | None) -> bool:
            return x is None or (id(x) not in self._ours and _whole(x) and not is_lazy(x))

        self._modules = list(self._model.modules())
        self.others = [p for p in self._model.parameters() if id(p) not in self._ours]
        self._lazy = any(map(is_lazy, (*self._model.buffers(), *self._model.parameters())))
        frozen = [
            slot(m._parameters, name)
            for m in self._modules
            for name, p in m._parameters.items()
            if p is not None and not p.requires_grad and watched(p)
        ]
        few = max(self._trainable, SMALL)
        total = sum(p.tensor.numel() for p in frozen if p.tensor is not None)
        self._large = frozen if total > few else []
        buffers = [
            slot(m._buffers, name)
            for m in self._modules
            for name, b in m._buffers.items()
            if watched(b)
        ]
        self._slots = buffers if self._large else [*buffers, *frozen]
        self._count = self._size()
        self._new = True


class _CopyOnWrite(TorchDispatchMode):
    """Saves the numbers of parameters before an operation writes to them."""

    def __init__(self, slots: Iterable[_Slot]) -> None:
        super().__init__()
        self._watched: dict[int, list[_Slot]] = {}
        for slot in slots:
            self._watched.setdefault(slot.data.untyped_storage()._cdata, []).append(slot)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write:
                self._save(value)
        for argument in func._schema.arguments:
            if argument.is_write and argument.name in kwargs:
                self._save(kwargs[argument.name])
        return func(*args, **kwargs)

    def _save(self, written: Any) -> None:
        many: list[Any] = list(written) if isinstance(written, (list, tuple)) else [written]  # pyright: ignore[reportUnknownArgumentType]
        for x in many:
            if isinstance(x, Tensor):
                for slot in self._watched.pop(x.untyped_storage()._cdata, ()):
                    slot.copy = slot.data.clone()
                    slot.copied = slot.version


class _ForeignGradients:
    """Gradients of the model's trainable parameters that this optimizer does not move.

    They belong to another optimizer, which is to find those of one backward pass: the first.
    """

    def __init__(self, *, copy: bool) -> None:
        self._copy = copy
        self._params: list[Tensor] = []
        self._before: list[Tensor | None] = []
        self._first: list[Tensor | None] | None = None

    def begin(self, others: Sequence[Tensor]) -> None:
        """A step begins; of the `others`, those that are frozen have no gradients."""
        self._params = [p for p in others if p.requires_grad]
        self._before = [p.grad for p in self._params]
        self._first = None
        self.clear()

    def clear(self) -> None:
        """Before a pass."""
        for p in self._params:
            p.grad = None

    def note_first(self) -> None:
        """Keep the gradients of the first pass."""
        found = [p.grad for p in self._params]
        self._first = [g if g is None or not self._copy else g.clone() for g in found]

    def finish(self, passes: int) -> None:
        """Those of the first pass, added to what was there as one backward pass adds them."""
        if passes < 2:
            self._first = [p.grad for p in self._params]
        for p, before, first in zip(self._params, self._before, self._first or (), strict=True):
            if before is not None and first is not None:
                before.add_(first)
            p.grad = before if before is not None else first
        self._before = []
        self._first = None

    def abort(self) -> None:
        for p, before in zip(self._params, self._before, strict=False):
            p.grad = before
        self._before = []
        self._first = None


class _SampleCounter:
    """Counts the samples that a model is given: a hook that stays, since compiled graphs know it.

    A hook of its own for every pass would have torch.compile start anew each time.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.open = False

    @classmethod
    def on(cls, model: nn.Module) -> _SampleCounter:
        """The counter of a model, which may have one from an earlier optimizer."""
        hooks = cast("dict[int, Any]", model._forward_pre_hooks).values()
        found = next((hook for hook in hooks if isinstance(hook, cls)), None)
        if found is None:
            found = cls()
            model.register_forward_pre_hook(found, with_kwargs=True)
        return found

    def begin(self) -> None:
        """A pass begins. The number is 0 whenever a graph is entered that was compiled with it."""
        self.samples, self.open = 0, True

    def end(self) -> int:
        self.open = False
        return self.samples

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.open:
            return
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                self.samples += value.shape[0] if value.ndim else 1
                return


class RandomNumbers:
    """The random generators that a forward pass may draw from.

    torch's default ones of the CPU and of the accelerators that hold parameters, Python's, NumPy's
    global one if NumPy is imported, and those that the user names.
    """

    def __init__(self, devices: set[torch.device], generators: Generators = ()) -> None:
        names = sorted(str(d) for d in devices if d.type not in ("cpu", "meta"))
        self._streams: list[_Stream] = [
            _Torch(),
            *(_Device(torch.device(name)) for name in names),
            _Python(random),
            *map(_own_stream, generators),
        ]
        self._knows_numpy = False

    def state(self) -> list[Any]:
        """Where all streams are."""
        if not self._knows_numpy and "numpy.random" in sys.modules:
            self._knows_numpy = True
            self._streams.append(_NumPyGlobal())
        return [stream.get() for stream in self._streams]

    def set(self, state: Sequence[Any]) -> None:
        """Put the streams where `state` found them."""
        for stream, saved in zip(self._streams, state, strict=False):  # NumPy may be new
            stream.set(saved)


def same_numbers(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Are the streams where they were?"""
    return len(a) == len(b) and all(
        x is y or (torch.equal(x, y) if isinstance(x, Tensor) else bool(x == y))
        for x, y in zip(a, b, strict=True)
    )


class _Stream(Protocol):
    def get(self) -> Any: ...

    def set(self, state: Any) -> None: ...


class _Torch:
    """torch's default generator of the CPU."""

    def get(self) -> Tensor:
        return torch.get_rng_state()

    def set(self, state: Tensor) -> None:
        torch.set_rng_state(state)


class _Device:
    """torch's default generator of an accelerator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def get(self) -> Tensor:
        return torch.get_device_module(self._device).get_rng_state(self._device)

    def set(self, state: Tensor) -> None:
        torch.get_device_module(self._device).set_rng_state(state, self._device)


class _TorchOwn:
    """A `torch.Generator`."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def get(self) -> Tensor:
        return self._generator.get_state()

    def set(self, state: Tensor) -> None:
        self._generator.set_state(state)


class _Python:
    """Python's `random`, or a `random.Random`."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def get(self) -> Any:
        return self._source.getstate()

    def set(self, state: Any) -> None:
        self._source.setstate(state)


class _NumPy:
    """The bit generator of a `numpy.random.Generator`."""

    def __init__(self, bits: Any) -> None:
        self._bits = bits

    def get(self) -> Any:
        return _State(self._bits.state)

    def set(self, state: Any) -> None:
        self._bits.state = state.value


class _NumPyGlobal(_NumPy):
    """NumPy's global generator.

    Its state takes long to ask for. Four of its words, read where they lie, tell whether it has
    moved; if not, the last answer still holds.
    """

    def __init__(self) -> None:
        super().__init__(sys.modules["numpy.random"].mtrand._rand._bit_generator)
        self._known: tuple[Any, Any] | None = None
        self._words: Any = None
        if type(self._bits).__name__ == "MT19937":  # 624 words, and the position among them
            self._words = (ctypes.c_uint32 * 625).from_address(self._bits.ctypes.state_address)

    def get(self) -> Any:
        words = self._words
        if words is None:
            return super().get()
        mark = (words[0], words[1], words[623], words[624])
        if self._known is None or self._known[0] != mark:
            self._known = mark, super().get()
        return self._known[1]


class _State:
    """A NumPy state, a dictionary with arrays in it, as something to compare."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _State) and _alike(self.value, other.value)

    __hash__ = None  # type: ignore[assignment]


def _alike(a: Any, b: Any) -> bool:
    """Are two states of one generator, which have the same entries, equal?"""
    if isinstance(a, dict):
        return all(_alike(x, b[name]) for name, x in cast("dict[str, Any]", a).items())
    return a.tobytes() == b.tobytes() if hasattr(a, "tobytes") else a == b


def _own_stream(generator: Any) -> Any:
    """A generator of the user's as a stream. Raises TypeError for what is none."""
    if isinstance(generator, torch.Generator):
        return _TorchOwn(generator)
    if isinstance(generator, random.Random):
        return _Python(generator)
    bits = getattr(generator, "bit_generator", None)
    if bits is not None:
        return _NumPy(bits)
    raise TypeError(
        "replay_random takes True, False or a list of generators (torch.Generator, "
        f"numpy.random.Generator, random.Random), got {check.describe(generator)} in it"
    )


def _address(t: Tensor) -> int:
    return t.data_ptr() if lies_somewhere(t) and not is_lazy(t) else 0


def is_lazy(t: Tensor) -> bool:
    """Has it yet to learn its shape, from the first forward pass?"""
    return isinstance(t, (UninitializedParameter, UninitializedBuffer))


def _whole(t: Tensor) -> bool:
    """Not a shard: FSDP2 changes what a module holds while it is evaluated."""
    return not hasattr(t, "device_mesh")


def _moved_in_silence(slot: _Slot) -> bool:
    """Were the numbers changed behind torch's count? Looked at in one step of a model's life."""
    if slot.tensor is None or slot.copy is None or slot.copied != slot.version:
        return False
    was, now = slot.copy, slot.data
    same = torch.equal(was, now) or bool(((was == now) | (was.isnan() & now.isnan())).all())
    slot.silent = slot.silent or not same
    return not same


def _copy_all(slots: Sequence[_Slot]) -> None:
    """Copy the numbers of slots, into the memory of their last copy where it fits."""
    into: list[Tensor] = []
    source: list[Tensor] = []
    for slot in slots:
        if slot.copy is None:
            slot.copy = slot.data.clone()
        else:
            into.append(slot.copy)
            source.append(slot.data)
        slot.copied = slot.version
    if into:
        copy_(into, source)


def _write(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    if pairs:
        copy_([to for to, _ in pairs], [source for _, source in pairs])

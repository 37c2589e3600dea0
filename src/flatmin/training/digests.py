"""Digests of what users bring: the same in every process, as long as it does the same."""

from __future__ import annotations

import dis
import functools
import hashlib
import itertools
import re
import sys
import sysconfig
from collections.abc import (
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence,
)
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from flatmin.methods import Method

_MANY = 2**16
"""Entries of a list or a mapping from which on a few of them are looked at."""

_FEW = 16
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def digest(content: str | bytes) -> str:
    """Eight hexadecimal digits of some content."""
    content = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(content, digest_size=4).hexdigest()


def checksum(tensor: Tensor) -> str:
    """Eight hexadecimal digits of all bytes of a tensor."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return digest(bytes(flat.view(torch.uint8).numpy().data) if flat.numel() else b"")


def described(thing: Any) -> str:
    """What a function, a class or an object is, in words that are the same in every process.

    Of a function: its name, its code, its defaults, what it holds of the functions around it; and,
    where it is no installed library's, the global variables, functions and classes that it reads,
    which are described in turn. Of a class that is no library's: its code. Of an object of
    one: its `repr` and its attributes. Of an `nn.Module`: what `structure` says, and its tensors.
    Of a tensor and an array: shape, type, content. Of others: their `repr`.
    """
    return _Words().of(thing)


def plain(words: str) -> str:
    """A `repr` without the addresses of one process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", words)


def structure(module: nn.Module, *, values: bool = True) -> str:
    """What a network is, its weights apart: its `repr`, its plain attributes, its users' code.

    Without `values` the attributes of its parts and of their classes are left out.
    """
    words = _Words(values=values)
    parts = [plain(f"{type(module).__qualname__} {module!r}")]
    parts_of = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())
    for name, each in parts_of if values else ():
        attributes = {
            key: value
            for key, value in vars(each).items()
            if not key.startswith("_") and isinstance(value, _PLAIN)
        }
        parts.append(f"{name} {words.of(attributes)}")
    parts += map(words.of, {type(each): None for each in module.modules()})
    return "\n".join(parts)


class _Words:
    """Describes one thing; what it comes upon a second time it only names."""

    def __init__(self, *, values: bool = True) -> None:
        self._values = values
        self._seen: dict[int, Any] = {}  # kept, so that no other takes its number meanwhile

    def of(self, thing: Any) -> str:
        if isinstance(thing, _PLAIN):
            return repr(thing)
        if isinstance(thing, Tensor):
            return f"{tuple(thing.shape)} {thing.dtype} {checksum(thing)}"
        if not isinstance(thing, tuple | frozenset):  # of which equal ones may be one
            if id(thing) in self._seen:
                return str(getattr(thing, "__qualname__", type(thing).__qualname__))
            self._seen[id(thing)] = thing
        for kinds, describe in self._known:
            if isinstance(thing, kinds):
                return describe(self, thing)
        return self._object(thing)

    def _partial(self, thing: functools.partial[Any]) -> str:
        return f"partial({self.of(thing.func)}, {self.of(thing.args)}, {self.of(thing.keywords)})"

    def _bound(self, thing: MethodType) -> str:
        return f"{self.of(thing.__func__)} of {self.of(thing.__self__)}"

    def _function(self, thing: FunctionType) -> str:
        held = [*(thing.__defaults__ or ()), *map(_held, thing.__closure__ or ())]
        named = thing.__kwdefaults__ or {}
        said = f"{thing.__qualname__} {self._code(thing.__code__)} {self.of(held)} {self.of(named)}"
        if not _is_users(str(thing.__globals__.get("__name__"))):
            return said
        read = self._read(thing.__code__, thing.__globals__)
        return f"{said} reads {read}" if read else said

    def _code(self, code: CodeType) -> str:
        consts = [
            self._code(each) if isinstance(each, CodeType) else self.of(each)
            for each in code.co_consts
        ]
        return digest(f"{code.co_code.hex()} {consts} {code.co_names} {code.co_varnames}")

    def _read(self, code: CodeType, variables: Mapping[str, Any]) -> str:
        """The global variables that some code reads and does not change by itself."""
        steps = list(_instructions(code))
        loaded = {name for how, name in steps if how in _LOADED}
        inside = {name for how, name in steps if how in _INSIDE}
        found = {
            name: self._variable(variables[name], inside)
            for name in sorted(loaded - _changed(steps, variables))
            if name in variables
        }
        return ", ".join(f"{name}={said}" for name, said in found.items())

    def _variable(self, value: Any, inside: set[str]) -> str:
        """One of them; of a user's module the attributes that may be meant."""
        if isinstance(value, ModuleType):
            if not _is_users(value.__name__) or id(value) in self._seen:
                return value.__name__
            self._seen[id(value)] = value
            held = {
                name: self._variable(getattr(value, name), inside)
                for name in sorted(inside)
                if name in vars(value)
            }
            return f"{value.__name__} {held}"
        if isinstance(value, FunctionType | type) and not _is_users(value.__module__):
            return f"{value.__module__}.{value.__qualname__}"
        return self.of(value)

    def _class(self, thing: type) -> str:
        name = f"{thing.__module__}.{thing.__qualname__}"
        if not _is_users(thing.__module__):
            return name
        bases = [self.of(base) for base in thing.__bases__]
        body = {key: _inner(value) for key, value in vars(thing).items()}
        code = {
            key: each for key, each in body.items() if isinstance(each, FunctionType | property)
        }
        others = {
            key: value
            for key, value in body.items()
            if self._values and not (key.startswith("__") and key.endswith("__"))
        }
        for each in code.values():  # what they set, as a count of instances, is left out
            if isinstance(each, FunctionType):
                for how, key in _instructions(each.__code__):
                    if how in ("STORE_ATTR", "DELETE_ATTR"):
                        others.pop(key, None)
        return f"{name} {bases} {self.of({**others, **code})}"

    def _property(self, thing: property) -> str:
        return self.of([thing.fget, thing.fset])

    def _method(self, thing: Method) -> str:
        return f"{thing.name} {thing.rho} {self.of(thing.construct)}"

    def _network(self, thing: nn.Module) -> str:
        return f"{structure(thing)} {self.of(thing.state_dict())}"

    def _sequence(self, thing: Sequence[Any]) -> str:
        parts = [self.of(each) for each in _some(thing)]
        return f"{type(thing).__name__} of {len(thing)}: {parts}"

    def _set(self, thing: Any) -> str:
        return f"{type(thing).__name__} {sorted(map(self.of, thing))}"

    def _mapping(self, thing: Mapping[Any, Any]) -> str:
        parts = [f"{self.of(key)}: {self.of(thing[key])}" for key in _some(list(thing))]
        return f"{type(thing).__name__} of {len(thing)}: {parts}"

    def _module(self, thing: ModuleType) -> str:
        return thing.__name__

    def _object(self, thing: Any) -> str:
        kind = cast("type[Any]", type(thing))
        if hasattr(thing, "tobytes"):  # a NumPy array, a Pillow image
            shape = getattr(thing, "shape", getattr(thing, "size", ""))
            if getattr(getattr(thing, "dtype", None), "hasobject", False):  # bytes of addresses
                return f"{kind.__qualname__} {shape} {self.of(thing.tolist())}"
            return f"{kind.__qualname__} {shape} {digest(thing.tobytes())}"
        said = plain(f"{kind.__qualname__} {thing!r}")
        if hasattr(thing, "__wrapped__"):  # a function with a cache, for one
            said += f" {self.of(thing.__wrapped__)}"
        if not _is_users(kind.__module__):
            return said
        return f"{said} {self.of(dict(getattr(thing, '__dict__', {})))} {self.of(kind)}"

    _known: tuple[tuple[Any, Any], ...] = (
        (functools.partial, _partial),
        (MethodType, _bound),
        (FunctionType, _function),
        (type, _class),
        (property, _property),
        (ModuleType, _module),
        (Method, _method),
        (nn.Module, _network),
        ((list, tuple), _sequence),
        ((set, frozenset), _set),
        (Mapping, _mapping),
    )


_LOADED = ("LOAD_GLOBAL", "LOAD_NAME")
_INSIDE = ("LOAD_ATTR", "LOAD_METHOD")
_CONTAINERS = (MutableSequence, MutableMapping, MutableSet)
_CHANGING = (
    *("add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove"),
    *("setdefault", "sort", "update"),
)
"""What these do to themselves."""


def _changed(steps: Sequence[tuple[str, str]], variables: Mapping[str, Any]) -> set[str]:
    """Global variables that code sets, or whose entries it does, as counters and caches are."""
    found = {name for how, name in steps if how in ("STORE_GLOBAL", "DELETE_GLOBAL")}
    for (how, name), (then, what) in itertools.pairwise(steps):
        of_container = how in _LOADED and isinstance(variables.get(name), _CONTAINERS)
        if of_container and then in _INSIDE and what in _CHANGING:
            found.add(name)
    for (how, name), (then, _) in zip(steps, steps[2:], strict=False):  # name[entry] = …
        if how in _LOADED and then in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            found.add(name)
    return found


def _instructions(code: CodeType) -> Iterator[tuple[str, str]]:
    """What it does with names, the functions inside it too."""
    for step in dis.get_instructions(code):
        yield step.opname, str(step.argval)
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _instructions(each)


@functools.cache
def _is_users(module: str) -> bool:
    """Whether a module is neither Python's nor an installed library's."""
    if module == "__main__":
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module.partition(".")[0] in ("flatmin", "torch"):
        return False
    where = Path(file).resolve()
    installed = {"site-packages", "dist-packages"} & set(where.parts)
    python = Path(sysconfig.get_paths()["stdlib"]).resolve()
    return not installed and python not in where.parents


def _inner(attribute: Any) -> Any:
    """The function that an attribute of a class is made of."""
    if isinstance(attribute, staticmethod | classmethod):
        return cast("Any", attribute.__func__)
    return attribute.func if isinstance(attribute, functools.cached_property) else attribute


def _some(values: Sequence[Any]) -> list[Any]:
    count = len(values)
    if count < _MANY:
        return list(values)
    return [values[at * count // _FEW] for at in range(_FEW)]


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None

"""What users bring to a study, by name: `my.module:Net`, or an object, `Net@1f3a5c7e`.

A study keeps names, since its rows outlive the process that made them. An import path is found by
any process; an object that has none only by the one that was given it, and its name ends with a
digest of what it is, so that rows of two different networks never stand for each other.

Reading a study imports nothing: `title` and `known` look at names alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from flatmin import methods
from flatmin.methods import Method
from flatmin.training import digests
from flatmin.training.errors import InputError

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_OBJECT = re.compile(r"[^/\\]*@[0-9a-f]{8}")
_FOREIGN = ("timm:", "hub:", "human:")
"""How names with a colon begin that are no import paths."""

_OBJECTS: dict[str, Any] = {}
"""What this process was given, by name."""


def is_own(name: str) -> bool:
    """Whether `name` is that of something a user brings."""
    return is_path(name) or is_object(name)


def is_path(name: str) -> bool:
    """Whether `name` is an import path, `module:name`."""
    return not name.startswith(_FOREIGN) and _PATH.fullmatch(name) is not None


def is_object(name: str) -> bool:
    """Whether `name` is that of an object, `label@digest`."""
    return _OBJECT.fullmatch(name) is not None


def title(name: str) -> str:
    """What people call it: `Net` for `my.module:Net` and for `Net@1f3a5c7e`."""
    if is_path(name):
        return name.partition(":")[2]
    return name.rpartition("@")[0] if is_object(name) else name


def given(thing: Any, label: str, content: str = "") -> str:
    """The name of a thing, by which `find` finds it from now on.

    Its import path where it has one, so that other processes find it too; else its label with a
    digest of what it is: `content`, or what `digests.described` says.
    """
    path = path_of(thing)
    if path is not None:
        return path
    plain = re.sub(r"[^\w.()=,+-]+", "", label) or "own"
    name = f"{plain}@{digests.digest(content or digests.described(thing))}"
    _OBJECTS[name] = thing
    return name


def forget(name: str) -> None:
    """Keep an object no longer."""
    _OBJECTS.pop(name, None)


def find(name: str) -> Any:
    """What `name` stands for. Raises InputError, in one line, where it is not here."""
    if name in _OBJECTS:
        return _OBJECTS[name]
    if is_object(name):
        raise InputError(
            f"{name} is an object of the process that began this: run the same script again, or "
            f"give it by an import path, module:name"
        )
    module, _, inside = name.partition(":")
    if str(Path.cwd()) not in sys.path:  # a console script looks beside itself alone
        sys.path.append(str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        lost = f"no module {module}" if error.name in _above(module) else str(error)
        raise InputError(
            f"{name} cannot be imported ({lost}): start where it can be, or mend the name"
        ) from None
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{name} cannot be imported ({said}): mend {module}") from None
    for part in inside.split("."):
        if not hasattr(found, part):
            raise InputError(f"{name} cannot be imported: {module} has no {inside}")
        found = getattr(found, part)
    return found


def path_of(thing: Any) -> str | None:
    """The import path of a function or a class, by which any process finds it; None for others."""
    module, inside = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module in (None, "__main__", "builtins") or not isinstance(inside, str):
        return None
    name = f"{module}:{inside}"
    if not is_path(name):
        return None
    try:
        found = sys.modules[module]
        for part in inside.split("."):
            found = getattr(found, part)
        alike = found is thing and importlib.util.find_spec(module) is not None
    except (KeyError, AttributeError, ValueError, ImportError):
        return None
    return name if alike else None


def require_paths(names: Mapping[str, str], workers: int) -> None:
    """Raise InputError where one of `names`, by what it is, cannot be imported by a worker."""
    for what, name in names.items():
        if is_object(name):
            raise InputError(
                f"{what} {title(name)} is an object of this process, which {workers} workers "
                f"cannot import: move it to a module and give module:name, or take workers=1"
            )


def _above(module: str) -> list[str]:
    """A module and the packages that it is in."""
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


# What is brought ------------------------------------------------------------------------------


def kind(thing: Any) -> str:
    """The class of an object, for a message."""
    return type(thing).__name__


def label(thing: Any) -> str:
    """A short name for people: of a function its own, of an object that of its class."""
    if isinstance(thing, functools.partial):
        parts = cast("functools.partial[Any]", thing)
        values = ",".join(f"{name}={value}" for name, value in parts.keywords.items())
        return f"{label(parts.func)}({values})"
    name = getattr(thing, "__name__", type(thing).__name__)
    return "lambda" if name == "<lambda>" else str(name)


def method(name: str) -> Method:
    """The method called `name`: of `flatmin.methods.TABLE`, or a user's.

    Raises ValueError or InputError where it is not here, or does not make an optimizer.
    """
    return _method(name, find(name)) if is_own(name) else methods.find(name)


_ALONE = {"nesterov": "Nesterov", "adam": "Adam", "adamw": "AdamW", "lambda": "Base optimizer"}
"""What the base optimizer alone is called, where that is not SGD."""


def method_title(name: str, base: str = "sgd") -> str:
    """What a method is called in a table, whether it is here or not; `sgd` is the base alone."""
    if is_own(name):
        return title(name)
    if name == "sgd" and base != "sgd":
        return _ALONE.get(title(base), title(base))
    return methods.find(name).title


@functools.lru_cache(maxsize=64)
def _method(name: str, thing: Any) -> Method:
    if isinstance(thing, Method):
        return replace(thing, name=name)
    if not callable(thing):
        raise InputError(f"{title(name)} is no method: give a function of (base, rho, **options)")
    parameters = inspect.signature(thing).parameters
    open_ended = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    lacking = [each for each in ("model", "max_norm", "measure_radius") if each not in parameters]
    if lacking and not open_ended:
        raise InputError(
            f"the method {title(name)} takes no {lacking[0]}: write def {title(name)}(base, "
            f"rho=0.05, **options) and pass **options on to flatmin.SharpnessAware"
        )
    build = cast("Any", thing)
    rho = 0.0
    if "rho" in parameters:
        default = parameters["rho"].default
        rho = 0.05 if default is inspect.Parameter.empty or default is None else float(default)
    else:
        build = functools.partial(_without_rho, thing)
    found = Method(name, title(name), rho, build)
    weight = torch.zeros(1, requires_grad=True)
    try:
        optimizer = found.build(torch.optim.SGD([weight], 0.1), total_steps=1)
        auxiliary = bool(optimizer.direction.auxiliary_passes)
        per_sample = optimizer.selection.per_sample
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the method {title(name)} makes no optimizer: {said}") from None
    return replace(found, auxiliary=auxiliary, per_sample=per_sample)


def _without_rho(build: Callable[..., Any], base: Any, rho: float = 0.0, **options: Any) -> Any:
    return build(base, **options)


def network(name: str, thing: Any, **facts: Any) -> nn.Module:
    """What a user's factory makes, given those of `facts` that it cannot do without.

    Raises InputError where that is no network.
    """
    try:
        model = needing(thing, facts)()
    except InputError:
        raise
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the model {title(name)} cannot be made: {said}") from None
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model {title(name)} made a {type(model).__name__}: give a function that makes an "
            f"nn.Module, such as lambda: Net()"
        )
    return model


def needing(thing: Callable[..., Any], facts: Mapping[str, Any]) -> Callable[[], Any]:
    """`thing` with those of `facts` for which it has a parameter of that name without a default."""
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return thing
    empty = inspect.Parameter.empty
    named = {n for n, each in parameters.items() if each.default is empty}
    return functools.partial(thing, **{n: value for n, value in facts.items() if n in named})

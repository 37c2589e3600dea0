"""One clear error for a number out of range."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import math
import sys
from numbers import Real
from typing import Any

from torch import Tensor


def at_least_zero(name: str, value: float) -> None:
    """Raise ValueError unless `value` is finite and not negative."""
    if not (isinstance(value, Real) and value >= 0 and math.isfinite(value)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


def in_range(
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise ValueError unless `low <= value <= high`, or `<` at an open end."""
    inside = (low < value if open_low else low <= value) and (
        value < high if open_high else value <= high
    )
    if not inside:
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must lie in {interval}, got {value!r}")


def positive_int(name: str, value: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def seed(value: int) -> None:
    """Raise ValueError unless `value` is a whole number."""
    if not isinstance(value, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"seed must be a whole number, got {value!r}")


def finite(name: str, value: float) -> None:
    """Raise ValueError unless `value` is finite."""
    if not (isinstance(value, Real) and math.isfinite(value)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def describe(value: object) -> str:
    """A short name for a value that should not have been given."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def kind(name: str, value: object, wanted: type, example: str) -> None:
    """Raise TypeError unless `value` is an instance of `wanted`, such as `example`."""
    if not isinstance(value, wanted):
        said = f"the class {value.__name__}" if isinstance(value, type) else describe(value)
        raise TypeError(f"{name} must be a {wanted.__name__}, such as {example}, got {said}")


def add_note(error: BaseException, note: str) -> None:
    """Say more about an error: beneath it, or in it before Python 3.11."""
    add: Any = getattr(error, "add_note", None)
    if add is not None:
        add(note)
    else:
        error.args = (f"{error}\n{note}",)


def callers_level() -> int:
    """The `stacklevel` with which a warning points at the line outside flatmin and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    return level


_INSIDE = ("flatmin.", "torch.", "contextlib")


def continues_accumulation(closure: object) -> bool:
    """Is it the closure of Lightning's last micro-batch, whose siblings ran outside of any step?

    Lightning clears gradients in the closure of the first micro-batch alone.
    """
    if "lightning" not in sys.modules and "pytorch_lightning" not in sys.modules:
        return False
    parts = (*getattr(closure, "args", ()), closure)
    return any(
        type(part).__module__.startswith(("lightning.", "pytorch_lightning."))
        and getattr(part, "_zero_grad_fn", part) is None
        and getattr(part, "_backward_fn", None) is not None
        for part in parts
    )

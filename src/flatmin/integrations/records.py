"""What a trainer counts while it evaluates a batch: a batch seen again is not counted again.

A sharpness-aware step evaluates a batch at several points, and so runs the code that updates
metrics several times. Whatever that code does to a metric in a later look, it does to copies.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, cast

from torch import Tensor, nn

CONTAINERS: tuple[type, ...] = (list, dict, set, deque, defaultdict, OrderedDict, Counter)
MOST_ITEMS = 10_000
"""Longer lists are copied without a look at what they hold."""
MOST_NUMBERS = 1 << 16
"""Larger tensors, of an object that is no metric, are no records but data."""
OF_MODULES = vars(nn.Module()).keys() - {"_buffers"}


def is_metric(thing: object) -> bool:
    """Something that gathers over batches: `update`, and `compute` or `reset`, as torchmetrics'."""
    return (
        not isinstance(thing, (type, *CONTAINERS))
        and _has(thing, "update")
        and (_has(thing, "compute") or _has(thing, "reset"))
    )


def _has(thing: object, method: str) -> bool:
    return callable(getattr(type(thing), method, None))


def metrics_in(root: nn.Module) -> list[object]:
    """The metrics of a module and its submodules: submodules, attributes, or in containers."""
    found: dict[int, object] = {}
    for module in root.modules():
        if module is not root and is_metric(module):
            found[id(module)] = module
        for metric in metrics_among(v for k, v in vars(module).items() if k not in OF_MODULES):
            found[id(metric)] = metric
    found.pop(id(root), None)
    return list(found.values())


def metrics_among(values: Iterable[object]) -> Iterator[object]:
    """The metrics among values and in the containers among them."""
    for value in values:
        if is_metric(value):
            yield value
        elif type(value) in CONTAINERS and len(cast(Any, value)) <= MOST_ITEMS:
            items = cast("Iterable[object]", value.values() if isinstance(value, dict) else value)
            yield from metrics_among(items)


@contextmanager
def unrecorded(
    metrics: Iterable[object] = (), owner: object = None, leave: Container[str] = ()
) -> Generator[None]:
    """Within it, metrics count on copies, which are then dropped.

    The states of a torchmetrics metric begin anew, as its own `forward` lets them; of any other
    metric every tensor and container is copied. So are the numbers, small tensors and containers
    that `owner` has as attributes, those named in `leave` excepted.
    """
    memo: dict[int, Any] = {}
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for metric in metrics:
            kept.append((attributes := vars(metric), dict(attributes)))
            attributes.update(_afresh(metric, memo))
        if owner is not None:
            kept.append((attributes := vars(owner), dict(attributes)))
            for name, value in attributes.items():
                if name not in leave:
                    attributes[name] = _copied(value, memo, MOST_NUMBERS)
        yield
    finally:
        for attributes, before in kept:
            attributes.clear()
            attributes.update(before)


def _afresh(metric: object, memo: dict[int, Any]) -> dict[str, Any]:
    """A metric's attributes, as if it had seen nothing where it says how that is."""
    starts = cast("dict[str, Any]", vars(metric).get("_defaults", {}))
    found: dict[str, Any] = {}
    for name, value in vars(metric).items():
        if name in OF_MODULES:
            continue
        if name not in starts:
            found[name] = _copied(value, memo)
        elif isinstance(value, Tensor):
            found[name] = starts[name].detach().clone().to(value.device)
        else:
            found[name] = []
    return found


def _copied(value: Any, memo: dict[int, Any], most_numbers: int | None = None) -> Any:
    """A copy that may be written to; of things that are no numbers or containers, themselves."""
    if id(value) in memo:
        return memo[id(value)]
    new = value
    if isinstance(value, Tensor):
        if not value.requires_grad and (most_numbers is None or value.numel() <= most_numbers):
            new = value.clone()
    elif type(value).__name__ == "ndarray":
        if most_numbers is None or value.size <= most_numbers:
            new = value.copy()
    elif type(value) in CONTAINERS:
        new = _copied_container(value, memo, most_numbers)
    memo[id(value)] = new
    return new


def _copied_container(value: Any, memo: dict[int, Any], most_numbers: int | None) -> Any:
    new = copy(value)
    if len(value) <= MOST_ITEMS and not isinstance(value, set):
        keyed = isinstance(value, dict)
        for place in cast("Iterable[Any]", value if keyed else range(len(value))):
            new[place] = _copied(value[place], memo, most_numbers)
    return new

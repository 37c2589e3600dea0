"""Base optimizers by name: `bases.build("sgd", model.parameters(), lr=0.1, momentum=0.9)`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from flatmin.training import own
from flatmin.training.errors import InputError, unknown


class Base(Protocol):
    """Makes a base optimizer; `options` are further arguments of torch's optimizer."""

    def __call__(
        self,
        parameters: Iterable[Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        **options: Any,
    ) -> Optimizer: ...


def build(
    name: str,
    parameters: Iterable[Parameter],
    *,
    lr: float | None,
    momentum: float | None = 0.9,
    weight_decay: float | None = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Optimizer:
    """The base optimizer called `name` in `BASES`, or the one that a user's function makes.

    The user's function takes the parameters, and by name what is not None and what is in `options`;
    it may make several optimizers, of which our methods take a list. Raises InputError where it
    makes none.
    """
    options = dict(options or {})
    if not own.is_own(name):
        return BASES[name](parameters, lr, momentum, weight_decay, **options)  # pyright: ignore[reportArgumentType]
    numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    given = {**{name: value for name, value in numbers.items() if value is not None}, **options}
    try:
        made: Any = own.find(name)(parameters, **given)
    except InputError:
        raise
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        passed = f"; it was given {', '.join(given)}, as set here" if given else ""
        raise InputError(
            f"the base optimizer {own.title(name)} cannot be made: {said}{passed}"
        ) from None
    # several stand in a list
    if not isinstance(made, Optimizer | list | tuple):
        raise InputError(
            f"the base {own.title(name)} made a {own.kind(made)}: give a function of the "
            f"parameters that makes an optimizer, such as lambda params: torch.optim.AdamW(params)"
        )
    return cast("Optimizer", made)


def require(name: str, options: Mapping[str, Any]) -> None:
    """Raise InputError where the base optimizer called `name` has no such options."""
    if own.is_own(name) or not options:
        return
    known = {*inspect.signature(KINDS[name]).parameters, *inspect.signature(BASES[name]).parameters}
    known -= {
        "params",
        "parameters",
        "lr",
        "momentum",
        "weight_decay",
        "betas",
        "nesterov",
        "options",
    }
    for option in options:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    try:
        BASES[name]([Parameter(torch.zeros(1))], 0.1, 0.9, 0.0, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"an option of {name} does not fit: {error}") from None


def sgd(
    parameters: Iterable[Parameter],
    lr: float,
    momentum: float,
    weight_decay: float,
    **options: Any,
) -> Optimizer:
    """Stochastic gradient descent with momentum; the weight decay is added to the gradient."""
    return torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, **options)


def nesterov(
    parameters: Iterable[Parameter],
    lr: float,
    momentum: float,
    weight_decay: float,
    **options: Any,
) -> Optimizer:
    """SGD with Nesterov's momentum."""
    return sgd(parameters, lr, momentum, weight_decay, nesterov=True, **options)


def adam(
    parameters: Iterable[Parameter],
    lr: float,
    momentum: float,
    weight_decay: float,
    beta2: float = 0.999,
    **options: Any,
) -> Optimizer:
    """Adam with the betas `momentum` and `beta2`; the weight decay is added to the gradient."""
    betas = (momentum, beta2)
    return torch.optim.Adam(parameters, lr, betas, weight_decay=weight_decay, **options)


def adamw(
    parameters: Iterable[Parameter],
    lr: float,
    momentum: float,
    weight_decay: float,
    beta2: float = 0.999,
    **options: Any,
) -> Optimizer:
    """AdamW with the betas `momentum` and `beta2`; the weight decay acts on the weights."""
    betas = (momentum, beta2)
    return torch.optim.AdamW(parameters, lr, betas, weight_decay=weight_decay, **options)


BASES: Mapping[str, Base] = {"sgd": sgd, "nesterov": nesterov, "adam": adam, "adamw": adamw}
"""Every base optimizer by its name in a recipe."""

KINDS: Mapping[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "nesterov": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
"""The class of each, whose arguments are its options."""

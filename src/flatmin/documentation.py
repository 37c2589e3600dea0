"""The options that all methods share, shown in the help of each.

They are explained once, in the docstring of `SharpnessAware`. An editor reads the source, where
`**options: Unpack[Options]` tells it their names and types and `Options` a sentence of each;
`help()` and `inspect.signature` read what `documented` writes when a method is defined.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

from flatmin.optimizer import Options, SharpnessAware

Method = TypeVar("Method", bound=Callable[..., SharpnessAware])

SHARED = tuple(Options.__annotations__)
"""The names of the options, in the order of `SharpnessAware`."""

_OPTIONS = re.compile(r"^    \*\*options: .*\n(?: {8}.*\n)*", re.MULTILINE)


def documented(method: Method) -> Method:
    """Show the shared options in a method's `help()` and signature, in place of `**options`.

    The function itself stays as it is, so that it pickles, and goes into a `partial`, as ever.

    Args:
        method: a function that takes a base optimizer, hyperparameters and `**options`; its
            docstring may have a line `**options:` under `Args:`.

    Examples:
        >>> import flatmin, inspect
        >>> from flatmin.documentation import documented
        >>> @documented
        ... def Wide(base, rho=0.5, **options):
        ...     return flatmin.SharpnessAware(base, rho, **options)
        >>> inspect.signature(Wide).parameters["nonfinite"].default
        'skip'
    """
    own = inspect.signature(method)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters += [_SIGNATURE.parameters[name] for name in SHARED]
    cast(Any, method).__signature__ = own.replace(parameters=parameters)
    if method.__doc__:  # there is none under python -OO
        method.__doc__ = _OPTIONS.sub(_explained, inspect.cleandoc(method.__doc__) + "\n")
    return method


def _explained(_: re.Match[str]) -> str:
    """Their entries in the docstring of `SharpnessAware`."""
    arguments = _ARGUMENTS.search(inspect.getdoc(SharpnessAware) or "")
    entries = re.split(r"^(?=    \w+: )", arguments[0] if arguments else "", flags=re.MULTILINE)
    return "".join(entry for entry in entries if entry.split(":")[0].strip() in SHARED)


_ARGUMENTS = re.compile(r"(?<=^Args:\n)(?: {4}.*\n)*", re.MULTILINE)
_SIGNATURE = inspect.signature(SharpnessAware)

"""What to cite: the papers of the parts and of the base optimizer that are used, as BibTeX.

The entries are in `papers.bib`, each once; here stands which part or base is whose. A new part
adds its entry there and its line here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from torch.optim import Optimizer

from flatmin import descent, direction, geometry, methods, policy, selection
from flatmin.engine.several import Several
from flatmin.optimizer import SharpnessAware

Build = Callable[..., SharpnessAware]

SAM = "foret2021sharpness"
_FRIENDLY = "li2024friendly"
_LATE = "zhou2024late"
_AGNOSTIC = "nguyen2024agnostic"
_LOOK = "liu2022towards"

# What a part has of SAM itself is not said: SAM's paper comes first, whatever the parts.
PARTS: Mapping[type, tuple[str, ...]] = {
    direction.Ascent: (),
    direction.Agnostic: (_AGNOSTIC,),
    direction.Friendly: (_FRIENDLY,),
    direction.FullComponent: (_FRIENDLY,),
    direction.Momentum: ("becker2024momentum",),
    direction.NoiseComponent: (_FRIENDLY,),
    direction.OtherBatch: (_FRIENDLY,),
    direction.Previous: (_AGNOSTIC,),
    direction.PreviousAgnostic: (_AGNOSTIC,),
    direction.Random: ("li2022efficient", "li2024revisiting"),
    direction.Suppressed: ("li2023enhancing",),
    geometry.Euclidean: (),
    geometry.Adaptive: ("kwon2021asam",),
    geometry.Fisher: ("kim2022fisher",),
    geometry.Only: ("mueller2023normalization",),
    geometry.Product: (),
    geometry.RandomSubset: ("du2022efficient",),
    policy.Always: (),
    policy.Bernoulli: ("zhao2022sssam",),
    policy.Both: (),
    policy.Early: (_LATE,),
    policy.EveryK: (_LOOK,),
    policy.LargeGradient: ("jiang2023adaptive",),
    policy.Late: (_LATE,),
    selection.WholeBatch: (),
    selection.LossRise: ("du2022efficient",),
    descent.Plain: (),
    descent.Lookbehind: ("mordido2024lookbehind",),
    descent.Mixed: ("yue2023sharpness", "li2024revisiting"),
    descent.Reuse: (_LOOK,),
    descent.SurrogateGap: ("zhuang2022surrogate",),
}
"""The papers of a part, in the order of its docstring; a part of one's own is its parent's."""

BASES: Mapping[str, tuple[str, ...]] = {
    "Adadelta": ("zeiler2012adadelta",),
    "Adafactor": ("shazeer2018adafactor",),
    "Adagrad": ("duchi2011adaptive",),
    "Adam": ("kingma2015adam",),
    "AdamW": ("loshchilov2019decoupled",),
    "Adamax": ("kingma2015adam",),
    "Adan": ("xie2024adan",),
    "Lion": ("chen2023symbolic",),
    "Muon": ("jordan2024muon",),
    "NAdam": ("dozat2016nesterov",),
    "Prodigy": ("mishchenko2024prodigy",),
    "RAdam": ("liu2020variance",),
    "RMSprop": ("tieleman2012lecture",),
    "AdamWScheduleFree": ("defazio2024road", "loshchilov2019decoupled"),
    "SGDScheduleFree": ("defazio2024road",),
}
"""The papers of a base optimizer, by the name of its class, whoever has written it."""


def cite(*used: Optimizer | Build | str, file: TextIO | None = None) -> None:
    """Print the BibTeX of what is used: flatmin, the papers of the parts, and that of the base.

    Args:
        *used: optimizers, flatmin's or a bare base; methods, as `flatmin.SAM`; or names, as
            `flatmin methods` lists them. An optimizer knows its base and its parts, a method its
            parts alone.
        file: where to print; default None: standard output.

    What flatmin does not know, a part or a base of your own, is named in a comment.

    Raises:
        TypeError: something is none of these.
        ValueError: there is no method of this name.

    Examples:
        >>> import io, torch, flatmin
        >>> optimizer = flatmin.ASAM(torch.optim.AdamW(torch.nn.Linear(4, 2).parameters()))
        >>> text = io.StringIO()
        >>> flatmin.cite(optimizer, file=text)  # without `file`: on the screen
        >>> [line for line in text.getvalue().splitlines() if line.startswith("  title")][1]
        '  title     = {Sharpness-Aware Minimization for Efficiently Improving Generalization},'
    """
    keys = dict.fromkeys(["flatmin", *(key for each in used for key in keys_of(each))])
    print("\n\n".join(map(_printed, keys)), file=file or sys.stdout)


def keys_of(used: Optimizer | Build | str) -> Iterator[str]:
    """The keys of the entries for what is used, and `? Name` for what is not known."""
    if isinstance(used, str):
        yield from keys_of(methods.find(used).construct)
    elif isinstance(used, SharpnessAware):
        yield from _of_parts(used)
        yield from keys_of(used.base)
    elif isinstance(used, Several):
        for each in used.optimizers:
            yield from keys_of(each)
    elif isinstance(used, Optimizer):
        yield from _of_base(used)
    elif callable(used):
        yield from _of_parts(_tried(used))
    else:
        raise TypeError(
            f"cite takes an optimizer, a method as flatmin.SAM, or a name as 'friendly-sam', and "
            f"not {used!r}"
        )


def _of_parts(optimizer: SharpnessAware) -> Iterator[str]:
    if optimizer.policy == policy.Bernoulli(0.0):  # the base alone
        return
    yield SAM
    for part in (
        optimizer.direction,
        optimizer.geometry,
        optimizer.policy,
        optimizer.selection,
        optimizer.descent,
    ):
        for factor in _factors(part):
            yield from _of_part(factor, random=isinstance(optimizer.direction, direction.Random))


def _factors(part: Any) -> Iterator[Any]:
    """The parts that a product of geometries, or of policies, is made of."""
    if isinstance(part, (geometry.Product, policy.Both)):
        yield from _factors(part.first)
        yield from _factors(part.second)
    else:
        yield part


def _of_part(part: object, random: bool) -> tuple[str, ...]:
    """The papers of a part as it is set; of several forms each has its own."""
    keys = next((PARTS[kind] for kind in type(part).__mro__ if kind in PARTS), None)
    if keys is None:
        return (f"? {type(part).__name__}",)
    if isinstance(part, direction.Random) and not part.eta:
        return keys[:1]
    if isinstance(part, direction.Agnostic) and part.beta == 0:
        return (*keys, "anonymous2026align")
    if isinstance(part, descent.Mixed):
        return keys[1:] if random else keys[:1]
    return keys


def _of_base(base: Optimizer) -> tuple[str, ...]:
    if isinstance(base, torch.optim.SGD):
        momentum = any(group["momentum"] for group in base.param_groups)
        return ("sutskever2013importance",) if momentum else ("robbins1951stochastic",)
    kinds = (kind.__name__ for kind in type(base).__mro__)
    return next((BASES[name] for name in kinds if name in BASES), (f"? {type(base).__name__}",))


def _tried(method: Build) -> SharpnessAware:
    """A method over one number, which shows its parts."""
    base = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    steps = {"total_steps": 1} if "total_steps" in signature(method).parameters else {}
    made = cast(object, method(base, **steps))
    if not isinstance(made, SharpnessAware):
        raise TypeError(f"{method!r} makes no flatmin optimizer: give the optimizer itself")
    return made


def _printed(key: str) -> str:
    if key.startswith("? "):
        return f"% {key[2:]} is not flatmin's: cite it as its authors ask."
    return entries()[key]


@cache
def entries() -> Mapping[str, str]:
    """Every entry of `papers.bib` by its key, as it is printed."""
    text = Path(__file__).with_name("papers.bib").read_text(encoding="utf-8")
    found = re.findall(r"^(@\w+\{(\w+),\n.*?^\})$", text, re.MULTILINE | re.DOTALL)
    return {key: _with_archive(entry) for entry, key in found}


def _with_archive(entry: str) -> str:
    """An `eprint` says whose number it is."""
    return re.sub(
        r"^( +eprint +=) (\{.*\}),$",
        r"\1 \2,\n  archiveprefix = {arXiv},",
        entry,
        flags=re.MULTILINE,
    )


def papers(keys: Iterable[str]) -> list[str]:
    """The arXiv numbers of entries, where they have one."""
    found = (re.search(r"eprint\s*= \{(.*)\}", entries()[key]) for key in keys)
    return [match[1] for match in found if match]

"""What users import says at the cursor what they ask: arguments, defaults, formula, cost, paper."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import io
import pickle
import pydoc
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import flatmin
from flatmin.direction import Friendly
from flatmin.documentation import SHARED, documented
from flatmin.optimizer import Options

ROOMS = (
    "flatmin",
    "flatmin.methods",
    "flatmin.documentation",
    "flatmin.amp",
    "flatmin.pairs",
    "flatmin.schedules",
    "flatmin.direction",
    "flatmin.geometry",
    "flatmin.policy",
    "flatmin.selection",
    "flatmin.descent",
    "flatmin.engine",
    "flatmin.engine.passes",
    "flatmin.training",
    "flatmin.analysis",
    "flatmin.meta",
    "flatmin.studies.comparing",
    "flatmin.integrations",
    "flatmin.integrations.accelerate",
    "flatmin.integrations.lightning",
    "flatmin.integrations.transformers",
)
TRAINERS = ("accelerate", "lightning", "transformers")
PARTS = ("direction", "geometry", "policy", "selection", "descent")
NO_PAPER = ("Product", "Both")
"""Parts that are arithmetic, and need no reference."""
INTERNAL = ("advance",)
"""Functions that live beside public ones without being so."""


# --- the surface


def surface() -> dict[str, Any]:
    """Functions and classes of flatmin that users import."""
    found: dict[str, Any] = {}
    for room in ROOMS:
        trainer = room.removeprefix("flatmin.integrations.")
        if trainer in TRAINERS and not importlib.util.find_spec(trainer):
            continue
        for name, thing in public(importlib.import_module(room)):
            if thing not in found.values():
                found[f"{room}.{name}"] = thing
    return found


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    for name in names:
        thing = getattr(module, name)
        ours = getattr(thing, "__module__", "").startswith("flatmin")
        home = hasattr(module, "__all__") or getattr(thing, "__module__", "") == module.__name__
        if isinstance(thing, (FunctionType, type)) and ours and home and name not in INTERNAL:
            yield name, thing


def methods_of(name: str, kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods that a class of the surface defines."""
    for method, function in vars(kind).items():
        function = getattr(function, "__func__", function)  # of a class method
        if isinstance(function, FunctionType) and not method.startswith("_"):
            yield f"{name}.{method}", getattr(kind, method)


WHOLE = surface()
METHODS = dict(
    method
    for name, kind in WHOLE.items()
    if isinstance(kind, type)
    for method in methods_of(name, kind)
)
SURFACE = {**WHOLE, **METHODS}


def rows() -> dict[str, Any]:
    """The function of each named method, out of its `partial`."""
    return {
        name: row.construct.func if isinstance(row.construct, partial) else row.construct
        for name, row in flatmin.methods.TABLE.items()
    }


# --- what is wrong with a docstring

ENTRY = re.compile(r"^    (\*{0,2}\w+): ", re.MULTILINE)
LITERAL = r"(\"[^\"]*\"|None|True|False|-?\d[\d.e-]*)"
DEFAULT = re.compile(
    rf"\b[Dd]efault\s+{LITERAL}(?=[,;:.)]|\s(?!%)|$)|{LITERAL},?\s+\((?:the\s+)?default\)"
)
INSTEAD = re.compile(r"\b[Dd]efault\s+(the\b|that\b|all\b|nowhere\b|`|\$)")
"""What None, the default, stands for."""
FORMULA = re.compile(r"\A.+\n\n(?:(?! {4}).+\n|\n)*? {4}\S.*(=|<-|iff).*\n")


def arguments(text: str, heading: str = "Args") -> dict[str, str]:
    """The entries under a heading, by name."""
    section = re.search(rf"^{heading}:\n((?: {{4}}.*\n)+)", text + "\n", re.MULTILINE)
    _, *found = ENTRY.split(section[1]) if section else ("",)
    return dict(zip(found[::2], found[1::2], strict=True))


def returned(thing: Any) -> bool:
    """Is it what functions return or raise, and nobody makes?"""
    text = inspect.getdoc(thing) or ""
    raised = isinstance(thing, type) and issubclass(thing, Exception)
    return raised or bool(arguments(text, "Fields"))


def stated(entry: str) -> Any:
    """The default that an entry states; `Parameter.empty` if none."""
    if match := DEFAULT.search(entry):
        return ast.literal_eval((match[1] or match[2]).removesuffix("."))
    return None if INSTEAD.search(entry) else inspect.Parameter.empty


def faults(name: str, thing: Any) -> list[str]:
    """What its docstring leaves open of its arguments, or says wrongly."""
    text = inspect.getdoc(thing)
    if not text:
        return [f"{name} has no docstring"]
    if isinstance(thing, type) and issubclass(thing, Exception):
        return []
    parameters = dict(inspect.signature(thing).parameters)
    parameters.pop("self", None)
    entries = arguments(text) or arguments(text, "Fields")
    wrong = [
        f"{name} explains an argument {entry} that it does not have"
        for entry in entries
        if entry.lstrip("*") not in parameters
    ]
    for argument, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if argument not in entries:
            # A method of one sentence may name its arguments in it.
            if name not in METHODS or not re.search(rf"`[^`]*\b{argument}\b[^`]*`", text):
                wrong.append(f"{name}: no line for {argument} in Args")
        elif not returned(thing) and stated(entries[argument]) != parameter.default:
            wrong.append(
                f"{name}: {argument} is {parameter.default!r} unless given, and its line says "
                f"{stated(entries[argument])!r}"
            )
    return wrong


def missing(text: str, *, paper: bool = True) -> list[str]:
    """What the docstring of a method or of a part lacks."""
    needs = {
        "one sentence": re.search(r"\A\S.*[.?]\n\n", text),
        "formula": FORMULA.match(text),
        "cost": re.search(r"^Cost: \S", text, re.MULTILINE),
        "example": re.search(r"^Examples:\n    >>> ", text, re.MULTILINE),
    }
    if paper:
        needs["reference"] = re.search(
            r"^Reference: (?:.+\n)*?.*arXiv:\d{4}\.\d{5}", text, re.MULTILINE
        )
    return [need for need, found in needs.items() if not found]


# --- the surface is whole


@pytest.mark.parametrize("name", SURFACE)
def test_every_argument_has_a_line_with_its_default(name: str):
    assert faults(name, SURFACE[name]) == []


@pytest.mark.parametrize("name", [name for name, thing in WHOLE.items() if not returned(thing)])
def test_everything_has_an_example(name: str):
    assert re.search(r"^Examples:\n    >>> ", inspect.getdoc(WHOLE[name]) or "", re.MULTILINE)


@pytest.mark.parametrize("name", rows())
def test_a_method_says_formula_cost_reference_and_example(name: str):
    text = rows()[name].__doc__
    assert missing(text) == []
    assert re.search(
        r"^Cost: [^.]*gradient(.|\n)*?cop(y|ies)\s+of\s+the\s+weights", text, re.MULTILINE
    )
    assert re.search(r"^Raises:\n    TypeError: ", text, re.MULTILINE)
    if name != "sgd":
        assert "at least 0" in arguments(text)["rho"]


@pytest.mark.parametrize(
    "part",
    [part for room in PARTS for _, part in public(getattr(flatmin, room)) if is_dataclass(part)],
    ids=lambda part: part.__name__,
)
def test_a_part_says_formula_cost_reference_and_example(part: type):
    text = inspect.getdoc(part)
    lacking = missing(text, paper=part.__name__ not in NO_PAPER)
    if part.__name__ in ("Always", "WholeBatch"):
        lacking.remove("formula")  # there is nothing to compute
    assert lacking == []


def test_what_writers_of_parts_import_is_named_at_the_door():
    for name in flatmin.engine.__all__:
        assert re.search(rf"^    {name}: ", flatmin.engine.__doc__ + "\n", re.MULTILINE), name


@pytest.mark.parametrize(
    "name", [n for n, build in rows().items() if "<locals>" in build.__qualname__]
)
def test_the_example_of_a_composition_runs(name: str):
    """Its help is put together when it is made, where the other tests of examples do not look."""
    test = doctest.DocTestParser().get_doctest(rows()[name].__doc__, {}, name, None, None)
    said = io.StringIO()
    assert doctest.DocTestRunner().run(test, out=said.write).attempted > 3
    assert said.getvalue() == ""


# --- the options that all methods share


def entries_of_options() -> dict[str, str]:
    found = arguments(inspect.getdoc(flatmin.SharpnessAware) or "")
    return {name: found[name] for name in SHARED}


def test_the_shared_options_are_those_of_the_optimizer():
    own = inspect.signature(flatmin.SharpnessAware).parameters
    parts = {"base", "rho", *PARTS}
    assert set(SHARED) == set(own) - parts == set(Options.__annotations__)


@pytest.mark.parametrize("name", rows())
def test_help_and_signature_show_the_shared_options(name: str):
    text = pydoc.plain(pydoc.render_doc(rows()[name]))
    shown = inspect.signature(flatmin.methods.TABLE[name].construct).parameters
    own = inspect.signature(flatmin.SharpnessAware).parameters
    for option, entry in entries_of_options().items():
        assert re.sub(r"\s+", " ", f"{option}: {entry}") in re.sub(r"\s+", " ", text)
        assert shown[option] == own[option]
    assert "options" not in shown
    assert "**options" not in text


@pytest.mark.parametrize("name", flatmin.methods.TABLE)
def test_a_shared_option_is_no_hyperparameter_of_a_method(name: str):
    assert not flatmin.methods.TABLE[name].hyperparameters & set(SHARED)


def source(path: str) -> list[ast.stmt]:
    return ast.parse((Path(flatmin.__file__).parent / path).read_text(encoding="utf-8")).body


def test_editors_find_the_shared_options_in_the_source():
    """They read docstrings as they are written, and run nothing."""
    functions = [node for node in source("methods.py") if isinstance(node, ast.FunctionDef)]
    named = [node for node in functions if node.name in flatmin.__all__]
    assert len(named) == sum(inspect.isfunction(getattr(flatmin, n)) for n in flatmin.__all__) - 3
    for node in named:
        line = arguments(ast.get_docstring(node) or "")["**options"]
        assert re.findall(r"`(\w+)`", line) == [*SHARED, "SharpnessAware"], node.name


def test_an_option_at_the_cursor_says_what_the_optimizer_says_first():
    options = next(n for n in source("optimizer.py") if getattr(n, "name", "") == "Options")
    body = options.body[1:]  # after its own docstring: a name, its docstring, a name, …
    told = {
        name.target.id: text.value.value for name, text in zip(body[::2], body[1::2], strict=True)
    }
    for name, entry in entries_of_options().items():
        sentence = re.sub(r"\s+", " ", entry).strip()
        assert sentence.lower().startswith(told[name].lower()), name


@pytest.mark.parametrize("name", [n for n in flatmin.__all__ if n in vars(flatmin.methods)])
def test_a_documented_method_pickles_and_goes_into_a_partial(name: str):
    method = getattr(flatmin, name)
    if not inspect.isfunction(method):
        return
    assert pickle.loads(pickle.dumps(method)) is method
    bound = pickle.loads(pickle.dumps(partial(method, rho=0.3)))
    assert inspect.signature(bound).parameters["rho"].default == 0.3


# --- and each of these checks can fail

GOOD = """Climb.

    eps = rho g

Args:
    base: the base.
    rho: the radius; default 0.05. More here.
    kind: "a" or "b"; default
        "a".

Cost: 2 gradients.

Reference: A paper,
arXiv:2010.01412, eq. 2.

Examples:
    >>> 1
    1
"""


def method_with(text: str) -> Callable[..., None]:
    def method(base: object, rho: float = 0.05, kind: str = "a") -> None: ...

    method.__doc__ = text
    return method


def test_a_good_docstring_has_no_fault():
    assert faults("method", method_with(GOOD)) == []
    assert missing(GOOD) == []


@pytest.mark.parametrize(
    "old, new, fault",
    [
        ("    base: the base.\n", "", "no line for base"),
        ("    rho: the radius; default 0.05. More here.\n", "", "no line for rho"),
        ("default 0.05", "default 0.5", "says 0.5"),
        ("; default 0.05", "", "says <class 'inspect._empty'>"),
        ("the base.", "the base; default None.", "says None"),
        ('"a".', '"b".', "says 'b'"),
        ("    kind: ", "    sort: ", "an argument sort that it does not have"),
        (GOOD, "", "has no docstring"),
    ],
)
def test_a_broken_line_is_a_fault(old: str, new: str, fault: str):
    assert old in GOOD
    assert fault in "\n".join(faults("method", method_with(GOOD.replace(old, new))))


@pytest.mark.parametrize(
    "old, new, need",
    [
        ("Climb.", "Climb", "one sentence"),
        ("    eps = rho g\n\n", "", "formula"),
        ("Cost: 2 gradients.", "", "cost"),
        ("arXiv:2010.01412", "arXiv", "reference"),
        ("    >>> 1", "    1", "example"),
    ],
)
def test_a_missing_piece_is_missed(old: str, new: str, need: str):
    assert need in missing(GOOD.replace(old, new))


def test_an_option_that_is_not_shown_is_seen():
    """Without `documented`, and without the line that it replaces, help lacks the options."""

    def plain(base: object, **options: Any) -> flatmin.SharpnessAware:
        """Do it.

        Args:
            base: the base.
            **options: those of every method.
        """
        return flatmin.SharpnessAware(base, direction=Friendly(), **options)

    assert "max_norm" not in inspect.signature(plain).parameters
    assert "max_norm" not in (inspect.getdoc(plain) or "")
    assert documented(plain) is plain
    assert inspect.signature(plain).parameters["max_norm"].default is None
    assert list(arguments(plain.__doc__ or "")) == ["base", *SHARED]

"""The house has floors: a room uses what is below it, never what is above, and nothing in a circle.

`docs/architecture.md` draws them.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import flatmin

SOURCES = Path(flatmin.__file__).parent

FLOORS = {
    "engine": 0,
    "": 1,  # flatmin itself: the methods and what users import
    **dict.fromkeys(("direction", "geometry", "policy", "selection", "descent"), 1),
    "integrations": 2,
    "analysis": 3,
    "meta": 3,
    "training": 3,
    "training.data": 3,
    "training.models": 3,
    "studies": 4,
    "studies.store": 4,
    "studies.plan": 5,
    "studies.meta": 6,
    "studies.run": 6,
    "studies.report": 6,
    "studies.comparing": 7,
    "cli": 7,
    "__main__": 7,
}
"""By room; a folder without an entry of its own is on the floor of the one around it."""

STRANGERS = (
    ("analysis", ("training", "studies", "cli")),
    ("meta", ("training", "studies", "cli")),
    ("training", ("analysis", "meta")),
    ("integrations", ("studies", "training", "analysis", "meta")),
)
"""Rooms that know nothing of others, whatever their floors."""

CORE = 1
"""Up to this floor torch, and what it requires itself, is all that is needed."""

CORE_NEEDS = {"torch", "typing_extensions", "flatmin"}


def modules() -> dict[str, Path]:
    """Every module by its name below flatmin, `""` for flatmin itself."""
    found: dict[str, Path] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> list[tuple[str, int]]:
    """What a module imports, anywhere and for types too: (module, line); of flatmin without it."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{MODULES[name]}:{node.lineno}: a relative import"
            module = node.module or ""
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                known = whole.removeprefix("flatmin.") in MODULES and whole.startswith("flatmin.")
                found.append((whole if known else module, node.lineno))
    return found


def inner(name: str) -> list[tuple[str, int]]:
    """The imports of a module that are of flatmin, by their names below it."""
    return [
        (module.removeprefix("flatmin").removeprefix("."), line)
        for module, line in imports(name)
        if module.partition(".")[0] == "flatmin"
    ]


def room(name: str) -> str:
    """The room of a module: the longest name in FLOORS that it lies in, or itself."""
    while name not in FLOORS:
        name = name.rpartition(".")[0]
    return name


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in rooms)


@pytest.mark.parametrize("name", MODULES)
def test_no_import_goes_upward(name: str):
    floor = FLOORS[room(name)]
    for used, line in inner(name):
        above = FLOORS[room(used)]
        # the version and the path of the package are everybody's
        assert above <= floor or used == "", (
            f"{MODULES[name]}:{line}: flatmin.{name} on floor {floor} imports flatmin.{used} on "
            f"floor {above}"
        )


def test_every_folder_has_a_floor():
    folders = {path.parent.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.py")}
    names = {"" if folder == "." else folder.replace("/", ".") for folder in folders}
    assert names <= FLOORS.keys(), f"give a floor to {sorted(names - FLOORS.keys())}"


@pytest.mark.parametrize("name", MODULES)
def test_strangers_do_not_know_each_other(name: str):
    for ours, theirs in STRANGERS:
        if within(name, (ours,)):
            for used, line in inner(name):
                assert not within(used, theirs), (
                    f"{MODULES[name]}:{line}: flatmin.{name} imports flatmin.{used}"
                )


@pytest.mark.parametrize("name", [n for n in MODULES if FLOORS[room(n)] <= CORE])
def test_the_core_needs_torch_alone(name: str):
    for used, line in imports(name):
        package = used.partition(".")[0]
        assert package in CORE_NEEDS or package in sys.stdlib_module_names, (
            f"{MODULES[name]}:{line}: flatmin.{name} imports {package}"
        )


def test_no_module_imports_itself_in_a_circle():
    """Also not for types alone: whoever reads one of a circle has to read them all."""
    uses = {name: dict(inner(name)) for name in MODULES}
    state: dict[str, str] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        state[name] = "open"
        path.append(name)
        for used, line in uses[name].items():
            if used == name or used == "":
                continue
            if state.get(used) == "open":
                circle = " -> ".join([*path[path.index(used) :], used])
                raise AssertionError(f"{MODULES[name]}:{line} closes the circle {circle}")
            if used not in state:
                visit(used)
        path.pop()
        state[name] = "done"

    for name in MODULES:
        if name not in state:
            visit(name)

"""One word means one thing: names that are given twice, or were given up, are found here."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import flatmin

SOURCES = Path(flatmin.__file__).parent
PATHS = sorted(SOURCES.rglob("*.py"))

GIVEN_UP = {
    *("Crew", "Craft", "Agenda", "Vigil", "Heart", "Pulse", "Lost", "Material", "Tally"),
    *("Contender", "Place", "Owner", "Looks", "Answer"),
    *("crew", "craft", "agenda", "vigil", "contender", "contenders", "tally", "tallied", "settle"),
    *("key_of", "stay", "faces"),
}
"""Names that only insiders could guess; what they are called now says what they are."""


MODULES = {"beside", "sheets", "pages", "contenders", "places", "owners", "regimes", "session"}
"""And so for modules."""


def module(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def names(tree: ast.Module) -> set[str]:
    """Whatever a module gives a name to: classes, functions, arguments, variables, fields."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def test_names_that_were_given_up_do_not_come_back():
    for path in PATHS:
        given = {name.strip("_") for name in names(module(path))}
        assert not given & GIVEN_UP, f"{path}: {sorted(given & GIVEN_UP)}"
        assert path.stem not in MODULES, path


def test_no_two_classes_have_one_name():
    """But for private ones, which nobody else calls by their names."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in PATHS:
        for node in ast.walk(module(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(f"{path.relative_to(SOURCES)}:{node.lineno}")
    twice = {name: where for name, where in found.items() if len(where) > 1}
    assert twice == {}


def test_constants_are_in_capitals():
    """What a module assigns is one, or a name for a type, in CapWords."""
    for path, node in [(each, node) for each in PATHS for node in module(each).body]:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        for target in targets:
            name = ast.unparse(target)
            is_type = re.fullmatch(r"_?([A-Z][a-z0-9]+)+", name) and (
                "TypeAlias" in ast.unparse(node)
                or not isinstance(node.value, ast.Constant | ast.Dict | ast.List | ast.Tuple)
            )
            known = name in ("__all__", "__version__") or is_type or name.isupper()
            assert known, f"{path}:{node.lineno}: {name}"

"""The list of recipes, at once: what each is and costs stands in recipes/index.json.

To read and check all recipes takes seconds, and to estimate what they cost takes torch. The index
keeps what has come out, beside a hash of the file it came from; a recipe whose file has changed
since is read again. `python -m flatmin.studies.plan.listing` writes the index anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatmin.studies.plan import shipped
from flatmin.studies.store import files

if TYPE_CHECKING:
    from flatmin.studies.plan.recipe import Recipe


@dataclass(frozen=True)
class RecipeSummary:
    """A recipe in a list.

    Fields:
        name, shows, title, needs: as in the recipe.
        estimates: by scale, how many runs it takes, and hours on two processor cores.
    """

    name: str
    shows: str
    title: str
    needs: tuple[str, ...]
    estimates: Mapping[str, tuple[int, float]]


def summaries() -> list[RecipeSummary]:
    """Every recipe that comes with flatmin."""
    index = _index()
    return [_known(name, index) or _fresh(name) for name in shipped.names()]


def summary(recipe: Recipe) -> RecipeSummary:
    """What stands in the list about a recipe."""
    found = {scale: recipe.at(scale).estimate for scale in recipe.scales}
    return RecipeSummary(
        recipe.name,
        recipe.shows,
        recipe.title,
        tuple(recipe.needs),
        {scale: (each.runs, float(f"{each.hours:.3g}")) for scale, each in found.items()},
    )


def _fresh(name: str) -> RecipeSummary:
    from flatmin.studies.plan.recipe import Recipe  # which takes torch

    return summary(Recipe.find(name))


def write() -> Path:
    """Write the index anew, and return where it is."""
    index = {name: {"file": _digest(name), **asdict(_fresh(name))} for name in shipped.names()}
    lines = [f'"{name}": {files.as_json(entry)}' for name, entry in index.items()]
    files.write(_path(), "{\n" + ",\n".join(lines) + "\n}\n")
    return _path()


def _known(name: str, index: Mapping[str, Any]) -> RecipeSummary | None:
    entry = dict(index.get(name, {}))
    if entry.pop("file", None) != _digest(name):
        return None
    estimates = {scale: (runs, hours) for scale, (runs, hours) in entry["estimates"].items()}
    return RecipeSummary(
        entry["name"], entry["shows"], entry["title"], tuple(entry["needs"]), estimates
    )


def _index() -> dict[str, Any]:
    try:
        return json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it only saves time
        return {}


def _path() -> Path:
    return shipped.folder() / "index.json"


def _digest(name: str) -> str:
    content = (shipped.folder() / f"{name}.yaml").read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    print(write())

"""The recipes that come with flatmin: where they are, and what they are called."""

from __future__ import annotations

from pathlib import Path

import flatmin


def folder() -> Path:
    """Where the recipes that come with flatmin are: in the package, or beside its source."""
    package = Path(flatmin.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def names() -> list[str]:
    """Of the recipes that come with flatmin, by paper and number."""
    found = [path.relative_to(folder()).with_suffix("") for path in folder().glob("*/*.yaml")]
    return sorted((path.as_posix() for path in found), key=_by_number)


def _by_number(name: str) -> tuple[str, str, int, str]:
    paper, _, shown = name.partition("/")
    kind, _, number = shown.partition("-")
    return paper, kind, int(number) if number.isdecimal() else 0, number

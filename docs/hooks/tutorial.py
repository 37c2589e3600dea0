"""The tutorial, a script in cells (`# %%`), as a page with what it prints, and as a notebook."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).parents[1] / "tutorial.py"


class Cell(NamedTuple):
    """Words, or code."""

    words: bool
    text: str


def cells(source: str) -> Iterator[Cell]:
    """The cells of a script, words without their hashes."""
    for part in re.split(r"^# %%", source, flags=re.MULTILINE)[1:]:
        words = part.startswith(" [markdown]")
        text = part.split("\n", 1)[1].strip("\n")
        if words:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        yield Cell(words, text)


def page(changes: Mapping[str, str] | None = None) -> str:
    """Words, code, and what the code prints, cell by cell.

    Args:
        changes: lines to put in the place of others, as the tests do so as to be quick.
    """
    source = SOURCE.read_text(encoding="utf-8")
    for old, new in (changes or {}).items():
        assert old in source, old
        source = source.replace(old, new)
    names: dict[str, Any] = {"__name__": "tutorial"}
    return "\n\n".join(part for cell in cells(source) for part in _shown(cell, names)) + "\n"


def _shown(cell: Cell, names: dict[str, Any]) -> Iterator[str]:
    if cell.words:
        yield cell.text
        return
    yield f"```python\n{cell.text}\n```"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(cell.text, str(SOURCE), "exec"), names)
    if said.getvalue():
        yield f"```text\n{said.getvalue().rstrip()}\n```"


def notebook() -> str:
    """The same cells for Jupyter, not yet run."""
    made = [
        {
            "cell_type": "markdown" if cell.words else "code",
            "id": f"cell-{index}",
            "metadata": {},
            "source": _abroad(cell.text) if cell.words else cell.text,
            **({} if cell.words else {"execution_count": None, "outputs": []}),
        }
        for index, cell in enumerate(cells(SOURCE.read_text(encoding="utf-8")))
    ]
    whole = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False)


def _abroad(words: str) -> str:
    """Links and pictures of the site lead nowhere from a notebook: names alone stay."""
    words = re.sub(r"!\[[^\]]*\]\([^)]*\)\n*", "", words)
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", words)

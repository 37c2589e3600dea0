"""Docstrings on their way into the reference: formulas are drawn, and fields are a list."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import griffe

# mkdocstrings loads an extension by its path, and knows nothing of its neighbours
_found = importlib.util.spec_from_file_location("formulas", Path(__file__).with_name("formulas.py"))
assert _found is not None
assert _found.loader is not None
formulas = importlib.util.module_from_spec(_found)
_found.loader.exec_module(formulas)

ROOMS = (
    "direction",
    "geometry",
    "policy",
    "selection",
    "descent",
    "methods",
    "schedules",
    "optimizer",
)


class Docstrings(griffe.Extension):
    """What the reader of a page is spared."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """A docstring, before it is parsed."""
        if obj.docstring is None:
            return
        text = re.sub(r"^Fields:$", "Attributes:", obj.docstring.value, flags=re.MULTILINE)
        room = obj.canonical_path.split(".")[1:2]
        if room and room[0] in ROOMS:
            text = formulas.IN_DOCSTRING.sub(
                lambda m: m[1] + formulas.displayed(m[2]) + "\n\n", text
            )
        obj.docstring.value = text

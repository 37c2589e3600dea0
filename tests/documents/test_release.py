"""What a release is made of names what is there; `.ci/release.py` builds and installs it."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import flatmin

PROJECT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def test_the_command_that_is_installed_is_there():
    ((module, function),) = re.findall(
        r'^flatmin = "([\w.]+):(\w+)"$', read("pyproject.toml"), re.MULTILINE
    )
    assert callable(getattr(import_module(module), function))


def test_the_version_is_in_one_place():
    assert re.findall(r"^version: (.*)$", read("CITATION.cff"), re.MULTILINE) == [
        flatmin.__version__
    ]
    assert not re.search(r"^version = ", read("pyproject.toml"), re.MULTILINE)
    headings = re.findall(r"^## \[(.*?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert len(headings) == len(set(headings))
    assert set(re.findall(r"^### (.*)$", read("CHANGELOG.md"), re.MULTILINE)) <= {
        *("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    }

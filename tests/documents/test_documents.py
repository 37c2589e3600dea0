"""Every example that users read runs: in the docstrings, the README and the documents."""

from __future__ import annotations

import contextlib
import unittest
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil.document import Document, PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser

import flatmin

SOURCES = Path(flatmin.__file__).parent
PROJECT = Path(__file__).parents[2]
DOCSTRINGS = (DocTestParser(),)
PAGES = (PythonCodeBlockParser(), SkipParser())
TRAINERS = ("accelerate", "lightning", "transformers")


def docstrings() -> Iterator[tuple[str, Document]]:
    """Each docstring with an example, by itself: it must say what it needs."""
    for path in sorted(SOURCES.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for start, _, text in PythonDocStringDocument.extract_docstrings(source):
            document = parsed(Document(text, str(path)), DOCSTRINGS)
            if document.regions:
                line = 1 + source.count("\n", 0, start)
                yield f"{path.relative_to(SOURCES)}:{line}", document


def pages() -> Iterator[tuple[str, Document]]:
    """Each page with an example in Python, as one story."""
    for path in sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")]):
        document = parsed(Document(path.read_text(encoding="utf-8"), str(path)), PAGES)
        if document.regions:
            yield str(path.relative_to(PROJECT)), document


def parsed(document: Document, parsers: tuple) -> Document:
    for parser in parsers:
        for region in parser(document):
            document.add(region)
    return document


DOCUMENTS = dict([*docstrings(), *pages()])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for package in TRAINERS:
        if any(f"{word} {package}" in DOCUMENTS[name].text for word in ("import", "from")):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for example in DOCUMENTS[name].examples():
        # a block of a package that is not here: `skip: next if(missing("optax"))`
        with contextlib.suppress(unittest.SkipTest):
            example.evaluate()

"""The page of the command line, from what `--help` prints."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence

WIDTH = "84"


def page() -> str:
    """Every command with its help."""
    return "\n".join(["# Command line", "", *_told([])])


def _told(words: Sequence[str]) -> Iterator[str]:
    text = helped(words)
    if words:
        yield f"{'#' * (1 + len(words))} flatmin {' '.join(words)}"
    yield f"\n```console\n$ {' '.join(['flatmin', *words])} --help\n{text.strip()}\n```\n"
    for word in subcommands(text):
        yield from _told([*words, word])


def helped(words: Sequence[str]) -> str:
    """What `flatmin WORDS --help` prints."""
    from flatmin.cli import main

    was = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if was is not None:
            os.environ["COLUMNS"] = was
    return re.sub(r" +$", "", said.getvalue(), flags=re.MULTILINE)


def subcommands(text: str) -> list[str]:
    """The names that a help offers."""
    from flatmin.cli.app import COMMANDS

    if text.startswith("usage: flatmin COMMAND"):
        return list(COMMANDS)
    offered = re.search(r"^usage: flatmin[\w -]* \[-h\]\s+\{([\w,-]+)\}", text, re.MULTILINE)
    return offered[1].split(",") if offered else []

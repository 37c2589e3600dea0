"""What mkdocs asks while it builds the site: pages that are generated, and where they stand."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import cards
import commands


def on_config(config: Any) -> Any:
    """Put the cards behind the page of all methods."""
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"] += cards.navigation()
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for name, content in cards.pages():
        files.append(File.generated(config, f"methods/{name}.md", content=content))
    files.append(File.generated(config, "reference/commands.md", content=commands.page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name what a room has for everybody."""
    return re.sub(r"^<!-- public: ([\w.]+) -->$", _public, markdown, flags=re.MULTILINE)


def _public(line: re.Match[str]) -> str:
    names = importlib.import_module(line[1]).__all__
    return "\n\n".join(f"::: {line[1]}.{name}" for name in names)

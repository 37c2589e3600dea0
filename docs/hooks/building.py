"""What mkdocs asks while it builds the site: pages that are generated, and where they stand."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import cards
import commands
import look
import tutorial


def on_config(config: Any) -> Any:
    """Put the cards behind the page of all methods."""
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"] += cards.navigation()
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "assets/colours.css", content=look.colours()))
    files.append(File.generated(config, "assets/mark.svg", content=look.mark()))
    for name, content in cards.pages():
        files.append(File.generated(config, f"methods/{name}.md", content=content))
    files.append(File.generated(config, "reference/commands.md", content=commands.page()))
    files.append(File.generated(config, "examples.md", content=examples()))
    files.append(File.generated(config, "tutorial.md", content=tutorial.page()))
    files.append(File.generated(config, "tutorial.ipynb", content=tutorial.notebook()))
    return files


def examples() -> str:
    """Every example: what it says of itself, and its code."""
    parts = [
        "# Examples",
        "One file each in `examples/`, on real data, run by the tests if its packages are there.",
    ]
    for path in sorted((cards.PROJECT / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        sentence, _, words = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")
        code = source.split('"""', 2)[2].strip("\n")
        fenced = indent(f"```python\n{code}\n```", "    ")
        parts += [f"## {path.name}", sentence, words, f'??? example "The code"\n{fenced}']
    return "\n\n".join(parts) + "\n"


def on_pre_page(page: Any, config: Any, **_: Any) -> Any:
    """No link to edit a page where there is no repository."""
    if not config.repo_url:
        page.edit_url = None
    return page


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what stands elsewhere: text of the README, and what a room has for everybody."""
    markdown = re.sub(r"^<!-- README: (.+) -->$", _of_readme, markdown, flags=re.MULTILINE)
    for name, table in {"radii": cards.radii, "compared": cards.compared}.items():
        if f"<!-- methods: {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- methods: {name} -->", table())
    return re.sub(r"^<!-- public: ([\w.]+) -->$", _public, markdown, flags=re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """Keep a number, its spread and its interval on one line of their cell."""
    return re.sub(r"<td.*?</td>", lambda cell: kept_together(cell[0]), html, flags=re.DOTALL)


def kept_together(cell: str) -> str:
    """With spaces that do not break inside `91.4 ± 1.6` and `−0.3 [−2.4, 1.9]`."""
    number = r"[+−]?\d[\d.,]*"
    cell = re.sub(rf"({number}) ± (?=\d)", "\\1\u00a0±\u00a0", cell)
    return re.sub(rf"({number}) \[({number}), (?=[+−]?\d)", "\\1\u00a0[\\2,\u00a0", cell)


def _of_readme(line: re.Match[str]) -> str:
    """What stands below a heading of the README, or at its start, with links of the site."""
    text = cards.PROJECT.joinpath("README.md").read_text(encoding="utf-8")
    start, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    found = {section.split("\n")[0]: f"## {section}" for section in sections}
    text = {"start": start, **found}[line[1]]
    text = re.sub(r"^<!-- skip: \w+ -->\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\(docs/(?!pictures/draw)", "](", text)
    # what is not in the site is named and not linked
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:|[\w-]+\.md|#)[^)]*\)", r"\1", text)


def _public(line: re.Match[str]) -> str:
    names = importlib.import_module(line[1]).__all__
    return "\n\n".join(f"::: {line[1]}.{name}" for name in names)

"""The colours and the mark of the site, which are those of the reports that flatmin writes."""

from __future__ import annotations

import re
from importlib.resources import files

TEMPLATES = files("flatmin.studies.report") / "templates"
# what Material calls it, and what the report does
NAMES = {
    "md-default-bg-color": "paper",
    "md-default-fg-color": "ink",
    "md-default-fg-color--light": "soft",
    "md-default-fg-color--lighter": "line",
    "md-default-fg-color--lightest": "line",
    "md-code-bg-color": "wash",
    "md-code-fg-color": "ink",
    "md-typeset-color": "ink",
    "md-typeset-a-color": "accent",
    "md-accent-fg-color": "accent",
    "md-primary-fg-color": "paper",
    "md-primary-fg-color--light": "paper",
    "md-primary-fg-color--dark": "wash",
    "md-primary-bg-color": "ink",
    "md-primary-bg-color--light": "soft",
    "md-footer-bg-color": "wash",
    "md-footer-bg-color--dark": "wash",
    "md-footer-fg-color": "ink",
    "md-footer-fg-color--light": "soft",
    "md-footer-fg-color--lighter": "soft",
}


def colours() -> str:
    """A style sheet with both schemes."""
    sheet = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)[:2]
    return _scheme("default", light) + _scheme("slate", dark)


def _scheme(name: str, declared: str) -> str:
    values = dict(re.findall(r"--(\w+): (#\w+)", declared))
    lines = "".join(f"  --{theirs}: {values[ours]};\n" for theirs, ours in NAMES.items())
    ours = "".join(f"  --{each}: {value};\n" for each, value in values.items())
    return f'[data-md-color-scheme="{name}"] {{\n{lines}{ours}}}\n'


def mark() -> str:
    """The mark, as a picture."""
    return (TEMPLATES / "mark.svg").read_text(encoding="utf-8")

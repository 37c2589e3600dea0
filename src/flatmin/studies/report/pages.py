"""HTML pages: the templates, and what all of them get."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from flatmin.studies import files, recipes, source, text
from flatmin.studies.report.sheets import Sheet


def page(template: str, sheets: Sequence[Sheet], **content: Any) -> str:
    """The HTML document of a template, with its sheets and their figures."""
    import jinja2
    import plotly.offline  # half a second, which those who only look at a run need not wait

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flatmin.studies"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = text.number
    return environment.get_template(template).render(
        sheets=sheets,
        versions=", ".join(f"{name} {version}" for name, version in source.versions().items()),
        written=dt.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        figures=script([sheet.data for sheet in sheets]),
        plotly=Markup(plotly.offline.get_plotlyjs()),  # its own text, not the user's
        **content,
    )


def report(sheets: Iterable[Sheet]) -> str:
    """All runs on one page, with a list of contents and filters."""
    papers = recipes.papers()
    found = _grouped(sheets)
    members = {
        group: [at for at, sheet in enumerate(found) if sheet.group == group]
        for group in _union([sheet.group] for sheet in found)
    }
    return page(
        "report.html",
        found,
        anchors=_anchors(found),
        groups=[
            (group, papers[group].title if group in papers else group, places)
            for group, places in members.items()
        ],
        methods=_union(sheet.methods for sheet in found),
        axes=_axes(found),
    )


def script(content: Any) -> Markup:
    """JSON that may stand inside a script element, whatever strings it holds."""
    return Markup(files.as_json(content).replace("<", "\\u003c"))


def _grouped(sheets: Iterable[Sheet]) -> list[Sheet]:
    """Those of one paper together; otherwise as they come."""
    every = list(sheets)
    groups = _union([sheet.group] for sheet in every)
    return sorted(every, key=lambda sheet: groups.index(sheet.group))


def _anchors(sheets: Iterable[Sheet]) -> list[str]:
    """A name for links to each, different from all others."""
    taken: list[str] = []
    for sheet in sheets:
        names = itertools.chain([sheet.anchor], (f"{sheet.anchor}-{n}" for n in itertools.count(2)))
        taken.append(next(name for name in names if name not in taken))
    return taken


def _union(lists: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(label for labels in lists for label in labels))


def _axes(sheets: Sequence[Sheet]) -> dict[str, list[str]]:
    """The labels of every axis, over all sheets."""
    names = _union(sheet.axes for sheet in sheets)
    return {name: _union(sheet.axes.get(name, ()) for sheet in sheets) for name in names}

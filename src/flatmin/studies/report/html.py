"""HTML pages: the templates, and what all of them get."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from flatmin.studies.plan import recipe
from flatmin.studies.report import text
from flatmin.studies.report.section import Section
from flatmin.studies.store import files, provenance


def page(
    template: str,
    sections: Sequence[Section],
    drawn: Sequence[Mapping[str, Any]] | None = None,
    **content: Any,
) -> str:
    """The HTML document of a template, with its sheets and what their figures show.

    `drawn` is the same for a page that has no sheets; see `figures.data`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flatmin.studies.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = text.number
    return environment.get_template(template).render(
        sections=sections,
        versions=", ".join(f"{name} {version}" for name, version in provenance.versions().items()),
        written=dt.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        figures=script(drawn or [section.data for section in sections]),
        **content,
    )


def report(sections: Iterable[Section]) -> str:
    """All runs on one page, with a list of contents and filters."""
    papers = recipe.papers()
    found = _grouped(sections)
    members = {
        group: [at for at, section in enumerate(found) if section.group == group]
        for group in _union([section.group] for section in found)
    }
    return page(
        "report.html",
        found,
        anchors=_anchors(found),
        groups=[
            (group, papers[group].title if group in papers else group, places)
            for group, places in members.items()
        ],
        methods=_union(section.methods for section in found),
        axes=_axes(found),
    )


def script(content: Any) -> Markup:
    """JSON that may stand inside a script element, whatever strings it holds."""
    return Markup(files.as_json(content).replace("<", "\\u003c"))


def _grouped(sections: Iterable[Section]) -> list[Section]:
    """Those of one paper together; otherwise as they come."""
    every = list(sections)
    groups = _union([section.group] for section in every)
    return sorted(every, key=lambda section: groups.index(section.group))


def _anchors(sections: Iterable[Section]) -> list[str]:
    """A name for links to each, different from all others."""
    taken: list[str] = []
    for section in sections:
        names = itertools.chain(
            [section.anchor], (f"{section.anchor}-{n}" for n in itertools.count(2))
        )
        taken.append(next(name for name in names if name not in taken))
    return taken


def _union(lists: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(label for labels in lists for label in labels))


def _axes(sections: Sequence[Section]) -> dict[str, list[str]]:
    """The labels of every axis, over all sheets."""
    names = _union(section.axes for section in sections)
    return {name: _union(section.axes.get(name, ()) for section in sections) for name in names}

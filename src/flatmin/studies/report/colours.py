"""The look of a method, on every page the same: a colour and a dash that belong to its name."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

COLOURS = 12
"""How many there are; templates/report.css has them, `--m0` to `--m11`, for light and for dark."""

DASHES = ("", "7 4", "2 3", "9 3 2 3")
"""Lengths of strokes and gaps, as SVG takes them."""

SHAPES = ("circle", "square", "triangle", "wedge")
"""Of points, where there are no lines to be dashed; one for each dash."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Fields:
        color: number of its colour.
        dash: number of its dash, and of the shape of its points; 0 is a whole line, and a circle.
        tone: 0 for the colour itself; more of the paper's with each.
    """

    color: int
    dash: int = 0
    tone: int = 0

    def as_data(self) -> dict[str, str]:
        """As a page takes it: the colour as CSS, the dash as SVG, and the shape of its points."""
        own = f"var(--m{self.color})"
        share = max(35, 100 - 32 * self.tone)
        paler = f"color-mix(in srgb, {own} {share}%, var(--paper))"
        color = paler if self.tone else own
        return {"color": color, "dash": DASHES[self.dash], "shape": SHAPES[self.dash]}


STYLES: Mapping[str, Style] = {
    "sgd": Style(0),
    "sam": Style(1),
    "asam": Style(6),
    "fisher-sam": Style(6, 1),
    "friendly-sam": Style(2),
    "friendly-asam": Style(2, 1),
    "agnostic-sam": Style(3),
    "agnostic-asam": Style(3, 1),
    "align-sam": Style(7),
    "align-asam": Style(7, 1),
    "vasso": Style(8),
    "look-sam": Style(9),
    "ss-sam": Style(9, 1),
    "ae-sam": Style(10),
    "ae-look-sam": Style(11),
    "gsam": Style(8, 1),
    "esam": Style(10, 1),
    "lookbehind-sam": Style(11, 1),
    "msam": Style(0, 1),
    "rwp": Style(0, 2),
    "mixed-rwp": Style(0, 3),
    "wsam": Style(1, 1),
    "late-sam": Style(1, 2),
    "late-agnostic-sam": Style(3, 2),
    "previous-sam": Style(4, 1),
    "previous-agnostic-sam": Style(4, 2),
    "agnostic-sam-previous": Style(4),
    "ae-agnostic-sam": Style(5, 1),
    "ae-agnostic-sam-previous": Style(5),
    "ae-friendly-sam": Style(2, 2),
    "look-agnostic-sam": Style(9, 2),
    "look-friendly-sam": Style(9, 3),
    "sam-db": Style(6, 2),
    "sam-full": Style(8, 2),
    "sam-noise": Style(10, 2),
}
"""By the names of `flatmin.methods.TABLE`. Relatives share a colour; no two are drawn alike."""


def style(method: str) -> Style:
    """Of any name: one that is not known gets one of its own, too, as far as there are some."""
    number = zlib.crc32(method.encode())
    return STYLES.get(method) or Style(1 + number % (COLOURS - 1), 3, 1)


def styles(methods: Mapping[str, str]) -> dict[str, Style]:
    """Of everything that stands on one page under a label, by the name of its method.

    Labels that share a method share its colour: the first is drawn as the method always is, the
    others with further dashes, and then with paler colours.
    """
    found: dict[str, Style] = {}
    taken: set[Style] = set()
    for label, method in methods.items():
        own = style(method)
        variants = (
            Style(own.color, (own.dash + dash) % len(DASHES), own.tone + tone)
            for tone in range(len(methods))
            for dash in range(len(DASHES))
        )
        found[label] = next(each for each in variants if each not in taken)
        taken.add(found[label])
    return found

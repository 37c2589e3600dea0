"""What accuracy costs: the methods of a setting over the gradients that their steps take."""

from __future__ import annotations

from flatmin.studies.report.summary import Line, Summary

SLACK = 1.01
"""Two costs within one in a hundred are one: adaptive methods count what they happened to take."""


def frontier(summary: Summary) -> list[Line]:
    """The methods with a higher mean than all that cost less, cheapest first.

    Methods that take no part in verdicts are left out.
    """
    found: list[Line] = []
    for line in sorted(summary.ranked, key=lambda line: (line.ratio, -line.value.mean)):
        if not found or line.value.mean > found[-1].value.mean:
            found.append(line)
    return found


def dominated(summary: Summary, line: Line) -> bool:
    """Is another method, which costs no more, better as far as the intervals can tell?"""
    for other in summary.ranked:
        if other is line or other.ratio > SLACK * line.ratio:
            continue
        lead = summary.lead(other, line)
        if lead.distinct and lead.mean > 0:
            return True
    return False

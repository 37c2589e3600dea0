"""Numbers and lists as a reader expects them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numbers alone take neither scipy nor torch
    from flatmin.studies.plan.schema import Printed
    from flatmin.studies.report.statistics import Difference, Spread

_MOST_DIGITS = 6


def number(value: float | None, digits: int = 2) -> str:
    """A number with a true minus sign; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:.{digits}f}".replace("-", "−")


def sentence(words: str) -> str:
    """With a full stop at its end."""
    words = words.strip()
    return words if words.endswith(".") else f"{words}."


def spread(value: Spread, digits: int = 1) -> str:
    """`92.2 ± 0.4`; the mean alone where there is no spread."""
    if not math.isfinite(value.sd):
        return number(value.mean, digits)
    return f"{number(value.mean, digits)} ± {number(value.sd, digits)}"


def difference(value: Difference | None, digits: int = 1) -> str:
    """`+3.1 [2.4, 3.8]`; a dash where there is none."""
    if value is None or not value.n:
        return "–"
    return ("+" if value.mean > 0 else "") + interval(value, digits)


def signed(value: float | None, digits: int = 1) -> str:
    """`+3.1`; a dash where there is none."""
    plus = value is not None and round(value, digits) > 0
    return ("+" if plus else "") + number(value, digits)


def printed(value: Printed | None) -> str:
    """A paper's number as printed; a dash where there is none."""
    if value is None:
        return "–"
    mean = f"{value.mean:g}".replace("-", "−")
    return mean if value.sd is None else f"{mean} ± {value.sd:g}"


def interval(value: Difference, digits: int = 1) -> str:
    """`3.1 [2.4, 3.8]`; the mean alone where there is no interval.

    An end that is not zero does not read as zero: all three get more digits until its sign shows.
    """
    if not math.isfinite(value.low):
        return number(value.mean, digits)
    ends = value.low, value.high
    digits = max(digits, *map(_digits, ends))
    low, high = (number(end, digits) for end in ends)
    return f"{number(value.mean, digits)} [{low}, {high}]"


def _digits(end: float) -> int:
    """The fewest behind the point, at least one, by which a number differs from zero."""
    if abs(end) < 10**-_MOST_DIGITS:
        return 1
    return next((n for n in range(1, _MOST_DIGITS) if round(end, n)), _MOST_DIGITS)


def points(value: Difference) -> str:
    """`3.1 points [2.4, 3.8]`."""
    mean, _, rest = interval(value).partition(" ")
    return f"{mean} points {rest}".rstrip()


def listing(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`, `4,823 h`; a dash where it is not known."""
    if math.isnan(seconds):
        return "–"
    if seconds < 90:
        return f"{max(1, round(seconds)) if seconds else 0} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360000 else f"{seconds / 3600:,.0f} h"

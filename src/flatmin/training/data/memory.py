"""How much of a data set may be kept in memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

from flatmin.training.errors import InputError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def most_bytes() -> int:
    """Bytes that a data set may take: $FLATMIN_MEMORY, or an eighth of this machine's memory.

    An eighth leaves room for the form in which images are drawn, and for some workers. In a
    container the memory is that of the container.

    Raises InputError where $FLATMIN_MEMORY is no number of bytes, such as 500M or 8G.
    """
    given = os.environ.get("FLATMIN_MEMORY")
    if not given:
        return _memory() // 8
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([KMGT]?)B?", given.strip().upper())
    if not found:
        raise InputError(f"FLATMIN_MEMORY={given} is no number of bytes: give one such as 8G")
    return int(float(found[1]) * _UNITS[found[2]])


def readable(count: int) -> str:
    """A number of bytes for people: 1.5 GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _memory() -> int:
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system without them
        whole = 16 * 2**30
    try:
        return min(whole, int(_CONTAINER.read_text()))
    except (OSError, ValueError):  # not in a container, or in one without a limit
        return whole

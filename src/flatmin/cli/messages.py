"""What every command says in the same way."""

from __future__ import annotations

import sys

AGAIN = "mend that, and the same command goes on; every run is kept"


def stop(line: str, status: int = 2) -> int:
    """Say on the standard error why the command ends here, and return its exit status."""
    print(f"flatmin: {line}", file=sys.stderr)
    return status

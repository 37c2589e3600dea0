"""What every command says in the same way."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

AGAIN = "mend that, and the same command goes on; every run is kept"


def stop(line: str, status: int = 2) -> int:
    """Say on the standard error why the command ends here, and return its exit status."""
    print(f"flatmin: {line}", file=sys.stderr)
    return status


@contextmanager
def raised_interrupts() -> Generator[None, None, None]:
    """Within, an interrupt is a KeyboardInterrupt: there is something to be kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

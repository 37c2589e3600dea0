"""Which process has taken up a run, and whether it is still there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flatmin.studies.store import provenance


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, told from every other one that has had or will have its number.

    Fields:
        machine: as by `flatmin.studies.store.provenance.machine`.
        pid: its number there.
        born: when the system started it, in the system's ticks; empty where that is not told.
        system: as by `flatmin.studies.store.provenance.system`.
    """

    machine: str
    pid: int
    born: str
    system: str = ""

    @classmethod
    def here(cls) -> ProcessIdentity:
        """The process that asks."""
        return cls(provenance.machine(), os.getpid(), _born(os.getpid()) or "", provenance.system())

    @property
    def gone(self) -> bool:
        """Whether it has certainly ended; of another machine's processes nothing is certain."""
        if not self.here_too:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _born(self.pid) != (self.born or None)

    @property
    def here_too(self) -> bool:
        """Whether its number means something to the process that asks."""
        return self.machine == provenance.machine()

    @property
    def elsewhere(self) -> bool:
        """Whether it shares no memory with the process that asks."""
        return self.system not in ("", provenance.system())

    def __str__(self) -> str:
        return f"{self.machine} process {self.pid}"


def _born(pid: int) -> str | None:
    """Start time of a process in ticks; None if it has ended or nothing is known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # the name, in parentheses, may hold anything; the state comes after it, the start 19 later
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]

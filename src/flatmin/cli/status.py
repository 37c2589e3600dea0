"""`flatmin status`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatmin.cli.arguments import StatusArguments


PATIENCE_SECONDS = 10.0
"""Of --watch where nobody is at work: those who begin may yet be importing what they need."""


def status(wanted: StatusArguments) -> int:
    """Say how far a run is, once or until it is done."""
    from rich.live import Live

    from flatmin.studies.plan import serialization
    from flatmin.studies.report import columns, section, status
    from flatmin.studies.store import database, files
    from flatmin.studies.store.location import StudyLocation
    from flatmin.studies.store.store import Store
    from flatmin.training.errors import InputError

    location = StudyLocation.of(wanted.run)
    if wanted.watch and not database.writable(location):
        raise InputError(f"{location} can be read, but not be watched: leave out --watch")
    with database.readable(location) as there:
        store = Store.join(there, allow_mixed=True)
    plan = serialization.restored(store.plan)
    command = section.continuing(location, plan, serialization.asked(store.plan))
    now = status.Status.of(store, plan, command)
    if wanted.json:
        print(files.as_json(now.as_data()))
        return 0
    console = columns.console(120)
    if not wanted.watch:
        console.print(status.shown(now, console.width), soft_wrap=True)
        return 0
    seen = time.monotonic()
    with Live(status.shown(now, console.width), console=console, auto_refresh=False) as live:
        while not now.settled and time.monotonic() - seen < PATIENCE_SECONDS:
            time.sleep(1)
            store.refresh()
            now = status.Status.of(store, plan, command)
            seen = time.monotonic() if now.running else seen
            live.update(status.shown(now, console.width), refresh=True)
    return 1 if now.interrupted else 0

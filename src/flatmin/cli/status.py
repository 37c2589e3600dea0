"""`flatmin status`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatmin.cli.arguments import StatusArguments


def status(wanted: StatusArguments) -> int:
    """Say how far a run is, once or until it is done."""
    from rich.console import Console
    from rich.live import Live

    from flatmin.studies.plan import serialization
    from flatmin.studies.report import status
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
    now = status.Status.of(store, plan)
    if wanted.json:
        print(files.as_json(now.as_data()))
        return 0
    console = Console(highlight=False)
    if not wanted.watch:
        console.print(status.shown(now))
        return 0
    with Live(status.shown(now), console=console, auto_refresh=False) as live:
        while not now.settled:
            time.sleep(1)
            store.refresh()
            now = status.Status.of(store, plan)
            live.update(status.shown(now), refresh=True)
    return 0

"""Workers as processes of this machine: started together, replaced when they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

import torch

from flatmin.studies.plan.tuning import Plan, Progress, progress_of
from flatmin.studies.run.worker import CellTrainer, work
from flatmin.studies.store import provenance
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.store import Store
from flatmin.training.errors import InputError

_HOPELESS = 5
"""Deaths of a worker in a row, without anything finished, after which no other is started."""


def run(
    store: Store,
    plan: Plan,
    trainer: CellTrainer,
    count: int,
    tick: Callable[[Store, Progress], None] | None = None,
    *,
    pause: float = 0.25,
) -> None:
    """Work on a plan in `count` processes until it is done.

    `tick` is called at the start and every `pause` seconds with the store as it is by then, and how
    far it is. A worker that dies is replaced, and its cell taken up again. However this ends, the
    workers end with it. Raises InputError where no worker can go on.
    """
    team: list[Child] = []
    deaths, progress = 0, -1
    reported = _Reported(plan, store)
    if tick is not None:
        tick(store, reported.now)
    count = min(count, reported.now.left)
    if count:
        await_server()
    try:
        team.extend(Child(_work, store.location, plan, trainer, index=i) for i in range(count))
        while team:
            ready = ended(team, timeout=pause)
            store.refresh()
            if len(store.rows) != progress:
                deaths, progress = 0, len(store.rows)
            for member in ready:
                team.remove(member)
                how = member.ended()
                if not how:
                    continue
                deaths += 1
                if deaths > _HOPELESS * count:
                    raise InputError(f"every worker dies ({how}): see what it says above")
                _bury(member, store, how)
                team.append(Child(_work, store.location, plan, trainer, index=member.index))
            if tick is not None:
                reported.renew(store)
                tick(store, reported.now)
    finally:
        for member in team:
            member.stop()
    store.refresh()


def usual() -> int:
    """How many workers a machine takes: one for each GPU, or for each core."""
    return torch.cuda.device_count() or os.cpu_count() or 1


_USED_LATER = (
    "flatmin.studies.run.trainer",
    "optuna.storages._rdb.models",
    "alembic.command",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.dialects.postgresql",
)
"""What a worker would import first of all; a module that is not there is passed over."""


_BIRTH = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the most that every glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "PYTHONSAFEPATH": "1",
}
"""What a child starts with. glibc is told to keep what a step has freed for the next one: what it
does by itself depends on what was freed before, and often every step takes thousands of pages from
the system anew. And modules of Python are found before files of the current folder, as they are by
a command; the parent's own path comes with the task."""


class _Reported:
    """How far a store is; taken anew on news, but for one part in twenty of the time at most."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan = plan
        self._news: object = None
        self._next = 0.0
        self.now = Progress(0, 0, 0)
        self.renew(store)

    def renew(self, store: Store) -> None:
        news, start = (len(store.rows), store.given_up), time.monotonic()
        if news == self._news or start < self._next:
            return
        self.now = progress_of(self._plan, store)
        self._news = news
        self._next = start + 20 * (time.monotonic() - start)


class Child:
    """A process that does one task for this one, has one thread, and ends with it at the latest.

    Args:
        task: a function of a module.
        arguments: of `task`; they are pickled.
        index: which of the children at work this is; where there are GPUs, it takes that one.
    """

    def __init__(self, task: Callable[..., object], *arguments: object, index: int) -> None:
        with interrupts(signal.SIG_IGN):  # the server is born with what its parent ignores
            context = _context()
        self.index = index
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_live, args=(theirs, index, dict(os.environ), task, arguments), daemon=True
        )
        # a child is born with what its parent ignores
        with interrupts(signal.SIG_IGN), _environment(_BIRTH), _no_script():
            self.process.start()
        theirs.close()  # so that the end of either process is the end of the pipe

    def ended(self) -> str:
        """How it died; empty if it has done its task. Raises the InputError that stopped it."""
        self.process.join()
        with suppress(EOFError, OSError):
            if self._pipe.poll():
                raise InputError(self._pipe.recv())
        self._pipe.close()
        code = self.process.exitcode or 0
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit status {code}" if code else ""

    def stop(self) -> None:
        """End it now, whatever it is at."""
        self.process.terminate()
        self.process.join()
        self._pipe.close()


def ended(team: Sequence[Child], *, timeout: float | None = None) -> list[Child]:
    """Those of `team` that have ended, when one has, or after so many seconds."""
    ready = wait([child.process.sentinel for child in team], timeout=timeout)
    return [child for child in team if child.process.sentinel in ready]


def _bury(worker: Child, store: Store, how: str) -> None:
    """Let others take up the cell that a worker died at."""
    for cell in list(store.running.values()):
        if cell.owner.pid == worker.process.pid and cell.owner.machine == provenance.machine():
            store.release(cell, f"its worker died ({how})")


def await_server() -> None:
    """Return once the server has imported everything: seconds in which an interrupt is heard."""
    with interrupts(signal.SIG_IGN):
        context = _context()
    if context.get_start_method() == "forkserver":
        first = context.Process(target=_nothing, daemon=True)
        with _no_script():
            first.start()
        first.join()


def _nothing() -> None:
    pass


def _context() -> Any:
    """Workers are forked from a server that has imported everything once, where that is offered.

    Not where there is a GPU: some import asks for it, and CUDA does not survive a fork.
    """
    offered = "forkserver" in multiprocessing.get_all_start_methods()
    if not offered or torch.cuda.device_count():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_USED_LATER])
    with _environment(_BIRTH):  # it is read when a program starts
        forkserver.ensure_running()
    return context


@contextmanager
def _environment(settings: Mapping[str, str]) -> Generator[None, None, None]:
    """Settings of processes that are started meanwhile, where the user has not made them."""
    new = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in new})
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


@contextmanager
def _no_script() -> Generator[None, None, None]:
    """Children that are started meanwhile do not run the script again that has asked for them.

    They need nothing of it: what they are to do, and what users bring, are found by import paths.
    Without this a script must be written with `if __name__ == "__main__":`.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # of no file
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def interrupts(handler: Any) -> Generator[None, None, None]:
    """Interrupts meanwhile go to `handler`, as `signal.signal` takes it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _live(
    pipe: Connection[Any, Any],
    index: int,
    environment: Mapping[str, str],
    task: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    """The child's side. Any number of children gives the same rows: each has one thread."""
    os.environ.clear()  # of the server, which is that of the time when it was started
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_outlive_nobody, args=(pipe,), daemon=True).start()
    warnings.simplefilter("ignore", RuntimeWarning)  # skipped steps are counted and reported
    torch.set_num_threads(1)
    _share_devices(index)
    try:
        task(*arguments)
    except InputError as error:
        pipe.send(str(error))
        sys.exit(2)


def _work(location: StudyLocation, plan: Plan, trainer: CellTrainer) -> None:
    work(Store.join(location, allow_mixed=True), plan, trainer)


def _outlive_nobody(pipe: Connection[Any, Any]) -> None:
    """End this process when its parent has ended, even by a kill."""
    with suppress(OSError):
        pipe.poll(None)  # nothing ever comes but the end
    os._exit(1)


def _share_devices(index: int) -> None:
    """Give each worker a GPU of its own as long as there are some."""
    count = torch.cuda.device_count()
    if count:
        named = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
        os.environ["CUDA_VISIBLE_DEVICES"] = named.split(",")[index % count]

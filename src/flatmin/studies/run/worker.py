"""What a worker does: take up cells, show signs of life, keep their rows, notice who has died.

Nothing here knows what a cell computes, and no worker knows the others: each asks the plan what
there is to do, and the store settles who does it.
"""

from __future__ import annotations

import errno
import random
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from flatmin.studies.plan.tuning import Plan, Progress, progress_of
from flatmin.studies.store.database import ClaimLost
from flatmin.studies.store.owner import ProcessIdentity
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import CellProgress, Claim, Store
from flatmin.training.errors import InputError
from flatmin.training.loop import Watch
from flatmin.training.result import Epoch
from flatmin.training.settings import Training

SILENCE_SECONDS = 60.0
"""Seconds without a sign of life after which a worker is held to be dead."""

HEARTBEAT_SECONDS = 10.0
"""Seconds between two signs of life at most; several fit into `SILENCE_SECONDS`, since one may find
the database busy."""

TICK_SECONDS = 1.0
"""Seconds between two signs of life that tell something new, at least."""


class CellTrainer(Protocol):
    """How a cell is done."""

    def do(self, training: Training, watch: Watch) -> Row:
        """Do it; `watch` may raise to end it early."""
        ...

    def clear(self, training: Training) -> None:
        """Its row is kept: remove what would have helped to take it up again."""
        ...


def work(
    store: Store,
    plan: Plan,
    trainer: CellTrainer,
    *,
    patience: float = SILENCE_SECONDS,
    tick: Callable[[Store, Progress], None] | None = None,
) -> None:
    """Do what there is to do, until every cell of the plan has its row or has been given up.

    `tick` is called after each cell with the store, and how far it is.

    Waits for the cells that others work on, since one of them may die. Raises InputError where
    going on makes no sense: the database is gone, the disk is full, another machine writes to the
    same SQLite file.
    """
    owner, queue, leases, wait = ProcessIdentity.here(), CellQueue(plan), Leases(patience), _Wait()
    _alone(store, leases)
    with Heartbeat() as heartbeat:
        while True:
            store.refresh()
            leases.over(store)  # before asking what is free: a dead worker's cell is
            training = queue.next(store)
            if training is not None:
                wait.over()
                claim = store.claim(training, owner)
                queue.taken(claim is not None)
                if claim is not None:
                    _do(claim, trainer, heartbeat)
                    if tick is not None:
                        store.refresh()
                        tick(store, progress_of(plan, store))
            elif store.running:  # and may be left behind, or decide what tuning asks for next
                wait.on()
            else:
                return


def _alone(store: Store, leases: Leases) -> None:
    """Before the first word in a file, listen for workers elsewhere who write to it."""
    store.refresh()
    # Who lives says something within this time; a cell that a dead machine has left stays silent.
    until = time.monotonic() + HEARTBEAT_SECONDS + 2 * TICK_SECONDS
    while store.from_elsewhere and time.monotonic() < until:
        leases.over(store)
        time.sleep(TICK_SECONDS)
        store.refresh()


def _do(claim: Claim, trainer: CellTrainer, heartbeat: Heartbeat) -> None:
    with suppress(ClaimLost):
        try:
            with heartbeat.beating(claim) as watch:
                row = trainer.do(claim.training, watch)
        except ClaimLost:
            raise  # not a failure of the cell: it is somebody else's by now
        except KeyboardInterrupt:
            # of a process that may live on, as a notebook does: it would hold the cell for ever
            with suppress(InputError):
                claim.withdraw()
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                # Withdrawn, not failed: it is as good as it was, and any other would fail too.
                claim.withdraw()
                full = error.filename or claim.store.location
                raise InputError(
                    f"the disk of {full} is full: free some space, and the same command goes on"
                ) from error
            said = str(error).strip().splitlines()
            reason = ": ".join([type(error).__name__, *said[:1]])
            claim.fail(reason, traceback.format_exc())
            return
        # In this order: until the row is kept, its checkpoints are all there is; and where the
        # claim is lost, they are those of whoever has it now.
        claim.finish(row)
        trainer.clear(claim.training)


class CellQueue:
    """What a worker may take up next.

    A plan of 10⁵ cells takes seconds to work out: it is asked again only when its answer may be
    another one.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._left: list[Training] = []
        self._known: object = None
        self._reach = 1

    def next(self, store: Store) -> Training | None:
        """A cell that nobody has taken up, near the front of the plan; None if there is none."""
        taken = {running.key for running in store.running.values()}
        settled = (store.rows, store.failures, taken)
        while True:
            while self._left:
                # Workers with the same rows have the same queue, and would all claim its first
                # cell. So the plan's order is kept but for a few cells: see `taken`.
                at = len(self._left) - 1 - random.randrange(min(self._reach, len(self._left)))
                training = self._left.pop(at)
                if not any(training.key in each for each in settled):
                    return training
            known = (len(store.rows), store.given_up, frozenset(taken))
            if known == self._known:
                return None
            self._known = known
            cells = self._plan.plan(store.rows, store.given_up)
            free = [c for c in cells if not any(c.key in each for each in settled)]
            # Seed by seed, so that what is stopped half way still compares all methods. The next
            # is the last, which a list gives up at no cost.
            self._left = sorted(free, key=lambda cell: cell.seed)[::-1]

    def taken(self, ours: bool) -> None:
        """Whether the cell became ours; workers that collide spread out."""
        self._reach = max(1, self._reach - 1) if ours else min(64, 2 * self._reach)


class Leases:
    """Notices cells whose worker is dead, by this process's own clock alone.

    Clocks of machines differ by minutes. So what counts is that workers count, not the times they
    send for people to read, and silence begins when this process has first seen a count.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._heard: dict[int, tuple[int, float]] = {}

    def over(self, store: Store) -> None:
        """Release the cells whose worker has gone, or has been silent for too long.

        Raises InputError where one lives that must not: SQLite's locks are in one system's memory.
        """
        # A count that rises between two looks is of somebody alive; one that stands says nothing.
        for number in store.from_elsewhere & self._heard.keys():
            cell = store.running[number]
            if cell.progress.count != self._heard[number][0]:
                raise InputError(
                    f"{cell.owner} writes to {store.location.file} as well, and SQLite serves one "
                    f"machine: stop one of them, or begin anew with --storage postgresql://..."
                )
        now = time.monotonic()
        heard: dict[int, tuple[int, float]] = {}
        for number, cell in store.running.items():
            count, since = self._heard.get(number, (-1, now))
            heard[number] = (cell.progress.count, since if cell.progress.count == count else now)
            if cell.owner.gone:
                store.release(cell, "its worker died")
            elif now - heard[number][1] > self._patience:
                store.release(cell, f"its worker was silent for {self._patience:.0f} s")
        self._heard = heard


class Heartbeat:
    """Shows signs of life from a thread of its own, so that training waits for no database.

    The threads share three fields and no lock: each is set in one assignment, and read once.
    """

    def __init__(self) -> None:
        self._claim: Claim | None = None
        self._progress = CellProgress()
        self._lost = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    @contextmanager
    def beating(self, claim: Claim) -> Generator[Watch, None, None]:
        """Speak for `claim` until left; what is told to the yielded function is told to all.

        That function raises ClaimLost once the cell belongs to somebody else.
        """
        start = time.monotonic()
        # The claim last: with it in place, the other thread may speak at once.
        self._progress, self._lost = CellProgress(), False
        self._claim = claim

        def watch(number: int, epoch: Epoch) -> None:
            if self._lost:
                raise ClaimLost
            seconds = time.monotonic() - start
            self._progress = CellProgress(0, number, seconds, epoch.loss, epoch.accuracy)

        try:
            yield watch
        finally:
            self._claim = None

    def _beat(self) -> None:
        said, count, last = None, 0, time.monotonic()
        while not self._stopped.wait(TICK_SECONDS):
            # The claim first: progress may then be that of a later claim, which is told to a trial
            # that has ended and refused; never that of an earlier one.
            claim, progress = self._claim, self._progress
            news = progress is not said or time.monotonic() - last > HEARTBEAT_SECONDS
            if claim is None or not news:
                continue
            count += 1
            try:
                claim.say(replace(progress, count=count, at=time.time()))
                said, last = progress, time.monotonic()
            except ClaimLost:
                # The cell may have finished while this was said: nothing is lost then.
                self._lost = claim is self._claim
            except InputError:
                pass  # the database may answer again before the run ends; if not, that is told


class _Wait:
    """Sleeps longer each time, up to a second."""

    def __init__(self) -> None:
        self._next = 0.01

    def on(self) -> None:
        time.sleep(self._next)
        self._next = min(1.0, 1.5 * self._next)

    def over(self) -> None:
        self._next = 0.01

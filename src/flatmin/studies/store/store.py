"""The rows of a run and who works on which of them, in an Optuna study.

A cell, one training run, is addressed by the hash of everything that determines it. Whoever wants
to do it adds a trial that bears this key and looks at what is there by then: of several trials with
one key that have not failed, the one with the lowest number counts, and the others withdraw. The
database numbers trials one after the other, so two can never believe to be first: no lock, no
coordinator, and each cell finishes once. A trial whose owner is dead is marked as failed by whoever
notices; its key is then free, and an owner that was only slow finds that it has lost it.
"""

from __future__ import annotations

import json
import math
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, get_storage
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import ValidationError

from flatmin.studies.store import database, files, provenance
from flatmin.studies.store.database import ClaimLost
from flatmin.studies.store.files import as_json, finite, write
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.owner import ProcessIdentity
from flatmin.studies.store.row import Row
from flatmin.training.errors import InputError
from flatmin.training.settings import Training

LONG_SILENCE_SECONDS = 300.0
"""Without a sign of life, after which a reader takes a worker of another machine for dead. Workers
themselves wait less: they count signs, where a reader compares clocks, which differ by minutes."""

MAX_ATTEMPTS = 5
"""How often a cell may take its worker with it, without getting any further, until given up."""


@dataclass(frozen=True)
class Failed:
    """A cell that has no row: it raised, or its worker died with it again and again.

    Fields:
        training: the cell.
        reason: in one line.
        details: a traceback, or empty.
    """

    training: Training
    reason: str
    details: str = ""


@dataclass(frozen=True)
class CellProgress:
    """What the owner of a cell last said; `count` rises with every sign of life.

    Fields:
        epoch: that it has ended, from 1; 0 at the start.
        seconds: since it was taken up.
        loss, accuracy: of that epoch; None before the first.
        at: when it was said, by the clock of whoever said it; None for an earlier flatmin.
    """

    count: int = 0
    epoch: int = 0
    seconds: float = 0.0
    loss: float | None = None
    accuracy: float | None = None
    at: float | None = None


@dataclass(frozen=True)
class Running:
    """A cell that somebody works on, or has left without a word."""

    number: int
    key: str
    fields: Mapping[str, Any]
    owner: ProcessIdentity
    progress: CellProgress

    @cached_property
    def training(self) -> Training:
        return Training.of(self.fields)

    @property
    def left(self) -> bool:
        """Whether nobody works on it any more: its process has ended, or long been silent.

        Of a process of this machine the system knows; of others, their last sign of life tells.
        """
        heard = self.progress.at
        silent = heard is not None and time.time() - heard > LONG_SILENCE_SECONDS
        return self.owner.gone or (silent and not self.owner.here_too)


class Store:
    """The rows of one run, in memory and in its database.

    Fields:
        location: where the database is.
        identity: what must agree for rows to stand in one table.
        rows: by key, as of the last `refresh`.
        running: the cells at work, by trial number.
        failures: the cells given up, by key.
    """

    def __init__(self, location: StudyLocation, storage: BaseStorage, study: int) -> None:
        self.location = location
        self.rows: dict[str, Row] = {}
        self.running: dict[int, Running] = {}
        self.failures: dict[str, Failed] = {}
        self._storage = storage
        self._study = study
        self._read: set[int] = set()
        self._last = -1
        self._numbers: dict[str, int] = {}
        self._deaths: dict[str, tuple[int, int]] = {}
        self._attributes = storage.get_study_user_attrs(study)
        self.identity: dict[str, Any] = self._attributes["identity"]

    @classmethod
    def open(
        cls,
        location: StudyLocation | Path,
        identity: Mapping[str, Any],
        plan: Mapping[str, Any] | None = None,
        *,
        allow_mixed: bool = False,
        differing: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]] = database.differing,
    ) -> Store:
        """The store at `location`, made if need be; with its rows if it has the same `identity`.

        Where `results.json` is there without its database, the rows in it are taken back.

        `differing` names what of two identities, ours and the one that is there, must agree and
        does not. `plan` is what a worker elsewhere needs to know which cells there are. Raises
        InputError if
        the database cannot be written, is none of ours, of another version of it, of another
        identity (the message names the keys that differ) or, unless `allow_mixed`, of other code.
        """
        location = location if isinstance(location, StudyLocation) else StudyLocation.new(location)
        ours = json.loads(as_json(identity))
        content = {
            "schema": database.SCHEMA_VERSION,
            "identity": ours,
            "plan": None if plan is None else json.loads(json.dumps(plan)),
            "source": {"digest": provenance.digest(), "commit": provenance.commit()},
            "retried": -1,  # the last: see `database._fill`
        }
        with database.told(location):
            if location.file is not None and not files.is_file(location.file):
                before, trials = _taken_back(location.file, content)
                database.same(ours, before["identity"], location, differing)
                database.of_this_code(before["source"], location, allow_mixed)
                database.prepare_file(location.file, before, trials)
            elif location.file is None:
                database.prepare_server(location, content)
        store = cls.join(location, allow_mixed=allow_mixed)
        database.same(ours, store.identity, location, differing)
        store._describe("plan", content["plan"])
        store._describe("identity", {**store.identity, **ours})
        store.identity = store._attributes["identity"]
        return store

    @classmethod
    def join(cls, location: StudyLocation, *, allow_mixed: bool = False) -> Store:
        """The store that is at `location`. Raises InputError as `open` does."""
        with database.told(location):
            if location.file is not None:
                database.inspect(location.file)
            made = database.backend(location)
            try:
                store = cls(
                    location, get_storage(made), database.study_at(made, location, allow_mixed)
                )
            except BaseException:
                made.engine.dispose()
                raise
            weakref.finalize(store, made.engine.dispose)
        store.refresh()
        return store

    @property
    def folder(self) -> Path:
        """For what is written beside the database."""
        if self.location.folder is None:
            raise InputError(f"{self.location} has no folder here: give one by --out")
        return self.location.folder

    @property
    def plan(self) -> Any:
        """As given to `open`."""
        return self._attributes["plan"]

    def _describe(self, what: str, content: Any) -> None:
        """Keep how the plan, or the identity, is described by now: it may grow while rows stay."""
        if content is not None and content != self._attributes[what]:
            with database.told(self.location):
                self._storage.set_study_user_attr(self._study, what, content)
            self._attributes[what] = content

    def refresh(self) -> None:
        """Learn what has happened since the last time."""
        with database.told(self.location), database.reading():
            trials = self._storage.get_all_trials(self._study, deepcopy=False)
        self.running = {}
        late = False
        for trial in trials:
            if trial.number in self._read:
                continue
            if trial.state == TrialState.RUNNING:
                self.running[trial.number] = _running(trial)
            else:
                late |= trial.number < self._last
                self._last = max(self._last, trial.number)
                self._read.add(trial.number)
                self._conclude(trial)
        if late:  # rows stand in the order in which they were begun, whoever reads them when
            self.rows = dict(sorted(self.rows.items(), key=lambda item: self._numbers[item[0]]))

    @property
    def given_up(self) -> frozenset[str]:
        """The keys of the cells given up."""
        return frozenset(self.failures)

    @property
    def at_work(self) -> list[Running]:
        """The cells that somebody works on, as far as can be known here."""
        return [cell for cell in self.running.values() if not cell.left]

    @property
    def from_elsewhere(self) -> set[int]:
        """Of the cells at work, those of other systems that share this one's SQLite file."""
        if self.location.file is None:
            return set()
        return {number for number, cell in self.running.items() if cell.owner.elsewhere}

    def claim(self, training: Training, owner: ProcessIdentity) -> Claim | None:
        """Take up a cell; None if somebody else has it, or has had it."""
        key = training.key
        taken = {
            "key": key,
            "training": asdict(training),
            "owner": asdict(owner),
            "at": time.time(),
        }
        template = create_trial(state=TrialState.RUNNING, user_attrs={"cell": taken})
        with database.told(self.location):
            self._storage.create_new_trial(self._study, template)
        self.refresh()
        same = [it for it in self.running.values() if it.key == key]
        ours = [it.number for it in same if it.owner == owner]
        if not ours:  # held to be dead before it began
            return None
        claim = Claim(self, max(ours), training)
        if key not in self.rows and claim.number == min(it.number for it in same):
            return claim
        claim.withdraw()
        del self.running[claim.number]
        return None

    def add(self, row: Row) -> bool:
        """Keep a row that comes from elsewhere, on the disk too when this returns.

        False where somebody is at this cell, or has done it.
        """
        claim = self.claim(Training.of(row.training), ProcessIdentity.here())
        if claim is None:
            return False
        claim.finish(row)
        self.refresh()
        return True

    def release(self, running: Running, reason: str) -> None:
        """Give up on the owner of a cell, so that another one may take it."""
        with suppress(ClaimLost):
            self.end(running.number, "died", reason)

    def retry(self) -> None:
        """Let the cells that have been given up so far be tried again."""
        with database.told(self.location):
            self._storage.set_study_user_attr(self._study, "retried", self._last)
        self._attributes["retried"] = self._last
        self.failures.clear()
        self._deaths.clear()

    def end(self, number: int, how: str, reason: str = "", details: str = "") -> None:
        """Mark a trial as failed; raises ClaimLost if it has ended already."""
        with database.told(self.location), database.unless_lost():
            trial = self._trial(number)
            ended = {"how": how, "reason": reason, "details": details}
            self._storage.set_trial_user_attr(trial, "ended", ended)
            self._storage.set_trial_state_values(trial, TrialState.FAIL)

    def say(self, number: int, progress: CellProgress) -> None:
        """Show a sign of life; raises ClaimLost if the cell is somebody else's."""
        with database.told(self.location), database.unless_lost():
            trial = self._trial(number)
            self._storage.set_trial_user_attr(trial, "pulse", finite(asdict(progress)))
            if progress.accuracy is not None and math.isfinite(progress.accuracy):
                self._storage.set_trial_intermediate_value(trial, progress.epoch, progress.accuracy)

    def keep(self, number: int, row: Row) -> None:
        """Finish a trial by its row; raises ClaimLost if the cell is somebody else's."""
        with database.told(self.location), database.unless_lost():
            trial = self._trial(number)
            self._storage.set_trial_user_attr(trial, "row", finite(row.model_dump()))
            values = [row.accuracy] if math.isfinite(row.accuracy) else None
            self._storage.set_trial_state_values(trial, TrialState.COMPLETE, values)

    def export(self, **more: Any) -> Path:
        """Write everything to `results.json`; `more` goes beside identity, plan and rows."""
        runs = [row.model_dump() for row in self.rows.values()]
        path = self.folder / "results.json"
        about = {"identity": self.identity, "plan": self.plan}
        write(path, as_json({**about, **more, "runs": runs}))
        return path

    def _trial(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study, number)

    def _conclude(self, trial: FrozenTrial) -> None:
        """Make of a finished trial a row, or a failure if the cell is not to be tried again."""
        cell = trial.user_attrs["cell"]
        key = cell["key"]
        if trial.state == TrialState.COMPLETE:
            try:
                self.rows[key] = Row.model_validate(trial.user_attrs["row"])
            except (ValidationError, KeyError):
                raise database.foreign(self.location) from None
            self._numbers[key] = trial.number
            self.failures.pop(key, None)
            return
        ended = trial.user_attrs.get("ended", _UNSAID)
        if ended["how"] == "withdrawn" or trial.number <= self._attributes["retried"]:
            return
        deaths, best = self._deaths.get(key, (0, -1))
        epoch = _progress(trial).epoch
        deaths = deaths + 1 if epoch <= best else 1
        self._deaths[key] = deaths, max(best, epoch)
        if ended["how"] == "raised" or deaths >= MAX_ATTEMPTS:
            training = Training.of(cell["training"])
            self.failures[key] = Failed(training, ended["reason"], ended["details"])


@dataclass(frozen=True)
class Claim:
    """A cell that this process has taken up."""

    store: Store
    number: int
    training: Training

    def say(self, progress: CellProgress) -> None:
        """Show a sign of life."""
        self.store.say(self.number, progress)

    def finish(self, row: Row) -> None:
        """Keep its row."""
        self.store.keep(self.number, row)

    def fail(self, reason: str, details: str) -> None:
        """Give it up: it raised, and would again."""
        self.store.end(self.number, "raised", reason, details)

    def withdraw(self) -> None:
        """Leave it to somebody else."""
        self.store.end(self.number, "withdrawn")


def _taken_back(
    path: Path, content: Mapping[str, Any]
) -> tuple[Mapping[str, Any], list[FrozenTrial]]:
    """What a new database holds: of `content`, or what `results.json` has kept of a lost one.

    The rows stay rows of the code that made them. Raises InputError where that file cannot be read:
    a new study would write over it.
    """
    exported = path.parent / "results.json"
    if not files.is_file(exported):
        return content, []
    try:
        kept = json.loads(exported.read_text())
        rows = [Row.model_validate(each) for each in kept["runs"]]
        identity, plan = kept["identity"], kept["plan"]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{path.parent} holds results without their {path.name}, and {exported.name} cannot be "
            f"read: give another --out, or remove that folder"
        ) from None
    source = content["source"]
    others = {row.commit for row in rows} - {source["commit"]}
    if others:
        source = {"digest": "", "commit": min(others)}
    found = {**content, "identity": identity, "plan": plan, "source": source}
    return found, list(map(_finished, rows))


def _finished(row: Row) -> FrozenTrial:
    """The trial that a row would have left."""
    cell = {"key": row.key, "training": row.training, "at": time.time()}
    return create_trial(
        state=TrialState.COMPLETE,
        value=row.accuracy if math.isfinite(row.accuracy) else 0.0,
        user_attrs={
            "cell": {**cell, "owner": asdict(ProcessIdentity.here())},
            "row": finite(row.model_dump()),
        },
    )


_UNSAID = {"how": "died", "reason": "ended by another program", "details": ""}


def _running(trial: FrozenTrial) -> Running:
    cell = trial.user_attrs["cell"]
    return Running(
        trial.number,
        cell["key"],
        cell["training"],
        ProcessIdentity(**cell["owner"]),
        _progress(trial),
    )


def _progress(trial: FrozenTrial) -> CellProgress:
    """What was last said; of a cell just taken up, when that was."""
    said = trial.user_attrs.get("pulse", {"at": trial.user_attrs["cell"].get("at")})
    return CellProgress(**said)

"""Many workers, killed at any moment: every cell has its row, and none has two."""

from __future__ import annotations

import errno
import multiprocessing
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comparisons import comparison
from optuna.trial import TrialState
from postgres import serving
from trivial import MODULE, Allocates, AwaitsKills, Dies, Many, Nothing, Raises, cell, row

from flatmin.studies.plan.tuning import Progress
from flatmin.studies.report.status import Status
from flatmin.studies.run import processes
from flatmin.studies.run.trainer import Trainer
from flatmin.studies.run.worker import CellQueue, work
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import MAX_ATTEMPTS, Store
from flatmin.training import InputError, Training, load, train
from flatmin.training.loop import Watch

IDENTITY = {"of": "trivial cells"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as url:
        yield url


def _paths(*more: Path) -> str:
    """Where a script finds the tests' own modules, and the flatmin that is tested."""
    tests, given = Path(__file__).parents[1], os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(map(str, [tests, *more, *filter(None, [given])]))


def trials(store: Store) -> list[Any]:
    return store._storage.get_all_trials(store._study, deepcopy=False)


def killing(times: int, every: float, killed: Path) -> Callable[[Store, Progress], None]:
    """What kills `times` workers at random moments, one for every `every` cells that are done."""
    chance = random.Random(0)

    def tick(store: Store, _: Progress) -> None:
        count = len(list(killed.iterdir()))
        if count < times and len(store.rows) >= count * every:
            at_work = {running.owner for running in store.running.values()}
            alive = sorted(owner.pid for owner in at_work if not owner.gone)
            if alive:
                pid = chance.choice(alive)
                os.kill(pid, signal.SIGKILL)
                (killed / str(pid)).touch()

    return tick


def survive(location: StudyLocation, total: int, kills: int) -> None:
    store, every = Store.open(location, IDENTITY), 0.95 * total / kills
    (killed := location.folder / "killed").mkdir()
    tick = killing(kills, every, killed)
    processes.run(store, Many(total), AwaitsKills(killed, every), 4, tick, pause=0.1)
    assert len(list(killed.iterdir())) == kills
    assert not multiprocessing.active_children()
    assert not store.failures
    again = Store.join(location)
    complete = [t for t in trials(again) if t.state == TrialState.COMPLETE]
    keys = Counter(trial.user_attrs["cell"]["key"] for trial in complete)
    assert keys == Counter(cell(seed).key for seed in range(total))  # none twice, none lost
    assert {row.seed for row in again.rows.values()} == set(range(total))
    assert all(row.accuracy == row.seed % 100 for row in again.rows.values())
    assert not again.running


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_workers_keep_the_memory_of_a_step_for_the_next(tmp_path: Path):
    store = Store.open(StudyLocation.new(tmp_path / "run"), IDENTITY)
    processes.run(store, Many(1), Allocates(tmp_path / "pages"), 1)
    assert int((tmp_path / "pages").read_text()) < 10 * 4096  # of 100 times as many
    assert "MALLOC_TRIM_THRESHOLD_" not in os.environ


def test_workers_are_not_forked_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert processes._context().get_start_method() == "spawn"  # CUDA does not survive a fork


def test_a_worker_has_the_environment_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for given in ("one", "another"):  # the server that workers come from is started once
        monkeypatch.setenv("FLATMIN_DATA", given)
        child = processes.Child(tell_environment, tmp_path / given, index=0)
        assert not child.ended()
        assert (tmp_path / given).read_text() == given
    monkeypatch.delenv("FLATMIN_DATA")
    assert not processes.Child(tell_environment, tmp_path / "none", index=0).ended()
    assert (tmp_path / "none").read_text() == "not set"


def tell_environment(path: Path) -> None:
    path.write_text(os.environ.get("FLATMIN_DATA", "not set"))


def test_hundreds_of_cells_survive_a_dozen_kills_on_sqlite(tmp_path: Path):
    survive(StudyLocation.new(tmp_path), 400, 12)


def test_hundreds_of_cells_survive_a_few_kills_on_postgresql(tmp_path: Path, server: str):
    survive(StudyLocation.new(tmp_path, server, study="kills"), 300, 8)


def test_the_database_of_a_server_is_joined_by_its_url(tmp_path: Path, server: str):
    plan = {"kind": "many", "content": 3}
    location = StudyLocation.new(tmp_path, server, study="a/b")
    store = Store.open(location, IDENTITY, plan)
    for there in (StudyLocation.of(str(location)), StudyLocation.of(str(tmp_path))):
        joined = Store.join(there)
        assert joined.plan == plan
        assert joined.identity == IDENTITY
    work(store, Many(3), Nothing())
    assert len(Store.open(location, IDENTITY).rows) == 3
    with pytest.raises(InputError, match="of trivial cells there, other cells here"):
        Store.open(location, {"of": "other cells"})
    with pytest.raises(InputError, match=r"no run in postgresql://.*#nobody's"):
        Store.join(StudyLocation.of(f"{server}#nobody's"))


def test_a_server_that_does_not_answer_is_one_line(tmp_path: Path):
    pytest.importorskip("psycopg")
    location = StudyLocation.new(tmp_path, "postgresql://flatmin@127.0.0.1:9/db")
    with pytest.raises(InputError, match="does not answer") as caught:
        Store.open(location, IDENTITY)
    assert "\n" not in str(caught.value)


def test_a_cell_that_raises_is_told_and_the_others_go_on(tmp_path: Path):
    store = Store.open(tmp_path, IDENTITY)
    processes.run(store, Many(4), Raises(ValueError("too\nmany words")), 2)
    assert {row.seed for row in store.rows.values()} == {0, 2, 3}
    (failure,) = store.failures.values()
    assert failure.training == cell(1)
    assert failure.reason == "ValueError: too"
    assert "Traceback" in failure.details
    store.retry()
    processes.run(store, Many(4), Nothing(), 1)
    assert len(store.rows) == 4
    assert not store.failures


def test_a_full_disk_ends_the_run_in_one_line_and_gives_up_no_cell(tmp_path: Path):
    store = Store.open(tmp_path, IDENTITY)
    full = OSError(errno.ENOSPC, "No space left on device", "/a/checkpoint")
    with pytest.raises(InputError, match="the disk of /a/checkpoint is full: free some space"):
        processes.run(store, Many(4), Raises(full), 1)
    assert not multiprocessing.active_children()
    store.refresh()
    assert not store.failures
    processes.run(store, Many(4), Nothing(), 1)
    assert len(store.rows) == 4


def test_a_cell_that_kills_its_worker_is_taken_up_again(tmp_path: Path):
    (tmp_path / "died").mkdir()
    store = Store.open(tmp_path, IDENTITY)
    processes.run(store, Many(3), Dies(tmp_path / "died", 2), 1)
    assert {row.seed for row in store.rows.values()} == {0, 1, 2}
    assert len(list((tmp_path / "died").iterdir())) == 2


def test_a_cell_that_kills_every_worker_is_given_up(tmp_path: Path):
    (tmp_path / "died").mkdir()
    store = Store.open(tmp_path, IDENTITY)
    processes.run(store, Many(3), Dies(tmp_path / "died", 99), 1)
    assert {row.seed for row in store.rows.values()} == {0, 2}
    (failure,) = store.failures.values()
    assert failure.reason.startswith("its worker died")
    assert len(list((tmp_path / "died").iterdir())) == MAX_ATTEMPTS


def test_what_tuning_chooses_anew_is_done_however_many_rows_there_are(tmp_path: Path):
    asked = comparison(methods=("sam",), tune="rho", tuning_seeds=1, seeds=4, rho=(0.1, 5.0))
    store = Store.open(tmp_path, IDENTITY)
    work(store, asked, _Fails())
    store.retry()
    first = asked.tuning("sam")[0]
    store.add(row(first))  # and by that 0.1 is chosen
    store.add(row(asked.evaluation("sam", store.rows)[0]))
    assert len(store.rows) == 7 > asked.total
    assert not Status.of(store, asked).settled
    processes.run(store, asked, Nothing(), 1)
    assert {run.key for run in asked.evaluation("sam", store.rows)} <= set(store.rows)
    found = Status.of(store, asked)
    assert (found.settled, found.done, found.total) == (True, 6, 6)


class _Fails(Nothing):
    """When it tries the radius 0.1."""

    def do(self, training: Training, watch: Watch) -> Row:
        if training.holdout and training.rho == 0.1:
            raise MemoryError
        return super().do(training, watch)


def test_an_interrupt_before_the_workers_are_there_is_the_parents_alone(tmp_path: Path):
    (tmp_path / "slow.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path)!r}, 'begun').touch()\ntime.sleep(2)\n"
    )
    (tmp_path / "script.py").write_text(
        "import signal, sys; from pathlib import Path; from trivial import Many, Nothing\n"
        "from flatmin.studies.run import processes; from flatmin.studies.store.store import Store\n"
        "if __name__ == '__main__':\n"
        # a shell's background job is born deaf to interrupts, and so is all that it starts
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    processes._USED_LATER = ('slow',)\n"
        "    try:\n"
        f"        store = Store.open(Path({str(tmp_path)!r}), {IDENTITY!r})\n"
        "        processes.run(store, Many(9), Nothing(), 2)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        env=os.environ | {"PYTHONPATH": _paths(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does it: to the server too
    _, said = parent.communicate(timeout=60)
    assert (parent.returncode, said) == (130, "")
    assert not Store.join(StudyLocation(tmp_path), allow_mixed=True).rows


def test_a_plain_script_runs_once_however_many_workers_it_asks_for(tmp_path: Path):
    """Nor does a file of the current folder stand for a module of Python's in the workers."""
    (tmp_path / "my_rocks.py").write_text(MODULE)
    (tmp_path / "glob.py").write_text("raise SystemExit('glob.py of the user')\n")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "plain.py").write_text(
        "import flatmin\n"
        "print('begun', flush=True)\n"
        "found = flatmin.compare(train='my_rocks:data', model='my_rocks:Net', workers=2, seeds=2,\n"
        "    epochs=1, batch=8, methods=['sgd', 'sam'], out='run', progress=False)\n"
        "print(len(found.rows))\n"
    )
    ended = subprocess.run(
        [sys.executable, Path("scripts", "plain.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("begun\n4\n", "", 0)


def test_workers_end_with_whoever_has_started_them_even_by_a_kill(tmp_path: Path):
    (tmp_path / "pids").mkdir()
    script = (
        "from pathlib import Path; from trivial import Many, Waits\n"
        "from flatmin.studies.run import processes; from flatmin.studies.store.store import Store\n"
        "if __name__ == '__main__':\n"
        f"    folder = Path({str(tmp_path)!r})\n"
        f"    store = Store.open(folder, {IDENTITY!r})\n"
        "    processes.run(store, Many(9), Waits(folder / 'pids', 60), 2)\n"
    )
    (tmp_path / "script.py").write_text(script)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        env=os.environ | {"PYTHONPATH": _paths()},
    )
    deadline = time.monotonic() + 60
    while len(pids := list((tmp_path / "pids").iterdir())) < 2:
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while any(Path("/proc", pid.name).exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    store = Store.join(StudyLocation(tmp_path), allow_mixed=True)
    assert len(store.running) == 2
    work(store, Many(9), Nothing(), patience=3600)  # their cells are free without any waiting
    assert len(store.rows) == 9


def test_workers_that_collide_spread_out_and_leave_nothing(tmp_path: Path):
    store = Store.open(tmp_path, IDENTITY)
    queue = CellQueue(Many(200))
    for _ in range(5):
        queue.taken(False)
    seeds = []
    while (training := queue.next(store)) is not None:
        seeds.append(training.seed)
        queue.taken(True)
    assert sorted(seeds) == list(range(200))
    assert seeds != sorted(seeds)
    assert max(abs(place - seed) for place, seed in enumerate(seeds)) < 128  # near the plan's order


def without_time(row: Any) -> object:
    curves = row.curves.model_dump(exclude={"seconds"})
    return row.key, curves, row.cost, row.radius, row.threads


def test_results_do_not_depend_on_the_number_of_workers(tmp_path: Path):
    found = []
    for count in (1, 2):
        store = Store.open(tmp_path / str(count), IDENTITY)
        processes.run(store, _Short(), Trainer(), count)
        found.append({key: without_time(row) for key, row in store.rows.items()})
    assert found[0] == found[1]
    data = load("digits", limit=300)
    for training in SHORT:
        run = train(training, data)
        *_, cost, radius, threads = found[0][training.key]
        assert (cost, radius, threads) == (asdict(run.cost), run.cost.radius, 1)


SHORT = [
    Training("digits", "mlp", "sam", seed=seed, epochs=2, batch=64, limit=300) for seed in range(2)
]
LONG = replace(SHORT[0], epochs=60)


class _Short(Many):
    def __init__(self) -> None:
        super().__init__(2)

    def plan(self, rows: Any, given_up: Any) -> Iterator[Training]:
        return iter(SHORT)

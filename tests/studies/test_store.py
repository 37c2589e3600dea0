"""The store of a run: each cell once, whoever dies; refused in one line where it is not ours."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from looking import only_readable
from trivial import Many, Nothing, cell, row

from flatmin.studies.run.worker import SILENCE_SECONDS, Leases, work
from flatmin.studies.store import database, files, provenance
from flatmin.studies.store.database import ClaimLost
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.owner import ProcessIdentity
from flatmin.studies.store.store import MAX_ATTEMPTS, CellProgress, Claim, Store
from flatmin.training import InputError

IDENTITY = {"data": "digits", "epochs": 3, "methods": ("sgd", "sam"), "lr": 0.1}
HERE = ProcessIdentity.here()
ELSEWHERE = replace(HERE, machine="another-machine")


def claimed(at: Store, seed: int = 0, owner: ProcessIdentity = HERE) -> Claim:
    claim = at.claim(cell(seed), owner)
    assert claim is not None
    return claim


def dead() -> ProcessIdentity:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(HERE, pid=process.pid)


def test_rows_come_back_as_they_went(tmp_path: Path):
    ours = Store.open(tmp_path, IDENTITY)
    for seed in range(3):
        ours.add(row(cell(seed)))
    again = Store.open(tmp_path, IDENTITY)
    assert [row.model_dump_json() for row in again.rows.values()] == [
        row(cell(seed)).model_dump_json() for seed in range(3)
    ]
    assert again.rows[cell(1).key].rho is None
    assert not again.running
    assert again.identity == json.loads(json.dumps(IDENTITY))


def test_a_cell_belongs_to_the_first_that_takes_it_up(tmp_path: Path):
    ours, theirs = (Store.open(tmp_path, IDENTITY) for _ in range(2))
    claim = claimed(ours)
    assert theirs.claim(cell(0), ELSEWHERE) is None
    assert [cell.owner for cell in theirs.running.values()] == [HERE]
    claim.finish(row(cell(0)))
    assert theirs.claim(cell(0), ELSEWHERE) is None  # it has its row
    theirs.refresh()
    assert list(theirs.rows) == [cell(0).key]
    assert not theirs.running


def test_of_two_that_take_a_cell_up_at_the_same_moment_the_first_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both have written before either reads."""
    ours, theirs = (Store.open(tmp_path, IDENTITY) for _ in range(2))
    refresh = theirs.refresh
    claims: list[Claim | None] = []

    def late() -> None:
        if not claims:
            claims.append(None)
            claims.append(ours.claim(cell(0), HERE))
        refresh()

    monkeypatch.setattr(theirs, "refresh", late)
    first = theirs.claim(cell(0), ELSEWHERE)
    assert first is not None
    assert claims[-1] is None
    first.finish(row(cell(0)))
    ours.refresh()
    assert len(ours.rows) == 1


def test_a_dead_workers_cell_is_free_and_its_late_row_unwanted(tmp_path: Path):
    ours = Store.open(tmp_path, IDENTITY)
    slow = claimed(ours, owner=ELSEWHERE)
    ours.release(ours.running[slow.number], "its worker was silent for 60 s")
    quick = claimed(ours)
    assert quick.number > slow.number
    with pytest.raises(ClaimLost):
        slow.say(CellProgress(count=1))
    with pytest.raises(ClaimLost):
        slow.finish(row(cell(0)))
    with pytest.raises(ClaimLost):
        slow.fail("late", "")
    ours.release(ours.running[quick.number], "by mistake")
    third = claimed(ours)
    third.finish(row(cell(0)))
    ours.refresh()
    assert len(ours.rows) == 1
    assert not ours.failures


def test_a_worker_that_has_ended_here_is_noticed_at_once(tmp_path: Path):
    ours = Store.open(tmp_path, IDENTITY)
    claimed(ours, 0, dead())
    claimed(ours, 1, HERE)
    claimed(ours, 2, ELSEWHERE)
    Leases(patience=60).over(ours)
    ours.refresh()
    assert [running.training.seed for running in ours.running.values()] == [1, 2]


def test_a_silent_worker_elsewhere_is_given_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = 0.0
    monkeypatch.setattr("flatmin.studies.run.worker.time.monotonic", lambda: now)
    ours = Store.open(tmp_path, IDENTITY)
    silent, alive = claimed(ours, 0, ELSEWHERE), claimed(ours, 1, ELSEWHERE)
    leases = Leases(patience=60)
    for count in range(1, 7):
        leases.over(ours)
        now += 20
        alive.say(CellProgress(count=count, epoch=count))
        ours.refresh()
        assert (silent.number in ours.running) == (count <= 4), count
    assert [running.progress.epoch for running in ours.running.values()] == [6]


def test_a_sqlite_file_that_another_system_writes_to_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = 0.0
    theirs = claimed(Store.open(tmp_path, IDENTITY), 0, replace(ELSEWHERE, system="another"))
    beats = iter(range(1, 4))

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        with suppress(StopIteration):  # then it is dead
            theirs.say(CellProgress(count=next(beats)))

    monkeypatch.setattr("flatmin.studies.run.worker.time.sleep", sleep)
    monkeypatch.setattr("flatmin.studies.run.worker.time.monotonic", lambda: now)
    ours = Store.open(tmp_path, IDENTITY)
    with pytest.raises(InputError, match=r"another-machine process .* SQLite serves one machine"):
        work(ours, Many(2), Nothing())
    assert not ours.rows
    list(beats)
    work(Store.open(tmp_path, IDENTITY), Many(2), Nothing())
    ours.refresh()
    assert len(ours.rows) == 2
    assert now > SILENCE_SECONDS


def test_a_cell_that_takes_its_worker_along_again_and_again_is_given_up(tmp_path: Path):
    ours = Store.open(tmp_path, IDENTITY)
    for _ in range(MAX_ATTEMPTS):
        assert not ours.failures
        claimed(ours, owner=ELSEWHERE)
        (running,) = ours.running.values()
        ours.release(running, "its worker died (killed by SIGKILL)")
        ours.refresh()
    (failure,) = ours.failures.values()
    assert failure.reason == "its worker died (killed by SIGKILL)"
    assert failure.training == cell(0)
    ours.retry()
    assert not ours.failures
    assert not Store.open(tmp_path, IDENTITY).failures


def test_a_cell_that_gets_further_each_time_is_never_given_up(tmp_path: Path):
    ours = Store.open(tmp_path, IDENTITY)
    for epoch in range(3 * MAX_ATTEMPTS):
        claimed(ours, owner=ELSEWHERE).say(CellProgress(count=1, epoch=epoch))
        ours.refresh()
        (running,) = ours.running.values()
        ours.release(running, "preempted")
        ours.refresh()
    assert not ours.failures


def test_a_cell_that_raises_is_given_up_until_it_is_tried_again(tmp_path: Path):
    ours = Store.open(tmp_path, IDENTITY)
    claimed(ours).fail("ValueError: no", "Traceback …")
    again = Store.open(tmp_path, IDENTITY)
    (failure,) = again.failures.values()
    assert (failure.reason, failure.details) == ("ValueError: no", "Traceback …")
    again.retry()
    claimed(again).finish(row(cell(0)))
    again.refresh()
    assert not again.failures
    assert len(again.rows) == 1


def test_the_place_of_a_run_is_found_again(tmp_path: Path):
    Store.open(tmp_path / "run", IDENTITY)
    for text in (str(tmp_path / "run"), str(tmp_path / "run" / "study.db")):
        assert StudyLocation.of(text) == StudyLocation(tmp_path / "run")
    there = StudyLocation.new(
        tmp_path / "other", "postgresql://me:secret@host:5433/db", study="a/table"
    )
    assert there.url == "postgresql+psycopg://me:secret@host:5433/db"
    assert str(there) == "postgresql://me@host:5433/db#a/table"
    assert "secret" not in (tmp_path / "other" / "storage.json").read_text()
    found = StudyLocation.of(str(tmp_path / "other"))
    assert (found.folder, found.study) == (tmp_path / "other", "a/table")
    assert found.url == "postgresql+psycopg://me@host:5433/db"
    assert StudyLocation.of(str(there)).folder is None


@pytest.mark.parametrize(
    "text, said",
    [
        ("nowhere", "no run in nowhere"),
        (300 * "a", "no run in a"),
        ("postgresql://host/db", "names no study: append # and its name"),
        ("mysql://host/db#a", "mysql://host/db is no database that flatmin knows"),
        ("postgresql://me:secret@", "names no study"),
    ],
)
def test_a_place_that_is_none(text: str, said: str):
    with pytest.raises(InputError, match=said):
        StudyLocation.of(text)


def test_a_folder_of_another_configuration_is_refused_and_left_alone(tmp_path: Path):
    Store.open(tmp_path, IDENTITY).add(row(cell(0)))
    with pytest.raises(InputError) as caught:
        Store.open(tmp_path, IDENTITY | {"epochs": 5, "methods": ("sgd",)})
    said = str(caught.value)
    assert "epochs 3 there, 5 here" in said
    assert "methods sgd,sam there, sgd here" in said
    assert "lr" not in said
    assert "--out" in said
    assert "\n" not in said
    assert len(Store.open(tmp_path, IDENTITY).rows) == 1


@pytest.mark.parametrize("more", [{"new": 1}, {}])
def test_a_key_that_one_side_lacks_is_a_difference(tmp_path: Path, more: dict[str, int]):
    Store.open(tmp_path, IDENTITY | {"new": 1} if not more else IDENTITY)
    with pytest.raises(InputError, match=r"new (None there, 1 here|1 there, None here)"):
        Store.open(tmp_path, IDENTITY | more)


def test_other_code_is_refused_unless_mixing_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Store.open(tmp_path, IDENTITY)
    monkeypatch.setattr(provenance, "digest", lambda: "another")
    monkeypatch.setattr(provenance, "commit", lambda: "abc123+changes")
    with pytest.raises(InputError) as caught:
        Store.open(tmp_path, IDENTITY)
    assert "this is commit abc123+changes (source another)" in str(caught.value)
    assert "--allow-mixed" in str(caught.value)
    assert Store.open(tmp_path, IDENTITY, allow_mixed=True).rows == {}


def test_a_database_of_another_version_is_refused(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(database, "SCHEMA_VERSION", 7)
    Store.open(tmp_path, IDENTITY)
    monkeypatch.undo()
    with pytest.raises(InputError, match="a database of version 7, this flatmin writes version 1"):
        Store.open(tmp_path, IDENTITY)


def foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE birds (name TEXT)")
    connection.commit()
    connection.close()


def truncated(path: Path) -> None:
    Store.open(path.parent, IDENTITY).add(row(cell(0)))
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_text(""), lambda path: path.write_text("[]"), foreign, truncated],
    ids=["empty", "text", "foreign", "truncated"],
)
def test_a_file_that_is_no_whole_study_is_refused_and_left_alone(tmp_path: Path, spoil: Any):
    path = tmp_path / "study.db"
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"study.db is no whole study of flatmin: remove it"):
        Store.open(tmp_path, IDENTITY)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", '{"runs": [{}], "identity": {}}'])
def test_results_without_their_database_are_not_written_over(tmp_path: Path, content: str):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"holds results without their study\.db"):
        Store.open(tmp_path, IDENTITY)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_rows_whose_database_is_lost_are_taken_back_from_the_results(tmp_path: Path):
    store = Store.open(tmp_path, IDENTITY, {"of": "cells"})
    here = {"commit": provenance.commit()}
    rows = [row(cell(seed)).model_copy(update=here) for seed in (3, 1, 2)]
    rows[1] = rows[1].model_copy(update={"accuracy": math.nan})
    assert all(map(store.add, rows))
    before = store.export().read_bytes()
    (tmp_path / "study.db").write_text("[]")
    with pytest.raises(InputError, match=r"remove that file alone, and the same command goes on"):
        Store.open(tmp_path, IDENTITY)
    (tmp_path / "study.db").unlink()
    with pytest.raises(InputError, match="holds the results of another configuration"):
        Store.open(tmp_path, {"of": "others"}, {"of": "cells"})
    assert not (tmp_path / "study.db").exists()
    again = Store.open(tmp_path, IDENTITY, {"of": "more cells"})
    assert again.plan == {"of": "more cells"}
    assert list(again.rows) == [each.key for each in rows]
    again = Store.open(tmp_path, IDENTITY, {"of": "cells"})
    assert again.export().read_bytes() == before
    assert not again.add(rows[0])  # it is there


def test_rows_that_are_taken_back_stay_those_of_their_code(tmp_path: Path):
    store = Store.open(tmp_path, IDENTITY)
    store.add(row(cell(0)).model_copy(update={"commit": "0123456"}))
    store.export()
    (tmp_path / "study.db").unlink()
    with pytest.raises(InputError, match=r"are made by flatmin at commit 0123456, this is"):
        Store.open(tmp_path, IDENTITY)
    assert not (tmp_path / "study.db").exists()
    assert len(Store.open(tmp_path, IDENTITY, allow_mixed=True).rows) == 1


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file.*--out"):
        Store.open(tmp_path / "file" / "inside", IDENTITY)


def test_a_full_disk_leaves_no_half_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(database.os, "link", full)
    with pytest.raises(InputError, match=r"cannot write to .*: No space left on device"):
        Store.open(tmp_path, IDENTITY)
    assert not list(tmp_path.iterdir())


def test_a_full_database_is_told_in_one_line_and_keeps_what_it_had(tmp_path: Path):
    """SQLite's own limit of pages stands for the disk's."""
    ours = Store.open(tmp_path, IDENTITY)
    ours.add(row(cell(0)))
    claim = claimed(ours, 1)
    pages = sqlite3.connect(tmp_path / "study.db").execute("PRAGMA page_count").fetchone()[0]
    backend: Any = ours._storage._backend
    database.event.listen(
        backend.engine,
        "begin",
        lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}"),
    )
    long = row(cell(1)).model_copy(update={"observed": {"x": [1.0] * 100_000}})
    with pytest.raises(InputError) as caught:
        claim.finish(long)
    assert str(caught.value) == (
        f"the disk of {tmp_path} is full: free some space, and the same command goes on"
    )
    again = Store.open(tmp_path, IDENTITY)
    assert list(again.rows) == [cell(0).key]


def test_the_export_holds_everything(tmp_path: Path):
    ours = Store.open(tmp_path, IDENTITY)
    ours.add(row(cell(0)))
    found = json.loads(ours.export(more=1).read_text())
    assert found["identity"]["epochs"] == 3
    assert found["more"] == 1
    (run,) = found["runs"]
    assert run["training"]["method"] == "sam"
    assert run["cost"] == json.loads(json.dumps(row(cell(0)).cost))
    assert isinstance(run["cost"]["steps"], int)
    assert set(run["versions"]) == {"flatmin", "torch", "python"}


@pytest.mark.parametrize("name", ["q?mark", "c%41", "a b#c", "br{x}", "é'\""])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str):
    folder = tmp_path / name / "run"
    Store.open(folder, IDENTITY).add(row(cell(0)))
    assert len(Store.open(folder, IDENTITY).rows) == 1
    assert (folder / "study.db").is_file()
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_plan_is_described_as_it_was_last(tmp_path: Path):
    first = Store.open(tmp_path, IDENTITY, {"title": "old"})
    first.add(row(cell(0)))
    assert Store.open(tmp_path, IDENTITY, {"title": "new"}).plan == {"title": "new"}
    assert Store.join(StudyLocation(tmp_path)).plan == {"title": "new"}
    first.add(row(cell(1)))  # who works on meanwhile is not disturbed
    again = Store.open(tmp_path, IDENTITY)
    assert again.plan == {"title": "new"}
    assert len(again.rows) == 2


@pytest.mark.parametrize("open_elsewhere", [True, False])
def test_what_can_only_be_read_is_read_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_elsewhere: bool
):
    run, folder = tmp_path / "run", tmp_path / "copied"
    ours = Store.open(run, IDENTITY)
    ours.add(row(cell(0)))
    shutil.copytree(run, folder)  # with a row that is in the log alone
    only_readable(folder, monkeypatch)
    with pytest.raises(InputError, match=r"study\.db cannot be written"):
        Store.open(folder, IDENTITY)
    connect: Any = sqlite3.connect

    def without_index(path: object, **how: Any) -> Any:
        if how.get("uri"):
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path, **how)

    if not open_elsewhere:
        monkeypatch.setattr(sqlite3, "connect", without_index)
    with database.readable(StudyLocation(folder)) as there:
        assert len(Store.join(there).rows) == 1
    assert there.folder not in (None, folder)
    (folder / "study.db").write_text("[]")
    with (
        pytest.raises(InputError, match=f"{folder}/study.db is no whole study of flatmin"),
        database.readable(StudyLocation(folder)),
    ):
        pass


def test_a_link_stays_where_its_file_is_replaced(tmp_path: Path):
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link", tmp_path / "there" / "page"
    link.symlink_to(target)
    for text in ("old", "new"):  # at first it points at nothing
        files.write(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert [file.name for file in target.parent.iterdir()] == ["page"]


def test_what_is_no_file_is_written_into(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write(pipe, "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_names_that_no_file_can_have_are_of_none():
    for name in (300 * "a", "a\0b", "nowhere/at/all"):
        assert not files.is_file(Path(name))
        assert not files.is_folder(Path(name))


def test_where_nobody_may_look_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(InputError, match=r"cannot look at .*study\.db \(Permission denied\)"):
        StudyLocation.of(str(tmp_path))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "page"
    files.write(path, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["page"]


def test_what_is_not_finite_becomes_null():
    content = {"a": [1.5, math.nan, (math.inf, 2)], "b": {"c": -math.inf, "d": "nan"}}
    assert json.loads(files.as_json(content)) == {
        "a": [1.5, None, [None, 2]],
        "b": {"c": None, "d": "nan"},
    }


def test_the_source_is_told_by_its_commit_and_its_content():
    provenance.commit.cache_clear()
    assert len(provenance.digest()) == 16
    head = subprocess.run(
        ["git", "-C", str(Path(provenance.__file__).parent), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert provenance.commit().removesuffix("+changes") == (head or "unknown")


def test_owners_are_told_apart():
    assert not HERE.gone
    assert not ELSEWHERE.gone  # nobody can tell from here
    assert dead().gone
    assert replace(HERE, born="1").gone  # its number has gone to another process

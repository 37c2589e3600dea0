"""`flatmin run`, `worker`, `status` and `recipes` as a user meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from looking import only_readable, wait_for_a_row
from trivial import Many, Nothing
from trivial import row as trivial_row

from flatmin.cli import main
from flatmin.cli import run as cli_run
from flatmin.cli import status as cli_status
from flatmin.studies.plan import serialization
from flatmin.studies.plan.comparison import Comparison
from flatmin.studies.plan.recipe import Recipe
from flatmin.studies.plan.tuning import Progress
from flatmin.studies.report import status, terminal
from flatmin.studies.run import processes
from flatmin.studies.run.worker import work
from flatmin.studies.store import provenance
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.owner import ProcessIdentity
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import CellProgress, Store
from flatmin.training import Training, load, train
from flatmin.training.checkpoints import Checkpoints

RECIPE: dict[str, Any] = {
    "paper": "agnostic-sam",
    "shows": "Table 0",
    "title": "Accuracy of nothing in particular",
    "measure": "accuracy",
    "fields": {"model": "mlp", "epochs": 2, "batch": 64, "lr": 0.1, "limit": 300},
    "methods": {"SGD": {"method": "sgd"}, "SAM": {"method": "sam", "rho": 0.05}},
    "grid": {"data": ["digits"], "noise": {"none": {"noise": "0"}, "40%": {"noise": "0.4"}}},
    "seeds": 2,
    "printed": [
        {"noise": "none", "method": "SGD", "mean": 50.0, "sd": 0.5},
        {"noise": "40%", "method": "SAM", "mean": 99.0},
    ],
    "scales": {
        "full": {},
        "smoke": {"says": "one seed, no noise", "seeds": 1, "grid": {"noise": ["none"]}},
    },
}


PLAIN: dict[str, Any] = {"grid": {"data": ["digits"]}, "printed": [], "scales": {"full": {}}}
"""One setting."""


def recipe(folder: Path, **changed: Any) -> Path:
    path = folder / "mine" / "table-0.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**RECIPE, **changed}))
    return path


def flatmin(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "flatmin", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def joined(folder: Path) -> Store:
    return Store.join(StudyLocation(folder), allow_mixed=True)


def test_a_recipe_is_trained_and_set_beside_its_paper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["run", str(recipe(tmp_path)), "--out", str(tmp_path / "run"), "--workers", "2"]
    assert main(command) == 0
    said, told = capsys.readouterr()
    assert re.match(
        r"flatmin: mine/table-0 at the scale full: 8 runs, about \d+ s with 2 workers here, "
        r"estimated to a factor of two\n",
        told,
    )
    assert "Table 0: Accuracy of nothing in particular" in said
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["identity"]["recipe"] == "mine/table-0"
    rows = [Row.model_validate(run) for run in found["runs"]]
    assert len(rows) == 8
    plain = [row for row in rows if row.method == "sgd" and row.training["noise"] == "0"]
    mean = sum(row.accuracy for row in plain) / 2
    line = re.search(
        r"^none +SGD +(\d+\.\d) ± \d+\.\d +2 +50 ± 0\.5 +([+−]?\d+\.\d) +1\.00", said, re.MULTILINE
    )
    assert line is not None
    assert float(line[1]) == pytest.approx(mean, abs=0.051)
    assert float(line[2].replace("−", "-")) == pytest.approx(mean - 50, abs=0.051)
    assert re.search(r"^none +SAM +\d+\.\d ± \d+\.\d +2 +– +– +2\.00", said, re.MULTILINE)
    assert re.search(r"^40% +SAM +\d+\.\d ± \d+\.\d +2 +99 +−\d+\.\d +2\.00", said, re.MULTILINE)
    for row in rows:
        assert row.commit == provenance.commit()
        assert row.images == load("digits", limit=300).fingerprint()
        assert row.device == provenance.described("cpu")
        assert row.wall is not None
        assert row.wall > sum(row.curves.seconds)

    before = (tmp_path / "run" / "results.json").read_bytes()
    assert main(command) == 0
    assert "8 of 8 runs are there already" in capsys.readouterr().err
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_a_scale_says_what_is_smaller(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["run", str(recipe(tmp_path)), "--scale", "smoke", "--out", str(tmp_path / "run")]
    assert main([*command, "--tensorboard", "--workers", "1"]) == 0
    assert "at the scale 'smoke': one seed, no noise" in capsys.readouterr().out
    store = joined(tmp_path / "run")
    assert len(store.rows) == 2
    for row in store.rows.values():
        folder = tmp_path / "run" / "tensorboard" / row.method / row.key
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert main([*command[:2], "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "scale smoke there, full here" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "changed, arguments, said",
    [
        ({}, "--scale small", "unknown scale 'small': "),
        ({"colour": "red"}, "", "table-0.yaml: unknown key 'colour'"),
        ({"grid": {"data": ["digit"]}, "printed": []}, "", "unknown data set 'digit'"),
        ({"needs": ["sorcery"]}, "", "needs"),
        ({}, "--workers 0", "--workers 0 is out of range"),
        ({}, "--storage mysql://host/db", "--storage mysql://host/db is no database"),
        ({}, "--out /dev/null/x", "cannot write to /dev/null/x"),
        (
            {"scales": {"full": {"fields": {"epochs": 10**8}}, "smoke": {}}},
            "",
            "at the scale full takes about ",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    changed: dict[str, Any],
    arguments: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["run", str(recipe(tmp_path, **changed)), *arguments.split()]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("flatmin: ")
    assert said in output.err
    assert output.err.count("\n") == 1
    assert not list((tmp_path / "here").rglob("study.db"))


@pytest.mark.parametrize("name", ["results.json", "report.html"])
def test_where_no_report_can_be_written_is_one_line_and_the_rows_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    out = tmp_path / "run"
    path = recipe(tmp_path)
    plan = Recipe.find(str(path)).at("smoke")
    work(
        Store.open(out, serialization.identity(plan), serialization.described(plan)),
        plan,
        Nothing(),
    )
    (out / name).mkdir()
    assert main(["run", str(path), "--scale", "smoke", "--out", str(out), "--workers", "1"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == (
        f"flatmin: cannot write {out / name} (Is a directory): mend that, and the same command "
        f"goes on; every run is kept"
    )
    assert said[0] == "flatmin: mine/table-0 at the scale smoke: 2 runs"
    assert len(said) == 3  # the other tells how many runs are there already


def test_days_are_not_begun_without_a_yes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    long = {"full": {"fields": {"epochs": 10**7}}, "smoke": {"fields": {"epochs": 1}, "seeds": 1}}
    command = ["run", str(recipe(tmp_path, scales=long)), "--out", str(tmp_path / "run")]
    begun: list[int] = []
    monkeypatch.setattr(cli_run, "train", lambda *_: bool(begun.append(1)))  # as if interrupted
    assert main([*command, "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"flatmin: mine/table-0 at the scale full takes about [\d,.]+ h here: give --scale smoke "
        r"\(\d+ s\), or --yes to begin\n",
        said,
    )
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    for answer, code in (("\n", 2), ("y\n", 130)):
        monkeypatch.setattr(sys.stdin, "readline", lambda answer=answer: answer)
        assert main(command) == code
    assert begun == [1]
    assert main(command) == 130  # what is begun goes on
    assert main([*command[:-1], str(tmp_path / "other"), "--yes"]) == 130
    assert "here: begin? [y/N] flatmin: mine" in capsys.readouterr().err


def test_a_pipe_is_told_how_long_it_will_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plan = Recipe.find(str(recipe(tmp_path))).at("full")
    store = Store.open(tmp_path / "run", serialization.identity(plan), {})
    first, second, *_ = plan.runs
    done = trivial_row(first).model_copy(update={"wall": 60.0})
    store.add(done)
    assert store.claim(second, ProcessIdentity.here()) is not None
    with terminal.ProgressBar("mine", plan.total, store, pause=0.0) as bar:
        bar(store, Progress(1, 0, 7))
    # one at work, half-way on average, and six to come
    assert ", about 6 min left" in capsys.readouterr().err


def test_an_error_of_the_system_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def refused() -> None:
        raise PermissionError(13, "Permission denied", "there")

    monkeypatch.setattr("flatmin.studies.plan.listing.summaries", refused)
    assert main(["recipes"]) == 2
    assert capsys.readouterr().err == "flatmin: there: Permission denied\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_nobody_reads_ends_quietly_and_a_full_one_in_a_line(unbuffered: str):
    command = [sys.executable, "-m", "flatmin", "recipes"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full, os.fdopen(writer, "w") as unread:
        for output, code, said in (
            (unread, 1, ""),
            (full, 2, "flatmin: the standard output: No space left on device\n"),
        ):
            done = subprocess.run(
                command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment
            )
            assert (done.returncode, done.stderr) == (code, said)


def test_an_unknown_recipe_is_offered_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "agnostic-sam/tabel-5"]) == 2
    assert "did you mean agnostic-sam/table-5" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["worker", "status"])
def test_a_run_that_is_not_there(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([command, str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"flatmin: no run in {tmp_path}: give the folder of one, as `flatmin run` names it\n"
    )


def test_postgresql_without_its_driver_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert main(["status", "postgresql://me@nowhere/db#study"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"flatmin: PostgreSQL needs psycopg \(.*\): pip install 'flatmin\[postgres\]'\n", said
    )


def test_a_killed_run_goes_on_from_its_checkpoints_bit_for_bit(tmp_path: Path):
    """Everything is killed amid two long cells; another worker takes them up."""
    fields = RECIPE["fields"] | {"epochs": 20, "limit": None}
    path = recipe(tmp_path, fields=fields, seeds=1, **PLAIN)
    out, saved = tmp_path / "run", tmp_path / "saved"
    process = flatmin("run", path, "--out", out, "--workers", "2", "--checkpoints", saved)
    deadline = time.monotonic() + 100
    try:
        while not (out / "study.db").exists() or not _advanced(out):
            assert process.poll() is None, ended(process)
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    store = joined(out)
    assert not store.rows
    digits = load("digits")
    before: dict[str, list[float]] = {}
    for cell in store.running.values():
        key = cell.training.key
        found = Checkpoints(saved / key, f"{key}-{digits.fingerprint()}").newest()
        assert found is not None
        before[key] = [epoch["seconds"] for epoch in found[1]["curve"]]
    assert len(before) == 2

    command = ("worker", out, "--workers", "2", "--checkpoints", saved, "--allow-mixed")
    code, said, err = ended(flatmin(*command))
    assert (code, said) == (0, f"2 of 2 runs are done in {out}\n"), err
    store.refresh()
    for row in store.rows.values():
        whole = train(Training.of(row.training), digits)
        assert row.accuracy == whole.accuracy
        assert row.curves.loss == [epoch.loss for epoch in whole.epochs]
        times = before[row.key]
        assert row.curves.seconds[: len(times)] == times  # these epochs were not trained again
    assert not list(saved.iterdir())


def _advanced(out: Path) -> bool:
    running = joined(out).running.values()
    return len(running) == 2 and all(cell.progress.epoch for cell in running)


def test_a_worker_with_other_code_is_refused_unless_mixing_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    plan = Recipe.find(str(recipe(tmp_path))).at("smoke")
    out = tmp_path / "run"
    Store.open(out, serialization.identity(plan), serialization.described(plan))
    monkeypatch.setattr(provenance, "digest", lambda: "0123456789abcdef")
    assert main(["worker", str(out), "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert "or mix them by --allow-mixed" in said
    assert said.count("\n") == 1
    assert main(["worker", str(out), "--workers", "1", "--allow-mixed"]) == 0
    assert capsys.readouterr().out == f"2 of 2 runs are done in {out}\n"


def test_the_processes_of_torchrun_are_one_worker(tmp_path: Path):
    plan = Recipe.find(str(recipe(tmp_path))).at("smoke")
    out = tmp_path / "run"
    Store.open(out, serialization.identity(plan), serialization.described(plan))
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    code, _, err = ended(flatmin("worker", out, "--allow-mixed", launcher=torchrun))
    assert code == 0, err
    store = joined(out)
    assert len(store.rows) == 2
    for row in store.rows.values():
        assert row.processes == 2
        alone = train(Training.of(row.training), load("digits", limit=300))
        assert row.curves.loss == pytest.approx([e.loss for e in alone.epochs], rel=1e-4)


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path):
    fields = RECIPE["fields"] | {"epochs": 8, "limit": None}
    path = recipe(tmp_path, fields=fields, seeds=20, **PLAIN)
    out = tmp_path / "run"
    process = flatmin("run", path, "--out", out, "--workers", "2")
    wait_for_a_row(process, out)
    os.killpg(process.pid, signal.SIGINT)
    code, said, err = ended(process)
    kept = len(joined(out).rows)
    assert (code, said) == (130, "")
    assert err.splitlines()[-1] == (
        f"flatmin: interrupted: {kept} of 40 runs are kept in {out}; the same command continues"
    )
    assert "Traceback" not in err
    assert 0 < kept < 40


def test_status_tells_what_is_done_and_what_is_at_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plan = Recipe.find(str(recipe(tmp_path))).at("full")
    out = tmp_path / "run"
    store = Store.open(out, serialization.identity(plan), serialization.described(plan))
    done, at_work, failed, *_ = plan.runs
    work(store, _Only([done]), Nothing())
    claim = store.claim(at_work, ProcessIdentity.here())
    assert claim is not None
    claim.say(CellProgress(count=1, epoch=1, seconds=30.0, loss=2.5, accuracy=12.5))
    lost = store.claim(failed, ProcessIdentity.here())
    assert lost is not None
    lost.fail("ValueError: no", "")

    assert main(["status", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = {name: found[name] for name in ("total", "done", "running", "waiting", "failed")}
    assert counts == {"total": 8, "done": 1, "running": 1, "waiting": 5, "failed": 1}
    (cell,) = found["cells"]
    assert (cell["epoch"], cell["epochs"], cell["loss"], cell["left"]) == (1, 2, 2.5, 30.0)
    assert str(os.getpid()) in cell["worker"]
    by_method = {each["method"]: each for each in found["methods"]}
    assert sum(each["done"] for each in by_method.values()) == 1
    assert sum(each["waiting"] for each in by_method.values()) == 5

    assert main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert "1 of 8 runs done, 1 at work, 5 waiting, 1 failed" in said
    assert re.search(r"1 of 2 +2\.500 +12\.5 +30 +30 s", said)
    assert f"failed: {status.described(failed)}: ValueError: no" in said
    assert "nobody is at work" not in said


def _gone(owner: ProcessIdentity) -> tuple[ProcessIdentity, float]:
    """A process of this machine that has ended, heard of a moment ago."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(owner, pid=process.pid), time.time()


@pytest.mark.parametrize(
    ("left_by", "working"),
    [
        (_gone, False),
        (lambda owner: (replace(owner, machine="elsewhere"), time.time() - 600), False),
        # whose clock may be late
        (lambda owner: (replace(owner, machine="elsewhere"), time.time() - 200), True),
    ],
)
def test_status_knows_whether_anybody_is_at_work(
    left_by: Callable[[ProcessIdentity], tuple[ProcessIdentity, float]],
    working: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """And the report says the same."""
    path = recipe(tmp_path)
    plan = Recipe.find(str(path)).at("full")
    out = tmp_path / "run"
    described = serialization.described(plan, str(path))
    store = Store.open(out, serialization.identity(plan), described)
    done, at_work, *_ = plan.runs
    work(store, _Only([done]), Nothing())
    owner, heard = left_by(ProcessIdentity.here())
    claim = store.claim(at_work, owner)
    assert claim is not None
    claim.say(CellProgress(count=3, epoch=1, seconds=30.0, loss=2.5, accuracy=12.5, at=heard))

    assert main(["status", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["done"], found["running"], found["waiting"]) == (1, working, 7 - working)
    assert found["interrupted"] != working
    command = f"flatmin run {path} --scale full --out {out}"
    assert found["command"] == command
    assert len(found["cells"]) == working
    assert len(found["abandoned"]) == 1 - working
    assert main(["report", str(out), "--markdown"]) == 0
    someone = "1" if working else "nobody"
    assert f"Not finished: 1 of 8 runs, {someone} at work." in capsys.readouterr().out
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert (f"nobody is at work: to go on, {command}\n" in said) != working
    if not working:
        assert re.search(r"^left amid .*\n.* 1 of 2 ", said, re.MULTILINE)
        monkeypatch.setattr(cli_status, "PATIENCE_SECONDS", 0.0)
        assert main(["status", str(out), "--watch"]) == 1


def test_status_of_what_can_only_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    plan = Recipe.find(str(recipe(tmp_path))).at("smoke")
    out = tmp_path / "run"
    Store.open(out, serialization.identity(plan), serialization.described(plan))
    only_readable(out, monkeypatch)
    assert main(["status", str(out)]) == 0
    assert "0 of 2 runs done" in capsys.readouterr().out
    assert main(["status", str(out), "--watch"]) == 2
    assert capsys.readouterr().err == (
        f"flatmin: {out} can be read, but not be watched: leave out --watch\n"
    )


class _Only(Many):
    """A plan of some runs."""

    def __init__(self, runs: list[Training]) -> None:
        super().__init__(len(runs))
        object.__setattr__(self, "runs", runs)

    def plan(self, rows: Any, given_up: Any) -> Any:
        return iter(vars(self)["runs"])


def test_recipes_lists_every_recipe_with_its_cost(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("agnostic-sam/table-5 "))
    assert re.search(r" \d+ +[\d,.]+ h +\d+ +\d+ min", line)
    assert "runs and hours on two cores, estimated" in said


def test_a_plan_comes_back_from_the_database_as_it_went(tmp_path: Path):
    plan = Recipe.find(str(recipe(tmp_path))).at("full")
    again = serialization.restored(json.loads(json.dumps(serialization.described(plan))))
    assert not isinstance(again, Comparison)
    assert again.runs == plan.runs
    assert again.recipe == plan.recipe
    asked = Comparison.checked(
        data="digits",
        methods=("sgd", "sam"),
        model="mlp",
        noise="0.6",
        epochs=4,
        batch=64,
        lr=0.1,
        weight_decay=5e-4,
        seeds=2,
        tune="rho",
    )
    assert serialization.restored(json.loads(json.dumps(asked.description))) == asked


def test_as_many_workers_as_there_is_hardware_for():
    assert processes.usual() >= 1

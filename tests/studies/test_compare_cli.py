"""`flatmin compare` as a user meets it: results, mistakes in one line, interrupts without loss."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from comparisons import comparison, outcome
from looking import wait_for_a_row
from pictures import encoded, picture, write_parquet

import flatmin
from flatmin import methods
from flatmin.cli import app, main
from flatmin.studies.plan.identity import default_folder
from flatmin.studies.report import terminal
from flatmin.studies.report.summary import summarise
from flatmin.studies.run import trainer
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import Store
from flatmin.training import Training
from flatmin.training.loop import Watch

QUICK = ["compare", "--limit", "300", "--epochs", "2", "--batch", "64", "--seeds", "2"]
QUICK += ["--workers", "1"]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def rows(folder: Path) -> list[Row]:
    """What is kept in `folder` by now."""
    if not (folder / "study.db").exists():
        return []
    return list(Store.join(StudyLocation(folder), allow_mixed=True).rows.values())


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flatmin", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_images_of_another_size_than_their_own_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["compare", "--data", "digits", "--limit", "100", "--epochs", "1", "--model", "mlp"]
    command += ["--methods", "sgd", "--seeds", "1", "--size", "12", "--out", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "images of 8 × 8 pixels in 10 classes, resized to 12 × 12, labels as they are" in said


def test_a_comparison_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = [*QUICK, "--methods", "sgd,esam,agnostic-sam", "--noise", "0.3", "--tune", "rho"]
    command += ["--rho", "0.05,0.1", "--tuning-seeds", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "digits: 300 training and 360 test images of 8 × 8 pixels" in said
    for title in ("SGD", "ESAM", "Agnostic-SAM"):
        assert re.search(rf"^{title} +\d+\.\d ± \d+\.\d ", said, re.MULTILINE)
    assert re.search(r"^Agnostic-SAM .* 2\.50 +100 ", said, re.MULTILINE)
    assert re.search(r"^ESAM .* 1\.50 +100 ", said, re.MULTILINE)
    assert str(tmp_path / "report.html") in said
    found = results(tmp_path)
    assert len(found["runs"]) == 2 * 2 + 3 * 2
    assert found["identity"]["methods"] == ["sgd", "esam", "agnostic-sam"]
    assert {run["threads"] for run in found["runs"]} == {1}

    first = (tmp_path / "results.json").read_bytes()
    assert main([*command, "--json"]) == 0
    again = capsys.readouterr()
    assert "10 of 10 runs are there already" in again.err
    assert (tmp_path / "results.json").read_bytes() == first
    printed = json.loads(again.out)  # nothing but JSON
    assert printed["runs"] == found["runs"]
    assert [row["method"] for row in printed["methods"]] == ["sgd", "esam", "agnostic-sam"]

    assert main([*command, "--epochs", "3"]) == 2
    assert "(epochs 2 there, 3 here)" in capsys.readouterr().err


def test_an_interrupt_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path: Path):
    command = ["compare", "--limit", "400", "--epochs", "12", "--methods", "sgd,sam"]
    command += ["--seeds", "6", "--out", str(tmp_path), "--allow-mixed"]
    process = start(*command)
    try:
        wait_for_a_row(process, tmp_path)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the workers too
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    kept = rows(tmp_path)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == (
        f"flatmin: interrupted: {len(kept)} of 12 runs are kept in {tmp_path}; "
        f"the same command continues"
    )
    assert "Traceback" not in err
    assert 0 < len(kept) < 12
    deadline = time.monotonic() + 60
    while alive(process.pid):  # no worker is left behind
        assert time.monotonic() < deadline
        time.sleep(0.05)

    assert main(command) == 0
    whole = results(tmp_path)["runs"]
    assert len(whole) == 12
    assert whole[: len(kept)] == [json.loads(row.model_dump_json()) for row in kept]  # with times


def test_a_set_for_episodes_is_refused_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "sets" / "omniglot"
    for part in ("train", "test"):
        shades = [encoded(picture(20 * i, mode="L")) for i in range(4)]
        labels = [0, 1] * 2 if part == "train" else [2, 3] * 2
        write_parquet(folder / f"{part}.parquet", shades, labels, ["a", "b", "c", "d"])
    monkeypatch.setenv("FLATMIN_DATA", str(folder.parent))
    out = tmp_path / "out"
    assert main(["compare", "--data", "omniglot", "--batch", "2", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("flatmin: omniglot has other classes to test on than to train on: it is")
    assert said.count("\n") == 1
    assert not out.exists()


def test_every_configuration_has_a_default_folder_of_its_own():
    folders = [default_folder(comparison(lr=lr)) for lr in (0.1, 0.05, 0.1)]
    assert folders[0] == folders[2] != folders[1]
    assert all(re.fullmatch(r"runs/digits-[0-9a-f]{8}", str(folder)) for folder in folders)
    assert default_folder(comparison(data="/some/where/birds")).name.startswith("birds-")


def test_a_run_that_diverges_is_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wild = [*QUICK, "--methods", "sgd", "--seeds", "1", "--lr", "1e30", "--out", str(tmp_path)]
    assert main(wild) == 0
    said = capsys.readouterr().out
    assert re.search(r"^SGD +\d+\.\d!", said, re.MULTILINE)
    assert "steps skipped: loss or gradient not finite" in said
    assert "steps skipped" in (tmp_path / "report.html").read_text()


def test_a_run_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trainer, "Trainer", Unlucky)
    command = [*QUICK, "--methods", "sgd,sam", "--out", str(tmp_path)]
    assert main(command) == 1
    said = capsys.readouterr()
    assert "failed: SAM ρ 0.05 seed 1: RuntimeError: out of luck" in said.err
    assert "Missing: SGD, seed 1: RuntimeError: out of luck" in said.out
    assert {run["training"]["seed"] for run in results(tmp_path)["runs"]} == {0}
    monkeypatch.undo()
    assert main(command) == 0  # it is tried again
    assert len(results(tmp_path)["runs"]) == 4


class Unlucky(trainer.Trainer):
    """Fails with every seed but the first."""

    def do(self, training: Training, watch: Watch) -> Row:
        if training.seed:
            raise RuntimeError("out of luck")
        return super().do(training, watch)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("--methods sgd,smm", "unknown method 'smm': did you mean sam"),
        ("--methods ,", "--methods is empty"),
        ("--data digit", "unknown data set 'digit': did you mean digits?"),
        ("--data ./nowhere", "no folder ./nowhere"),
        ("--data cifar10", "FLATMIN_DATA is not set: put train.parquet and test.parquet"),
        ("--model mpl", "unknown model 'mpl': did you mean mlp"),
        ("--noise 1", r"noise 1 is outside \[0, 1\)"),
        ("--noise human:worse_label", "human labels belong to cifar10, not to digits"),
        ("--noise human:best", "unknown column of human labels 'best'"),
        ("--rho -0.1", "--rho -0.1 is out of range"),
        ("--rho tiny", "--rho tiny is no radius"),
        ("--lr fast", "--lr fast is no learning rate"),
        ("--lr 0.1,0.2", "add --tune lr"),
        ("--tune beta", "--tune beta is nothing to tune: give rho, lr or rho,lr"),
        ("--option sam.beta=1", "sam has no options, got 'beta'"),
        ("--option gsam.alpha=1", "unknown method of an option 'gsam'"),
        ("--option beta", "--option beta sets nothing"),
        ("--base-option eps=1", "unknown option of sgd 'eps'"),
        ("--base sgdd", "unknown base optimizer 'sgdd': did you mean sgd"),
        ("--warmup 99", "warmup 99.0 is out of range"),
        ("--model nowhere.at:Net", "nowhere.at:Net cannot be imported \\(no module nowhere"),
        ("--model torch.nn:Nett", "torch.nn:Nett cannot be imported: torch.nn has no Nett"),
        ("--metric torch.nn:MSELoss", "metric .* is neither accuracy nor one with its direction"),
        ("--examine digit", "unknown data set 'digit': did you mean digits"),
        ("--examine digits-c", "a model of digits cannot be examined on digits-c"),
        ("--rho 0.1,0.2", "add --tune rho"),
        ("--rho ,", "--rho is empty: give a radius such as 0.1"),
        ("--rho , --tune rho", "--rho is empty"),
        ("--epochs 0", "--epochs 0 is out of range"),
        ("--batch 0", "--batch 0 is out of range"),
        ("--batch 1438", "--batch 1438 is more than the 1437 images"),
        ("--batch 1300 --tune rho", "--batch 1300 is more than the 1293 images"),
        ("--seeds -1", "--seeds -1 is out of range"),
        ("--seeds 1000000000", "this takes up to 4,000,000,000 runs, more than 1,000,000: give"),
        ("--tuning-seeds 1000000000 --tune rho", "this takes up to 18,000,000,020 runs"),
        ("--limit 1438", "--limit 1438 is more than the 1437 training images"),
        ("--workers 0", "--workers 0 is out of range"),
        ("--out /dev/null/x", "cannot write to /dev/null/x"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLATMIN_DATA", raising=False)
    assert main(["compare", *arguments.split()]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.match(f"flatmin: .*{said}", output.err)
    assert output.err.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("compare --epochs many", "--epochs: 'many' is no whole number; see flatmin compare"),
        ("compare --lr fast", "--lr fast is no learning rate: give a number such as 0.1"),
        ("compare --epochs", "--epochs takes a value; see flatmin compare --help"),
        ("compare --tune x", "--tune x is nothing to tune: give rho, lr or rho,lr"),
        ("compare --epoch 3", "unknown option '--epoch': did you mean --epochs?"),
        ("status --wach runs", "unknown option '--wach': did you mean --watch?"),
        ("meta train --wayz 3", "unknown option '--wayz': did you mean --ways?"),
        ("meta tran", "unknown command 'meta tran': did you mean meta train"),
        ("run", "RECIPE is missing: A name that `flatmin recipes` lists, or a file; see"),
        ("run a b", "b is more than it takes; see flatmin run --help"),
        ("comparr", "unknown command 'comparr': did you mean compare?"),
        ("", "name a command: compare, run"),
    ],
)
def test_a_line_that_cannot_be_read_is_answered_by_a_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"flatmin: {said}")
    assert output.err.count("\n") == 1


def test_help_and_mistakes_come_before_torch(tmp_path: Path):
    """And before whatever else takes time; `flatmin recipes` takes no torch at all."""
    script = """
import sys, time
start = time.process_time()
from flatmin.cli import main
for words in ("--help", "compare --help", "meta train --help", "compare --epoch 3", "recipes"):
    main(words.split())
heavy = {"torch", "numpy", "scipy", "optuna", "pydantic"} & set(sys.modules)
print(sorted(heavy), time.process_time() - start, file=sys.stderr)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert ended.returncode == 0
    heavy, seconds = ended.stderr.splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 1.5  # of all five together
    said = ended.stdout
    for command in app.COMMANDS:
        assert re.search(rf"^  {command} +\S", said, re.MULTILINE)
    assert re.search(r"^agnostic-sam/table-5 +Table 5", said, re.MULTILINE)


def test_the_version_comes_with_what_it_stands_on(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"flatmin {flatmin.__version__}\npython:")
    assert f"torch {metadata.version('torch')}" in said
    assert re.search(r"^torch sees: .*\d+ cores", said, re.MULTILINE)


def test_a_method_may_be_written_in_any_way():
    for method in methods.TABLE.values():
        spellings = {method.name, method.name.upper(), method.title, method.title.lower()}
        function = getattr(method.construct, "__name__", "")
        if function in flatmin.__all__ and function.lower() == method.name.replace("-", ""):
            spellings.add(function)
        for spelt in spellings:
            assert methods.find(spelt) is method
    assert comparison(methods=("SGD", "LookSAM")) == comparison(methods=("sgd", "look-sam"))


@pytest.mark.parametrize("width", [80, 50])
def test_a_narrow_terminal_gets_fewer_columns_and_whole_numbers(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    names = ("sgd", "ae-agnostic-sam-previous")
    done = outcome(tmp_path, {name: [70.0, 71.5, 72.0] for name in names})
    monkeypatch.setenv("COLUMNS", str(width))
    terminal.print_comparison(done, summarise(done), Path("report.html"))
    assert main(["recipes"]) == main(["methods"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    assert re.search(r"^AE-Agnostic-SAM \(previous\) +71.2 ± 1.0", said, re.MULTILINE)
    assert re.search(r"left out, for want of width: .*seconds an epoch", " ".join(said.split()))


@pytest.mark.parametrize("missing", ["tyro", "jinja2"])
def test_a_missing_extra_is_told_with_the_command_that_installs_it(missing: str):
    block = f"import sys; sys.modules[{missing!r}] = None; from flatmin.cli import main"
    ended = subprocess.run(
        [sys.executable, "-c", f"{block}; sys.exit(main(['compare', '--seeds', '1']))"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    assert ended.stderr == f"flatmin: this needs {missing}: pip install 'flatmin[studies]'\n"


def test_methods_lists_every_method(capsys: pytest.CaptureFixture[str]):
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    for name, method in methods.TABLE.items():
        assert re.search(rf"^{re.escape(name)} +{re.escape(method.title)} ", said, re.MULTILINE)


def test_python_minus_m_is_the_command(tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, "-m", "flatmin", "compare", "--noise", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("flatmin: noise 2 is outside [0, 1)")
    assert ended.stderr.count("\n") == 1

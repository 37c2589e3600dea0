"""The examples, run as a user runs them."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
NEEDS = ("accelerate", "lightning", "transformers")


# A user sees the trainers' advice on workers and logging, and goes on.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_trains_and_says_how_well(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    for name in NEEDS:
        if path.stem.startswith(name) and not importlib.util.find_spec(name):
            pytest.skip(f"{name} is not installed")
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [str(path), "--method", "agnostic-sam", "--epochs", "4"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    said = re.search(
        r"^agnostic-sam: (\d+\.\d) % of the test digits", capsys.readouterr().out, re.MULTILINE
    )
    assert said, "no accuracy was printed"
    assert float(said[1]) > 50  # chance is 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_method_that_it_cannot_run_is_not_offered(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in NEEDS:
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [str(path), "--method", "esam"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(path), run_name="__main__")
    assert "invalid choice: 'esam'" in capsys.readouterr().err

"""The examples, run as a user runs them."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
NEEDS = {
    "accelerate": "accelerate",
    "lightning": "lightning",
    "transformers": "transformers",
    "lora": "peft",
}
"""The package of an example, by the first word of its name."""


def require(path: Path) -> None:
    """Skip what cannot run here."""
    first = path.stem.split("_")[0]
    if first in NEEDS:
        pytest.importorskip(NEEDS[first])
    if first == "flowers" and "FLATMIN_DATA" not in os.environ:
        pytest.skip("needs the images in FLATMIN_DATA")
    if first == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("needs torch 2.9")


# A user sees the trainers' advice on workers and logging, and goes on.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path, flags",
    [*((path, []) for path in EXAMPLES), (FOLDER / "torchrun_digits.py", ["--shard"])],
    ids=lambda value: value.stem if isinstance(value, Path) else "".join(value),
)
def test_it_trains_and_says_how_well(
    path: Path,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    require(path)
    monkeypatch.syspath_prepend(str(path.parent))
    told = ["--method", "agnostic-sam", "--epochs", "4", *flags]
    monkeypatch.setattr(sys, "argv", [str(path), *told])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    said = re.search(
        r"^agnostic-sam: (\d+\.\d) % of the test (digits|texts|flowers)",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert said, "no accuracy was printed"
    assert float(said[1]) > {"digits": 50, "texts": 50, "flowers": 20}[said[2]]
    # of 10, 4 and 17 classes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_method_that_it_cannot_run_is_not_offered(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    require(path)
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [str(path), "--method", "esam"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(path), run_name="__main__")
    assert "invalid choice: 'esam'" in capsys.readouterr().err

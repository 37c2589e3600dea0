"""The benchmark of overhead, run as a user runs it, with and without clones of others' work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overhead.py"
FIRST_AND_SECOND = """
import torch


class SAM(torch.optim.Optimizer):
    def __init__(self, params, base_optimizer, rho=0.05, adaptive=False, **options):
        print("chatting")
        super().__init__(params, dict(rho=rho, **options))
        self.base = base_optimizer(self.param_groups, **options)

    def first_step(self, zero_grad):
        self.zero_grad()

    def second_step(self, zero_grad):
        self.base.step()
"""


def run(*arguments: object) -> list[str]:
    told = ["--models", "mlp", "--methods", "sgd,sam", "--rounds", "2", "--threads", "1"]
    command = [sys.executable, "-W", "error", str(SCRIPT), *told, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_without_clones_it_measures_ours():
    head, _, *rows = run()
    assert head.startswith("| model | competitor | ratio to limit |")
    assert [row.split("|")[2].strip() for row in rows] == ["sgd", "sam"]
    assert all(float(row.split("|")[3]) > 0 for row in rows)


def test_a_peer_that_cannot_be_run_is_a_line(tmp_path: Path):
    def clone(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)

    clone("sam/sam.py", FIRST_AND_SECOND)
    clone("VaSSO/solver/vasso.py", "import a_package_that_nobody_has\n")
    clone("GSAM/gsam/gsam.py", "from .util import anything\n")
    (tmp_path / "GSAM/gsam/util.py").write_text(
        'raise RuntimeError("a TORCH_LIBRARY | twice\\nor")'
    )
    clone(
        "composer/composer/algorithms/sam/sam.py",
        "from composer.core import Algorithm, Event, State\n"
        "from composer.trainer._scaler import ClosureGradScaler\n"
        "class SAMOptimizer:\n"
        "    def __init__(self, base, rho): pass\n"
        "    def step(self, closure): raise TypeError('steps otherwise by now')\n",
    )
    rows = {
        row.split("|")[2].strip(): row.split("|")[3].strip() for row in run("--peers", tmp_path)
    }
    assert float(rows["davda54/sam: SAM"]) > 0
    assert float(rows["davda54/sam: ASAM"]) > 0
    failed = "not measured: "
    assert rows["BingcongLi/VaSSO"].startswith(failed + "ModuleNotFoundError: No module named 'a_p")
    assert rows["juntang-zhuang/GSAM"] == failed + "RuntimeError: a TORCH_LIBRARY / twice"
    assert rows["mosaicml/composer: SAM"] == failed + "TypeError: steps otherwise by now"
    assert "clone nblt/F-SAM there" in rows["nblt/F-SAM"]

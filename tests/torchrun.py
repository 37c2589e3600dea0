"""Scripts that several processes run: launched by torchrun, once for all workers of pytest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
PATIENCE = 400
"""Seconds; a launch needs a sixth of them on two idle cores."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
"""A process that crashes says in the log where it was."""


def launched(
    request: pytest.FixtureRequest,
    script: str,
    processes: int,
    prepare: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """The folder, its one argument, to which `script` has written, and a `log` of what it said."""
    base: Path = request.getfixturevalue("tmp_path_factory").getbasetemp()
    one_of_many = hasattr(request.config, "workerinput")
    folder = (base.parent if one_of_many else base) / f"{Path(script).stem} on {processes}"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            folder.mkdir()
            prepare(folder)
            launch(script, processes, folder)
    return folder


def launch(script: str, processes: int, folder: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(
            [*torchrun, "--nproc-per-node", str(processes), HERE / script, folder],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
            start_new_session=True,
        )
        try:
            run.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def read(folder: Path, names: list[str]) -> list[Path]:
    """The files that the ranks were to write; the test fails with the log if one is missing."""
    paths = [folder / name for name in names]
    if not all(path.exists() for path in paths):
        log = (folder / "log").read_text()
        crash = log.find("Fatal Python error")
        said = log[-4000:] if crash < 0 else log[crash : crash + 4000]
        pytest.fail(f"the script did not end:\n{said}")
    return paths

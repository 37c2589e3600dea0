"""A look at a run from outside, quick enough to be in time on a busy machine."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest


def has_a_row(folder: Path) -> bool:
    """Has a first cell ended?"""
    if not (folder / "study.db").exists():
        return False
    with closing(sqlite3.connect(folder / "study.db", timeout=60)) as database:
        ended = database.execute("SELECT 1 FROM trials WHERE state = 'COMPLETE' LIMIT 1")
        return ended.fetchone() is not None


def wait_for_a_row(process: subprocess.Popen[str], folder: Path, patience: float = 120) -> None:
    """Return as soon as `process` has a row in `folder`; fail if it ends before."""
    deadline = time.monotonic() + patience
    while not has_a_row(folder):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def only_readable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `os.access` say that nothing in `folder` can be written, which root always could."""
    may = os.access

    def access(path: Path, mode: int) -> bool:
        return path != folder and folder not in path.parents and may(path, mode)

    monkeypatch.setattr(os, "access", access)

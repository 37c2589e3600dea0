"""Pages as PNG and PDF, by a Chrome that is installed: what a reader sees is what is drawn."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from flatmin.training.errors import InputError

NAMES = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    *("microsoft-edge", "msedge"),
)
APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)

WIDTH = 1280
"""Pixels of a picture."""

WAIT = 20_000
"""Milliseconds of its own time that a page has to draw."""

PATIENCE = 300
"""Seconds after which a browser is given up: surfaces without a GPU take it a while."""


def find() -> str:
    """The program. Raises InputError where there is none."""
    named = os.environ.get("FLATMIN_BROWSER")
    if named:
        return named
    found = next(filter(None, map(shutil.which, NAMES)), None)
    found = found or next((path for path in APPLICATIONS if Path(path).exists()), None)
    if found is None:
        raise InputError(
            "PNG and PDF take Chrome or Chromium: install one, or name it in $FLATMIN_BROWSER; or "
            "open the page and print it"
        )
    return found


def picture(program: str, page: Path, path: Path) -> Path:
    """The whole page as PNG."""
    drawn = _run(program, page, "--dump-dom", f"--window-size={WIDTH},1000")
    height = re.search(r'data-height="(\d+)"', drawn)
    size = f"--window-size={WIDTH},{height[1] if height else 4000}"
    _run(program, page, size, "--hide-scrollbars", f"--screenshot={path.resolve()}")
    return _made(path)


def document(program: str, page: Path, path: Path) -> Path:
    """The page as printed, PDF."""
    _run(program, page, "--no-pdf-header-footer", f"--print-to-pdf={path.resolve()}")
    return _made(path)


def _run(program: str, page: Path, *flags: str) -> str:
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # its sandbox does not let root in
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            program,
            "--headless",
            *(["--no-sandbox"] if root else []),
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={profile}",
            f"--virtual-time-budget={WAIT}",
            *flags,
            page.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise InputError(
                f"{program} cannot draw {page} ({said[-1] if said else 'it says nothing'}): open "
                "the page and print it"
            ) from None
    return done.stdout


def _made(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"no {path} was made: open the page and print it")
    return path

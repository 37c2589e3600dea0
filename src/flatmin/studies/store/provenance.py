"""Where a number comes from: the code, the software beneath it, the machine."""

from __future__ import annotations

import functools
import hashlib
import platform
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

import flatmin

_PACKAGE = Path(flatmin.__file__).parent


def versions() -> dict[str, str]:
    """Of the software that a result depends on."""
    return {
        "flatmin": flatmin.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@functools.cache
def digest() -> str:
    """Hash of flatmin's own Python files: equal where the code is, with or without git."""
    found = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        found.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


@functools.cache
def commit() -> str:
    """The git commit of flatmin's source, `+changes` where it has been edited since.

    "unknown" where the source is not under git, as in an installed package.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return "unknown"
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    return head + ("+changes" if _git("status", "--porcelain", "--", ".") else "")


def described(device: str) -> str:
    """A device in words: a GPU's name is one already, "cpu" becomes that of the processor."""
    return _processor() if device == "cpu" else device


@functools.cache
def machine() -> str:
    """A name for the machine, different wherever process numbers mean something else."""
    name = socket.gethostname()
    return f"{name}-{hashlib.sha256(f'{name} {_boot()} {_numbering()}'.encode()).hexdigest()[:8]}"


def system() -> str:
    """A name for the running system, containers and all: what shares one memory."""
    return hashlib.sha256((_boot() or socket.gethostname()).encode()).hexdigest()[:8]


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _boot() -> str:
    """When this system was started; empty where that is not told."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _numbering() -> str:
    """Whose process numbers count here: each container has its own."""
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _git(*arguments: str) -> str | None:
    """What git says in flatmin's folder; None if it fails or is not there."""
    try:
        ended = subprocess.run(
            ["git", "-C", str(_PACKAGE), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()

"""`flatmin --version`: what is installed, for a bug report."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata

import flatmin

PACKAGES = (
    *("torch", "numpy", "scipy", "optuna", "pydantic", "pyarrow", "pillow", "tyro", "rich"),
    *("jinja2", "psycopg", "timm", "transformers", "accelerate", "lightning"),
)
"""What results, or the commands, may depend on."""


def version() -> int:
    """Print the version and, line by line, everything that it stands on."""
    print(f"flatmin {flatmin.__version__}", flush=True)  # at once; the rest takes torch
    for title, told in (
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("packages", ", ".join(f"{name} {number}" for name, number in _installed())),
        ("torch sees", _devices()),
        ("data", os.environ.get("FLATMIN_DATA", "FLATMIN_DATA is not set")),
    ):
        print(f"{title + ':':12}{told}")
    return 0


def _installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)


def _devices() -> str:
    """The processor and the GPUs, or why torch cannot tell."""
    try:
        import torch

        from flatmin.studies.store import provenance
    except (ImportError, OSError) as error:  # the latter of a library that torch cannot load
        return f"nothing: it cannot be imported ({str(error).splitlines()[0]})"
    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    commit = provenance.commit()
    return ", ".join([provenance.described("cpu"), cores, *gpus]) + f"\n{'commit:':12}{commit}"

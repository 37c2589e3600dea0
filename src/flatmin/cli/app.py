"""The command line: compare, run, worker, status, report, inspect, recipes, methods, meta.

A user's mistake ends with one line and status 2, an interrupt with one line and status 130.
Everything beyond the standard library is imported where it is used, so that a missing extra is a
line and no traceback.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from flatmin.cli.messages import stop


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    sys.stdout = sys.stdout or io.StringIO()  # None where it was closed
    try:
        try:
            return _obey(arguments)
        finally:
            sys.stdout.flush()  # here, where an error can be told
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in ("", "flatmin"):
            raise
        return stop(f"this needs {package}: pip install 'flatmin[studies]'")
    except KeyboardInterrupt:
        return stop("interrupted", 130)
    except BrokenPipeError:  # who reads the standard output has seen enough
        _mute()
        return 1
    except OSError as error:
        full = error.errno == errno.ENOSPC  # of files that is told where they are written
        if full and error.filename is None:
            _mute()
            error.filename = "the standard output"
        about = "" if error.filename is None else f"{error.filename}: "
        return stop(f"{about}{error.strerror or error}")


def _mute() -> None:
    """Print no more: Python flushes the standard output once again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _obey(arguments: Sequence[str] | None) -> int:
    import tyro

    from flatmin.cli import compare, inspect, listings, meta, report, run, status
    from flatmin.cli.arguments import (
        CompareArguments,
        InspectArguments,
        MetaArguments,
        MethodsArguments,
        RecipesArguments,
        ReportArguments,
        RunArguments,
        StatusArguments,
        WorkerArguments,
    )
    from flatmin.training.errors import InputError

    commands: dict[Any, Any] = {
        CompareArguments: compare.compare,
        RunArguments: run.run,
        WorkerArguments: run.worker,
        StatusArguments: status.status,
        ReportArguments: report.report,
        InspectArguments: inspect.inspect,
        RecipesArguments: listings.recipes,
        MethodsArguments: listings.methods,
        MetaArguments: meta.meta,
    }
    chosen = tyro.extras.subcommand_cli_from_dict(
        {act.__name__: wanted for wanted, act in commands.items()},
        prog="flatmin",
        description="Sharpness-aware minimization, compared honestly.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        return commands[type(chosen)](chosen)
    except InputError as mistake:
        return stop(str(mistake))

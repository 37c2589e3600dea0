"""The command line: compare, run, worker, status, report, inspect, recipes, methods, meta.

A user's mistake ends with one line and status 2, an interrupt with one line and status 130.
Everything beyond the standard library is imported where it is used, so that a missing extra is a
line and no traceback, and so that help and mistakes come at once: torch, which takes seconds, is
imported when the arguments have been read.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import importlib
import io
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any

from flatmin.cli.messages import stop

COMMANDS: Mapping[str, tuple[str, str]] = {
    "compare": ("compare", "CompareArguments"),
    "run": ("run", "RunArguments"),
    "worker": ("run", "WorkerArguments"),
    "status": ("status", "StatusArguments"),
    "report": ("report", "ReportArguments"),
    "inspect": ("inspect", "InspectArguments"),
    "recipes": ("listings", "RecipesArguments"),
    "methods": ("listings", "MethodsArguments"),
    "meta": ("meta", "MetaArguments"),
}
"""By name: the module of `flatmin.cli` that has a function of that name, and what it takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    sys.stdout = sys.stdout or io.StringIO()  # None where it was closed
    try:
        try:
            return _obey(list(sys.argv[1:] if arguments is None else arguments))
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


def _obey(words: list[str]) -> int:
    from flatmin.training.errors import InputError, unknown

    name, *rest = words or [""]
    if name in ("-h", "--help", "help"):
        return _help()
    if name in ("-V", "--version", "version"):
        from flatmin.cli import version

        return version.version()
    try:
        if name not in COMMANDS:
            if not name:
                raise InputError(f"name a command: {', '.join(COMMANDS)}; see flatmin --help")
            raise unknown("command", name, COMMANDS)
        module, kind = COMMANDS[name]
        wanted = _parsed(name, kind, rest)
        if wanted is None:  # its help was asked for
            return 0
        return getattr(importlib.import_module(f"flatmin.cli.{module}"), name)(wanted)
    except InputError as mistake:
        return stop(str(mistake))


def _help() -> int:
    """Say what commands there are, each with the first sentence about what it takes."""
    from flatmin.cli import arguments

    print("usage: flatmin COMMAND …\n\nSharpness-aware minimization, compared honestly.\n")
    width = max(map(len, COMMANDS)) + 4
    columns = min(_columns(), 100)
    for name, (_, kind) in COMMANDS.items():
        sentence = (getattr(arguments, kind).__doc__ or "").split("\n\n")[0]
        first, *more = textwrap.wrap(sentence, max(20, columns - width))
        print(f"  {name:{width - 2}}{first}", *(f"{'':{width}}{line}" for line in more), sep="\n")
    print(
        "\nflatmin COMMAND --help tells what it takes; flatmin --version, what is installed here."
    )
    return 0


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def _parsed(name: str, kind: str, words: list[str]) -> Any:
    """What is asked of a command; None if its help is, which has been printed then."""
    import tyro

    from flatmin.cli import arguments
    from flatmin.training.errors import InputError

    wanted, said = getattr(arguments, kind), io.StringIO()
    _check(wanted, words)
    try:
        with redirect_stderr(said):
            return tyro.cli(
                wanted,
                prog=f"flatmin {name}",
                args=words,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as ended:
        if not ended.code:
            return None
        raise InputError(_in_a_line(said.getvalue(), name)) from None


def _check(kind: type, words: list[str]) -> None:
    """Raise InputError for a flag that is not there, with the nearest; tyro may see it too late."""
    from flatmin.cli import arguments
    from flatmin.studies.plan.fewshot import FewShot
    from flatmin.training.errors import unknown

    kinds = (kind,)
    if kind is arguments.MetaArguments:
        if words and words[0] not in ("train", "test", "-h", "--help"):
            raise unknown("command", f"meta {words[0]}", ("meta train", "meta test"))
        kinds = (arguments.MetaTrain, arguments.MetaTest, FewShot)
    names = ["help", *(field.name for each in kinds for field in dataclasses.fields(each))]
    known = [name.replace("_", "-") for name in names]
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag == "--":
            return
        if flag.startswith("--") and flag[2:] not in known:
            near = difflib.get_close_matches(flag[2:], known, cutoff=0.6)
            raise unknown("option", flag, [f"--{name}" for name in near or known])


_SAID = (
    (r"Error parsing (.*)", r"\1"),
    (r"Unrecognized options?: ([^\s,]+).*", r"\1 is more than it takes"),
    (r"Missing from [^:]*: (\S+) (.*)\. \(required\)", r"\1 is missing: \2"),
    (r"Missing value for argument '(.*)'.*", r"\1 takes a value"),
    (r"invalid choice '(.*)' for argument '(.*)'. Expected one of \((.*)\)", r"\2 \1: give \3"),
    (r"Expected one of \{(.*)\}", r"give one of \1"),
)
"""What tyro says, and how it is said here."""


def _in_a_line(box: str, name: str) -> str:
    """What tyro says in a box of several lines, as flatmin says everything."""
    lines = [line.strip("│| ") for line in box.splitlines()]
    # a title, perhaps in the frame; below it parts, with a rule between them: the first says it
    _, *rest = [line for line in lines if line] or [""]
    start = next((at for at, line in enumerate(rest) if line.strip("─-")), 0)
    parts = itertools.takewhile(lambda line: line.strip("─-╰╯ "), rest[start:])
    said = " ".join(parts).rstrip(". ")
    for theirs, ours in _SAID:
        said = re.sub(f"^{theirs}$", ours, said)
    about, given, choices = said.partition(": give '")
    if given:  # tyro names what stands for nothing given, too, and in any order
        known = re.findall(r"[^',\s]+", choices)
        said = f"{about}: give {' or '.join(sorted(name for name in known if name != 'None'))}"
    return f"{said}; see flatmin {name} --help"

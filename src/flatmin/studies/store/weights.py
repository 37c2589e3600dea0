"""Weights beside the rows: `weights/<method>-seed<n>-<key>.pt` in the folder of a study.

    kept = weights.read("runs/a/weights/sam-seed0-9f3c….pt")
    model = kept.model()

A file is what `torch.save` makes of a state dict and of what the network was made for; it is read
with `weights_only=True`, so that it runs no code, and appears under its name once it is whole.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flatmin.studies.store.row import Row
from flatmin.training import own
from flatmin.training.errors import InputError
from flatmin.training.learner import network
from flatmin.training.result import Run
from flatmin.training.settings import Training

FORMAT = "flatmin-weights-1"

FOLDER = "weights"


@dataclass(frozen=True)
class KeptWeights:
    """The final weights of one run.

    Fields:
        training: the run.
        facts: what the network was made for: channels, size and classes, as far as they are known.
        state: of the network, as `state_dict()` gave it.
        accuracy: that was measured with these weights.
    """

    training: Training
    facts: Mapping[str, int]
    state: Mapping[str, Any]
    accuracy: float

    def model(self, build: Any = None) -> nn.Module:
        """The network with these weights, in evaluation mode, on the CPU.

        `build` makes it where it was an object of another process. Raises InputError where it
        cannot be made, or has changed since.
        """
        training = replace(self.training, pretrained=None)
        if build is not None:
            made: nn.Module = own.network(training.model, build, **self.facts)
        else:
            with torch.random.fork_rng(devices=[]):
                made = network(training, self.facts)
        try:
            made.load_state_dict(self.state)
        except (RuntimeError, KeyError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"{own.title(training.model)} is another network than the one whose weights were "
                f"kept ({said}): give the function that made it"
            ) from None
        return made.eval()


def path(folder: Path, training: Training) -> Path:
    """Where the weights of a run are kept."""
    method = re.sub(r"[^\w.+-]+", "-", own.title(training.method))
    return folder / f"{method}-seed{training.seed}-{training.key}.pt"


def keep(folder: Path, run: Run, facts: Mapping[str, int]) -> Path:
    """Keep the model of a run, whole or not at all.

    Raises InputError where there is no room, or it cannot be written.
    """
    assert run.model is not None
    where = path(folder, run.training)
    state = {name: _held(value) for name, value in run.model.state_dict().items()}
    content = io.BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "training": asdict(run.training),
            "facts": dict(facts),
            "accuracy": run.accuracy,
            "state_dict": state,
        },
        content,
    )
    handle, name = -1, ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{where.name}.", dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp keeps the file from everyone else
        Path(name).replace(where)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        error.filename = str(where)
        raise
    return where


def lacking(folder: Path, rows: Iterable[Row]) -> str:
    """A line on the runs that have finished without leaving their weights; empty for none."""
    kept = folder / FOLDER
    without = [row for row in rows if not path(kept, Training.of(row.training)).is_file()]
    if not without:
        return ""
    return (
        f"{len(without)} runs had finished before their weights were to be kept, and are not "
        f"trained again: give another folder to have all"
    )


def is_kept(file: Path) -> bool:
    """Is a file one that `keep` has written?"""
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever its bytes lead to
        return False
    return isinstance(found, dict) and cast("dict[str, Any]", found).get("format") == FORMAT


def read(file: Path | str) -> KeptWeights:
    """What a file of weights holds. Raises InputError where it is none of ours."""
    file = Path(file)
    if file.is_dir():
        file = _only(file)
    if not file.is_file():
        raise InputError(f"no weights at {file}: give a file that --keep weights has written")
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or cast("dict[str, Any]", found).get("format") != FORMAT:
            raise ValueError("it is not in flatmin's form")
        content = cast("dict[str, Any]", found)
        training = Training.of(content["training"])
        return KeptWeights(training, content["facts"], content["state_dict"], content["accuracy"])
    except InputError:
        raise
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} holds no weights that flatmin has kept: {said}") from None


def _held(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _only(folder: Path) -> Path:
    """The only file of weights in a study's folder."""
    found = sorted([*folder.glob("*.pt"), *folder.glob(f"{FOLDER}/*.pt")])
    if len(found) == 1:
        return found[0]
    names = ", ".join(each.name for each in found[:4])
    more = (
        f"one of {names}{', …' if len(found) > 4 else ''}" if found else "run with --keep weights"
    )
    raise InputError(f"{folder} holds the weights of {len(found)} runs: give {more}")

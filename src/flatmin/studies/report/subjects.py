"""Models to look at: out of a run, a checkpoint or a file of weights.

    subjects(["runs/cifar10-1f3a5c7e"])                         # every cell that has a checkpoint
    subjects(["SGD=a.pt", "SAM=b.pt"], model="cnn", data="cifar10")

Weights that a run has kept say themselves what they are of, and so does a checkpoint that lies in
its run's folder. `_state` is the one place that knows how weights are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatmin import methods
from flatmin.analysis.planes import mismatch, some, state_of
from flatmin.studies.report import runs, text
from flatmin.studies.store import files, folders, weights
from flatmin.training import checkpoints, evaluation, losses, own
from flatmin.training.data.sample_batches import run_data
from flatmin.training.data.samples import AnyData, load_any
from flatmin.training.errors import InputError
from flatmin.training.learner import network
from flatmin.training.models import pretraining
from flatmin.training.processes import ProcessGroup
from flatmin.training.scores import called
from flatmin.training.settings import Training

CELLS = "checkpoints"
"""The folder, in that of a run, in which every cell has one."""

MANY = 12
"""More models than this do not fit on a page."""

BATCH = 64
"""Samples a batch, where no run says it."""


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """The mean loss of a classifier over a batch of inputs and labels."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def _mean(loss: Any, model: nn.Module, batch: Any) -> Tensor:
    """A run's loss, of outputs and targets, as that of a model and a batch."""
    inputs, targets = batch
    return loss(called(model, inputs), targets)


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to look at, and on what.

    Fields:
        name: what readers call it.
        model: any module; it is left as it is.
        data: batches, as `flatmin.analysis` takes them.
        loss: `loss(model, batch)`, a mean over the batch; default the cross-entropy of a classifier
            on a pair of inputs and labels.
        about: where it comes from.
        observed: what was recorded along its training, by name.
    """

    name: str
    model: nn.Module
    data: Any
    loss: Any = cross_entropy
    about: str = ""
    observed: Mapping[str, Sequence[float | None]] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, eq=False)
class _Weights:
    """A state dict, and what is known of it.

    Fields:
        where: the file.
        name: what readers call it; empty where nothing is said.
        state: of the model.
        training: that it is of; None where nobody knows.
        about: in words.
        observed: what was recorded.
    """

    where: Path
    name: str
    state: Mapping[str, Tensor]
    training: Training | None = None
    about: str = ""
    observed: Mapping[str, Sequence[float | None]] = field(default_factory=dict[str, Any])


def subjects(
    given: Sequence[str],
    model: str | None = None,
    data: str | None = None,
    *,
    limit: int | None = None,
    images: int = 256,
) -> list[Subject]:
    """The models that are meant, each with images that it learned from.

    Args:
        given: folders of runs, checkpoints, or files of weights; `NAME=PATH` gives a name.
        model: a name in `flatmin.training.models`, or `module:name` of one; needed where the
            weights do not say it.
        data: a data set as for `flatmin.training.load`, or `module:name` of one's own.
        limit: how many of its training images a file's weights learned from; default all.
        images: how many of these to look at, with equal shares of every class.

    Raises InputError where there is no checkpoint, or one that does not fit.
    """
    found = [each for word in given for each in _found(word)]
    if not found:
        raise InputError("inspect takes the folder of a run, a checkpoint, or several")
    if len(found) > MANY:
        raise InputError(
            f"{len(found)} models are too many for one page: name at most {MANY} checkpoints"
        )
    at_hand = _AtHand(model, data, limit, images)
    names = _named([each.name or each.where.stem for each in found])
    return [at_hand.subject(each, name) for each, name in zip(found, names, strict=True)]


# Where weights are ----------------------------------------------------------------------------


def _found(word: str) -> Iterator[_Weights]:
    """What a word of the command line means."""
    name, equals, rest = word.partition("=")
    if not equals or not name or files.is_file(Path(word)) or files.is_folder(Path(word)):
        name, rest = "", word
    path = Path(rest)
    if files.is_file(path):
        yield _named_as(name, _state(path, _plan(path)))
    elif files.is_folder(path):
        cells, plan = _cells(path), list(_plan(path / "-"))
        found = [_state(cell, plan) for cell in cells]
        for one in sorted(found, key=lambda each: _order(each, plan)):
            label = name if len(cells) == 1 else f"{name}: {one.name}" if name else ""
            yield _named_as(label, one)
    else:
        raise InputError(f"there is nothing at {rest}: give a run's folder or a checkpoint")


def _named_as(name: str, found: _Weights) -> _Weights:
    return replace(found, name=name) if name else found


def _cells(folder: Path) -> list[Path]:
    """Of each cell in a run's folder its weights, or its newest checkpoint; or of one cell."""
    newest = _newest(folder)
    if newest is not None:
        return [newest]
    kept = sorted((folder / weights.FOLDER).glob("*.pt"))
    inside = folder / CELLS if files.is_folder(folder / CELLS) else folder
    cells = sorted(path for path in inside.iterdir() if path.is_dir())
    found = [*kept, *(newest for newest in map(_newest, cells) if newest is not None)]
    if found:
        return found
    loose = sorted(p.name for p in folder.iterdir() if p.suffix in (".pt", ".pth", ".safetensors"))
    if loose:
        raise InputError(
            f"{folder} holds files of weights ({some(loose)}): name those that are to be inspected"
        )
    raise InputError(
        f"no weights in {folder}: give the folder of a run that kept them (--keep weights), is at "
        "work or was interrupted, or a file of weights with --model and --data"
    )


def _newest(folder: Path) -> Path | None:
    """The checkpoint of the last epoch in a cell's folder."""
    return max(folder.glob("epoch-*.pt"), default=None)


def _state(path: Path, plan: Iterable[Training]) -> _Weights:
    """The weights in a file, with what it says of itself; `plan`: of the run where it lies."""
    if weights.is_kept(path):
        kept = weights.read(path)
        about = f"{path}, after its last epoch"
        return _Weights(path, _title(kept.training), kept.state, kept.training, about)
    with path.open("rb") as file:
        ours = file.read(len(checkpoints.FORMAT)) == checkpoints.FORMAT.encode()
    if not ours:
        return _Weights(path, "", pretraining.read(path), about=str(path))
    try:
        key, opened = checkpoints.opened(path.read_bytes())
        state = opened()
    except checkpoints.Damaged as damage:
        raise InputError(f"{path} is damaged ({damage}): give another checkpoint") from None
    training = next((each for each in plan if key.startswith(each.key)), None)
    if not {"model", "curve", "recorder"} <= state.keys():
        raise InputError(f"{path} is of a few-shot training: inspect takes those of classifiers")
    epochs = len(state["curve"])
    about = f"{path}, epoch {epochs}" + (f" of {training.epochs}" if training else "")
    name = _title(training) if training else ""
    return _Weights(path, name, state["model"], training, about, state["recorder"]["values"])


def _plan(path: Path) -> Iterator[Training]:
    """What the run does in whose folder a file lies; nothing where it lies in none."""
    for folder in path.resolve().parents[:3]:
        if folders.holds_run(folder):
            record = runs.record(str(folder))
            yield from record.plan.plan(record.rows, frozenset())
            return


def _order(found: _Weights, plan: list[Training]) -> int:
    return plan.index(found.training) if found.training in plan else len(plan)


def _title(training: Training) -> str:
    rho = "" if training.rho is None else f", ρ {training.rho:g}"
    return f"{_method(training.method)}{rho}, seed {training.seed}"


def _method(name: str) -> str:
    return own.title(name) if own.is_own(name) else methods.find(name).title


def _named(names: Sequence[str]) -> list[str]:
    """Each its own: the second of a name gets a number."""
    found: list[str] = []
    for name in names:
        own, n = name, 1
        while own in found:
            n += 1
            own = f"{name} ({n})"
        found.append(own)
    return found


# What they are of -----------------------------------------------------------------------------


class _AtHand:
    """Makes the models, and reads each data set once.

    Args:
        model, data, limit: as the user names them, or None.
        images: how many to look at.
    """

    def __init__(self, model: str | None, data: str | None, limit: int | None, images: int) -> None:
        if images < 1:
            raise InputError(f"--images {images} is out of range: expected at least 1")
        self._model, self._data, self._limit, self._images = model, data, limit, images
        self._sets: dict[object, AnyData] = {}
        self._batches: dict[object, Any] = {}

    def subject(self, found: _Weights, name: str) -> Subject:
        """A model with its weights, and its samples."""
        training = self._training(found)
        data = self._loaded(training)
        ours = run_data(training, data, group := ProcessGroup.here())
        with torch.random.fork_rng():  # weights that are about to be replaced
            made = replace(training, pretrained=None)
            model = network(made, evaluation.facts(data, ours.size)).to(group.device)
        _put(model, found, own.title(training.model))
        loss = partial(_mean, losses.find(training.loss).mean)
        batches = self._sampled(training, ours, found.training.batch if found.training else BATCH)
        return Subject(name, model, batches, loss, self._about(found), found.observed)

    def _sampled(self, training: Training, ours: Any, size: int) -> Any:
        """One object for all that are looked at on the same samples."""
        seen = (training.data, training.limit, training.size, training.noise, training.seed)
        key = (*seen, training.holdout, size)
        if key not in self._batches:
            parts = ours.sample(self._images).parts(size)
            self._batches[key] = [(part.inputs, part.targets) for part in parts]
        return self._batches[key]

    def _training(self, found: _Weights) -> Training:
        """What decides on the images: the run's settings, or those of the flags alone."""
        model = self._model
        if found.training is not None:
            known = found.training
            if self._data is not None:
                known = replace(known, data=self._data, noise="0", holdout=0.0, limit=self._limit)
            return replace(known, model=model or known.model, width=1.0 if model else known.width)
        if model is None or self._data is None:
            flags = {"--model NAME": model, "--data NAME": self._data}
            missing = text.listing([flag for flag, value in flags.items() if value is None])
            raise InputError(f"{found.where} does not say what it is of: add {missing}")
        return Training(self._data, model, "sgd", batch=1, limit=self._limit)

    def _loaded(self, training: Training) -> AnyData:
        wanted = training.data, training.limit, training.size
        if wanted not in self._sets:
            self._sets = {wanted: load_any(wanted[0], limit=wanted[1], size=wanted[2])}
        return self._sets[wanted]

    def _about(self, found: _Weights) -> str:
        model = self._model or (found.training.model if found.training else "")
        data = self._data or (found.training.data if found.training else "")
        return ", ".join(filter(None, (found.about, model, data)))


def _put(model: nn.Module, found: _Weights, name: str) -> None:
    """Give a model its weights, or say why they do not fit."""
    state = state_of(found.state)
    wrong = mismatch(model.state_dict(), state)
    if wrong:
        raise InputError(f"{found.where} is not of {name}: {wrong}")
    broken = [key for key, x in state.items() if not bool(x.isfinite().all())]
    if broken:
        raise InputError(
            f"{found.where} holds values that are not finite ({some(broken)}): the run has "
            "diverged; give an earlier checkpoint"
        )
    model.load_state_dict(state)

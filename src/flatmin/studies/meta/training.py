"""A few-shot training: meta-steps, validations, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy

from flatmin.meta import MetaLearner, Task, conv4
from flatmin.meta.batching import Batching
from flatmin.meta.network import Down
from flatmin.studies.meta.pools import Pools
from flatmin.studies.plan.fewshot import FewShot
from flatmin.studies.report.statistics import Spread
from flatmin.studies.store import files
from flatmin.training import seeds
from flatmin.training.checkpoints import Checkpoints
from flatmin.training.errors import InputError
from flatmin.training.processes import ProcessGroup

CHECKPOINT_STEPS = 200
"""Meta-steps between checkpoints; a run that is killed loses no more."""

SETTINGS = "settings.json"
HISTORY = "history.json"


@dataclass(frozen=True)
class Validation:
    """What was seen on the validation classes after `step` meta-steps.

    Fields:
        loss: mean training loss since the validation before.
        accuracy, half: mean over the validation tasks in percent, and half of its 95 % interval.
        seconds: spent on meta-steps so far.
        diverged: training tasks left out so far.
    """

    step: int
    loss: float
    accuracy: float
    half: float
    seconds: float
    diverged: int


@dataclass
class State:
    """Where a training is; all of it is in each checkpoint."""

    step: int
    seconds: float
    best: float
    best_model: dict[str, Any]
    history: list[Validation]
    losses: list[float]


Tell = Callable[[FewShot, int, float, "list[Validation]", str], None]
"""Called after each meta-step with the settings, the step, its loss, what was validated, and how
tasks run."""


def learner_of(
    wanted: FewShot, pools: Pools, *, batching: Batching = "auto", shared: bool = False
) -> MetaLearner:
    """The meta-learner of a training, at its start: the weights are those of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(wanted.seed, "weights"))
        model = conv4(
            pools.channels,
            pools.size,
            wanted.ways,
            filters=wanted.filters,
            down=cast(Down, wanted.down),
        )
    return MetaLearner(
        model,
        cross_entropy,
        wanted.inner_lr,
        wanted.inner_steps,
        wanted.first_order,
        lower=wanted.lower,
        upper=wanted.upper,
        through_perturbation=wanted.through_perturbation,
        batching=batching,
        shared=shared,
    )


def train(
    wanted: FewShot,
    pools: Pools,
    folder: Path,
    *,
    batching: Batching = "auto",
    group: ProcessGroup | None = None,
    tell: Tell | None = None,
    checkpoint_steps: int = CHECKPOINT_STEPS,
) -> MetaLearner:
    """Train, or go on with what was begun in `folder`, bit for bit as if never stopped.

    Args:
        wanted: what to train.
        pools: its tasks.
        folder: for settings, checkpoints and the course of the validation; one for each training.
        batching: how tasks run; see `MetaLearner`. It is chosen once, and kept by checkpoints.
        group: the processes of torchrun, each of which takes its share of every meta-batch.
        tell: hears of every meta-step.
        checkpoint_steps: meta-steps between checkpoints.

    Raises InputError where the folder holds another training, or cannot be written.
    """
    group = group or ProcessGroup.here()
    share = group.share(wanted.tasks)
    learner = learner_of(wanted, pools, batching=batching, shared=group.world > 1)
    learner.to(group.device)
    base = torch.optim.Adam(learner.parameters(), wanted.lr)
    optimizer = learner.optimizer(base)
    key = f"{wanted.key}-{pools.fingerprint}"
    checkpoints = Checkpoints(folder / "checkpoints", key)
    state = State(0, 0.0, -1.0, {}, [], [])
    found = None
    if group.leads:
        begin(wanted, folder)
        found = checkpoints.newest()
    found = group.from_leader(found)
    if found is not None:
        state = _resumed(found[1], learner, optimizer)
    while state.step < wanted.steps:
        begun = time.perf_counter()
        batch = pools.train.batch(state.step, wanted.tasks)[share]
        loss = float(learner.step(optimizer, [task.to(group.device) for task in batch]))
        state.seconds += time.perf_counter() - begun
        state.step += 1
        state.losses.append(loss)
        last = state.step == wanted.steps
        if last or state.step % wanted.validate_every == 0:
            _validate(wanted, pools, learner, state, group)
        if group.leads and (last or state.step == 1 or state.step % checkpoint_steps == 0):
            # after the first step too: from there on it is known how tasks run
            checkpoints.save(state.step, _packed(state, learner, optimizer))
            with files.told(folder / HISTORY, "make room there, and run the same again"):
                files.write(folder / HISTORY, files.as_json([vars(v) for v in state.history]))
        if tell is not None and group.leads:
            tell(wanted, state.step, loss, state.history, learner.batching_says)
    return learner


def begin(wanted: FewShot, folder: Path) -> None:
    """Say in `folder` what is trained there; InputError if something else is."""
    files.writable(folder)
    path = folder / SETTINGS
    if files.is_file(path):
        there = settings(folder)
        if there != wanted:
            differ = [n for n, v in wanted.as_data().items() if there.as_data()[n] != v]
            raise InputError(
                f"{folder} holds a training with another {', '.join(differ)}: give another folder "
                f"by --out, or the same settings to go on"
            )
    with files.told(path, "give another folder by --out"):
        files.write(path, json.dumps(wanted.as_data(), indent=1))


def settings(folder: Path) -> FewShot:
    """What is trained in `folder`; InputError where nothing is."""
    path = folder / SETTINGS
    if not files.is_file(path):
        raise InputError(f"no {SETTINGS} in {folder}: give a folder of `flatmin meta train`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return FewShot(**content).checked()
    except (ValueError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be read ({said}): train anew in another folder") from None


def models(wanted: FewShot, pools: Pools, folder: Path) -> Mapping[str, MetaLearner]:
    """The best model of a training and the last one; InputError where it is not finished."""
    found = Checkpoints(folder / "checkpoints", f"{wanted.key}-{pools.fingerprint}").newest()
    if found is None or found[0] < wanted.steps:
        there = 0 if found is None else found[0]
        raise InputError(
            f"{folder} is at meta-step {there} of {wanted.steps}: finish it by flatmin meta train"
        )
    learners: dict[str, MetaLearner] = {}
    for name, content in (("best", found[1]["best_model"]), ("last", found[1]["learner"])):
        learner = learner_of(wanted, pools)
        learner.load_state_dict(content)
        learners[name] = learner
    return learners


def history(folder: Path) -> list[Validation]:
    """The course of the validation."""
    path = folder / HISTORY
    if not files.is_file(path):
        return []
    return validations(json.loads(path.read_text(encoding="utf-8")))


def validations(rows: Sequence[Mapping[str, Any]]) -> list[Validation]:
    """Of what JSON holds, which has no nan."""
    known: list[dict[str, Any]] = [
        {name: math.nan if value is None else value for name, value in row.items()} for row in rows
    ]
    return [Validation(**row) for row in known]


def accuracies(
    learner: MetaLearner,
    tasks: list[Task],
    group: ProcessGroup,
    *,
    steps: int | None = None,
    plainly: bool = False,
) -> list[float]:
    """In percent, task by task; each process does its part of them."""
    own = [task.to(group.device) for task in tasks[group.rank :: group.world]]
    found: list[float] = []
    for start in range(0, len(own), 50):  # so many at once in memory
        scores = learner.evaluate(own[start : start + 50], steps=steps, plainly=plainly)
        found += [100 * value for value in cast("list[float]", scores.accuracies.tolist())]
    every = group.from_all(found)
    return [every[i % group.world][i // group.world] for i in range(len(tasks))]


def half_width(values: list[float]) -> float:
    """Half of the 95 % interval of a mean over tasks."""
    from scipy import stats

    spread = Spread.of(values)
    return float(stats.t.ppf(0.975, spread.n - 1)) * spread.sd / math.sqrt(spread.n)


def _validate(
    wanted: FewShot, pools: Pools, learner: MetaLearner, state: State, group: ProcessGroup
) -> None:
    tasks = pools.validation.batch(0, wanted.validation_tasks)
    found = accuracies(
        learner, tasks, group, steps=wanted.test_steps or None, plainly=wanted.plain_test
    )
    mean = Spread.of(found).mean
    loss = Spread.of([x for x in state.losses if math.isfinite(x)]).mean
    state.losses.clear()
    state.history.append(
        Validation(state.step, loss, mean, half_width(found), state.seconds, learner.diverged)
    )
    if mean > state.best:
        state.best = mean
        state.best_model = {
            name: value.detach().clone() if isinstance(value, torch.Tensor) else value
            for name, value in learner.state_dict().items()
        }


def _packed(state: State, learner: MetaLearner, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "learner": learner.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best_model": state.best_model,
        "step": state.step,
        "seconds": state.seconds,
        "best": state.best,
        "losses": list(state.losses),
        "history": [vars(each) for each in state.history],
    }


def _resumed(
    content: Mapping[str, Any], learner: MetaLearner, optimizer: torch.optim.Optimizer
) -> State:
    learner.load_state_dict(content["learner"])
    optimizer.load_state_dict(content["optimizer"])
    return State(
        content["step"],
        content["seconds"],
        content["best"],
        content["best_model"],
        [Validation(**row) for row in content["history"]],
        list(content["losses"]),
    )

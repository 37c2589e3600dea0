"""One training run, start to end, in the order in which it happens.

    run = train(Training(data="digits", model="mlp", method="agnostic-sam", seed=0))
    print(run.accuracy, run.cost.ratio)

The same `Training` gives the same run, bit for bit, on one machine with one number of threads, also
if it is killed and taken up again from a checkpoint. Two that differ in method or radius alone
start from the same weights and see the same images, noise, augmentation and batches in the same
order: that is what makes their difference a paired one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from flatmin.training import evaluation
from flatmin.training.checkpoints import Checkpoints
from flatmin.training.data.batches import RunData
from flatmin.training.data.sample_batches import SampleRun, run_data
from flatmin.training.data.samples import AnyData, load_any
from flatmin.training.errors import InputError
from flatmin.training.learner import Learner, network
from flatmin.training.observer import Observer
from flatmin.training.processes import Parallel, ProcessGroup
from flatmin.training.result import Epoch, Run
from flatmin.training.seeds import derive
from flatmin.training.settings import Training

Watch = Callable[[int, Epoch], None]


def train(
    training: Training,
    data: AnyData | None = None,
    watch: Watch | None = None,
    *,
    checkpoints: Path | str | None = None,
    device: torch.device | str | None = None,
    parallel: Parallel = "ddp",
    observer: Callable[[Learner, RunData], Observer] | None = None,
) -> Run:
    """Train once.

    Args:
        training: what to do.
        data: the data set of `training`, if it is already loaded; default None, which loads it.
        watch: called after each epoch with its number, from 1, and its results; with many
            processes, by the first. A run that is taken up again calls it for its further epochs.
            Default None.
        checkpoints: a folder of this run's own, or its URL, in which each epoch is saved, and from
            which the run is taken up; `flatmin.training.checkpoints.remove` removes them. Default
            None: nothing is saved.
        device: on which to train; default the GPU, if there is one, or else the CPU.
        parallel: what each process holds of the model, where `torch.distributed` is initialised:
            all of it ("ddp") or a shard ("fsdp2"); default "ddp".
        observer: makes what does the `training.analysis`; default None, where there is none to do.

    Raises InputError where something of `training` does not exist or does not fit.

    Examples:
        >>> from flatmin.training import Training, train
        >>> run = train(Training(data="digits", model="mlp", method="sam", epochs=1, limit=200))
        >>> len(run.epochs), run.cost.ratio
        (1, 2.0)
    """
    if training.analysis and observer is None:
        raise InputError(
            f"analysis {training.analysis[0][0]}: `flatmin run` does it; in Python pass observer= "
            f"to train, such as flatmin.studies.run.looks.CellAnalysis"
        )
    data = data or load_any(training.data, limit=training.limit, size=training.size)
    group = ProcessGroup.here(device, parallel)
    saved = None
    if checkpoints is not None:
        saved = Checkpoints(checkpoints, f"{training.key}-{data.fingerprint()}")
    own = [group.device] if group.device.type == "cuda" else []
    with torch.random.fork_rng(own):  # the caller's random numbers go on as if nothing were
        torch.manual_seed(derive(training.seed, "weights"))
        return _train(training, data, watch, saved, group, observer if training.analysis else None)


def _train(
    training: Training,
    data: AnyData,
    watch: Watch | None,
    checkpoints: Checkpoints | None,
    group: ProcessGroup,
    observer: Callable[[Learner, RunData], Observer] | None,
) -> Run:
    ours = run_data(training, data, group)
    # Found now: what is missing, or does not fit, is better told before hours of training.
    further = evaluation.find(training.examine, data, ours)
    learner = Learner.begin(training, ours, _model(training, data, ours, group), group)
    if observer is not None:
        if not isinstance(ours, RunData):
            raise InputError("analysis looks at images: leave it out for data of another kind")
        learner = replace(learner, observer=observer(learner, ours))
    session = learner.session(checkpoints)
    curve = [Epoch(**values) for values in session.resume()]
    for number in range(len(curve) + 1, training.epochs + 1):
        curve.append(_epoch(learner, ours, number))
        # Kept before it is told: a watcher may raise, to end the run or since its claim is lost.
        session.save(number, [asdict(epoch) for epoch in curve])
        if watch and group.leads:
            watch(number, curve[-1])
    return Run(
        training,
        tuple(curve),
        learner.cost,
        chance=100 / len(data.classes) if data.classes else 0.0,
        examined=_examined(learner, further),
        observed=learner.recorder.values,
        analysed={} if learner.observer is None else learner.observer.values,
        device=group.name,
        processes=group.world,
        tested=len(ours.examined),
    ).with_model(group.bare(learner.model))


def _model(
    training: Training, data: AnyData, ours: RunData | SampleRun, group: ProcessGroup
) -> nn.Module:
    """The network, of the same weights on every rank, as the group evaluates it."""
    model = network(training, evaluation.facts(data, ours.size))
    if group.sharded:  # FSDP2 knows but the usual memory order
        model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    model = group.wrap(model.to(group.device))
    # Only now, since the weights are drawn alike: random layers draw for each share by themselves.
    if not group.leads:
        torch.manual_seed(derive(training.seed, f"random layers of rank {group.rank}"))
    return model


def _epoch(learner: Learner, ours: RunData | SampleRun, number: int) -> Epoch:
    """Train for one epoch and measure what has become of the model."""
    start = time.perf_counter()
    outputs = learner.epoch()  # read on the host, so that the device has finished too
    seconds = time.perf_counter() - start
    # Before the model is evaluated or saved: each rank has normalised its own share.
    learner.group.agree(learner.model)
    learner.recorder.ended(outputs)
    if learner.observer is not None:
        learner.observer.ended(number)
    (accuracy,) = learner.measured(ours.examined, learner.scores)
    return Epoch(
        loss=outputs.loss,
        train_accuracy=outputs.accuracy if learner.answers else math.nan,
        accuracy=accuracy,
        passes=learner.cost.samples / ours.count,
        seconds=seconds,
    )


def _examined(learner: Learner, further: Sequence[evaluation.Examination]) -> dict[str, float]:
    """Of the final model, by name, the mean over the sets that were asked for."""
    found: dict[str, float] = {}
    for asked in further:
        scores, guesses = asked.of(learner.scores), list(asked.guesses.values())
        values = [learner.measured(each, scores, guesses) for each in asked.sets()]
        found |= zip(asked.guesses, map(statistics.fmean, zip(*values, strict=True)), strict=True)
    return {name: found[name] for name in learner.training.examine}

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flatmin import methods
from flatmin.engine.cost import Cost
from flatmin.optimizer import SharpnessAware
from flatmin.schedules import RhoScheduler
from flatmin.training import bases, evaluation, losses, models, own, schedules
from flatmin.training.checkpoints import Checkpoints
from flatmin.training.data.batches import (
    Batch,
    BatchSampler,
    ImageSet,
    RunData,
    Stream,
    changed,
)
from flatmin.training.data.sample_batches import SampleRun, SampleSet, run_data
from flatmin.training.data.samples import AnyData, load_any
from flatmin.training.errors import InputError
from flatmin.training.observer import Closures, Observer
from flatmin.training.processes import Parallel, ProcessGroup
from flatmin.training.recorder import EpochSummary, Recorder
from flatmin.training.resume import Session
from flatmin.training.seeds import derive
from flatmin.training.settings import Training


@dataclass(frozen=True)
class Epoch:
    """What one epoch ended with.

    Fields:
        loss: mean training loss at the unperturbed weights, each batch before its step.
        train_accuracy: % of the training labels as given, noise included, on the same occasions;
            nan where the metric is not accuracy.
        accuracy: % right on the test images, or on the held-out ones; or the metric of the run.
        passes: gradient cost so far, in passes over the training images.
        seconds: of training, evaluation left out.
    """

    loss: float
    train_accuracy: float
    accuracy: float
    passes: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Fields:
        training: what was asked for.
        epochs: the curve.
        cost: counted by the optimizer.
        chance: accuracy in % of a guess; 0 where that is not known.
        threads: of torch, during the run.
        examined: % right of the final model on each further set that was asked for.
        observed: what was recorded along the run, one number a step or an epoch; nan where there
            is none.
        analysed: what was looked at beside it, by name.
        device: on which it ran, such as "cpu" or "NVIDIA H200".
        processes: that trained the model together.
    """

    training: Training
    epochs: tuple[Epoch, ...]
    cost: Cost
    chance: float
    threads: int = field(default_factory=torch.get_num_threads)
    examined: Mapping[str, float] = field(default_factory=dict[str, float])
    observed: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    analysed: Mapping[str, list[float]] = field(default_factory=dict[str, list[float]])
    device: str = "cpu"
    processes: int = 1

    @property
    def model(self) -> nn.Module | None:
        """As it was measured last, in evaluation mode; with FSDP2 this rank's shard of it.

        No field: a run can be compared, printed and written down without it.
        """
        return self.__dict__.get("_model")

    def with_model(self, model: nn.Module) -> Run:
        """The same run, which has its model."""
        object.__setattr__(self, "_model", model)
        return self

    @property
    def accuracy(self) -> float:
        """% right at the end of the last epoch. No epoch is picked by its accuracy."""
        return self.epochs[-1].accuracy

    @property
    def seconds_per_epoch(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs) / len(self.epochs)

    @property
    def trouble(self) -> str | None:
        """Why this run should not be taken at face value; None if nothing is wrong."""
        skipped = None
        if self.cost.skipped:
            steps = self.cost.steps + self.cost.skipped
            skipped = f"{self.cost.skipped} of {steps} steps skipped: loss or gradient not finite"
        # what a report leaves out comes first: a few skipped steps do not hide that it is worse
        if self.cost.skipped > self.cost.steps:
            return skipped
        if not math.isfinite(self.epochs[-1].loss):
            return "diverged: the loss is not finite"
        by_chance = self.training.metric == losses.ACCURACY and not self.training.holdout
        # of two classes, five points more than a guess: a fifth more would be much
        if by_chance and self.accuracy < min(1.2 * self.chance, self.chance + 5):
            return "learned nothing: accuracy at chance"
        return skipped


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
        data: the data set of `training`, if it is already loaded.
        watch: called after each epoch with its number, from 1, and its results; with many
            processes, by the first. A run that is taken up again calls it for its further epochs.
        checkpoints: a folder of this run's own, or its URL, in which each epoch is saved, and from
            which the run is taken up; `flatmin.training.checkpoints.remove` removes them.
        device: on which to train; default the GPU, if there is one, or else the CPU.
        parallel: what each process holds of the model, where `torch.distributed` is initialised:
            all of it ("ddp") or a shard ("fsdp2").
        observer: makes what does the `training.analysis`; default None, where there is none to do.

    Raises InputError where something of `training` does not exist or does not fit.
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
    further = {name: evaluation.find(name, data, ours) for name in training.examine}
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
        examined={name: _examined(learner, asked) for name, asked in further.items()},
        observed=learner.recorder.values,
        analysed={} if learner.observer is None else learner.observer.values,
        device=group.name,
        processes=group.world,
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


def network(training: Training, facts: Mapping[str, int]) -> nn.Module:
    """The network of a run, on the CPU, its weights from torch's global generator.

    Args:
        training: names it.
        facts: channels, size and classes of the data, as far as it has them.
    """
    if own.is_own(training.model):
        return models.brought(training.model, facts, training.width, training.pretrained)
    if len(facts) < 3:
        raise InputError(
            f"{training.model} takes square images, (channels, side, side), and their classes: "
            f"give a network of your own by --model module:name"
        )
    model = models.build(
        training.model, width=training.width, pretrained=training.pretrained, **facts
    )
    # the memory order in which a CPU convolves a third faster
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def base_optimizer(training: Training, model: nn.Module) -> Optimizer:
    """What takes the steps of a run, before a method makes it sharpness-aware."""
    return bases.build(
        training.base,
        model.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        options=dict(training.base_options),
    )


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
    return Epoch(
        loss=outputs.loss,
        train_accuracy=outputs.accuracy if learner.answers else math.nan,
        accuracy=measured(learner, learner.scores, ours.examined),
        passes=learner.cost.samples / ours.count,
        seconds=seconds,
    )


def _examined(learner: Learner, asked: evaluation.Examination) -> float:
    """Of the final model, the mean over the sets that were asked for."""
    scores = asked.of(learner.scores)
    return statistics.fmean(measured(learner, scores, each, asked.top) for each in asked.sets())


@dataclass(frozen=True)
class Learner:
    """What moves from step to step: a model, what makes it learn, and what is recorded of it.

    Fields:
        rho_schedule: of the radius; None where it is constant.
        auxiliary: the stream of auxiliary batches; None where the method has none.
    """

    training: Training
    method: methods.Method
    loss: losses.Loss
    group: ProcessGroup
    model: nn.Module
    optimizer: SharpnessAware
    schedule: LRScheduler
    rho_schedule: RhoScheduler | None
    primary: BatchSampler
    auxiliary: Stream | None
    recorder: Recorder
    observer: Observer | None = None

    @classmethod
    def begin(
        cls,
        training: Training,
        ours: RunData | SampleRun,
        model: nn.Module,
        group: ProcessGroup,
    ) -> Learner:
        """One that has not taken a step. Raises InputError where something does not fit."""
        method = own.method(training.method)
        loss = losses.find(training.loss, training.label_smoothing)
        loss.require(method)
        total_steps = training.epochs * ours.steps
        optimizer = method.build(
            base_optimizer(training, model),
            training.rho,
            total_steps=total_steps,
            seed=training.seed,
            settings=dict(training.options),
            model=model,
            max_norm=training.max_norm,
            measure_radius=True,
        )
        schedule = schedules.build(
            training.schedule,
            optimizer,
            total_steps,
            warmup_steps=round(training.warmup * total_steps / training.epochs),
            milestones=training.milestones,
            gamma=training.gamma,
        )
        moving = schedules.RhoSchedule.parse(training.rho_schedule).over(optimizer, total_steps)
        recorder = Recorder(training.observe, model, group)
        recorder.require(per_sample=method.per_sample)
        auxiliary = ours.auxiliary() if method.auxiliary else None
        streams = ours.primary, auxiliary
        parts = method, loss, group, model, optimizer, schedule, moving
        return cls(training, *parts, *streams, recorder)

    def session(self, checkpoints: Checkpoints | None) -> Session:
        """All of it that a checkpoint has to hold."""
        streams = (self.primary, self.auxiliary) if self.auxiliary else (self.primary,)
        return Session(
            checkpoints,
            self.group,
            self.model,
            self.optimizer,
            self.schedule,
            self.rho_schedule,
            streams,
            self.recorder,
            self.observer,
        )

    @property
    def cost(self) -> Cost:
        """What all ranks have cost together; each counts its own samples."""
        own, world = self.optimizer.cost, self.group.world
        return replace(
            own, samples=own.samples * world, primary_samples=own.primary_samples * world
        )

    @property
    def answers(self) -> bool:
        """Whether the outputs are scores of classes, which are right or wrong."""
        return self.training.metric == losses.ACCURACY

    def scores(self, inputs: Any) -> Any:
        """Of the model, in the precision of the run."""
        narrow = self.training.precision == "bfloat16"
        device = self.group.device.type
        with torch.autocast(device, torch.bfloat16) if narrow else nullcontext():
            outputs = called(self.model, inputs)
        # Losses and accuracies are float32 in any precision: sums have no room in bfloat16.
        return changed(outputs, _widened) if narrow else outputs

    def epoch(self) -> EpochSummary:
        """Step on every primary batch once."""
        self.model.train()  # evaluation has left it in the other mode
        metrics = EpochMetrics(self.group, apart=self.recorder.apart, answers=self.answers)
        for batch in self.primary.round():
            loss = self._step(batch, metrics)
            metrics.stepped(loss, len(batch))
            # The learning rate is read before the schedule moves on: it is that of this step.
            lr = float(self.schedule.get_last_lr()[0])
            self.recorder.stepped(loss, lr, self.optimizer.cost)
            self.schedule.step()
            if self.rho_schedule is not None:  # after the learning rate, which it may follow
                self.rho_schedule.step()
        return metrics.outputs()

    def _step(self, batch: Batch, metrics: EpochMetrics) -> Tensor:
        """One step, with an auxiliary batch where the method looks at one."""
        # Drawn at every step, looked at or not, so that the stream does not depend on the policy.
        other = None if self.auxiliary is None else self.auxiliary.next()
        closures: Closures = (
            (partial(self._losses, batch, metrics),)
            if self.method.per_sample
            else (partial(self._loss, batch, metrics),)
            if other is None
            else (partial(self._loss, batch, metrics), partial(self.loss_in_parts, other, metrics))
        )
        if self.observer is not None:
            closures = self.observer.wrap(closures, batch, other)
        return self.optimizer.step(*closures)

    def _losses(
        self, batch: Batch, metrics: EpochMetrics | None, chosen: Tensor | None = None
    ) -> Tensor:
        """One loss a sample, of the chosen ones or all."""
        batch = batch.at(chosen)
        outputs = self._seen(batch, metrics)
        assert self.loss.each is not None  # see `begin`
        return self.loss.each(outputs, batch.targets)

    def _mean(self, batch: Batch, metrics: EpochMetrics | None) -> Tensor:
        """The mean loss of some samples."""
        return self.loss.mean(self._seen(batch, metrics), batch.targets)

    def _seen(self, batch: Batch, metrics: EpochMetrics | None) -> Any:
        """The model's outputs, which `metrics` may count."""
        outputs = self.scores(batch.inputs)
        if metrics is not None:
            metrics.see(outputs, batch)
        return outputs

    def _loss(self, batch: Batch, metrics: EpochMetrics) -> Tensor:
        """The mean loss of a primary batch, differentiated."""
        loss = self._mean(batch, metrics)
        loss.backward()
        self.recorder.passed()
        return loss

    def loss_in_parts(self, batch: Batch, metrics: EpochMetrics | None = None) -> Tensor:
        """The same of an auxiliary batch, which takes no more memory than a primary one.

        Each part counts by its size, so that the sum of the gradients is that of the mean loss.

        Args:
            batch: any.
            metrics: where it counts; default None: nowhere.
        """
        total = torch.zeros((), device=self.group.device)
        for part in batch.parts(self.training.batch // self.group.world):
            loss = self._mean(part, metrics) * (len(part) / len(batch))
            loss.backward()
            total += loss.detach()
        return total


class EpochMetrics:
    """Loss and answers over the primary batches of an epoch, each before its step.

    Args:
        group: over whose ranks it sums.
        apart: whether images with wrong labels are also counted apart.
        answers: whether there are right answers to count.
    """

    def __init__(self, group: ProcessGroup, *, apart: bool, answers: bool = True) -> None:
        self._group, self._apart, self._answers = group, apart, answers
        # loss, samples, share of right answers, wrong labels, wrong labels given back
        # On the device: a step that asked for one of them would wait for it.
        self._sums = torch.zeros(5, dtype=torch.float64, device=group.device)
        self._first = True

    def see(self, scores: Any, batch: Batch) -> None:
        """Count the first evaluation of a step; the later ones are made at other weights."""
        # The first is always that of the primary batch at the unperturbed weights.
        if not self._first:
            return
        self._first = False
        if not self._answers:
            return
        hit = scores.detach().argmax(1) == batch.targets
        if hit.dim() > 1:  # several answers a sample, of which the padded ones do not count
            hit = hit.flatten(1).sum(1) / (batch.targets >= 0).flatten(1).sum(1).clamp(min=1)
        self._sums[2] += hit.sum()
        if self._apart:
            self._sums[3] += batch.wrong.sum()
            self._sums[4] += (hit & batch.wrong).sum()

    def stepped(self, loss: Tensor, count: int) -> None:
        """A step over `count` images has returned its mean `loss`."""
        self._sums[0] += loss.detach().double() * count
        self._sums[1] += count
        self._first = True

    def outputs(self) -> EpochSummary:
        """The epoch, once it is over."""
        return EpochSummary(*map(float, self._group.total(self._sums)))


def called(model: nn.Module, inputs: Any) -> Any:
    """What a model makes of the inputs of a batch: one, several in their order, or by name."""
    if isinstance(inputs, Mapping):
        return model(**cast("Mapping[str, Any]", inputs))
    if isinstance(inputs, list | tuple):
        return model(*cast("Sequence[Any]", inputs))
    return model(inputs)


def _widened(outputs: Tensor) -> Tensor:
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


Scores = Callable[[Any], Any]
"""From the inputs of a batch to what the model makes of them."""


def measured(
    learner: Learner, scores: Scores, samples: ImageSet | SampleSet, top: int = 1
) -> float:
    """Of the model on `samples`: its accuracy in %, or the metric of the run."""
    group = learner.group
    if learner.answers:
        return accuracy(scores, learner.model, samples, group, top)
    found = [
        (changed(outputs, Tensor.cpu), changed(batch.targets, Tensor.cpu), len(batch))
        for outputs, batch in _evaluated(scores, learner.model, samples, group)
    ]
    parts = [part for share in group.from_all(found) for part in share]
    return metric_of(learner.training.metric, parts)


def accuracy(
    scores: Scores,
    model: nn.Module,
    samples: ImageSet | SampleSet,
    group: ProcessGroup,
    top: int = 1,
) -> float:
    """% of `samples` that `model`, in evaluation mode, gives their label in its `top` guesses."""
    right = torch.zeros((), dtype=torch.int64, device=group.device)
    count = torch.zeros((), dtype=torch.int64, device=group.device)
    # Whole numbers, so that any number of ranks finds the same; a share may be empty.
    for outputs, batch in _evaluated(scores, model, samples, group):
        # of equal scores, argmax takes the first and topk any
        guesses = outputs.topk(top, 1).indices if top > 1 else outputs.argmax(1, keepdim=True)
        right += (guesses == batch.targets.unsqueeze(1)).sum()
        count += (batch.targets >= 0).sum()  # padded places are labelled below 0
    return 100 * int(group.total(right)) / max(1, int(group.total(count)))


@torch.no_grad()
def _evaluated(
    scores: Scores, model: nn.Module, samples: ImageSet | SampleSet, group: ProcessGroup
) -> Iterator[tuple[Any, Batch]]:
    """What the model, in evaluation mode, makes of this rank's share of the samples."""
    model.eval()
    rows, size = torch.arange(len(samples)), samples.chunk * group.world
    shares = [
        rows[start : start + size].tensor_split(group.world)[group.rank]
        for start in range(0, len(rows), size)
    ]
    for batch in samples.each([share for share in shares if len(share)]):
        yield scores(batch.inputs), batch


@torch.no_grad()
def metric_of(metric: str, parts: Sequence[tuple[Any, Any, int]]) -> float:
    """A user's metric of (outputs, targets, samples) of every batch.

    It is asked once, about everything; where batches cannot be joined, since their samples are of
    several lengths, about each batch, and the mean over the samples counts.
    """
    outputs, targets, counts = zip(*parts, strict=True)
    joined = [_joined(outputs), _joined(targets)]
    if all(each is not None for each in joined):
        return losses.measure(metric, *joined)
    values = [losses.measure(metric, out, right) for out, right, _ in parts]
    return math.fsum(v * n for v, n in zip(values, counts, strict=True)) / sum(counts)


def _joined(parts: Sequence[Any]) -> Tensor | None:
    """One tensor of all samples, where there can be one."""
    if not all(isinstance(part, Tensor) and part.dim() for part in parts):
        return None
    return torch.cat(list(parts)) if len({part.shape[1:] for part in parts}) == 1 else None

"""What learns: a network, an optimizer around its base, and the streams of batches it steps on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flatmin import methods
from flatmin.engine.cost import Cost
from flatmin.optimizer import SharpnessAware
from flatmin.schedules import RhoScheduler
from flatmin.training import bases, losses, models, own, schedules
from flatmin.training.checkpoints import Checkpoints
from flatmin.training.data.batches import (
    Batch,
    BatchSampler,
    ImageSet,
    RunData,
    Stream,
    changed,
)
from flatmin.training.data.sample_batches import SampleRun, SampleSet
from flatmin.training.errors import InputError
from flatmin.training.observer import Closures, Observer
from flatmin.training.processes import ProcessGroup
from flatmin.training.recorder import EpochSummary, Recorder
from flatmin.training.resume import Session
from flatmin.training.scores import Scores, accuracies, called, evaluated, metric_of, widened
from flatmin.training.settings import Training


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
        return changed(outputs, widened) if narrow else outputs

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

    def measured(
        self, samples: ImageSet | SampleSet, scores: Scores, guesses: Sequence[int] = (1,)
    ) -> list[float]:
        """Of the model on `samples`: its accuracies in %, or the metric of the run.

        Args:
            samples: any, shared among the ranks.
            scores: those of this learner, or what an examination makes of them.
            guesses: how many the model has at each image, for each of the accuracies.
        """
        if self.answers:
            return accuracies(scores, self.model, samples, self.group, guesses)
        found = [
            (changed(outputs, Tensor.cpu), changed(batch.targets, Tensor.cpu), len(batch))
            for outputs, batch in evaluated(scores, self.model, samples, self.group)
        ]
        parts = [part for share in self.group.from_all(found) for part in share]
        return [metric_of(self.training.metric, parts)]


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

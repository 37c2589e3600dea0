"""What a training run will cost, roughly, before it is run.

The estimate counts samples to differentiate, and turns them into hours on two processor cores by
the multiplications of the network. It is good to a factor of two: enough to tell minutes from days.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch

from flatmin.policy import LargeGradient
from flatmin.studies.plan.analyses import asked
from flatmin.studies.plan.fewshot import FewShot
from flatmin.training import evaluation, own
from flatmin.training.data import corruptions
from flatmin.training.settings import Training


@dataclass(frozen=True)
class SetSize:
    """A data set: images to train on, images to test on, their side in pixels."""

    train: int
    test: int
    side: int


SETS: Mapping[str, SetSize] = {
    "digits": SetSize(1_437, 360, 8),
    "mnist": SetSize(60_000, 10_000, 28),
    "cifar10": SetSize(50_000, 10_000, 32),
    "cifar100": SetSize(50_000, 10_000, 32),
    "flowers17": SetSize(1_088, 272, 64),
    "flowers102": SetSize(1_020, 6_149, 224),
    "pets": SetSize(3_680, 3_669, 224),
    "aircraft": SetSize(6_667, 3_333, 224),
    "cars": SetSize(8_144, 8_041, 224),
    "country211": SetSize(31_650, 21_100, 224),
    "food101": SetSize(75_750, 25_250, 224),
    "imagenet": SetSize(1_281_167, 50_000, 224),
    "omniglot": SetSize(2_720, 1_180, 28),
    "mini-imagenet": SetSize(38_400, 12_000, 84),
}
"""By name."""

TESTED = {name: known.test for name, known in SETS.items()} | {"imagenet-r": 30_000}
"""Images to test on, by name, also of what is only tested on."""

NETWORKS: Mapping[str, tuple[float, int]] = {
    "mlp": (0.1, 8),
    "cnn": (15, 32),
    "cnn-2m": (7.6, 32),
    "conv4": (28, 84),
    "resnet8": (13, 32),
    "resnet20": (41, 32),
    "resnet32": (70, 32),
    "resnet18": (556, 32),
    "resnet34": (1_161, 32),
    "resnet50": (1_304, 32),
    "vgg16-bn": (314, 32),
    "wrn-16-4": (393, 32),
    "wrn-28-10": (5_250, 32),
    "pyramidnet110-48": (404, 32),
    "pyramidnet110-270": (4_730, 32),
    "densenet121": (898, 32),
    "resnet18-imagenet": (1_820, 224),
    "resnet34-imagenet": (3_670, 224),
    "resnet50-imagenet": (4_110, 224),
    "densenet121-imagenet": (2_840, 224),
    "vit-s16": (4_600, 224),
    "deit-s": (4_600, 224),
    "vit-adapter-s": (9_000, 224),
    "efficientnet-b2": (1_000, 260),
    "efficientnet-b3": (1_800, 300),
    "efficientnet-b4": (4_200, 380),
}
"""Millions of multiplications for one image, and the side of that image, by name of the network."""

SPEED = 20_000.0
"""Millions of a network's multiplications whose forward and backward passes two cores do a second:
500 images/s for ResNet-20."""

GPU = 50
"""Processor cores that a GPU stands for. Of small networks it is fewer, of large ones many more."""

OVERHEAD = 25e-6
"""Seconds an image takes besides."""

INNER_GRADIENT = 2e-3
"""Seconds that one gradient of an inner loop takes besides, with the way back through it."""


@dataclass(frozen=True)
class CostEstimate:
    """What runs will cost together.

    Fields:
        runs: how many they are.
        samples: forward-and-backward passes over single images.
        hours: on two processor cores.
    """

    runs: int
    samples: float
    hours: float

    @classmethod
    def of(cls, trainings: Iterable[Training]) -> CostEstimate:
        every = list(trainings)
        seconds = sum(map(seconds_of, every))
        return cls(len(every), sum(map(samples_of, every)), seconds / 3600)

    @classmethod
    def of_episodes(cls, trainings: Iterable[FewShot]) -> CostEstimate:
        """Of few-shot trainings."""
        every = list(trainings)
        seconds = sum(map(_seconds_of_episodes, every))
        return cls(len(every), sum(map(_samples_of_episodes, every)), seconds / 3600)

    def hours_here(self, workers: int) -> float:
        """On this machine, with so many processes: a core for each, or a GPU, and a run."""
        gpus = torch.cuda.device_count()
        at_once = min(workers, max(self.runs, 1), gpus or os.cpu_count() or 1)
        cores = at_once * GPU if gpus else at_once
        return self.hours * 2 / cores


def samples_of(training: Training) -> float:
    """Forward-and-backward passes over single images in one run; 0 for an unknown data set."""
    images = _images(training) * (1 - training.holdout)
    looked_at = asked(training.analysis).samples(
        training.epochs, round(images), training.batch, training.fraction
    )
    return training.epochs * images * gradients_a_step(training) + looked_at


def seconds_of(training: Training) -> float:
    """Of two processor cores: the steps of one run, evaluations after each epoch and at the end."""
    known = SETS.get(training.data)
    if known is None:
        return 0.0
    held_out = _images(training) * training.holdout
    evaluated = training.epochs * (held_out or known.test) + _examined(training)
    # a forward pass is a third of a forward and a backward pass
    return (samples_of(training) + evaluated / 3) * _seconds_per_sample(training, known.side)


def _examined(training: Training) -> int:
    """Images that the final model is looked at with: those of a folder are not known."""
    images = 0
    for other in {evaluation.split(name)[0] for name in training.examine}:
        name, _, kind = (other or training.data).partition(":")
        every = len(corruptions.ALL) if name.endswith("-c") and not kind else 1
        images += every * TESTED.get(name.removesuffix("-c"), 0)
    return images


def _episodes(settings: FewShot) -> float:
    """Tasks learned in one run; one that is only tested on costs half."""
    validated = settings.steps / settings.validate_every * settings.validation_tasks
    return settings.steps * settings.tasks + (validated + 2 * settings.test_tasks) / 2


def _samples_of_episodes(settings: FewShot) -> float:
    """The way back through the inner steps costs about twice the way there."""
    adapted = 3 * settings.shots * settings.inner_steps * _gradients(settings.method, (), 1.0)
    return _episodes(settings) * settings.ways * (adapted + settings.queries)


def _seconds_of_episodes(settings: FewShot) -> float:
    """Of two processor cores."""
    multiplications, reference = NETWORKS["conv4"]
    side = SETS[settings.data].side if settings.data in SETS else 32
    strides = 4 if settings.down == "stride" else 1  # each block works on the halved image
    share = (side / reference) ** 2 * (settings.filters / 64) ** 2 / strides
    a_sample = 2 * OVERHEAD + multiplications * share / SPEED
    gradients = settings.inner_steps * _gradients(settings.method, (), 1.0)
    return (
        _samples_of_episodes(settings) * a_sample + _episodes(settings) * gradients * INNER_GRADIENT
    )


def _images(training: Training) -> int:
    known = SETS.get(training.data)
    images = known.train if known else 0
    return min(images, training.limit or images)


def _seconds_per_sample(training: Training, side: int) -> float:
    multiplications, reference = NETWORKS.get(training.model, (0.0, 32))
    area = ((training.size or side) / reference) ** 2
    # the channels of every layer but the first grow with the width
    return OVERHEAD + multiplications * area * training.width**2 / SPEED


def gradients_a_step(training: Training) -> float:
    """Samples differentiated over those of the primary batches, expected before training."""
    return _gradients(training.method, training.options, training.fraction)


@functools.cache
def _gradients(
    name: str, options: tuple[tuple[str, float | str | int], ...], fraction: float
) -> float:
    method = own.method(name)
    base = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    optimizer = method.build(base, total_steps=1000, settings=dict(options))
    policy = optimizer.policy
    if isinstance(policy, LargeGradient):
        looks = optimizer.selection.share + optimizer.direction.auxiliary_passes * fraction
        return 1 + _share_of_large(policy) * (looks + optimizer.descent.further_passes)
    return optimizer.gradients_per_step(fraction)


def _share_of_large(policy: LargeGradient, points: int = 101) -> float:
    """%SAM / 100 if the squared gradient norms were normally distributed, as the paper finds."""
    if not math.isfinite(policy.lambda1 + policy.lambda2):
        return 0.5
    thresholds = [
        policy.lambda2 + (policy.lambda1 - policy.lambda2) * point / (points - 1)
        for point in range(points)
    ]
    return sum(1 - NormalDist().cdf(threshold) for threshold in thresholds) / points

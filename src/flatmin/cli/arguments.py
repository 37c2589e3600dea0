"""What the command line takes, flag by flag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand
from tyro.constructors import PrimitiveConstructorSpec

from flatmin.studies.plan.fewshot import FewShot


def _whole(words: list[str]) -> int:
    try:
        return int(words[0])
    except ValueError:
        raise ValueError(f"{words[0]!r} is no whole number") from None


def _decimal(words: list[str]) -> float:
    try:
        return float(words[0])
    except ValueError:
        raise ValueError(f"{words[0]!r} is no number") from None


def _words(value: float | None) -> list[str]:
    return [str(value)]


def _optional(value: object) -> bool:
    return value is None or isinstance(value, int | float)


# Without these two, tyro's message for a wrong number speaks of None and of Python's types.
_N = PrimitiveConstructorSpec(1, "N", _whole, _optional, _words)
_X = PrimitiveConstructorSpec(1, "X", _decimal, _optional, _words)
_BY_DATA = arg(help_behavior_hint="(default: by data set)")
_BY_MACHINE = arg(help_behavior_hint="(default: one for each GPU or core)")
_FOLDER = arg(metavar="FOLDER|URL", help_behavior_hint="(default: in the run's folder)")
_URL = arg(metavar="URL", help_behavior_hint="(default: a file in the folder)")
_SWITCH = arg(help_behavior_hint="")


@dataclass(frozen=True)
class CompareArguments:
    """Train methods side by side on real images; tell which generalises better, and at what cost.

    Interrupted, it keeps every finished run, and the same command goes on from there.
    """

    data: Annotated[str, arg(metavar="NAME")] = "digits"
    """digits, mnist, cifar10, cifar100, flowers17, or a folder of images by class."""
    methods: Annotated[str, arg(metavar="A,B,…")] = "sgd,sam,friendly-sam,agnostic-sam"
    """Listed by `flatmin methods`; differences are to the first."""
    model: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: by data set)")
    ] = None
    """mlp, cnn, resnet20, resnet32, or timm:NAME where timm is installed."""
    noise: Annotated[str, arg(metavar="SHARE|human:COLUMN")] = "0"
    """Wrong training labels: a share in [0, 1), or for cifar10 what people answered
    (human:worse_label, aggre_label, random_label1, random_label2, random_label3)."""
    epochs: Annotated[int | None, _N, _BY_DATA] = None
    """Passes over the training images."""
    batch: Annotated[int | None, _N, _BY_DATA] = None
    """Images a step."""
    lr: Annotated[float | None, _X, _BY_DATA] = None
    """Learning rate at the start; it falls to 0 along a cosine."""
    weight_decay: Annotated[float | None, _X, _BY_DATA] = None
    """Of SGD, whose momentum is 0.9."""
    rho: Annotated[
        str | None, arg(metavar="X[,Y,…]", help_behavior_hint="(default: each method's own)")
    ] = None
    """Radius of every method; with --tune rho, the grid of radii to try."""
    tune: Annotated[Literal["rho"] | None, arg(metavar="rho", help_behavior_hint="")] = None
    """Choose the radius of each method on a tenth of the training images, equal budget for all."""
    tuning_seeds: Annotated[int | None, _N, _BY_DATA] = None
    """Runs of each radius when tuning."""
    seeds: Annotated[int | None, _N, _BY_DATA] = None
    """Runs of each method, with the same seeds for all."""
    limit: Annotated[int | None, _N, arg(help_behavior_hint="(default: all)")] = None
    """Number of training images to use, with equal shares of every class."""
    fraction: Annotated[float, _X] = 0.25
    """Size of an auxiliary batch over that of a primary one."""
    no_augment: Annotated[bool, _SWITCH] = False
    """No random crops and flips; otherwise photographs get them."""
    workers: Annotated[int | None, _N, _BY_MACHINE] = None
    """Processes that train at the same time, one thread each; the results do not depend on it."""
    out: Annotated[
        Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/<data>-<hash>)")
    ] = None
    """For report.html and results.json."""
    storage: Annotated[str | None, _URL] = None
    """PostgreSQL database for the rows, where several machines work on them."""
    allow_mixed: Annotated[bool, _SWITCH] = False
    """Go on with rows that other code has made."""
    tensorboard: Annotated[bool, _SWITCH] = False
    """Write curves to watch while it trains, under tensorboard/ in the folder."""
    json: Annotated[bool, _SWITCH] = False
    """Print the result as JSON on the standard output in place of the table."""


@dataclass(frozen=True)
class RunArguments:
    """Reproduce a table or figure: train what a recipe asks for, and set it beside the paper.

    Interrupted, or killed, it keeps every finished run, and the same command goes on from there.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """A name that `flatmin recipes` lists, or a file."""
    scale: Annotated[Literal["full", "small", "smoke"], arg(metavar="full|small|smoke")] = "full"
    """As printed; on real data within 90 minutes of two cores; within a minute."""
    out: Annotated[
        Path | None,
        arg(metavar="FOLDER", help_behavior_hint="(default: runs/<recipe>-<scale>)"),
    ] = None
    """For the rows, the checkpoints and the report."""
    workers: Annotated[int | None, _N, _BY_MACHINE] = None
    """Processes that train at the same time, one thread each; the results do not depend on it."""
    storage: Annotated[str | None, _URL] = None
    """PostgreSQL database for the rows, where several machines work on them."""
    checkpoints: Annotated[str | None, _FOLDER] = None
    """Where long runs are saved after each epoch; a URL that all machines reach, such as s3://…"""
    yes: Annotated[bool, _SWITCH] = False
    """Begin though it is estimated to take more than a day."""
    allow_mixed: Annotated[bool, _SWITCH] = False
    """Go on with rows that other code has made."""
    tensorboard: Annotated[bool, _SWITCH] = False
    """Write curves to watch while it trains, under tensorboard/ in the folder."""


@dataclass(frozen=True)
class WorkerArguments:
    """Join a run, from any machine, until all its cells are done.

    Started by torchrun, its processes train each cell together.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Its folder, or URL#study as `flatmin run --storage` tells it."""
    workers: Annotated[int | None, _N, _BY_MACHINE] = None
    """Processes that train at the same time, one thread each; the results do not depend on it."""
    checkpoints: Annotated[str | None, _FOLDER] = None
    """Where long runs are saved after each epoch: the same as for the others."""
    allow_mixed: Annotated[bool, _SWITCH] = False
    """Join even if the rows there are made by other code."""
    tensorboard: Annotated[bool, _SWITCH] = False
    """Write curves to watch while it trains, under tensorboard/ in the folder."""


@dataclass(frozen=True)
class StatusArguments:
    """Tell how far a run is, and what its workers are at."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Its folder, or URL#study as `flatmin run --storage` tells it."""
    watch: Annotated[bool, _SWITCH] = False
    """Go on telling until it is done."""
    json: Annotated[bool, _SWITCH] = False
    """As one line of JSON."""


@dataclass(frozen=True)
class ReportArguments:
    """Set what runs have found beside the papers: tables, curves, filters, on one HTML page.

    It takes what is finished by now, and says what is not.
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN …]")]
    """Folders of `flatmin run` or `flatmin compare`, folders that hold such, or URL#study."""
    out: Annotated[
        Path | None,
        arg(metavar="FILE", help_behavior_hint="(default: report.html in the folder given)"),
    ] = None
    """File to write."""
    markdown: Annotated[bool, _SWITCH] = False
    """The tables as Markdown instead, on the standard output unless --out names a file."""
    csv: Annotated[bool, _SWITCH] = False
    """One line for each training run instead, on the standard output unless --out names a file."""


@dataclass(frozen=True)
class RecipesArguments:
    """List the recipes, and what each costs at each scale."""


@dataclass(frozen=True)
class MethodsArguments:
    """List the methods that compare knows."""


@dataclass(frozen=True)
class MetaTrain:
    """Train a network from which a few steps fit a new task.

    Interrupted, or killed, it goes on from the last checkpoint with the same command, bit for bit.
    Started by torchrun, its processes share the tasks of every meta-batch.
    """

    settings: OmitArgPrefixes[FewShot]  # without a default: what is left out depends on the data
    """What is trained."""
    batching: Annotated[str, arg(metavar="auto|loop|vmap|N")] = "auto"
    """How the tasks of a meta-batch run: auto measures; the numbers differ by rounding alone."""
    out: Annotated[
        Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/meta-<data>-<hash>)")
    ] = None
    """For settings, checkpoints and results."""


@dataclass(frozen=True)
class MetaTest:
    """Measure trained networks on the same tasks, pair them, and write a page.

    The first folder is what the others are compared with.
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN …]")]
    """Folders of `flatmin meta train`, or folders that hold such."""
    out: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(default: report.html in the first)")
    ] = None
    """File to write; the same as Markdown goes beside it."""


@dataclass(frozen=True)
class MetaArguments:
    """Few-shot learning: MAML and its sharpness-aware forms."""

    action: OmitSubcommandPrefixes[
        Annotated[MetaTrain, subcommand("train")] | Annotated[MetaTest, subcommand("test")]
    ]

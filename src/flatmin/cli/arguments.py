"""What the command line takes, flag by flag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import (
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    UseAppendAction,
    arg,
    subcommand,
)
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
_RUN = arg(metavar="RUN", help_behavior_hint="")
_SWITCH = arg(help_behavior_hint="")


@dataclass(frozen=True)
class CompareArguments:
    """Train methods side by side on real images; tell which generalises better, and at what cost.

    Interrupted, it keeps every finished run, and the same command goes on from there.
    """

    data: Annotated[str, arg(metavar="NAME")] = "digits"
    """digits, mnist, cifar10, cifar100, flowers17, a folder of images by class, or module:function
    that returns (train, test)."""
    methods: Annotated[str, arg(metavar="A,B,…")] = "sgd,sam,friendly-sam,agnostic-sam"
    """Listed by `flatmin methods`; differences are to the first."""
    model: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: by data set)")
    ] = None
    """mlp, cnn, resnet20, resnet32, timm:NAME where timm is installed, or module:function that
    makes your own."""
    noise: Annotated[str, arg(metavar="SHARE|human:COLUMN")] = "0"
    """Wrong training labels: a share in [0, 1), or for cifar10 what people answered
    (human:worse_label, aggre_label, random_label1, random_label2, random_label3)."""
    epochs: Annotated[int | None, _N, _BY_DATA] = None
    """Passes over the training images."""
    batch: Annotated[int | None, _N, _BY_DATA] = None
    """Images a step."""
    lr: Annotated[
        str | None, arg(metavar="X[,Y,…]", help_behavior_hint="(default: by data set and base)")
    ] = None
    """Learning rate at the start; with --tune lr, the grid to try."""
    weight_decay: Annotated[float | None, _X, _BY_DATA] = None
    """Of the base optimizer."""
    momentum: Annotated[float | None, _X, arg(help_behavior_hint="(default: 0.9)")] = None
    """Of SGD; of Adam the first beta."""
    base: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: sgd)")] = None
    """sgd, nesterov, adam, adamw, or module:function of the parameters that makes an optimizer."""
    base_option: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=X")] = ()
    """A further argument of the base optimizer, such as eps=1e-6; may be given again."""
    option: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="METHOD.NAME=X")] = ()
    """A hyperparameter of one method, such as agnostic-sam.beta=0.5; may be given again."""
    schedule: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: cosine)")] = (
        None
    )
    """Of the learning rate: cosine, constant, or step with --milestones."""
    milestones: Annotated[str | None, arg(metavar="X[,Y,…]", help_behavior_hint="")] = None
    """Of step: shares of the epochs at which it is multiplied by gamma."""
    gamma: Annotated[float | None, _X, arg(help_behavior_hint="(default: 0.1)")] = None
    """See --milestones."""
    warmup: Annotated[float | None, _X, arg(help_behavior_hint="(default: 0)")] = None
    """Epochs in which the learning rate rises."""
    label_smoothing: Annotated[float | None, _X, arg(help_behavior_hint="(default: 0)")] = None
    """Share of each label that goes to all classes alike."""
    max_norm: Annotated[float | None, _X, arg(help_behavior_hint="(default: none)")] = None
    """To which the descended gradient is clipped."""
    precision: Annotated[
        str | None, arg(metavar="float32|bfloat16", help_behavior_hint="(default: float32)")
    ] = None
    """Of forward and backward passes; the weights stay float32."""
    rho: Annotated[
        str | None, arg(metavar="X[,Y,…]", help_behavior_hint="(default: each method's own)")
    ] = None
    """Radius of every method; with --tune rho, the grid of radii to try."""
    rho_schedule: Annotated[str, arg(metavar="NAME[:END]")] = "constant"
    """How radii move: constant, cosine, linear, or proportional to the learning rate; END is the
    share of the radius at the end (0)."""
    tune: Annotated[str | None, arg(metavar="rho|lr|lr,rho", help_behavior_hint="")] = None
    """Choose the radius or the learning rate of each method, or both, on a tenth of the training
    images, equal budget for all."""
    tuning_seeds: Annotated[int | None, _N, _BY_DATA] = None
    """Runs of each candidate when tuning."""
    seeds: Annotated[int | None, _N, _BY_DATA] = None
    """Runs of each method, with the same seeds for all."""
    limit: Annotated[int | None, _N, arg(help_behavior_hint="(default: all)")] = None
    """Number of training images to use, with equal shares of every class."""
    fraction: Annotated[float, _X] = 0.25
    """Size of an auxiliary batch over that of a primary one."""
    no_augment: Annotated[bool, _SWITCH] = False
    """No random crops and flips; otherwise photographs get them."""
    cutout: Annotated[int | None, _N, arg(help_behavior_hint="(default: 0)")] = None
    """Side, in pixels, of the square that is cut out of each training image."""
    size: Annotated[int | None, _N, arg(help_behavior_hint="(default: that of the data)")] = None
    """Side, in pixels, to which the images are resized."""
    pretrained: Annotated[str | None, arg(metavar="FILE|hub", help_behavior_hint="")] = None
    """Weights to start from."""
    examine: Annotated[str | None, arg(metavar="FOLDER[,NAME,…]", help_behavior_hint="")] = None
    """Further test sets for the final models: folders of images by class, or names such as
    cifar10-c."""
    loss: Annotated[
        str | None, arg(metavar="MODULE:NAME", help_behavior_hint="(default: cross-entropy)")
    ] = None
    """Of (outputs, targets), such as torch.nn.functional:mse_loss."""
    metric: Annotated[
        str | None, arg(metavar="min|max:MODULE:NAME", help_behavior_hint="(default: accuracy)")
    ] = None
    """By what methods are ranked: of (outputs, targets), and whether less or more is better."""
    keep: Annotated[Literal["weights"] | None, arg(metavar="weights", help_behavior_hint="")] = None
    """What stays of every run beside its row: its final weights, under weights/ in the folder."""
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
    reuse: Annotated[str | None, _RUN] = None
    """Take over what this run, or those in a folder, have trained of what is asked for here."""
    keep: Annotated[Literal["weights"] | None, arg(metavar="weights", help_behavior_hint="")] = None
    """What stays of every run beside its row: its final weights, under weights/ in the folder."""
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
    keep: Annotated[Literal["weights"] | None, arg(metavar="weights", help_behavior_hint="")] = None
    """What stays of every run beside its row: its final weights, under weights/ in the folder."""
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
class InspectArguments:
    """Look at trained models: Hessian eigenvalues, sharpness, loss surfaces, on one HTML page.

    Interrupted, it writes what it knows; the same command goes on with the surface.
    """

    models: Annotated[
        Positional[tuple[str, ...]], arg(metavar="RUN|CHECKPOINT [NAME=CHECKPOINT …]")
    ]
    """Folders of runs that kept weights or are at work, or files of weights (.pt, .safetensors);
    NAME= says what the page calls it."""
    model: Annotated[
        str | None, arg(metavar="NAME|module:name", help_behavior_hint="(default: the run's)")
    ] = None
    """Network that a file of weights is of, as for compare."""
    data: Annotated[
        str | None, arg(metavar="NAME|module:name", help_behavior_hint="(default: the run's)")
    ] = None
    """Training data to look at, as for compare."""
    limit: Annotated[int | None, _N, arg(help_behavior_hint="(default: all, or the run's)")] = None
    """Of the training images, how many a file's weights learned from: --limit of compare."""
    images: Annotated[int, _N] = 256
    """How many of those to look at, with equal shares of every class; time grows with it."""
    mode: Literal["eval", "train"] = "eval"
    """Of the models, for curvature and sharpness."""
    statistics: Literal["fixed", "batch", "reestimated"] = "fixed"
    """Of batch normalization, at each point of a surface."""
    along: Literal["random", "eigenvectors", "between"] = "random"
    """Directions of the surfaces: random, in the scale of the filters; the eigenvectors of the two
    largest eigenvalues; or between the models: a line for two, a plane for three, principal
    components for more."""
    rho: Annotated[str, arg(metavar="X[,Y,…]")] = "0.05,0.1,0.2,0.5"
    """Radii of sharpness."""
    points: Annotated[int, _N] = 21
    """Of a surface, along each direction; an odd number has the weights themselves among them."""
    products: Annotated[int, _N] = 40
    """Products with the Hessian for each spectrum."""
    out: Annotated[
        Path | None,
        arg(metavar="FILE", help_behavior_hint="(default: inspection.html in the folder given)"),
    ] = None
    """Page to write."""
    png: Annotated[bool, _SWITCH] = False
    """The page as a picture too, beside it; takes Chrome or Chromium."""
    pdf: Annotated[bool, _SWITCH] = False
    """And as PDF."""


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

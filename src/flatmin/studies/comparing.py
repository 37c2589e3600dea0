"""`flatmin.compare` and `flatmin.load`: from Python what `flatmin compare` is in a shell.

The plan, the store, the workers, the tuning and the statistics are those of the command; what is
here gives names to a user's objects, and shows what came out.
"""

from __future__ import annotations

import html as markup
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from flatmin.methods import TABLE, Method
from flatmin.studies.plan import opening
from flatmin.studies.plan.identity import default_folder
from flatmin.studies.plan.opening import Outcome
from flatmin.studies.plan.tuning import Progress, progress_of
from flatmin.studies.report import comparison as page
from flatmin.studies.report import section, terminal
from flatmin.studies.report.section import Section
from flatmin.studies.report.summary import Line, Summary, Verdict, summarise, verdict
from flatmin.studies.run import processes, trainer, worker
from flatmin.studies.run.trainer import Trainer
from flatmin.studies.store import files, weights
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import Store
from flatmin.studies.store.weights import KeptWeights
from flatmin.training import losses, own
from flatmin.training.data.samples import SampleData
from flatmin.training.errors import InputError
from flatmin.training.result import Run
from flatmin.training.settings import Training

USUAL = ("sgd", "sam")
"""What is compared where nothing is said."""

_AGAIN = "mend that, and the same call goes on; every run is kept"


def compare(
    *,
    model: str | Callable[..., nn.Module] | None = None,
    train: Any = "digits",
    test: Any = None,
    methods: Sequence[str | Method | Callable[..., Any]] | None = None,
    loss: str | Callable[[Any, Any], Any] | None = None,
    metric: str | Callable[[Any, Any], Any] | None = None,
    direction: Literal["max", "min"] = "max",
    base: str | Callable[..., Any] | None = None,
    base_options: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    seeds: int | None = None,
    lr: float | Sequence[float] | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    rho: float | Sequence[float] | None = None,
    tune: str | Sequence[str] | None = None,
    tuning_seeds: int | None = None,
    options: Mapping[str, Mapping[str, int | float | str]] | None = None,
    schedule: str | None = None,
    milestones: Sequence[float] | None = None,
    gamma: float | None = None,
    warmup: float | None = None,
    max_norm: float | None = None,
    precision: str | None = None,
    label_smoothing: float | None = None,
    noise: float | str | None = None,
    augment: bool | None = None,
    cutout: int | None = None,
    size: int | None = None,
    limit: int | None = None,
    fraction: float | None = None,
    pretrained: str | None = None,
    examine: Sequence[str] | Mapping[str, Any] | None = None,
    loader: Mapping[str, Any] | None = None,
    keep: bool = False,
    out: Path | str | None = None,
    workers: int = 1,
    storage: str | None = None,
    allow_mixed: bool = False,
    progress: bool = True,
) -> ComparisonResult:
    """Train methods side by side on your own network and data, and tell which is better.

    Every method starts from the same weights and sees the same batches with each seed, so that
    differences are paired. What is finished is kept in `out`: the same call goes on after an
    interruption, and one with more seeds, other methods or another grid trains what is missing.

    Whatever is named by a string is what `flatmin compare` takes in a shell, import paths
    `module:name` included; whatever is an object is known in this process alone, which is why more
    than one worker needs functions and classes that can be imported. An object is known to a later
    run by its name and a digest: of a network its `repr`, its classes' code, the names, shapes and
    first values of its parameters and buffers; of data their sizes and content (of a dataset that
    is no tensors that of 16 samples of each part); of a function its code, what it holds and the
    global variables, functions and classes that it reads; of others their `repr`.

    Args:
        model: a function or a class that makes a new network each time, or a name that
            `flatmin compare --model` takes; default None: as usual for the data set. Those of
            `channels`, `size` and `classes` for which it has a parameter without a default are
            given.
        train: a map-style dataset, a tuple of tensors (inputs, targets), or the name of a data set,
            a folder, or `module:function` that returns (train, test); default "digits". A sample is
            (inputs, target); its batch goes to the model as it is, tuples as several arguments and
            mappings by name.
        test: the same, to measure on; default None, where `train` is a name.
        methods: names that `flatmin methods` lists, rows of `flatmin.methods.TABLE`, or functions
            of (base, rho, **options) that return a `flatmin.SharpnessAware`; differences are to
            the first; default None: SGD and SAM.
        loss: a function of (outputs, targets) to a scalar; default None: the cross-entropy.
        metric: a function of (outputs, targets) of the whole test set to a number; where batches
            cannot be joined, of each batch, and the mean counts; default None: the accuracy in %.
        direction: "max" or "min", whichever is better by `metric`; default "max". A name that
            begins with "min:" or "max:" says it by itself.
        base: a name ("sgd", "nesterov", "adam", "adamw") or a function of the parameters that makes
            an optimizer, to which `lr`, `momentum`, `weight_decay` and `base_options` are given as
            far as they are set here; default None: SGD.
        base_options: further arguments of the base optimizer, such as {"eps": 1e-6}; default None.
        epochs: passes over the training samples; default None: as usual for the data set, or 20.
        batch: samples a step; default None: as usual for the data set, or 64, or what fits.
        seeds: runs of each method, at least 3 to be told anything; default None: 3 for most.
        lr: learning rate, or several to choose from with `tune`; default None: as usual for the
            data set, or the base's own where that is a function.
        momentum: of SGD, in [0, 1); the first beta of Adam; default None: 0.9.
        weight_decay: at least 0; default None: 0.0005 for most.
        rho: one radius for every method, or several to choose from with `tune`; default None: each
            method's own.
        tune: "rho", "lr" or both, chosen for each method on a tenth of the training samples, with
            equal budgets; default None: nothing.
        tuning_seeds: runs of each candidate; default None: as usual for the data set, or 2.
        options: further hyperparameters by method: {"agnostic-sam": {"beta": 0.5}}; default None.
        schedule: of the learning rate, "cosine", "constant" or "step"; default None: cosine.
        milestones: of "step", shares of the epochs in (0, 1); default None: none.
        gamma: what each milestone multiplies the learning rate by, in (0, 1]; default None: 0.1.
        warmup: epochs in which the learning rate rises, fewer than all; default None: 0.
        max_norm: to which the descended gradient is clipped, above 0; default None: no clipping.
        precision: "float32", or "bfloat16" by autocast; default None: float32.
        label_smoothing: of the cross-entropy, in [0, 1); default None: 0.
        noise: share of the training labels made wrong, in [0, 1); default None: 0.
        augment: random crops and flips of images that flatmin loads; default None: as usual.
        cutout: side, in pixels, of the square cut out of each of those; default None: 0.
        size: side, in pixels, to which they are resized; default None: as they are.
        limit: number of training samples; default None: all.
        fraction: size of an auxiliary batch over that of a primary one; default None: 0.25.
        pretrained: a file of weights to start from, or "hub"; default None: random weights.
        examine: further test sets: names, or folders of images by class; or, with data of your own,
            datasets by name; default None: none.
        loader: arguments of `torch.utils.data.DataLoader` for data of your own, such as
            `collate_fn` and `num_workers`; default None. The order of samples is the comparison's.
        keep: whether the final weights of every run stay beside its row, for `run.model()`; default
            False.
        out: folder for the rows and the report; default None: one in `runs/` with a name of its own
            for every configuration.
        workers: processes that train at the same time, one thread each; default 1: in this one.
        storage: PostgreSQL database for the rows, where several machines share them; default None.
        allow_mixed: whether to go on with rows that other code has made; default False.
        progress: whether to tell on the standard error how far it is; default True.

    Raises:
        InputError: something does not fit, in one line; or no run has finished, with the reason.

    Examples:
        >>> import flatmin, torch
        >>> x = torch.randn(100, 4)
        >>> y = (x.sum(1) > 0).long()
        >>> found = flatmin.compare(
        ...     model=lambda: torch.nn.Linear(4, 2),
        ...     train=(x[:80], y[:80]),
        ...     test=(x[80:], y[80:]),
        ...     methods=["sgd", "sam"],
        ...     epochs=2,
        ...     batch=16,
        ...     seeds=2,
        ...     out="linear",
        ...     progress=False,
        ... )
        >>> [(row.method, row.seed) for row in found.rows]
        [('sgd', 0), ('sam', 0), ('sgd', 1), ('sam', 1)]
    """
    asked: dict[str, Any] = {
        "data": _data(train, test, examine, loader),
        "model": _name(model, "model"),
        "methods": tuple(map(_method, [methods] if isinstance(methods, str) else methods or USUAL)),
        "loss": _name(loss, "loss"),
        "metric": _metric(metric, direction),
        "base": _name(base, "base"),
        "base_options": None if base_options is None else dict(base_options),
        "epochs": epochs,
        "batch": batch,
        "seeds": seeds,
        "lr": _several(lr),
        "momentum": momentum,
        "weight_decay": weight_decay,
        "rho": _several(rho),
        "tune": tune,
        "tuning_seeds": tuning_seeds,
        "schedule": schedule,
        "milestones": _several(milestones),
        "gamma": gamma,
        "warmup": warmup,
        "max_norm": max_norm,
        "precision": precision,
        "label_smoothing": label_smoothing,
        "noise": None if noise is None else str(noise),
        "augment": augment,
        "cutout": cutout,
        "size": size,
        "limit": limit,
        "fraction": fraction,
        "pretrained": pretrained,
        "examine": None if examine is None else tuple(map(str, examine)),
    }
    asked["options"] = _options(options, asked["methods"])
    if asked["model"] is None and own.is_own(asked["data"]):
        raise InputError("model is missing: give a function that makes your network, or a name")
    if workers < 1:
        raise InputError(f"workers {workers} is out of range: expected at least 1")
    trainer.forget()
    try:
        comparison, data, notes = opening.settled(asked)
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=2)
        if workers > 1:
            own.require_paths(comparison.brought, workers)
        folder = Path(out) if out is not None else default_folder(comparison)
        location = StudyLocation.new(folder, storage)
        outcome = opening.begin(comparison, data, location, allow_mixed=allow_mixed)
        _train(outcome, Trainer.at(location, keep=keep), workers, tell=progress)
    finally:
        own.forget(asked["data"])  # which may be large
        trainer.forget()
    summary = summarise(outcome)
    if not summary.lines:
        failed = next((failure.reason for failure in outcome.failures), "there is nothing to do")
        raise InputError(f"no run has finished: {failed.removeprefix('InputError: ')}")
    with files.told(folder / "results.json", _AGAIN):
        outcome.store.export()
    result = ComparisonResult(outcome, summary, folder)
    if keep and (lacking := weights.lacking(folder, [run.row for run in result.runs])):
        warnings.warn(lacking, UserWarning, stacklevel=2)
    return result


def load(run: Any, model: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The network of a finished run, with its final weights, in evaluation mode.

    Args:
        run: of `result.runs`, a file that `--keep weights` has written, a folder with one such
            file, or what `flatmin.training.train` has returned.
        model: makes the network, where that was an object of another process; default None.

    Raises:
        InputError: its weights were not kept, or do not fit the network.

    Examples:
        >>> import flatmin
        >>> from flatmin.training import Training, train
        >>> run = train(Training(data="digits", model="mlp", method="sam", epochs=1, limit=100))
        >>> network = flatmin.load(run)
        >>> network.training
        False
    """
    if isinstance(run, FinishedRun):
        return run.model(model)
    if isinstance(run, Run):
        if run.model is None:
            raise InputError("this run has no model: train it again")
        return run.model.eval()
    if isinstance(run, KeptWeights):
        return run.model(model)
    if not isinstance(run, str | Path):
        raise InputError(f"a {type(run).__name__} is no run: give one of result.runs, or a file")
    return weights.read(run).model(model)


@dataclass(frozen=True)
class FinishedRun:
    """One run of a comparison.

    Args:
        row: what was measured, and everything that determined it.
        folder: of the comparison.

    Examples:
        >>> from flatmin.studies.comparing import FinishedRun
        >>> FinishedRun.__dataclass_fields__.keys() >= {"row", "folder"}
        True
    """

    row: Row
    folder: Path

    @property
    def training(self) -> Training:
        """Everything that determined it."""
        return Training.of(self.row.training)

    @property
    def method(self) -> str:
        """Its method, as people call it."""
        return own.title(self.row.method)

    @property
    def seed(self) -> int:
        """Its seed, from 0."""
        return self.row.seed

    @property
    def accuracy(self) -> float:
        """% right on the test set, or the metric."""
        return self.row.accuracy

    def model(self, build: Callable[..., nn.Module] | None = None) -> nn.Module:
        """The network with its final weights; `build` makes it, default None: as the run did.

        Raises InputError where they were not kept.
        """
        where = weights.path(self.folder / weights.FOLDER, self.training)
        if not where.is_file():
            raise InputError(
                f"the weights of {self.method}, seed {self.seed}, were not kept: compare with "
                f"keep=True in a new folder"
            )
        return weights.read(where).model(build)


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison found; in a notebook it shows the verdict and the table.

    Args:
        outcome: the comparison, its data and its rows.
        summary: the table, with everything that can be said about it.
        folder: where rows, report and weights are.

    Examples:
        >>> from flatmin.studies.comparing import ComparisonResult
        >>> sorted(name for name in vars(ComparisonResult) if name in ("best", "report", "table"))
        ['best', 'report', 'table']
    """

    outcome: Outcome
    summary: Summary
    folder: Path

    @property
    def rows(self) -> tuple[Row, ...]:
        """Of all finished runs that the comparison asks for, those of tuning included."""
        rows, plan = self.outcome.store.rows, self.outcome.comparison
        wanted = plan.plan(rows, self.outcome.store.given_up)
        return tuple(rows[training.key] for training in wanted if training.key in rows)

    @property
    def runs(self) -> tuple[FinishedRun, ...]:
        """The runs that the table is made of, method by method, seed by seed."""
        lines = self.summary.lines
        every = [line.finished[seed] for line in lines for seed in sorted(line.finished)]
        return tuple(FinishedRun(row, self.folder) for row in every)

    @property
    def verdict(self) -> Verdict:
        """Which method is better, by how much, and how sure that is."""
        return verdict(self.summary)

    @property
    def table(self) -> str:
        """The table with the verdict, as text."""
        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, width=140, highlight=False, emoji=False)
        terminal.print_comparison(self.outcome, self.summary, None, console)
        return text.getvalue().strip("\n")

    def best(self) -> Line:
        """The method with the best mean: `.method`, `.rho`, `.tuned`, `.value`, `.rows`.

        Whether it is told from the others, `verdict` says; `summary.winner` is None where not.
        """
        return self.summary.best

    def report(self, path: Path | str | None = None) -> Path:
        """Write the report to `path`, one HTML file; default None: report.html in the folder.

        Folders on the way are made. Raises InputError where it cannot be written.
        """
        where = self.folder / "report.html" if path is None else Path(path)
        with files.told(where, "give another file"):
            where.parent.mkdir(parents=True, exist_ok=True)
            page.save(self.outcome, self.summary, where)
        return where

    @cached_property
    def _section(self) -> Section:
        comparison, store = self.outcome.comparison, self.outcome.store
        said = page.remarks(comparison, self.summary)
        progress = progress_of(comparison, store)
        return section.of_summary(comparison, self.summary, said, store.rows, progress)

    def __str__(self) -> str:
        return self.table

    def _repr_html_(self) -> str:
        """For notebooks: the verdict, the table and what must be known to believe it."""
        said, table = self.verdict, self._section.table
        heads = [
            f"{each.title} ({each.unit})" if each.unit else each.title for each in table.columns
        ]
        rows = [
            [f"<b>{_safe(entry.title)}</b>" if entry.rank else _safe(entry.title)]
            + [_safe(cell.ours) for cell in entry.cells]
            for group in table.groups
            for entry in group.entries
        ]
        remarks = "".join(f"<li>{_safe(each)}</li>" for each in self._section.remarks)
        return (
            f"<p><b>{_safe(said.headline)}.</b> {_safe(said.detail)}</p><table><thead><tr>"
            f"{''.join(f'<th>{_safe(head)}</th>' for head in heads)}</tr></thead><tbody>"
            f"{''.join(f'<tr>{_cells(row)}</tr>' for row in rows)}</tbody></table>"
            f"{f'<ul>{remarks}</ul>' if remarks else ''}"
        )


def _train(outcome: Outcome, ours: Trainer, workers: int, *, tell: bool) -> None:
    """Do what is missing, in this process or in several."""
    store, plan = outcome.store, outcome.comparison
    store.retry()
    total = plan.total
    with terminal.ProgressBar(own.title(plan.data), total, store) as bar:
        tick: Callable[[Store, Progress], None] | None = bar if tell else None
        if workers > 1:
            processes.run(store, plan, ours, workers, tick)
            return
        if tick is not None:
            tick(store, progress_of(plan, store))
        with warnings.catch_warnings():
            # skipped steps are counted and reported
            warnings.simplefilter("ignore", RuntimeWarning)
            worker.work(store, plan, ours, tick=tick)


# Names ----------------------------------------------------------------------------------------


def _data(train: Any, test: Any, examine: Any, loader: Mapping[str, Any] | None) -> str:
    """The name of the data: as it is, or of the objects given."""
    if isinstance(train, str | Path):
        for what, given in (("test", test), ("loader", loader)):
            if given is not None:
                raise InputError(
                    f"{what} belongs to data of your own, and train names {train}: leave it away, "
                    f"or let {'module:function return' if what == 'test' else 'the data bring'} it"
                )
        return str(train)
    if callable(train) and own.path_of(train) is not None:
        return cast("str", own.path_of(train))
    if test is None:
        raise InputError("test is missing: give what to measure on, as train is given")
    if examine is not None and not isinstance(examine, Mapping):
        raise InputError("examine names nothing that data of your own have: give datasets by name")
    further = cast("Mapping[str, Any]", examine or {})
    label = "tensors" if isinstance(train, list | tuple) else own.label(train)
    data = SampleData.of(label, train, test, further, loader)
    return own.given(data, label, data.fingerprint())


def _name(thing: Any, what: str) -> str | None:
    """As it is, or the name of an object."""
    if thing is None or isinstance(thing, str):
        return thing
    if isinstance(thing, nn.Module) and what == "model":
        raise InputError(
            f"model is a {type(thing).__name__} that exists already: every run needs new weights, "
            f"so give a function that makes one, such as lambda: {type(thing).__name__}(…)"
        )
    if not callable(thing):
        raise InputError(f"{what} is a {type(thing).__name__}: give a function, or a name")
    return own.given(thing, own.label(thing))


def _metric(metric: Any, direction: str) -> str | None:
    if direction not in ("max", "min"):
        raise InputError(f'direction {direction!r}: give "max" or "min", whichever is better')
    if metric is None or metric == losses.ACCURACY:
        return None
    name = cast("str", _name(metric, "metric"))
    return name if name.startswith(("min:", "max:")) else f"{direction}:{name}"


def _method(thing: Any) -> str:
    """The name of a method: of the table, or of a user's own."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, Method):
        known = thing.name in TABLE and TABLE[thing.name] == thing
        return thing.name if known else own.given(thing, thing.name)
    return cast("str", _name(thing, "a method"))


def _options(
    options: Mapping[str, Mapping[str, Any]] | None, names: Sequence[str]
) -> dict[str, dict[str, Any]] | None:
    """By the names of the methods; those of a user's own may be given by their titles."""
    if options is None:
        return None
    known = {own.title(name): name for name in names}
    return {known.get(name, name): dict(values) for name, values in options.items()}


def _several(value: Any) -> Any:
    one = isinstance(value, int | float | str)
    return (value,) if one else None if value is None else tuple(value)


def _safe(text: str) -> str:
    return markup.escape(text)


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in cells)

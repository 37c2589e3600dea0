"""The loss along a line or over a plane through weight space, point by point."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flatmin.analysis.batches import batches_of, tensors_of
from flatmin.analysis.curvature import ProgressLine
from flatmin.analysis.grids import Grid, GridFile, digest, same_on_all
from flatmin.analysis.lanczos import Array
from flatmin.analysis.objective import Loss, Objective, inside
from flatmin.analysis.parameters import Parameters, Subset
from flatmin.analysis.pictures import picture
from flatmin.analysis.planes import Plane, plane_along, random_directions, some
from flatmin.analysis.untouched import Visit
from flatmin.engine import check

Statistics: TypeAlias = Literal["fixed", "batch", "reestimated"]
"""By which statistics batch normalization works at each point."""

STATISTICS = ("fixed", "batch", "reestimated")

SAID = {
    "fixed": "evaluation mode, statistics of batch normalization as at the centre",
    "batch": "statistics of batch normalization from each batch",
    "reestimated": "statistics of batch normalization estimated anew at each point",
}

Metric: TypeAlias = Callable[[Any, Any], "Tensor | float"]
"""`metric(outputs, batch)`: a mean over the samples of a batch, from what the model gave for it."""

SAVE_SECONDS = 5.0
"""How often an unfinished grid is written."""

ROUND = 4
"""How many points each of several processes evaluates before they tell each other."""

SAME = 1e-4
"""By how much a point that a file holds may differ from itself, relatively: other machines round
otherwise."""


@dataclass(frozen=True)
class Surface:
    """A loss along a line, or over a plane.

    Fields:
        losses: the mean loss at each point, (points,) or (points, points): the first index goes
            along the first direction. nan and inf are what the loss was; nan also where `known`
            says that the point was not evaluated.
        metrics: further means, by name, in the same form.
        at: the coordinates, by direction.
        known: which points were evaluated; all of them but after Ctrl-C.
        statistics: by which batch normalization worked: "fixed", "batch" or "reestimated".
        plane: the line or plane, with its path.
        samples: how many the means are taken over.
        says: in words, how it was made; it stands under every picture.
    """

    losses: Array
    metrics: dict[str, Array]
    at: tuple[Array, ...]
    known: Array
    statistics: Statistics
    plane: Plane = field(repr=False)
    samples: int
    says: str

    @property
    def interrupted(self) -> bool:
        """Did Ctrl-C end it before its last point?"""
        return not bool(self.known.all())

    @property
    def path(self) -> Array | None:
        """Where in it the checkpoints lie that it was made of, (checkpoints, directions)."""
        return self.plane.path

    def figure(
        self,
        metric: str = "loss",
        kind: Literal["contour", "surface"] = "contour",
        *,
        log: bool | None = None,
    ) -> Any:
        """A plotly figure, which notebooks show.

        What lies between points is joined by straight lines, as any plot does; points that are not
        finite stay gaps.

        Args:
            metric: "loss" (default) or a name in `metrics`.
            kind: of a plane: "contour" (default), or "surface" in three dimensions.
            log: whether its scale is logarithmic; default None: where the loss ranges over more
                than a factor of 30.

        Raises:
            ValueError: there is no such metric or kind.
        """
        from plotly.graph_objects import Figure

        return Figure(picture(self, metric, kind, log))

    def _repr_html_(self) -> str:
        """The figure for a notebook, whole: it needs no network, and is 5 MB large for it."""
        return self.figure().to_html(full_html=False, include_plotlyjs=True)

    def __str__(self) -> str:
        finite = self.losses[self.known & np.isfinite(self.losses)]
        span = f"{finite.min():.4g} to {finite.max():.4g}" if len(finite) else "nowhere finite"
        form = " x ".join(map(str, self.losses.shape))
        return f"loss {span} on {form} points; {self.says}"


def surface(
    model: nn.Module,
    loss: Loss,
    data: Any,
    directions: Any = None,
    at: int | Sequence[Any] = 25,
    *,
    statistics: Statistics = "fixed",
    metrics: Mapping[str, Metric] | Literal["accuracy"] | None = None,
    parameters: Subset = None,
    seed: int = 0,
    chunk: int | None = 128,
    file: str | Path | None = None,
    progress: bool = False,
) -> Surface:
    """The mean loss along a line, or over a plane, through the weights.

        L(w + a u + b v)    at all a, b of a grid

    Every point is computed from a copy of `w`, which comes back bit for bit, also after an
    exception. All layers but batch normalization are in evaluation mode.

    Args:
        model: any module; left bit for bit as it is. Started by torchrun, with a plain module and
            the same data everywhere, processes share the points, and all get the whole. With
            `DistributedDataParallel` each rank brings its share of the data, and evaluates all.
        loss: `loss(model, batch)` returns the mean over the samples of `batch`, without backward.
        data: one batch, a list of batches, a `DataLoader`, or a data set of batches; read once.
        directions: None (default): two filter-normalised random ones. Or a plane:
            `random_directions`, `line_between`, `plane_through`, `plane_of`; what `eigenvalues` has
            found, for the plane of the two largest; or a tensor with one or two directions as
            columns.
        at: how many points along each direction, default 25; or the coordinates: a sequence for all
            directions, or a tuple of two sequences. An odd number has the centre among them.
        statistics: of batch normalization. "fixed" (default): as they are in the model, in
            evaluation mode, as in the reference; far from the centre they no longer fit the
            weights. "batch": of each batch, which then is evaluated whole. "reestimated": the mean
            over the batches at each point, weighted by size; what to take between checkpoints.
        metrics: further means of the same forward pass, by name: functions of the outputs of the
            model and the batch; "accuracy" for `{"accuracy": analysis.accuracy}`; default None.
        parameters: which move, where `directions` is no plane, which says it; default all that
            require gradients.
        seed: of the random directions; default 0.
        chunk: most samples evaluated at once; default 128.
        file: where the grid is kept as it grows (numpy's .npz); a call with the same arguments goes
            on from there. Default None.
        progress: whether it is told on standard error how far it is; default False.

    Returns:
        losses, metrics, and how they were made. After Ctrl-C the points so far.

    Cost: a forward pass a point, two with "reestimated"; five copies of the parameters.

    Raises:
        TypeError, ValueError: an argument does not fit; the loss draws random numbers; `file` is of
            another grid, and what differs; and what `Objective` raises.

    Reference: Li et al., Visualizing the loss landscape of neural nets, NeurIPS 2018,
    arXiv:1712.09913.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from flatmin import analysis
        >>> def loss(model, batch):
        ...     x, y = batch
        ...     return ((model(x) - y) ** 2).mean()
        >>> model = nn.Linear(1, 1, bias=False)
        >>> nn.init.ones_(model.weight).numel()
        1
        >>> batch = torch.ones(2, 1), torch.zeros(2, 1)
        >>> line = analysis.surface(model, loss, batch, torch.ones(1), at=[-1.0, 0.0, 1.0])
        >>> line.losses.tolist()  # (1 + a)²
        [0.0, 1.0, 4.0]
    """
    check.one_of("statistics", statistics, STATISTICS)
    check.seed(seed)
    measures = _measures(metrics)
    plane = _plane(model, directions, parameters, seed)
    axes = _axes(at, plane)
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    _require_statistics(model, statistics)
    batches = batches_of(data)
    whole = bool(layers) and statistics != "fixed"  # then a batch is what the statistics are of
    objective = Objective(
        model, loss, batches, plane.names, mode="eval", chunk=None if whole else chunk
    )
    _require_fit(plane, objective.parameters)
    look = _Look(objective, layers, statistics, measures)
    ways = list(plane.vectors)
    if plane.centre is not None:
        ways.append(plane.centre - objective.parameters.vector().to(plane.centre))
    grid = Grid(axes, ("loss", *measures), dict(_identity(objective, plane, axes, look)))
    shares = objective.group is None and dist.is_available() and dist.is_initialized()
    if shares:
        same_on_all(grid.identity, objective.device)
    several = shares or objective.group is not None
    lead = not several or dist.get_rank() == 0
    kept = GridFile(file)
    kept.load(grid, shared=several)
    here = [1.0] if plane.centre is not None else []
    line = ProgressLine(progress and lead)
    with objective.along(*ways) as go:

        def value(index: int) -> list[float]:
            go(*grid.point(index), *here)
            return look.values()

        grid.require(value, SAME, kept.path)
        try:
            _fill(grid, value, objective, shares, kept if lead else GridFile(None), line)
        except KeyboardInterrupt:
            if several or not grid.known.any():
                raise
    losses, *others = grid.tables()
    says = _says(objective, plane, statistics if layers else None, grid)
    return Surface(
        losses,
        dict(zip(measures, others, strict=True)),
        axes,
        np.array(grid.known).reshape(losses.shape),
        statistics,
        plane,
        objective.samples,
        says,
    )


def accuracy(outputs: Any, batch: Any) -> Tensor:
    """% of the samples whose largest output is that of their label: a metric for `surface`.

    Args:
        outputs: what the model gave: scores (samples, classes), or an object with `.logits`.
        batch: a pair whose last part holds the labels, or a mapping with "labels" or "label".

    Raises ValueError where no labels are found in the batch.

    Examples:
        >>> import torch
        >>> from flatmin import analysis
        >>> analysis.accuracy(torch.eye(2), (None, torch.tensor([0, 0])))
        tensor(50.)
    """
    scores: Tensor = getattr(outputs, "logits", outputs)
    labels: Any = None
    if isinstance(batch, Mapping):
        named = cast("Mapping[str, Any]", batch)
        labels = named.get("labels", named.get("label"))
    elif isinstance(batch, (tuple, list)) and batch:
        labels = cast("Sequence[Any]", batch)[-1]
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        raise ValueError(
            "accuracy finds no labels in the batch: expected a pair whose last part is a tensor of "
            "whole numbers, or a mapping with 'labels'; pass a metric of your own, "
            "metrics={'accuracy': lambda outputs, batch: …}"
        )
    return 100 * (scores.argmax(1) == labels).float().mean()


# One point.


class _Look:
    """The loss and the metrics at the weights as they are."""

    def __init__(
        self,
        objective: Objective,
        layers: Sequence[_BatchNorm],
        statistics: Statistics,
        measures: Mapping[str, Metric],
    ) -> None:
        self._objective = objective
        self._layers = layers
        self.statistics = statistics
        self.measures = measures

    def values(self) -> list[float]:
        """The loss, then the metrics."""
        objective = self._objective
        total = torch.zeros(1 + len(self.measures), dtype=torch.float64)
        with ExitStack() as stack:
            visit = stack.enter_context(objective.evaluating())
            stack.enter_context(torch.no_grad())
            seen = stack.enter_context(_outputs(objective.model)) if self.measures else []
            if self.statistics == "batch":
                for m in self._layers:
                    m.train()
            elif self.statistics == "reestimated" and self._layers:
                self._reestimate(visit)
            for chunk in objective.chunks:
                objective.prepare(chunk, visit)
                seen.clear()
                term = objective.term(chunk, visit, finite=False)
                found = [float(term), *self._measured(seen, chunk.batch)]
                total += torch.tensor(found, dtype=torch.float64) * chunk.weight
        return cast("list[float]", objective.summed(total.to(objective.device)).tolist())

    def _measured(self, seen: list[Any], batch: Any) -> list[float]:
        if not self.measures:
            return []
        if len(seen) != 1:
            raise ValueError(
                f"the loss calls the model {len(seen)} times for a batch, and a metric has to know "
                "which outputs are meant: call it once, or leave out metrics="
            )
        return [float(f(seen[0], batch)) for f in self.measures.values()]

    def _reestimate(self, visit: Visit) -> None:
        """Let each layer have the mean statistics of the batches, which count by their size."""
        momenta = [m.momentum for m in self._layers]
        seen = 0.0
        try:
            for m in self._layers:
                m.train()
            for chunk in self._objective.chunks:
                seen += chunk.weight
                for m in self._layers:
                    m.momentum = chunk.weight / seen
                self._objective.raw(chunk)
        finally:
            for m, momentum in zip(self._layers, momenta, strict=True):
                m.momentum = momentum
                m.eval()
        if self._objective.group is not None:
            for m in self._layers:
                for buffer in (m.running_mean, m.running_var):
                    assert buffer is not None
                    buffer.copy_(self._objective.summed(buffer * seen))
        visit.hold()


@contextmanager
def _outputs(model: nn.Module) -> Generator[list[Any]]:
    """Within, what the model gives is put into a list, call by call."""
    seen: list[Any] = []

    def put(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output)

    handle = model.register_forward_hook(put)
    try:
        yield seen
    finally:
        handle.remove()


# All points.


def _fill(
    grid: Grid,
    value: Callable[[int], list[float]],
    objective: Objective,
    shares: bool,
    kept: GridFile,
    line: ProgressLine,
) -> None:
    """Evaluate what is not known yet; several processes take turns."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if shares else (0, 1)
    size = ROUND * ranks if shares else 1
    missing = np.flatnonzero(~grid.known).tolist()
    last = began = time.monotonic()
    try:
        for start in range(0, len(missing), size):
            some = missing[start : start + size]
            found = torch.zeros(len(some) + 1, grid.width, dtype=torch.float64)
            trouble = None
            try:
                for i in range(rank, len(some), ranks):
                    found[i] = torch.tensor(value(some[i]), dtype=torch.float64)
            except Exception as error:
                if not shares:
                    raise
                trouble, found[-1] = error, 1.0  # told to the others, who would wait for ever
            if shares:
                found = found.to(objective.device)
                dist.all_reduce(found)
            if float(found[-1, 0]):
                raise trouble or RuntimeError(
                    "another process could not evaluate its points: see what it says"
                )
            grid.put(some, found[:-1].cpu().numpy())
            now = time.monotonic()
            done = start + len(some)
            left = (now - began) / done * (len(missing) - done)
            line.say(f"point {int(grid.known.sum())} of {len(grid.known)}: {left:.0f} s to go")
            if now - last >= SAVE_SECONDS:
                kept.save(grid)
                last = now
    finally:
        kept.save(grid)


# Arguments.


def _measures(metrics: Any) -> dict[str, Metric]:
    if metrics is None:
        return {}
    if metrics == "accuracy":
        return {"accuracy": accuracy}
    if not isinstance(metrics, Mapping):
        raise TypeError(
            "metrics= takes functions of outputs and batch by name, or 'accuracy', got "
            + check.describe(metrics)
        )
    found = dict(cast("Mapping[str, Metric]", metrics))
    for name, function in found.items():
        if name == "loss" or not callable(function):
            raise ValueError(
                f"metrics[{name!r}] must be a function of outputs and batch, under another name "
                "than 'loss'"
            )
    return found


def _plane(model: nn.Module, directions: Any, parameters: Subset, seed: int) -> Plane:
    if isinstance(directions, Plane):
        if parameters is not None:
            raise ValueError(
                "the directions say which parameters move: give parameters= to what makes them"
            )
        own = dict(inside(model).named_parameters())
        strangers = [name for name in directions.names if name not in own]
        if strangers:
            raise ValueError(
                f"the directions move {some(strangers)}, which this model does not have: make them "
                "of this model"
            )
        return directions
    if directions is None:
        return random_directions(model, 2, seed, parameters=parameters)
    return plane_along(directions, Parameters(inside(model), parameters))


def _require_fit(plane: Plane, weights: Parameters) -> None:
    if tuple(weights.names) != plane.names or len(plane.vectors[0]) != weights.count:
        raise ValueError(
            f"the directions are of {len(plane.vectors[0])} numbers in {len(plane.names)} "
            f"parameters, and those of this model are {weights.count} in {len(weights.names)}: "
            "make them of this model"
        )
    for v in plane.vectors:
        if not bool(v.isfinite().all()):
            raise ValueError(
                "the directions hold values that are not finite: look at the weights of the model"
            )


def _require_statistics(model: nn.Module, statistics: Statistics) -> None:
    if statistics == "batch":
        return
    modules: list[tuple[str, nn.Module]] = list(cast(Any, model).named_modules())
    for name, m in modules:
        if isinstance(m, _BatchNorm) and m.running_mean is None:
            raise ValueError(
                f"{name or 'the model'} keeps no statistics, and takes those of the batch in any "
                "mode: pass statistics='batch'"
            )


def _axes(at: Any, plane: Plane) -> tuple[Array, ...]:
    n = plane.dimensions
    if isinstance(at, int):
        check.positive_int("at", at)
        return tuple(np.linspace(low, high, at) for low, high in plane.spans[:n])
    given: list[Any] = list(at)
    nested = len(given) == n and all(np.ndim(x) == 1 for x in given)
    axes = tuple(np.asarray(x, dtype=np.float64) for x in (given if nested else [given] * n))
    for axis in axes:
        if axis.ndim != 1 or not len(axis) or not np.isfinite(axis).all():
            raise ValueError(
                "at= is how many points there are along each direction, or their coordinates: a "
                f"sequence of finite numbers, or a tuple of {n} such"
            )
        if len(axis) > 1 and not (np.diff(axis) > 0).all():
            raise ValueError("the coordinates at= have to ascend, each once")
    return axes


def _identity(
    objective: Objective, plane: Plane, axes: Sequence[Array], look: _Look
) -> Generator[tuple[str, str]]:
    """What makes a grid this one, by name."""
    yield "coordinates", digest([torch.from_numpy(axis) for axis in axes])
    directions = [*plane.vectors, *([] if plane.centre is None else [plane.centre])]
    yield "directions", digest(directions)
    yield "weights", digest([*objective.model.parameters(), *objective.model.buffers()])
    yield "data", digest(t for chunk in objective.chunks for t in tensors_of(chunk.batch))
    yield "statistics", look.statistics
    yield "metrics", ", ".join(look.measures)


def _says(objective: Objective, plane: Plane, statistics: Statistics | None, grid: Grid) -> str:
    said = [plane.kind]
    if plane.shares:
        said.append(f"{sum(plane.shares):.0%} of the variance within the plane")
    said.append(SAID[statistics] if statistics else "no layer with batch statistics")
    still = plane.still(objective.parameters)
    shapes = dict(zip(objective.parameters.names, objective.parameters.shapes, strict=True))
    if still and {n for n, s in shapes.items() if len(s) < 2} == set(still):
        said.append("one-dimensional tensors not moved")
    elif still:
        said.append(f"{len(still)} of {len(shapes)} tensors not moved")
    said.append(f"{objective.samples:,} samples")
    gaps = int((grid.known & ~np.isfinite(grid.values[:, 0])).sum())
    if gaps:
        said.append(f"{gaps} of {len(grid.known)} points not finite")
    left = int((~grid.known).sum())
    if left:
        said.append(f"interrupted: {left} of {len(grid.known)} points not evaluated")
    return "; ".join(said)

"""Lines and planes through weight space, along which a loss is looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from flatmin.analysis.lanczos import Array, ordered
from flatmin.analysis.objective import inside
from flatmin.analysis.parameters import Parameters, Subset
from flatmin.engine import check

Checkpoint: TypeAlias = "nn.Module | Mapping[str, Any]"
"""Weights of a model: a module, or what `state_dict()` gives."""

Span: TypeAlias = "tuple[float, float]"
"""From where to where, in the units of a direction."""

MARGIN = 0.25
"""How far a picture goes beyond what is drawn in it, as a share of that."""

FLAT = 1e-10
"""Share of the variance below which there is no second direction, but rounding."""

SHOWN = 3
"""How many names of a kind an error tells."""


@dataclass(frozen=True)
class Plane:
    """A line or a plane through weight space: `centre + a u`, or `centre + a u + b v`.

    Fields:
        vectors: `u`, or `u` and `v`, each flat over the parameters.
        names: of the parameters.
        kind: what it is, in words.
        labels: of the axes.
        centre: flat; None for the weights of the model that is looked at.
        spans: from where to where a picture goes by default, by direction.
        path: coordinates in it of what it was made of, (checkpoints, directions), or None.
        apart: how far each of these lies from it.
        shares: of the variance of the checkpoints, by direction; empty where nothing is said.
        ordered: whether the path is one, which a line may join.
    """

    vectors: tuple[Tensor, ...]
    names: tuple[str, ...]
    kind: str
    labels: tuple[str, ...]
    centre: Tensor | None = None
    spans: tuple[Span, ...] = ((-1.0, 1.0), (-1.0, 1.0))
    path: Array | None = None
    apart: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    ordered: bool = True

    @property
    def dimensions(self) -> int:
        """1 for a line, 2 for a plane."""
        return len(self.vectors)

    def still(self, weights: Parameters) -> tuple[str, ...]:
        """Names of those of `weights` that do not move in it."""
        pieces = zip(*map(weights.unflatten, self.vectors), strict=True)
        moved = (any(bool(x.any()) for x in each) for each in pieces)
        return tuple(name for name, does in zip(weights.names, moved, strict=True) if not does)


def random_directions(
    model: nn.Module,
    n: int = 2,
    seed: int = 0,
    normalize: Literal["filter", "layer"] | None = "filter",
    *,
    one_dimensional: bool = False,
    parameters: Subset = None,
) -> Plane:
    """Random directions, in the scale of the weights.

        d_f <- d_f ‖w_f‖ / ‖d_f‖,    d standard normal

    for every filter `f`: a slice of a tensor along its first dimension, such as what makes one
    channel of a convolution or one output of a linear layer. Without it a network whose layers are
    rescaled against each other, which computes the same, looks sharper or flatter.

    Args:
        model: whose weights are at the centre, and give the scale.
        n: 1 for a line, 2 (default) for a plane.
        seed: of the directions; default 0. Before scaling they are the same for every network
            of the same shapes.
        normalize: "filter" (default); "layer": each tensor as a whole; None: as drawn.
        one_dimensional: whether tensors of one dimension move too, each as a whole; default False,
            as in the reference: biases, and the gains of normalisation layers.
        parameters: which; default all that require gradients.

    Raises:
        ValueError: an argument is out of range, or nothing would move.

    Reference: Li et al., Visualizing the loss landscape of neural nets, NeurIPS 2018,
    arXiv:1712.09913.

    Examples:
        >>> from torch import nn
        >>> from flatmin import analysis
        >>> plane = analysis.random_directions(nn.Linear(3, 2))
        >>> plane.dimensions, [x.shape[0] for x in plane.vectors]
        (2, [8, 8])
    """
    check.in_range("n", n, 1, 2)
    check.positive_int("n", n)
    check.seed(seed)
    if normalize is not None:
        check.one_of("normalize", normalize, ("filter", "layer"))
    weights = Parameters(inside(model), parameters)
    whole = [w.double() for w in weights.unflatten(weights.vector())]
    if not one_dimensional and all(w.ndim < 2 for w in whole):
        raise ValueError(
            "every parameter chosen has one dimension, and these do not move: pass "
            "one_dimensional=True"
        )
    source = torch.Generator().manual_seed(seed)
    vectors: list[Tensor] = []
    for _ in range(n):
        pieces: list[Tensor] = []
        for w in whole:
            # drawn in any case, so that the others do not depend on it
            d = torch.randn(w.shape, generator=source, dtype=torch.float64).to(w.device)
            if w.ndim < 2 and not one_dimensional:
                d.zero_()
            elif normalize is not None:
                d = _scaled(d, w, "layer" if w.ndim < 2 else normalize)
            pieces.append(d)
        vectors.append(weights.flatten(pieces))
    scale = {"filter": "filter-normalised ", "layer": "layer-normalised ", None: ""}[normalize]
    return Plane(
        tuple(vectors),
        tuple(weights.names),
        f"{scale}random direction{'s' if n > 1 else ''}, seed {seed}",
        tuple(f"direction {i + 1}" for i in range(n)),
    )


def _scaled(d: Tensor, w: Tensor, normalize: str) -> Tensor:
    """A direction in the scale of the weights, by filter or as a whole."""
    dims = tuple(range(1 if normalize == "filter" else 0, w.ndim))
    lengths = d.square().sum(dims, keepdim=True).sqrt()
    return d * (w.square().sum(dims, keepdim=True).sqrt() / lengths.clamp_min(1e-10))


def line_between(
    model: nn.Module, a: Checkpoint, b: Checkpoint, *, parameters: Subset = None
) -> Plane:
    """The line from weights `a`, at 0, to weights `b`, at 1.

    Args:
        model: of which both are weights.
        a: the weights at 0: a module, or what `state_dict()` gives.
        b: those at 1.
        parameters: which move; default all that require gradients. The others, and all buffers, are
            those of the model that is looked at: running statistics are right at neither end, and
            `statistics="reestimated"` is what to take with batch normalization.

    Raises:
        ValueError: the weights are of another model, not finite, or the same.

    Reference: Goodfellow et al., Qualitatively characterizing neural network optimization problems,
    ICLR 2015, arXiv:1412.6544.

    Examples:
        >>> from torch import nn
        >>> from flatmin import analysis
        >>> a, b = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> analysis.line_between(a, a, b).path.tolist()
        [[0.0], [1.0]]
    """
    weights = Parameters(inside(model), parameters)
    start, end = _vectors(weights, [a, b])
    way = end - start
    if not way.any():
        raise ValueError("both checkpoints hold the same weights: there is no line between them")
    return Plane(
        (way,),
        tuple(weights.names),
        "line between two checkpoints",
        ("from the first (0) to the second (1)",),
        start,
        ((-MARGIN, 1 + MARGIN),),
        np.array([[0.0], [1.0]]),
        (0.0, 0.0),
    )


def plane_through(
    model: nn.Module, a: Checkpoint, b: Checkpoint, c: Checkpoint, *, parameters: Subset = None
) -> Plane:
    """The plane through three weights; distances in it are those in weight space.

    Args:
        model: of which all are weights.
        a: the weights at the centre: a module, or what `state_dict()` gives.
        b: those on the first axis.
        c: the third.
        parameters: which move; default all that require gradients, as for `line_between`.

    Raises:
        ValueError: the weights are of another model, not finite, or on one line.

    Reference: Garipov et al., Loss surfaces, mode connectivity, and fast ensembling of DNNs,
    NeurIPS 2018, arXiv:1802.10026.

    Examples:
        >>> from torch import nn
        >>> from flatmin import analysis
        >>> nets = [nn.Linear(3, 2) for _ in range(3)]
        >>> analysis.plane_through(nets[0], *nets).path.shape
        (3, 2)
    """
    weights = Parameters(inside(model), parameters)
    start, second, third = _vectors(weights, [a, b, c])
    first = second.double() - start.double()
    across = third.double() - start.double()
    along = _length(first)
    u = first / (along or 1.0)
    shadow = float(u @ across)
    v = across - shadow * u
    v = v - (u @ v) * u  # once more: what rounding has left
    height = _length(v)
    if height <= 1e-6 * max(along, abs(shadow)) or not along:
        raise ValueError(
            "the three checkpoints lie on one line, through which there are many planes: take "
            "line_between"
        )
    path = np.array([[0.0, 0.0], [along, 0.0], [shadow, height]])
    return Plane(
        (u.to(weights.dtype), (v / height).to(weights.dtype)),
        tuple(weights.names),
        "plane through three checkpoints",
        ("distance towards the second", "distance across"),
        start,
        _around(path),
        path,
        (0.0, 0.0, 0.0),
        ordered=False,
    )


def plane_of(
    model: nn.Module, checkpoints: Sequence[Checkpoint], *, parameters: Subset = None
) -> Plane:
    """The plane in which most of a run's way lies: the first two principal components.

    It goes through the last checkpoint. `shares` says how much of the variance of the checkpoints
    either direction has, and `apart` how far each lies from the plane: the loss drawn at its shadow
    is not the loss that it had.

    Args:
        model: of which all are weights.
        checkpoints: three or more, in their order: modules, or what `state_dict()` gives.
        parameters: which move; default all that require gradients, as for `line_between`.

    Cost: memory for the checkpoints and as much again for the largest tensor of all.

    Raises:
        ValueError: there are fewer than three; weights are of another model, not finite, or all on
            one line.

    Reference: Li et al., section 7, NeurIPS 2018, arXiv:1712.09913.

    Examples:
        >>> from torch import nn
        >>> from flatmin import analysis
        >>> nets = [nn.Linear(3, 2) for _ in range(4)]
        >>> plane = analysis.plane_of(nets[-1], nets)
        >>> plane.path.shape, 0 < sum(plane.shares) <= 1
        ((4, 2), True)
    """
    weights = Parameters(inside(model), parameters)
    if len(checkpoints) < 3:
        raise ValueError(
            f"a plane of checkpoints needs at least 3, got {len(checkpoints)}: between two "
            "there is line_between"
        )
    vectors = _vectors(weights, checkpoints)
    pieces = [_centred(columns) for columns in zip(*map(weights.unflatten, vectors), strict=True)]
    gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for x in pieces:
        gram += (x @ x.T).cpu()
    G: Array = gram.numpy()
    spectrum, basis = np.linalg.eigh(G)
    values: Array = spectrum[::-1][:2]
    mix: Array = basis[:, ::-1][:, :2] / np.sqrt(np.maximum(values, 1e-300))
    total = float(np.trace(G))
    if not total or values[1] <= FLAT * total:
        raise ValueError(
            "the checkpoints lie on one line, or are one: there is no plane of them; take "
            "line_between"
        )
    path: Array = G @ mix
    path = path - path[-1]
    signs = np.where(path[0] < 0, -1.0, 1.0)  # the way begins at the right, and above
    path = path * signs
    mixed = torch.from_numpy(mix * signs)
    directions = [
        torch.cat([mixed[:, k].to(x) @ x for x in pieces]).to(weights.dtype) for k in range(2)
    ]
    diagonal: Array = np.diag(G)
    squares: Array = diagonal + diagonal[-1] - 2 * G[:, -1] - (path**2).sum(1)
    shares = tuple(float(v) / total for v in values)
    return Plane(
        tuple(directions),
        tuple(weights.names),
        f"principal components of {len(vectors)} checkpoints",
        tuple(f"component {k + 1} ({share:.0%} of the variance)" for k, share in enumerate(shares)),
        vectors[-1],
        _around(path),
        path,
        tuple(math.sqrt(max(float(s), 0.0)) for s in squares),
        shares,
    )


def _centred(columns: Sequence[Tensor]) -> Tensor:
    """Some numbers of each checkpoint, (checkpoints, numbers), without their mean."""
    X = torch.stack([x.reshape(-1) for x in columns]).double()
    return X - X.mean(0)


def _length(x: Tensor) -> float:
    return float(x.square().sum().sqrt())


def _around(path: Array) -> tuple[Span, ...]:
    low, high = path.min(0), path.max(0)
    room = MARGIN * (high - low)
    pairs = zip(low - room, high + room, strict=True)
    return tuple((float(a), float(b)) for a, b in pairs)


def plane_along(found: Any, weights: Parameters) -> Plane:
    """The plane of given directions: eigenvectors, or the columns of a matrix.

    Raises TypeError or ValueError where they are no directions of these parameters.
    """
    labels: tuple[str, ...] = ()
    kind = "given directions"
    values: Any = getattr(found, "values", getattr(found, "nodes", None))
    vectors: Any = getattr(found, "vectors", found)
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2):
        raise TypeError(
            "directions= takes a plane (random_directions, line_between, plane_of), what "
            "eigenvalues() has found, or a tensor with a direction in each column, got "
            + check.describe(found)
        )
    columns = vectors.reshape(len(vectors), -1)
    if vectors is not found:  # with their values: the two that bend the loss most
        known = np.asarray(values, dtype=np.float64)
        if hasattr(found, "converged") and np.ndim(found.converged):  # a spectrum has more nodes
            known = known[found.converged]
        chosen = [int(i) for i in ordered(known, "LM")[:2]]
        columns = columns[:, chosen]
        labels = tuple(f"eigenvector of {known[i]:.4g}" for i in chosen)
        kind = "eigenvectors of the largest eigenvalues"
    count = columns.shape[1]
    if len(columns) != weights.count or count not in (1, 2):
        raise ValueError(
            f"directions= must be one or two columns of {weights.count} numbers, one for each "
            f"parameter chosen, got a tensor of shape {tuple(vectors.shape)}"
        )
    return Plane(
        tuple(columns.unbind(1)),
        tuple(weights.names),
        kind,
        labels or tuple(f"direction {i + 1}" for i in range(count)),
    )


# Weights out of checkpoints.


def _vectors(weights: Parameters, checkpoints: Sequence[Checkpoint]) -> list[Tensor]:
    """The chosen parameters of each checkpoint, flat."""
    wanted = dict(zip(weights.names, weights.tensors, strict=True))
    found: list[Tensor] = []
    for i, checkpoint in enumerate(checkpoints):
        state = state_of(checkpoint)
        wrong = mismatch(wanted, state, strangers=False)
        if wrong:
            raise ValueError(f"checkpoint {i + 1} is not of this model: {wrong}")
        vector = weights.flatten([state[name].detach() for name in weights.names])
        if not bool(vector.isfinite().all()):
            name = next(n for n in weights.names if not bool(state[n].isfinite().all()))
            raise ValueError(
                f"checkpoint {i + 1} holds {name} with values that are not finite: the run has "
                "diverged before it; leave it out"
            )
        found.append(vector)
    return found


def state_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their plain names, without those of wrappers.

    Raises TypeError where it is none.
    """
    state: Any = checkpoint
    if isinstance(checkpoint, nn.Module):
        state = inside(checkpoint).state_dict()
    if not isinstance(state, Mapping):
        raise TypeError(
            "a checkpoint is a module or what its state_dict() gives, got "
            + check.describe(checkpoint)
        )
    items = cast("Mapping[Any, Any]", state).items()
    named = {str(k): v for k, v in items if isinstance(v, Tensor)}
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if named and all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): x for name, x in named.items()}
    return named


def mismatch(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, strangers: bool = True
) -> str:
    """Which tensors are missing, of another shape or too many; empty where all fit.

    Args:
        wanted: what a model has.
        found: what a checkpoint has.
        strangers: whether tensors that the model does not have count; default True.
    """
    missing = [name for name in wanted if name not in found]
    others = [name for name in found if name not in wanted] if strangers else []
    shapes = [
        f"{name} is {tuple(found[name].shape)} and should be {tuple(x.shape)}"
        for name, x in wanted.items()
        if name in found and found[name].shape != x.shape
    ]
    said = [
        f"{what} {some(names)}"
        for what, names in (("it lacks", missing), ("it has besides", others), ("", shapes))
        if names
    ]
    return "; ".join(each.strip() for each in said)


def some(names: Sequence[str]) -> str:
    """The first names of several, for an error."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

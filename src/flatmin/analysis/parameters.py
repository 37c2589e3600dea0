"""Some parameters of a model, as one flat vector."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from flatmin.engine import check
from flatmin.engine.space import Space
from flatmin.engine.vec import Term, Vector
from flatmin.engine.walk import Walk

Subset: TypeAlias = "Iterable[Tensor] | Iterable[str] | str | Callable[[str, Tensor], bool] | None"
"""Which parameters: tensors, names (with * and ? as in file names), or a rule on both."""


class Parameters:
    """Some parameters of a model, in the model's order, as one flat vector.

    Args:
        model: whose parameters.
        subset: the parameters themselves, their names (`"head.*"` is a pattern), or a function of
            name and parameter that says which; None (default): all that require gradients. Frozen
            parameters that are named count too.

    Raises:
        TypeError: a parameter is not of floating-point numbers.
        ValueError: the subset is empty, or names a parameter that the model does not have.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from flatmin.analysis import Parameters
        >>> weights = Parameters(nn.Linear(3, 2), "weight")
        >>> weights.names, weights.count
        (['weight'], 6)
        >>> [x.shape for x in weights.unflatten(torch.ones(6))]
        [torch.Size([2, 3])]
    """

    def __init__(self, model: nn.Module, subset: Subset = None) -> None:
        chosen = _chosen(dict(model.named_parameters()), subset)
        if not chosen:
            raise ValueError(
                "no parameter is chosen: "
                + (
                    "the model has none that requires a gradient; name some, as in "
                    'parameters=["head.*"]'
                    if subset is None
                    else "parameters= names, lists or admits none of the model's"
                )
            )
        for name, p in chosen.items():
            if not p.is_floating_point():
                raise TypeError(
                    f"parameter {name} is of {p.dtype}, and derivatives need real floating-point "
                    "numbers: leave it out with parameters="
                )
        self.names = list(chosen)
        self.tensors = list(chosen.values())
        self.shapes = [p.shape for p in self.tensors]
        self.sizes = [p.numel() for p in self.tensors]
        self.count = sum(self.sizes)
        """How many numbers they are."""

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The widest type among them."""
        kinds = [p.dtype for p in self.tensors]
        wide = kinds[0]
        for kind in kinds:
            wide = torch.promote_types(wide, kind)
        return wide

    def vector(self) -> Tensor:
        """The parameters as they are, as one flat vector: a copy."""
        return self.flatten([p.detach() for p in self.tensors])

    def flatten(self, tensors: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> Tensor:
        """One flat vector of `dtype` from `tensors`, one for each parameter; None stands for zero.

        Shards are put together: every rank gets the whole vector.
        """
        dtype = dtype or self.dtype
        pieces = [
            torch.zeros(n, dtype=dtype, device=self.device)
            if t is None
            else _whole(t).reshape(-1).to(self.device, dtype)
            for t, n in zip(tensors, self.sizes, strict=True)
        ]
        return torch.cat(pieces)

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """A tensor for each parameter, in its shape: views of the flat `vector`."""
        if vector.shape != (self.count,):
            raise ValueError(
                f"a vector over these parameters has the shape ({self.count},), got "
                f"{tuple(vector.shape)}"
            )
        pieces = cast("tuple[Tensor, ...]", vector.split(self.sizes))
        return [x.view(shape) for x, shape in zip(pieces, self.shapes, strict=True)]

    def like(self, vector: Tensor, leaves: Sequence[Tensor] | None = None) -> list[Tensor]:
        """`unflatten(vector)`, in type, device and shards of each parameter, or of `leaves`."""
        pieces = self.unflatten(vector)
        return [_placed(x, p) for x, p in zip(pieces, leaves or self.tensors, strict=True)]

    @contextmanager
    def moving(
        self, leaves: Sequence[Tensor] | None = None
    ) -> Generator[Callable[[Tensor | None], None]]:
        """Within, `move(v)` takes the weights to `w + v`, and `move(None)` home.

        With `leaves`, these in place of the parameters. Every place is computed from a copy of `w`,
        which comes back bit for bit at the end, also after an exception. It costs two copies of the
        weights.
        """
        moved = list(leaves or self.tensors)
        walk = Walk(Space([moved]), [moved])

        @torch.no_grad()
        def move(v: Tensor | None) -> None:
            walk.go(None if v is None else self.displacement(walk.space, v, leaves))

        walk.begin()
        try:
            yield move
        finally:
            with torch.no_grad():
                walk.back()

    def displacement(
        self, space: Space, v: Tensor, leaves: Sequence[Tensor] | None = None
    ) -> Vector:
        """A flat vector `v` as the engine's, laid out as `space`, for parameters or `leaves`."""
        pieces = self.like(v, leaves)
        return Vector(Term(space.join([space.piece(i, x) for i, x in enumerate(pieces)])))


def _whole(t: Tensor) -> Tensor:
    return cast(Any, t).full_tensor() if hasattr(t, "full_tensor") else t


def _placed(x: Tensor, like: Tensor) -> Tensor:
    x = x.to(like.device, like.dtype)
    if not hasattr(like, "device_mesh"):
        return x
    from torch.distributed.tensor import distribute_tensor

    shards: Any = like
    return distribute_tensor(x, shards.device_mesh, shards.placements)


def _chosen(named: dict[str, Tensor], subset: Subset) -> dict[str, Tensor]:
    if subset is None:
        return {name: p for name, p in named.items() if p.requires_grad}
    if callable(subset):
        return {name: p for name, p in named.items() if subset(name, p)}
    wanted: list[Any] = [subset] if isinstance(subset, (str, Tensor)) else list(subset)
    by_id = {id(p): name for name, p in named.items()}
    names: set[str] = set()
    for each in wanted:
        if isinstance(each, Tensor):
            if id(each) not in by_id:
                raise ValueError(
                    f"parameters= holds {check.describe(each)} that is no parameter of the model: "
                    "take them from model.parameters()"
                )
            names.add(by_id[id(each)])
            continue
        if not isinstance(each, str):
            raise TypeError(
                "parameters= takes parameters, their names or a function of name and parameter, "
                f"got {check.describe(each)}"
            )
        found = {name for name in named if name == each or fnmatchcase(name, each)}
        if not found:
            near = difflib.get_close_matches(each, named, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"the model has no parameter named {each!r}{hint}")
        names |= found
    return {name: p for name, p in named.items() if name in names}

"""The probe of a step in which nothing is changed in place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from flatmin.engine.probe import BatchName, DiagonalMetric, Result
from flatmin.engine.vec import TINY, Metric, Scalar, Term, Vector

T = TypeVar("T")
Losses = Callable[[Tensor], Tensor]
"""From weights (n,) to their loss, or from weights (tasks, n) to losses (tasks,)."""


class FunctionalProbe:
    """A viewpoint whose numbers are tensors, one a task, through which gradients flow.

    The weights of all parameters are one vector, `(n,)`, or `(tasks, n)` where each task stands at
    a point of its own; then every norm and every inner product has one number a task. Directions
    and geometries of `flatmin.direction` and `flatmin.geometry`, and those that users write, run in
    it as they are. A look is answered at once: `ahead = yield from at.auxiliary()` never yields.

    Args:
        weights: `(n,)` or `(tasks, n)`; a tensor that requires a gradient.
        losses: of the primary batch, and of the auxiliary one if it is another. Left out, the
            primary batch is both, and its gradient at the weights is taken once.
        rho: radius, at least 0.
        geometry: the metric of the climb; default None: the Euclidean one.
        parameters: the parameters that the vector holds, in order and by name, for geometries that
            choose among them; default None: one that is everything.
        memory: what earlier steps have kept; default None: nothing.
        step: how many steps of this task were taken before; default 0.
        differentiable: whether the looks can be differentiated in turn. Default True.

    Cost: one gradient at once, and one for each further look.

    Examples:
        >>> import torch, flatmin
        >>> from flatmin.meta import FunctionalProbe
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> at = FunctionalProbe(w, {"primary": lambda w: (w * w).sum() / 2}, 0.5)
        >>> at.run(flatmin.direction.Ascent().displacement(at)).block(0).tolist()
        [0.30000001192092896, 0.4000000059604645]
    """

    grad: Vector
    rho: Sequence[float]

    def __init__(
        self,
        weights: Tensor,
        losses: Mapping[BatchName, Losses],
        rho: float,
        geometry: DiagonalMetric | None = None,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        memory: Mapping[str, Vector] | None = None,
        step: int = 0,
        differentiable: bool = True,
    ) -> None:
        self.rho = [rho]
        self.kept: dict[str, Vector] = {}
        self._w = weights
        self._losses = losses
        self._geometry = geometry
        self._parameters = parameters or {"": weights}
        self._memory = memory or {}
        self._step = step
        self._differentiable = differentiable
        self._metrics: tuple[Metric, Metric] | None = None
        self._weights = blocked(weights)
        self.grad = self._gradient("primary", weights)

    @property
    def weights(self) -> Vector:
        """The unperturbed weights."""
        return self._weights

    @property
    def step(self) -> int:
        """How many steps of this task were taken before this one."""
        return self._step

    # Measure.

    def dot(self, a: Vector, b: Vector) -> Scalar:
        """`aᵀb`, of `a` and `b`, over all parameters: a tensor `()` or `(tasks,)`."""
        if not (a.terms and b.terms):
            return 0.0
        x = a.block(0)
        return (x * (x if a is b else b.block(0))).sum(0)

    def norm(self, a: Vector) -> Scalar:
        """`‖a‖` over all parameters; its gradient at zero is zero, where the root has none."""
        total = self.dot(a, a)
        if not isinstance(total, Tensor):
            return 0.0
        zero = total == 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, total).sqrt())

    def cosine(self, a: Vector, b: Vector) -> Scalar:
        """`cos(a, b)`; 0 if either is zero."""
        return self.dot(a, b) / ((self.norm(a) + TINY) * (self.norm(b) + TINY))

    # Move.

    def climb(self, d: Vector, rho: float | None = None) -> Vector:
        """`rho Γ(d)`: the step of length `rho` along `d` in the metric at hand, each task's own."""
        if not d.terms:
            return d
        once, twice = self._metric()
        length = self.norm(d.in_metric(once) if once else d) + TINY
        gain = 1.0 if self._geometry is None else self._geometry.gain
        along = d.in_metric(twice) if twice else d
        return (self.rho[0] if rho is None else rho) * (gain / length) * along

    def members(self, j: int) -> Sequence[int]:
        """The parameters that block `j` holds: all, in the only one."""
        assert j == 0, "all parameters are one block"
        return range(len(self._parameters))

    def parameter(self, i: int) -> Tensor:
        """Parameter `i`, as the model holds it: at the same weights for all tasks."""
        return list(self._parameters.values())[i]

    def name(self, i: int) -> str:
        """The name of parameter `i` in the model."""
        return list(self._parameters)[i]

    def each(self, j: int, value: Callable[[int], float]) -> Tensor:
        """Block `j`, like the weights, that holds `value(i)` all over parameter `i`."""
        sizes = [p.numel() for p in self._parameters.values()]
        if "" in self._parameters:
            sizes = [self._w.shape[-1]]
        pieces = [self._w.new_full((sizes[i],), value(i)) for i in self.members(j)]
        whole = torch.cat(pieces)
        return whole if self._w.ndim == 1 else whole.unsqueeze(-1)

    def moved(self, eps: Vector) -> Tensor:
        """`w + eps`, laid out as the weights."""
        return self._w + unblocked(eps, self._w) if eps.terms else self._w

    def _metric(self) -> tuple[Metric | None, Metric | None]:
        """`T` and `T²`, the same objects throughout the step, so that terms in them can merge."""
        geometry = self._geometry
        if geometry is None or geometry.trivial:
            return None, None
        if self._metrics is None:
            once = geometry.metric(self, 0)
            twice = once**2
            self._metrics = (lambda _: once), (lambda _: twice)
        return self._metrics

    # Look.

    def primary(
        self, at: Vector | None = None, samples: Tensor | None = None, *, last: bool = False
    ) -> Generator[Any, Any, Vector]:
        """The gradient on the primary batch at `w + at`; `samples` are refused, `last` is free."""
        del last  # nobody waits for it
        if samples is not None:
            raise ValueError(
                "a functional step differentiates whole batches: leave out `samples`, or choose "
                "them in the loss"
            )
        return self._look("primary", at)
        yield  # what makes it a generator, as `yield from` wants

    def auxiliary(self, at: Vector | None = None) -> Generator[Any, Any, Vector]:
        """The gradient on the auxiliary batch at `w + at`; the primary one if there is no other."""
        return self._look("auxiliary" if "auxiliary" in self._losses else "primary", at)
        yield

    def _look(self, batch: BatchName, at: Vector | None) -> Vector:
        if at is None or not at.terms:
            return self.grad if batch == "primary" else self._gradient(batch, self._w)
        return self._gradient(batch, self.moved(at))

    def _gradient(self, batch: BatchName, point: Tensor) -> Vector:
        return blocked(gradient(self._losses[batch], point, differentiable=self._differentiable))

    @staticmethod
    def run(answer: Result[T]) -> T:
        """What a part has found, by its `answer`: one that looks is over when it is asked for."""
        if not isinstance(answer, Generator):
            return cast(T, answer)
        try:
            asked = next(cast("Generator[Any, Any, T]", answer))
        except StopIteration as done:
            return cast(T, done.value)
        raise TypeError(
            f"this direction asks for {asked!r} by itself: in a functional step it can look by "
            "`yield from at.primary(...)` and `yield from at.auxiliary(...)` alone"
        )

    # Remember, from one step of a task to its next.

    def recall(self, name: str) -> Vector | None:
        """What an earlier step of this task has kept under `name`; None before the first."""
        return self._memory.get(name)

    def keep(self, name: str, value: Vector) -> None:
        """Keep `value` under `name` for later steps: `kept` is the `memory` of the next probe."""
        if value.terms:
            self.kept[name] = Vector(Term([value.block(0)]))


def gradient(losses: Losses, point: Tensor, *, differentiable: bool) -> Tensor:
    """`∇L` at `point`, each task's own; RuntimeError if the loss has no graph."""
    if not point.requires_grad:
        point = point.detach().requires_grad_()
    total = losses(point).sum()
    if not total.requires_grad:
        raise RuntimeError(
            "the loss has no graph to the weights, so there is no gradient: leave out no_grad, "
            ".detach(), .data, .item() and numpy in the model and the loss"
        )
    return torch.autograd.grad(total, point, create_graph=differentiable)[0]


def unblocked(a: Vector, like: Tensor) -> Tensor:
    """A vector laid out as weights `like`."""
    block = a.block(0)
    return block if like.ndim == 1 else block.movedim(-1, 0)


def blocked(x: Tensor) -> Vector:
    """Weights or a gradient as a vector of one block: tasks last, where a number a task fits."""
    return Vector(Term([x if x.ndim == 1 else x.movedim(0, -1)]))


__all__ = ["FunctionalProbe", "Losses", "blocked", "gradient", "unblocked"]

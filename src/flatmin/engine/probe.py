"""What a part of a method may see and do during one step."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from flatmin.engine import check
from flatmin.engine.cost import COUNTS
from flatmin.engine.distributed import Ranks
from flatmin.engine.memory import Memory
from flatmin.engine.model_state import ModelState
from flatmin.engine.space import Seen
from flatmin.engine.vec import TINY, Metric, Scalar, Vector
from flatmin.engine.viewpoint import Viewpoint
from flatmin.engine.walk import Walk

BatchName: TypeAlias = Literal["primary", "auxiliary"]
T = TypeVar("T")


@dataclass(frozen=True)
class Looking:
    """What a step is doing while a closure runs.

    Attributes:
        batch: "primary" or "auxiliary".
        perturbed: whether the weights stand elsewhere than at `w`.
        first: whether this is the first pass over that batch in this step.
    """

    batch: BatchName
    perturbed: bool
    first: bool


@dataclass(frozen=True)
class Pass:
    """One evaluation of the loss that a step asks for.

    A part gets its gradients from the probe, which yields these; whoever runs the step answers each
    with the loss.

    Args:
        batch: which batch to evaluate, "primary" or "auxiliary".
        perturbed: whether the weights now stand at `w + eps`.
        gradient: whether a backward pass is wanted; default True. Without it, only the losses are.
        samples: the chosen samples of the batch, as indices; default None, for all.
        communicate: whether ranks reduce the gradient of this pass; default True.
        last: whether it is the last pass of the step; default False. None if that depends on its
            gradient.
        per_sample: whether one loss a sample is wanted, in place of their mean; default False.

    Examples:
        >>> from flatmin.engine import Pass
        >>> Pass("primary", perturbed=True, last=True).gradient
        True
    """

    batch: BatchName
    perturbed: bool
    gradient: bool = True
    samples: Tensor | None = None
    communicate: bool = True
    last: bool | None = False
    per_sample: bool = False

    def losses(self, value: object) -> Tensor | None:
        """What a pass has returned, as a tensor.

        Args:
            value: what the closure returned, or `done` was told.

        Raises:
            TypeError: it is no loss, or not one a sample where that is wanted.
            ValueError: there are more losses than chosen samples, or fewer.
        """
        if not self.per_sample:
            return _as_loss(value)
        if not isinstance(value, Tensor) or value.ndim != 1:
            raise TypeError(
                "this selection needs one loss a sample: the closure takes indices (or None for "
                'the whole batch) and returns a 1-D tensor, as with reduction="none"; got '
                f"{check.describe(value)}"
            )
        if self.samples is not None and len(value) != len(self.samples):
            raise ValueError(
                f"the closure was given {len(self.samples)} sample indices and returned "
                f"{len(value)} losses: evaluate the chosen samples, as in x[indices], y[indices]"
            )
        return value


PassGenerator: TypeAlias = Generator[Pass, Any, T]
"""A computation that stops at each pass it needs and goes on with the loss it is sent."""

Result: TypeAlias = "T | PassGenerator[T]"
"""What a part returns: the thing itself or, if it must look first, a generator that ends in it."""


def _as_loss(value: object) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    if isinstance(value, Real):  # of Python, or a NumPy scalar
        return torch.as_tensor(float(value))
    raise TypeError(
        f"the closure must return the loss, a tensor or a number, got {check.describe(value)}"
    )


def run_passes(result: Result[T]) -> PassGenerator[T]:
    """Run the passes of a part, if it asks for any, and return what it found."""
    if isinstance(result, Generator):
        return (yield from cast("PassGenerator[T]", result))
    return result


class DiagonalMetric(Protocol):
    """What a probe asks of a geometry; `flatmin.geometry.Geometry` says what it means."""

    @property
    def gain(self) -> float: ...

    @property
    def trivial(self) -> bool: ...

    def metric(self, at: Viewpoint, j: int) -> Tensor | float: ...


class NotFinite(Exception):
    """A loss or a gradient norm of this step is inf or nan."""


class Probe:
    """The weights, the gradient, the climb in the metric at hand, further gradients, and memory.

    It is what a part is given as `at`, and all that it may see and do. The optimizer makes one for
    each step; a part measures with `norm`, `dot` and `cosine`, moves with `climb`, looks with
    `yield from at.primary(...)`, `at.auxiliary(...)` or `at.losses_at(...)`, and remembers with
    `keep` and `recall`. The rest is the optimizer's.

    Args:
        walk: the weights, and how to leave and come home.
        rho: the radius of each parameter group.
        geometry: the metric.
        memory: what is kept from step to step.
        model_state: what else a pass changes in the model; None where the model is not known.
        ranks: the processes that take the step together.
        finite: whether to end the step at a number that is inf or nan.
        unscale: unscales the gradients of a pass; None without loss scaling.
        keeps_gradients: whether a gradient is needed after the next backward pass.
        per_sample: whether the primary closure returns one loss a sample.

    Attributes:
        grad: the primary gradient `g` at the unperturbed weights.
        losses: the primary losses of the first pass, at the unperturbed weights unless the step
            began perturbed: one number, or one a sample; None if the closure returns none.
        rho: the radius of each parameter group.
        spent: what this step has cost so far.
        travelled: the length of its perturbation, where that is measured.

    Examples:
        >>> from dataclasses import dataclass
        >>> import flatmin
        >>> from flatmin.engine import PassGenerator, Probe, Vector
        >>> @dataclass(frozen=True)
        ... class Midway(flatmin.direction.Direction):
        ...     auxiliary_passes = 1
        ...
        ...     def displacement(self, at: Probe) -> PassGenerator[Vector]:
        ...         other = yield from at.auxiliary()
        ...         return at.climb(at.grad + other)
    """

    grad: Vector

    def __init__(
        self,
        walk: Walk,
        rho: Sequence[float],
        geometry: DiagonalMetric,
        memory: Memory,
        model_state: ModelState | None,
        ranks: Ranks,
        *,
        finite: bool,
        unscale: Callable[[], None] | None,
        keeps_gradients: bool,
        per_sample: bool,
    ) -> None:
        self.rho = rho
        self.losses: Tensor | None = None
        self.looking: Looking | None = None
        self.spent: dict[str, float] = dict.fromkeys(COUNTS, 0)
        self.travelled = 0.0
        self._walk = walk
        self._space = walk.space
        self._geometry = geometry
        self._metrics: tuple[Metric, Metric] | None = None
        self._memory = memory
        self._model_state = model_state
        self._ranks = ranks
        self._look_for_inf = finite
        self._all_finite = True
        self._doubts: list[Tensor] = []
        self._unscale = unscale
        self._keeps_gradients = keeps_gradients
        self._per_sample = per_sample
        self._norms: dict[int, tuple[Vector, Scalar]] = {}
        self._seen: list[Seen] = []
        self._visited: set[str] = set()
        # not the loss itself, whose graph would be there while the next pass builds its own
        self._last_losses: weakref.ref[Tensor] | None = None

    @property
    def ascending(self) -> bool:
        """Does the base optimizer maximise? The gradient here is then that of minus the loss."""
        return bool(self._space.ascending) and self._space.ascending[0]

    @property
    def weights(self) -> Vector:
        """The unperturbed weights, wherever the parameters stand now."""
        return self._walk.home

    @property
    def step(self) -> int:
        """How many steps were taken before this one."""
        return self._memory.numbers["steps"]

    @property
    def loss(self) -> Tensor | None:
        """The mean primary loss of the first pass."""
        return self.losses if self.losses is None or self.losses.ndim == 0 else self.losses.mean()

    # Measure.

    def norm(self, a: Vector) -> Scalar:
        """`‖a‖` of a vector `a`, over all parameters. If it is not finite, the step ends here."""
        if id(a) not in self._norms:
            norm = self._space.norm(a)
            self._require_finite(norm)
            self._norms[id(a)] = (a, norm)
        return self._norms[id(a)][1]

    def dot(self, a: Vector, b: Vector) -> Scalar:
        """The inner product of the vectors `a` and `b`, over all parameters."""
        return self._space.dot(a, b)

    def cosine(self, a: Vector, b: Vector) -> Scalar:
        """`cos(a, b)`; 0 if either is zero."""
        return self.dot(a, b) / ((self.norm(a) + TINY) * (self.norm(b) + TINY))

    def agreed(self, number: float) -> float:
        """The mean over ranks of a `number` that may differ between them; then all decide alike."""
        return self._ranks.mean(number)

    def _require_finite(self, number: Scalar) -> None:
        """End the step if a number is inf or nan.

        Among many ranks this waits until all have come so far, and on a device until the last pass,
        so that the host waits for it once a step.
        """
        if not self._look_for_inf:
            return
        if isinstance(number, Tensor) and not self._space.on_host:
            self._doubts.append(number.isfinite())
            return
        if math.isfinite(number):
            return
        if not self._ranks.many:
            raise NotFinite
        self._all_finite = False

    def finish(self) -> None:
        """All passes were run; end the step here if a number was inf or nan on any rank."""
        if not self._look_for_inf:
            return
        finite = self._all_finite
        if self._doubts:
            finite = torch.stack(self._doubts).all() & finite
        if not self._ranks.all_finite(finite):
            raise NotFinite

    # Move.

    def climb(self, d: Vector, rho: float | None = None) -> Vector:
        """`rho Γ(d)`: the step of length `rho` along `d` in the metric at hand.

        Args:
            d: where to; a zero vector climbs nowhere.
            rho: the length, at least 0; default None: the radius of each parameter group.
        """
        once, twice = self._metric()
        length = self.norm(d.in_metric(once) if once else d) + TINY
        gain = self._geometry.gain / length
        along = d.in_metric(twice) if twice else d
        if rho is not None:
            return rho * gain * along
        by_group = [radius * gain for radius in self.rho]
        return along.scaled([by_group[b.group] for b in self._space.blocks])

    def by_radius(self, d: Vector) -> Vector:
        """`rho d`, each parameter group with its own radius: as long as `d` makes it."""
        return d.scaled([self.rho[b.group] for b in self._space.blocks])

    def noise(self, seed: int) -> Vector:
        """Standard normal numbers that follow from `seed` and the number of the step.

        Alike on all ranks that climb together; in local ascent each rank draws its own.
        """
        return self._space.normal(seed, self.step, self._ranks.number)

    def filter_squares(self, a: Vector) -> Callable[[int], Tensor]:
        """`Σ a²` of `a` over each filter: a row of a matrix or kernel, or another whole tensor."""
        squares = self._space.filter_squares(a)
        return lambda j: self._space.spread_out(j, squares)

    def members(self, j: int) -> Sequence[int]:
        """The parameters that block `j` holds, by position."""
        return self._space.blocks[j].members

    def parameter(self, i: int) -> Tensor:
        """Parameter `i`, as the model evaluates it."""
        return self._space.evaluated[i]

    def name(self, i: int) -> str:
        """The name of parameter `i` in the model; empty where no model was given."""
        return self._space.names[i]

    def each(self, j: int, value: Callable[[int], float]) -> Tensor:
        """A block like block `j` that holds `value(i)` all over parameter `i`."""
        return self._space.each(j, value)

    def _metric(self) -> tuple[Metric | None, Metric | None]:
        """`T` and `T²`, the same objects throughout the step, so that terms in them can merge."""
        if self._geometry.trivial:
            return None, None
        if self._metrics is None:
            geometry = self._geometry
            self._metrics = (
                lambda j: geometry.metric(self, j),
                lambda j: geometry.metric(self, j) ** 2,
            )
        return self._metrics

    # Look.

    def first(self, perturbed: bool | None) -> PassGenerator[Vector]:
        """The gradient at the unperturbed weights.

        Args:
            perturbed: whether the step looks around; None where its policy asks for the gradient
                before it decides.
        """
        silent = self._ranks.local and perturbed is not False
        wanted = Pass(
            "primary",
            perturbed=False,
            communicate=not silent,
            last=None if perturbed is None else not perturbed,
            per_sample=self._per_sample,
        )
        yield from self._look(wanted, None)
        return self._collect("primary")

    def primary(
        self, at: Vector | None = None, samples: Tensor | None = None, *, last: bool = False
    ) -> PassGenerator[Vector]:
        """The gradient on the primary batch, or on chosen samples of it, at `w + at`.

        Args:
            at: the displacement; default None: the unperturbed weights.
            samples: indices of the chosen samples; default None: all.
            last: whether it is known to be the last pass of the step; default False.
        """
        wanted = Pass(
            "primary", at is not None, samples=samples, last=last, per_sample=self._per_sample
        )
        yield from self._look(wanted, at)
        return self._collect("primary")

    def auxiliary(self, at: Vector | None = None) -> PassGenerator[Vector]:
        """The gradient on the auxiliary batch at `w + at`.

        Args:
            at: the displacement; default None: the unperturbed weights.
        """
        wanted = Pass("auxiliary", at is not None, communicate=not self._ranks.local)
        yield from self._look(wanted, at)
        return self._collect("auxiliary")

    def losses_at(self, at: Vector | None) -> PassGenerator[Tensor]:
        """The losses on the primary batch at `w + at`, without a backward pass."""
        wanted = Pass("primary", at is not None, gradient=False, per_sample=self._per_sample)
        losses = yield from self._look(wanted, at)
        assert losses is not None
        return losses

    def _look(self, wanted: Pass, at: Vector | None) -> PassGenerator[Tensor | None]:
        """Go there, have the pass run, and count it."""
        self._walk.go(at)
        self._space.clear()
        state = self._model_state
        first = wanted.batch not in self._visited
        self._visited.add(wanted.batch)
        with state.visit(wanted.batch) if state else nullcontext():
            self.looking = Looking(wanted.batch, wanted.perturbed, first)
            try:
                value = yield wanted
            finally:
                self.looking = None
            losses = wanted.losses(value)
        self._require_new(losses)
        if wanted.gradient:
            if self._unscale is not None:
                self._unscale()
            seen = state.samples if state else 0
            self.spent["gradients"] += 1
            self.spent["samples"] += seen
            if wanted.batch == "auxiliary":
                self.spent["auxiliary"] += 1
            elif first:
                self.spent["primary_samples"] += seen
        if losses is None:
            return None
        losses = losses.detach()
        if first and wanted.batch == "primary":
            self.losses = losses
        self._require_finite(losses if losses.ndim == 0 else losses.mean())
        return losses

    def _require_new(self, losses: Tensor | None) -> None:
        """Raise RuntimeError for a loss that was computed once and for all, outside the closure.

        On a network that is linear its gradient is that of the base optimizer, at any weights.
        """
        if losses is None or losses.grad_fn is None:
            return
        if self._last_losses is not None and losses is self._last_losses():
            raise RuntimeError(
                "the closure has returned the same loss twice: it must compute the loss anew at "
                "each call, since the weights have moved (a loss that is written in place, as by "
                "a CUDA graph, is returned as loss.detach())"
            )
        self._last_losses = weakref.ref(losses)

    def _collect(self, batch: BatchName) -> Vector:
        """Take the gradient out of the parameters."""
        seen = self._space.take(keep=self._keeps_gradients, shared=self._ranks.share_memory)
        if seen is None:
            raise RuntimeError(
                f"the {batch} closure left no gradient in any parameter of the optimizer: it must "
                "call loss.backward() on a loss of the model whose parameters the optimizer holds"
            )
        if batch == "primary":
            self._seen.append(seen)
        return seen.vector

    def move_to(self, eps: Vector) -> None:
        """Move to `w + eps`."""
        self._walk.go(eps)

    def forget(self) -> Vector:
        """Let go of the first gradient, which the descent does not need; returns where we stand."""
        self.__dict__.pop("grad", None)  # a step that began perturbed has none
        self._norms.clear()
        self._seen.clear()
        return self._walk.forget_way()

    def agree_on_gradient(self) -> None:
        """Average the first gradient over the ranks, where each had its own.

        The mean is stored anew: where we stand may be a multiple of the gradient of this rank.
        """
        if not self._ranks.apart:
            return
        mean = [self.grad.block(j).clone() for j in range(len(self._space.blocks))]
        self._ranks.average(mean)
        present = self._ranks.anywhere(self._seen[0].present)
        self._seen[0] = self._space.seen(mean, present)
        self.grad = self._seen[0].vector

    def clear(self) -> None:
        """Leave no gradient behind."""
        self._space.clear()

    def hand_over(self, gradient: Vector) -> None:
        """Put a `gradient` where the base optimizer looks for it."""
        self._space.give(gradient, self._seen)

    # Remember.

    def recall(self, name: str) -> Vector | None:
        """What an earlier step has kept under `name`; None before the first that did."""
        return self._memory.recall(name)

    def keep(self, name: str, value: Vector, *, alike: bool = False) -> None:
        """Keep `value` as `name` for later steps, from the moment this one has succeeded.

        Args:
            name: one of the `buffers` of the part.
            value: what is kept.
            alike: whether it is the same on all ranks also in local ascent, made of gradients that
                they have reduced; default False: they are to average it.
        """
        self._memory.keep(name, value, alike=alike)

    def stored(self, *names: str) -> Vector | None:
        """What stands beside each parameter under the first of these names that it has.

        The buffers are the base optimizer's or the parts', as the last step has left them; zero
        where a parameter has none, and None where none has one.
        """
        found = self._memory.found(names)
        return None if all(x is None for x in found) else self._space.gather(found)

    def base_lacks(
        self, names: tuple[str, ...], promised: Callable[[Mapping[str, Any]], bool]
    ) -> bool:
        """Is there a parameter for which the base optimizer keeps none of these buffers?

        Args:
            names: what they may be called.
            promised: whether the options of a parameter group say that it will keep one.
        """
        return self._memory.lacks(names, promised)

    def number(self, name: str) -> float:
        """The number `name` of the policy's `memory`, as the step before has left it."""
        return self._memory.numbers[name]

    def note(self, name: str, value: float) -> None:
        """Note `value` as a number `name` for later steps, once this one has succeeded."""
        self._memory.note(name, value)

    def update_memory(self) -> None:
        """Bring what is remembered up to date, before gradients are handed over."""
        self._memory.evaluate(self._ranks)

    def settle_accounts(self, *, perturbed: bool = False, failed: bool = False) -> None:
        """Add up what this step has cost, and remember what it kept unless it failed.

        Args:
            perturbed: whether it looked around; default False.
            failed: whether it was dropped; default False.
        """
        if failed:
            self.spent["skipped"] = 1
        else:
            self.spent.update(steps=1, perturbed=int(perturbed), distance=self.travelled)
        before = self._memory.numbers
        self._memory.commit({name: before[name] + n for name, n in self.spent.items()}, failed)


__all__ = [
    "Result",
    "BatchName",
    "PassGenerator",
    "NotFinite",
    "Pass",
    "Probe",
    "run_passes",
]

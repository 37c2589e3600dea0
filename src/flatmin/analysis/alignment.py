"""Do the gradients of two batches agree, and does an update make them agree more?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from flatmin.analysis.lanczos import Array
from flatmin.analysis.metric import ascent, metric_of
from flatmin.analysis.parameters import Parameters
from flatmin.analysis.untouched import untouched
from flatmin.analysis.vectors import cosine
from flatmin.direction import Agnostic
from flatmin.engine import check
from flatmin.engine.model_state import RandomNumbers
from flatmin.engine.probe import BatchName
from flatmin.geometry import Euclidean, Geometry
from flatmin.optimizer import Closure, SharpnessAware


@dataclass(frozen=True)
class Alignment:
    """What an `AlignmentMonitor` has seen.

    Fields:
        steps: numbers of the steps, from 0.
        before: the cosine of each at the weights before the update.
        after: that at the weights after it, on the same two batches.
    """

    steps: tuple[int, ...]
    before: Array
    after: Array

    @property
    def difference(self) -> Array:
        """`after - before`: what an update does to the cosine, in its own units."""
        return self.after - self.before

    @property
    def change(self) -> Array:
        """`(after - before) / after`, as the papers have it.

        It is divided by what may be nearly 0 or negative: single ones range over ± 20, so that
        means of it say little, and a cosine that rises from -0.2 to -0.1 counts as -1.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.difference / self.after

    @property
    def lowered(self) -> float:
        """The share of measured updates that lowered the cosine."""
        known = self.difference[np.isfinite(self.difference)]
        return float((known < 0).mean()) if len(known) else math.nan

    def since(self, step: int) -> Alignment:
        """Of the steps from `step` on."""
        kept = [i for i, each in enumerate(self.steps) if each >= step]
        return Alignment(tuple(self.steps[i] for i in kept), self.before[kept], self.after[kept])

    def __str__(self) -> str:
        if not self.steps:
            return "no step was measured"
        wide = self.change[np.isfinite(self.change)]
        low, high = (float(wide.min()), float(wide.max())) if len(wide) else (math.nan, math.nan)
        return (
            f"cosine {median(self.before):.4f} before, {median(self.after):.4f} after (medians of "
            f"{len(self.steps)} steps)\n"
            f"difference {median(self.difference):+.4f} (median); lowered on {self.lowered:.0%}\n"
            f"change as the papers have it {median(self.change):+.4f} (median), from {low:.3g} to "
            f"{high:.3g}"
        )


def median(values: Array) -> float:
    """Of the finite ones; nan where there are none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


@dataclass
class _Measured:
    """A step that is measured.

    Fields:
        closures: what evaluates each batch once more.
        tapped: gradients that the step has asked for, by what they are: "primary" and "auxiliary"
            at the unperturbed weights, "perturbed" at those of the step on the auxiliary batch.
        random: where the random numbers were when each batch was first seen.
        home: the weights before the update.
        radii: ρ₂ of each parameter, negative where the base optimizer ascends.
    """

    closures: Mapping[str, Closure]
    tapped: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    random: dict[str, list[Any]] = field(default_factory=dict[str, "list[Any]"])
    home: Tensor | None = None
    radii: Tensor | None = None


class AlignmentMonitor:
    """The cosine between the gradients of two batches, before and after updates.

        cos(∇L_B(w), ∇L_A(w + ρ₂ Γ(∇L_A(w)))),   B the primary batch, A the auxiliary one

    before the update and after it, on the same two batches. Gradients that the step asks for anyway
    are tapped; what it does not ask for is computed after it, at the weights of before and at those
    of after. Weights, gradients, buffers and random numbers are left as the step has left them.

    Args:
        model: the model that the closures evaluate.
        every: how many steps lie between two measured ones, at least 1; default 10. The first is
            measured.
        optimizer: whose steps; default None, which is the one that steps next. Give it for methods
            that take no auxiliary batch: then `wrap` returns None in its place.
        rho: ρ₂, the radius of the step on the auxiliary batch; default None: that of the direction,
            or else of each parameter group.
        geometry: of that step; default None: that of the optimizer, or else Euclidean.

    Attributes:
        step: how many steps it has seen.

    Cost: a measured step of Agnostic-SAM costs one primary and two auxiliary gradients more, one of
    SAM one and four; with auxiliary batches of a quarter and `every=10` that is 6 and 10 % of
    training. A copy of the weights and a few gradients while a step is measured.

    Raises:
        TypeError: `model` is no module, or `optimizer` no `torch.optim` optimizer.
        ValueError: `every` or `rho` is out of range.

    Reference: Nguyen et al., Agnostic Sharpness-Aware Minimization, 2024, arXiv:2406.07107, §5.1.

    Examples:
        >>> import torch, flatmin
        >>> from flatmin import analysis
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = flatmin.AgnosticSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1)
        >>> def loss_on(batch):
        ...     loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        ...     loss.backward()
        ...     return loss
        >>> monitor = analysis.AlignmentMonitor(model, every=2, optimizer=optimizer)
        >>> for _ in range(4):
        ...     primary = torch.randn(8, 4), torch.randint(2, (8,))
        ...     auxiliary = torch.randn(2, 4), torch.randint(2, (2,))
        ...     closures = monitor.wrap(lambda: loss_on(primary), lambda: loss_on(auxiliary))
        ...     loss = optimizer.step(*closures)
        >>> monitor.alignment.steps
        (0, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 10,
        *,
        optimizer: Optimizer | None = None,
        rho: float | None = None,
        geometry: Geometry | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"model must be a torch.nn.Module, got {check.describe(model)}")
        check.positive_int("every", every)
        if rho is not None:
            check.at_least_zero("rho", rho)
        self.step = 0
        self._model = model
        self._every = every
        self._rho = rho
        self._geometry = geometry
        self._optimizer: Optimizer | None = None
        self._parameters = Parameters(model)
        self._handles: list[Any] = []
        self._measured: _Measured | None = None
        self._found: list[tuple[int, float, float]] = []
        if optimizer is not None:
            self._follow(optimizer)

    @property
    def alignment(self) -> Alignment:
        """What was measured so far."""
        columns = list(zip(*self._found, strict=True)) or [(), (), ()]
        return Alignment(
            cast("tuple[int, ...]", columns[0]), np.array(columns[1]), np.array(columns[2])
        )

    def wrap(
        self,
        closure: Closure,
        aux_closure: Closure,
        *,
        again: tuple[Closure, Closure] | None = None,
    ) -> tuple[Closure, Closure | None]:
        """The closures of one step, tapped: `optimizer.step(*monitor.wrap(closure, aux_closure))`.

        Args:
            closure: forward and backward on the primary batch, as for `optimizer.step`.
            aux_closure: the same on the auxiliary batch, also for methods that look at none.
            again: the same two once more, for what is evaluated beside the step; default None: they
                themselves. Give others where closures count what they see.
        """
        if self._optimizer is None and not self._handles:
            self._handles.append(register_optimizer_step_pre_hook(self._meet))
        due, optimizer = self.step % self._every == 0, self._optimizer
        if due:
            pair = again or (closure, aux_closure)
            names: tuple[BatchName, ...] = ("primary", "auxiliary")
            self._measured = _Measured(dict(zip(names, pair, strict=True)))
            closure = self._tapped(closure, "primary")
            aux_closure = self._tapped(aux_closure, "auxiliary")
        if optimizer is None or _takes_two(optimizer):
            return closure, aux_closure
        return closure, None

    def close(self) -> None:
        """Follow the optimizer no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._measured = None

    def state_dict(self) -> dict[str, Any]:
        """What was measured, for a checkpoint between two steps."""
        return {"step": self.step, "found": list(self._found)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state`, what `state_dict` gave, was taken."""
        self.step = int(state["step"])
        self._found = [(int(n), float(a), float(b)) for n, a, b in state["found"]]

    # Follow the optimizer.

    def _meet(self, optimizer: Optimizer, *_: object) -> None:
        """The first optimizer that steps on weights of the model is the one, unless told."""
        if self._optimizer is None:
            ours = {id(p) for p in self._model.parameters()}
            if any(id(p) in ours for p, _ in _moved_by(optimizer)):
                self._follow(optimizer)

    def _follow(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"optimizer must be a torch.optim optimizer, got {check.describe(optimizer)}"
            )
        self._optimizer = optimizer
        # also called for the step under way, if that is where the optimizer was met
        self._handles.append(optimizer.register_step_pre_hook(self._begun))
        self._handles.append(optimizer.register_step_post_hook(self._stepped))

    @torch.no_grad()
    def _begun(self, optimizer: Optimizer, *_: object) -> None:
        """A step begins: note the weights, and the radii, which schedules may move."""
        measured = self._measured
        if measured is None:
            return
        groups = {id(p): group for p, group in _moved_by(optimizer)}
        self._parameters = Parameters(
            self._model, [p for p in self._model.parameters() if id(p) in groups]
        )
        measured.home = self._parameters.vector()
        measured.radii = self._parameters.flatten(
            [
                torch.full_like(p, self._radius(optimizer, groups[id(p)]))
                for p in self._parameters.tensors
            ]
        )

    def _radius(self, optimizer: Optimizer, group: Mapping[str, Any]) -> float:
        direction = getattr(optimizer, "direction", None)
        rho = self._rho
        if rho is None and isinstance(direction, Agnostic):
            rho = direction.rho2
        if rho is None:
            rho = float(group.get(getattr(optimizer, "radius_key", "rho"), 0.05))
        return -rho if group.get("maximize", False) else rho

    def _stepped(self, *_: object) -> None:
        """A step is over: measure it, if it is one of those."""
        measured, self._measured = self._measured, None
        if measured is not None and measured.random:  # else no closure was called
            after = self._cosine(measured, None)
            before = self._cosine(measured, measured.home)
            self._found.append((self.step, before, after))
        self.step += 1

    # Tap.

    def _tapped(self, closure: Closure, batch: BatchName) -> Closure:
        def tapped(*args: Any) -> Any:
            measured = self._measured
            if measured is not None and batch not in measured.random:
                measured.random[batch] = self._streams().state()
            value = closure(*args)
            if measured is not None:
                name = self._seen(batch)
                if name is not None and name not in measured.tapped:
                    gradient = self._gradient()
                    if gradient is not None:
                        measured.tapped[name] = gradient
            return value

        return tapped

    def _seen(self, batch: BatchName) -> str | None:
        """Which of the three gradients a pass has left; None if it is another."""
        optimizer = self._optimizer
        if not isinstance(optimizer, SharpnessAware):
            return "primary" if batch == "primary" else None
        looking = optimizer.looking
        if looking is None or optimizer.selection.per_sample:
            return None
        if not looking.perturbed:
            return batch
        # another radius or metric than that of the direction's own step is not what it looks at
        own = self._rho is None and self._geometry is None
        is_step = isinstance(optimizer.direction, Agnostic) and batch == "auxiliary"
        return "perturbed" if own and is_step else None

    def _gradient(self) -> Tensor | None:
        """The gradient that a backward pass has left, as one flat vector; None if there is none."""
        grads = [p.grad for p in self._parameters.tensors]
        if all(g is None for g in grads):
            return None
        return self._parameters.flatten([None if g is None else g.detach() for g in grads])

    # Measure.

    def _cosine(self, measured: _Measured, home: Tensor | None) -> float:
        """At the weights before the update, given as `home`, or at those after it."""
        known = measured.tapped if home is not None else {}
        here, there = known.get("primary"), known.get("perturbed")
        if here is not None and there is not None:
            return cosine(here, there)
        with self._parameters.moving() as move:
            # a difference is not exact: what comes of it is off by what rounding does
            away = None if home is None else home - self._parameters.vector()
            move(away)
            if here is None:
                here = self._evaluated(measured, "primary")
            towards = known.get("auxiliary")
            if towards is None:
                towards = self._evaluated(measured, "auxiliary")
            eps = self._step_on(measured, towards, here)
            move(eps if away is None else away + eps)
            return cosine(here, self._evaluated(measured, "auxiliary"))

    def _step_on(self, measured: _Measured, towards: Tensor, here: Tensor) -> Tensor:
        """`ρ₂ Γ(∇L_A(w))`."""
        geometry = self._geometry or getattr(self._optimizer, "geometry", None) or Euclidean()
        T = metric_of(self._parameters, geometry, here)
        assert measured.radii is not None
        return measured.radii * ascent(T, towards.double(), geometry.gain)

    def _evaluated(self, measured: _Measured, batch: BatchName) -> Tensor:
        """The gradient of a batch at the weights as they are; all else is left as it is."""
        closure = measured.closures[batch]
        with untouched(self._model) as visit:
            visit.fresh()
            if batch in measured.random:  # the same dropout masks before and after
                self._streams().set(measured.random[batch])
            value = closure()
            gradient = self._gradient()
            if gradient is None and isinstance(value, Tensor) and value.requires_grad:
                value.mean().backward()  # the losses of single samples, as ESAM has them
                gradient = self._gradient()
        if gradient is None:
            raise ValueError(
                f"the {batch} closure left no gradient: it has to run forward and backward"
            )
        return gradient

    def _streams(self) -> RandomNumbers:
        return RandomNumbers({p.device for p in self._model.parameters()})


def _moved_by(optimizer: Optimizer) -> Sequence[tuple[Tensor, Mapping[str, Any]]]:
    """The parameters of an optimizer as the model holds them, each with its group."""
    groups = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    if not isinstance(optimizer, SharpnessAware):
        return groups
    return [(p, group) for p, (_, group) in zip(optimizer.evaluated, groups, strict=True)]


def _takes_two(optimizer: Optimizer) -> bool:
    """Does its step take an auxiliary closure?"""
    return isinstance(optimizer, SharpnessAware) and bool(optimizer.direction.auxiliary_passes)

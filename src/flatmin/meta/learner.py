"""Learning to learn: weights from which a few steps fit a new task.

    theta_0 = theta;   theta_(k+1) = theta_k - a ∇L(theta_k [+ eps]; support)
    theta <- theta - b ∇_theta mean_tasks L(theta_n; query)

`MAML`, `SharpMAML`, `FOMAML`, `ANIL` and `MetaSGD` are choices of the one class below.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flatmin import methods
from flatmin.direction import Ascent, Direction
from flatmin.engine import check
from flatmin.engine.vec import Vector
from flatmin.geometry import Euclidean, Geometry
from flatmin.meta.batching import LOOP, Batching, Chunks, cut, synchronise, together
from flatmin.meta.probe import FunctionalProbe, Losses, blocked, gradient, unblocked
from flatmin.meta.task import Task, alike, checked, stacked
from flatmin.meta.weights import FunctionalModel, Loss
from flatmin.optimizer import SharpnessAware


@dataclass(frozen=True)
class Perturbation:
    """Where a step of the inner or the outer loop looks before it moves.

    Fields:
        rho: radius, at least 0; the papers' inner loops take 0.0005 to 0.05. At 0 nothing is
            perturbed, and the step is the plain one, bit for bit.
        direction: where it climbs; default SAM's, straight up.
        geometry: the metric of the climb; default Euclidean.

    Examples:
        >>> from flatmin.meta import Perturbation
        >>> Perturbation.named("agnostic-sam", 0.05).direction
        Agnostic(rho1=None, rho2=None, beta=0.9, ratio=2.0, auxiliary='batch', on_skipped=False)
    """

    rho: float
    direction: Direction = Ascent()  # noqa: RUF009 - parts are frozen
    geometry: Geometry = Euclidean()  # noqa: RUF009

    def __post_init__(self) -> None:
        check.at_least_zero("rho", self.rho)
        if not isinstance(self.direction, Direction):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                "direction must be one of flatmin.direction, or one of your own, got "
                f"{check.describe(self.direction)}"
            )
        if not self.direction.needs_gradient:
            raise ValueError(
                f"the direction {type(self.direction).__name__} saves the gradient at the weights, "
                "which these loops have anyway: take one that climbs it, such as "
                "flatmin.direction.Ascent()"
            )

    @classmethod
    def named(cls, method: str, rho: float | None = None) -> Perturbation:
        """The direction and the geometry of a method of `flatmin.methods`, by its name.

        Args:
            method: its name on the command line, such as "sam", "agnostic-sam" or "friendly-asam";
                "sgd" looks nowhere.
            rho: radius; default the method's own.

        Raises ValueError for a method that does more than to choose where its step looks.
        """
        row = methods.find(method)
        base = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        built = row.build(base, rho, total_steps=1)
        if row.name == "sgd":
            return cls(0.0)
        plain = SharpnessAware(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
        for part in ("policy", "descent", "selection"):
            if getattr(built, part) != getattr(plain, part):
                raise ValueError(
                    f"{method} has a {part} of its own, for which the few steps of an inner loop "
                    "have no room: choose a method that differs in direction or geometry alone, "
                    "such as sam, asam, friendly-sam, agnostic-sam or align-sam"
                )
        return cls(built.defaults["rho"], built.direction, built.geometry)

    @property
    def looks(self) -> bool:
        """Is anything perturbed?"""
        return self.direction.largest_radius(self.rho) > 0


@dataclass(frozen=True)
class Scores:
    """What tasks came to after adaptation, task by task.

    Fields:
        losses: `(tasks,)`, of the query sets.
        accuracies: `(tasks,)`, shares of the query samples whose class is met; nan where the
            targets are no classes. A task that diverged has met none.
        diverged: how many tasks ended in a loss that is not finite.
    """

    losses: Tensor
    accuracies: Tensor
    diverged: int


class MetaLearner(nn.Module):
    """Weights that a few steps adapt to a new task, and the gradient that makes them so.

    Args:
        model: any module whose forward takes the inputs of a task. Batch normalization must
            normalise by its batch (`track_running_stats=False`): running statistics would carry
            what one task was like into the next.
        loss: of the outputs and the targets, one number with a graph; for example
            `torch.nn.functional.cross_entropy`.
        inner_lr: step size `a` of the inner loop, above 0; from 0.01 (Mini-ImageNet) to 0.4
            (Omniglot) in the literature.
        steps: inner steps, at least 1; 1 or 5 in the literature.
        first_order: True takes the inner gradients for constants (FOMAML): about half the time
            and memory, mostly a little worse. Default False.
        lower: where the inner steps look; default nowhere (MAML).
        upper: where the meta-step looks; default nowhere.
        through_perturbation: whether gradients flow through `eps`, as in Sharp-MAML's released
            code; False takes it for a constant, which costs less. Default True.
        adapted: names of the parameters that inner steps move; default all that require a
            gradient.
        learned_rates: True makes `inner_lr` a meta-parameter for each weight (Meta-SGD); default
            False.
        batching: how the tasks of a meta-batch run: "loop", one after another; "vmap", all at
            once; a number, so many at once; "auto" (default) tries these on the first meta-batch
            and keeps the fastest, which `batching_says` tells. The numbers are the same but for
            rounding.
        shared: True averages the meta-gradient over the processes of torchrun, each of which
            brings tasks of its own. Default False.

    Raises:
        ValueError: a number is out of range, or the module gathers running statistics.

    Cost: a meta-step takes `steps + 1` gradients a task (2 and 3 times as many inner ones with SAM
    and Agnostic-SAM below; twice or three times all with them above), and memory for one chunk of
    tasks.

    Examples:
        >>> import torch, flatmin
        >>> from torch.nn.functional import mse_loss
        >>> model = torch.nn.Linear(1, 1)
        >>> learner = flatmin.meta.MAML(model, mse_loss, inner_lr=0.1, steps=1)
        >>> optimizer = learner.optimizer(torch.optim.Adam(learner.parameters(), 1e-3))
        >>> x = torch.randn(4, 10, 1)
        >>> tasks = [flatmin.meta.Task(x[i], i * x[i], -x[i], -i * x[i]) for i in range(4)]
        >>> loss = learner.step(optimizer, tasks)
        >>> learner.evaluate(tasks).losses.shape
        torch.Size([4])
    """

    rates: nn.Parameter | None

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        inner_lr: float,
        steps: int,
        first_order: bool = False,
        *,
        lower: Perturbation | None = None,
        upper: Perturbation | None = None,
        through_perturbation: bool = True,
        adapted: Sequence[str] | None = None,
        learned_rates: bool = False,
        batching: Batching = "auto",
        shared: bool = False,
    ) -> None:
        super().__init__()
        check.in_range("inner_lr", inner_lr, 0.0, float("inf"), open_low=True, open_high=True)
        check.positive_int("steps", steps)
        self.model = model
        self.inner_lr = inner_lr
        self.steps = steps
        self.first_order = first_order
        self.lower = lower
        self.upper = upper
        self.through_perturbation = through_perturbation
        self.shared = shared
        self.diverged = 0
        self._functional = FunctionalModel(model, loss, adapted)
        if lower is not None:
            lower.geometry.require(self._functional.parameters)
        self._chunks = Chunks.of(batching)
        self._rehearsed = False
        self.rates = None
        if learned_rates:
            size = sum(self._functional.sizes)
            self.rates = nn.Parameter(self._functional.vector().new_full((size,), inner_lr))

    # The inner loop.

    def adapt(
        self,
        w: Tensor,
        x: Tensor,
        y: Tensor,
        *,
        steps: int | None = None,
        plainly: bool = False,
        differentiable: bool = True,
    ) -> Tensor:
        """`theta_n`: weights `(n,)` or `(tasks, n)` after the inner steps on support sets.

        What a direction remembers starts anew with each task, and so at each call.

        Args:
            w: where the steps start.
            x: inputs of the support set, or of all of them with the tasks in front.
            y: targets, likewise.
            steps: how many; default None: those of the learner.
            plainly: whether to leave out what `lower` looks for; default False.
            differentiable: whether a gradient can flow back to `w` through the steps; default True.
        """
        second = differentiable and not self.first_order
        lower = None if plainly or self.lower is None or not self.lower.looks else self.lower
        rate = self.inner_lr if self.rates is None else self.rates
        if not differentiable and isinstance(rate, Tensor):
            rate = rate.detach()
        memory: dict[str, Vector] = {}

        def losses(point: Tensor) -> Tensor:
            return self._functional.many(point, x, y)[0]

        for step in range(self.steps if steps is None else steps):
            if lower is None:
                slope = gradient(losses, w, differentiable=second)
            else:
                slope = self._perturbed(lower, w, losses, memory, step, second)
            w = w - rate * slope
        return w

    def _perturbed(
        self,
        lower: Perturbation,
        w: Tensor,
        losses: Losses,
        memory: dict[str, Vector],
        step: int,
        second: bool,
    ) -> Tensor:
        """`∇L(w + eps)`, and in `memory` what the direction keeps.

        The support set is both batches, so that the gradient at `w` serves both.
        """
        through = second and self.through_perturbation
        at = FunctionalProbe(
            w if through else w.detach().requires_grad_(),
            {"primary": losses},
            lower.rho,
            lower.geometry,
            parameters=self._functional.parameters,
            memory=memory,
            step=step,
            differentiable=through,
        )
        eps = at.run(lower.direction.displacement(at))
        point = w
        if eps.terms:
            moved = unblocked(eps, w)
            point = w + (moved if through else moved.detach())
        slope = gradient(losses, point, differentiable=second)
        lower.direction.learn(at, blocked(slope))
        memory.update(at.kept)
        return slope

    # The outer loop.

    def forward(self, tasks: Sequence[Task]) -> Tensor:
        """The mean query loss of `tasks` after adaptation, with its graph to meta-parameters."""
        tasks = self._ready(tasks)
        size = self._form(tasks)
        return torch.cat([self._query(tasks[part], size) for part in cut(len(tasks), size)]).mean()

    def backward(self, tasks: Sequence[Task]) -> Tensor:
        """Add the meta-gradient of `tasks` to `grad`, and return their mean query loss.

        One chunk of tasks at a time, whose graph is gone before the next begins. A task whose loss
        or gradient is not finite is left out and counted in `diverged`; if none is left, nothing is
        added and the loss is nan.
        """
        tasks = self._ready(tasks)
        params = [p for p in self.parameters() if p.requires_grad]
        if self._chunks.is_open and len(tasks) > 1 and alike(tasks):
            wait = synchronise(params[0].device)
            self._chunks.measure(len(tasks), lambda n: self._gradients(tasks, params, n), wait)
        grads, losses = self._gradients(tasks, params, self._form(tasks))
        good = len(tasks)
        if not _finite([losses, *grads]):  # host sync: tasks are left out, or not
            grads, losses, good = self._gradients_of_the_good(tasks, params)
        self._count_diverged(len(tasks) - good)
        total = losses.sum()
        if self.shared:
            total, good = _summed(grads, total, good)
        if not good:
            return total.new_full((), float("nan"))
        for p, g in zip(params, grads, strict=True):
            p.grad = g / good if p.grad is None else p.grad + g / good
        return total / good

    def optimizer(self, base: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The meta-optimizer: `base`, made sharpness-aware by `upper` if there is one.

        Args:
            base: any `torch.optim` optimizer of `learner.parameters()`.
        """
        if self.upper is None:
            return base
        return SharpnessAware(
            base,
            self.upper.rho,
            direction=self.upper.direction,
            geometry=self.upper.geometry,
            model=self._who_names(base, self.upper.geometry),
        )

    def _who_names(self, base: torch.optim.Optimizer, geometry: Geometry) -> nn.Module | None:
        """The learner, where a geometry chooses parameters by name.

        Elsewhere the optimizer is not to know it: what it would count and replay in a pass through
        the model, it would in each of the many of an inner loop.
        """
        params = [p for group in base.param_groups for p in group["params"]]
        try:
            geometry.require({f" {i}": p for i, p in enumerate(params)})
        except ValueError:
            return self
        return None

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        tasks: Sequence[Task],
        auxiliary: Sequence[Task] | None = None,
    ) -> Tensor:
        """One meta-step; returns the mean query loss before it.

        With `upper`, the meta-gradient perturbs the meta-parameters, the inner loops run again
        there, and that gradient is the step's.

        Args:
            optimizer: what `optimizer()` has returned.
            tasks: the meta-batch.
            auxiliary: tasks for directions above that measure a second batch; default `tasks`
                themselves.
        """
        if isinstance(optimizer, SharpnessAware):
            others = tasks if auxiliary is None else auxiliary
            measures = optimizer.direction.auxiliary_passes > 0
            return optimizer.step(
                lambda: self.backward(tasks), (lambda: self.backward(others)) if measures else None
            )
        optimizer.zero_grad()
        loss = self.backward(tasks)
        if loss.isfinite():  # host sync: where every task diverged there is nothing to step on
            optimizer.step()
        return loss

    # At test time.

    def evaluate(
        self, tasks: Sequence[Task], *, steps: int | None = None, plainly: bool = False
    ) -> Scores:
        """Adapt to each task as in training, and measure on its query set.

        Args:
            tasks: any number of them; they run in chunks as in training.
            steps: inner steps; default None: those of training.
            plainly: True adapts without what `lower` looks for, as Sharp-MAML's released test does;
                default False.
        """
        tasks = self._ready(tasks)
        size = self._form(tasks)
        found: list[tuple[Tensor, Tensor]] = []
        for part in cut(len(tasks), size):
            task, w = self._start(tasks[part], size)
            with torch.enable_grad(), together(size):
                w = self.adapt(
                    w.detach(),
                    task.support_x,
                    task.support_y,
                    steps=steps,
                    plainly=plainly,
                    differentiable=False,
                )
            with torch.no_grad():
                losses, out = self._functional.many(w, task.query_x, task.query_y)
            losses = losses.reshape(-1)
            met = _met(out, task.query_y)
            found.append((losses, losses * float("nan") if met is None else met.reshape(-1)))
        losses, accuracies = (torch.cat(column) for column in zip(*found, strict=True))
        good = losses.isfinite()
        bad = int((~good).sum())  # host sync: a result
        return Scores(losses, torch.where(good, accuracies, accuracies * 0), bad)

    def adapted(
        self, x: Tensor, y: Tensor, *, steps: int | None = None, plainly: bool = False
    ) -> nn.Module:
        """A copy of the model, fitted to the support set `x`, `y` of one task.

        `steps` and `plainly` are as for `evaluate`.
        """
        with torch.enable_grad():
            start = self._functional.vector().detach()
            w = self.adapt(x=x, y=y, w=start, steps=steps, plainly=plainly, differentiable=False)
        fitted = copy.deepcopy(self.model)
        known = dict(fitted.named_parameters())
        with torch.no_grad():
            for name, value in self._functional.named(w).items():
                known[name].copy_(value)
        return fitted

    @property
    def batching_says(self) -> str:
        """How the tasks of a meta-batch run, and what was measured for it."""
        return self._chunks.says()

    def get_extra_state(self) -> Mapping[str, int | None]:
        """Part of `state_dict`: how tasks are batched, so that a resumed run rounds as before."""
        return {"chunk": self._chunks.size, "diverged": self.diverged}

    def set_extra_state(self, state: Mapping[str, int | None]) -> None:
        if self._chunks.is_open:
            self._chunks.size = state["chunk"]
        self.diverged = state["diverged"] or 0

    # Chunks of tasks.

    def _ready(self, tasks: Sequence[Task]) -> list[Task]:
        found = checked(tasks)
        if not self._rehearsed:
            self._functional.rehearse(found[0].support_x, found[0].support_y)
            self._rehearsed = True
        return found

    def _form(self, tasks: Sequence[Task]) -> int:
        return self._chunks.now(len(tasks)) if alike(tasks) else LOOP

    def _start(self, tasks: Sequence[Task], size: int) -> tuple[Task, Tensor]:
        """Tasks as one, and where each of them starts."""
        w = self._functional.vector()
        if size == LOOP:
            return tasks[0], w
        return stacked(tasks), w.expand(len(tasks), -1)

    def _query(self, tasks: Sequence[Task], size: int) -> Tensor:
        """The query losses `(tasks,)` of one chunk after adaptation."""
        task, w = self._start(tasks, size)
        with together(size):
            w = self.adapt(w, task.support_x, task.support_y)
            return self._functional.many(w, task.query_x, task.query_y)[0].reshape(-1)

    def _gradients(
        self, tasks: Sequence[Task], params: Sequence[Tensor], size: int
    ) -> tuple[list[Tensor], Tensor]:
        """The summed meta-gradient, and the query losses."""
        grads = [torch.zeros_like(p) for p in params]
        found: list[Tensor] = []
        for part in cut(len(tasks), size):
            with torch.enable_grad():
                losses = self._query(tasks[part], size)
            slopes = torch.autograd.grad(losses.sum(), params, allow_unused=True)
            for total, slope in zip(grads, slopes, strict=True):
                if slope is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    total.add_(slope)
            found.append(losses.detach())
        return grads, torch.cat(found)

    def _gradients_of_the_good(
        self, tasks: Sequence[Task], params: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor, int]:
        """The same of those tasks alone whose loss and gradient are finite, and their number."""
        total = [torch.zeros_like(p) for p in params]
        kept: list[Tensor] = []
        for task in tasks:
            grads, loss = self._gradients([task], params, LOOP)
            if _finite([loss, *grads]):
                kept.append(loss)
                for into, g in zip(total, grads, strict=True):
                    into.add_(g)
        return total, torch.cat(kept) if kept else params[0].new_zeros(0), len(kept)

    def _count_diverged(self, bad: int) -> None:
        if bad and not self.diverged:
            radius = f" or rho={self.lower.rho}" if self.lower else ""
            warnings.warn(
                f"{bad} of the tasks diverged: their loss or gradient is not finite, and they are "
                f"left out of the meta-gradient (counted in `diverged`); lower inner_lr="
                f"{self.inner_lr}{radius}",
                RuntimeWarning,
                stacklevel=4,
            )
        self.diverged += bad


def _finite(tensors: Sequence[Tensor]) -> bool:
    return bool(torch.stack([x.isfinite().all() for x in tensors]).all())


def _met(out: object, y: Tensor) -> Tensor | None:
    """The share of the samples (in the last dimension of `y`) whose class is met, if any."""
    if isinstance(out, Tensor) and out.ndim == y.ndim + 1 and not y.is_floating_point():
        return (out.argmax(-1) == y).to(out.dtype).mean(-1)
    return None


def _summed(grads: Sequence[Tensor], loss: Tensor, good: int) -> tuple[Tensor, int]:
    """Sum gradients, in place, losses and numbers of tasks over the processes."""
    flat = torch.cat([*(g.reshape(-1) for g in grads), loss.reshape(1), loss.new_tensor([good])])
    dist.all_reduce(flat)
    start = 0
    for g in grads:
        g.copy_(flat[start : start + g.numel()].view_as(g))
        start += g.numel()
    return flat[-2], int(flat[-1])  # host sync: how many tasks there are


__all__ = ["MetaLearner", "Scores", "Perturbation"]

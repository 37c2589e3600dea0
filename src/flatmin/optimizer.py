"""One sharpness-aware step, in order."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from flatmin.descent import Descent, Plain
from flatmin.direction import Ascent, Direction
from flatmin.engine import check
from flatmin.engine.cost import Cost
from flatmin.engine.distributed import AscentMode, Ranks
from flatmin.engine.masters import KEY as MASTER
from flatmin.engine.masters import Masters
from flatmin.engine.memory import KEY, Memory, fitted
from flatmin.engine.model_state import Generators, ModelState, is_lazy
from flatmin.engine.passes import Passes, advance
from flatmin.engine.probe import Looking, NotFinite, Pass, PassGenerator, Probe, run_passes
from flatmin.engine.several import joined
from flatmin.engine.space import Space
from flatmin.engine.vec import TINY, ZERO, Vector
from flatmin.engine.walk import Walk
from flatmin.engine.wrapper import (
    RADIUS,
    RADIUS_BESIDE,
    Wrapper,
    check_base,
    check_call,
    check_radius,
)
from flatmin.geometry import Euclidean, Geometry
from flatmin.policy import Always, Policy
from flatmin.selection import Selection, WholeBatch

Closure: TypeAlias = Callable[..., Any]
NonFinite: TypeAlias = Literal["skip", "raise", "ignore"]


class Options(TypedDict, total=False):
    """What every method takes beside its own hyperparameters.

    `SharpnessAware` explains them in full; here is each one's first sentence, for editors.
    """

    model: nn.Module | None
    """The model that the closures evaluate; default None."""

    nonfinite: NonFinite
    """What to do when a loss or a gradient norm is inf or nan; default "skip"."""

    max_norm: float | None
    """Norm to which the gradient that is descended is clipped, above 0; default None: unclipped."""

    ascent: AscentMode
    """Whose gradient is climbed with many processes, "global" or "local"; default "global"."""

    masters: bool
    """Whether to keep float32 masters of bfloat16 and float16 parameters; default False."""

    replay_random: bool | Generators
    """Whether passes on one batch draw the same random numbers; default True."""

    measure_radius: bool
    """Whether to measure `‖eps‖` of every perturbed step for `cost.radius`; default False."""

    max_skips: int | None
    """Steps that may be skipped in a row before that is an error, at least 1; default 20."""


class SharpnessAware(Wrapper):
    """Any base optimizer, made to step with a gradient from the neighbourhood of the weights.

        g = ∇L(w);   eps = rho Γ(g);   w <- base step from w with ∇L(w + eps)

    A method is a choice of parts: **direction** (where do we look?), **geometry** (in which
    metric, that is which `Γ`?), **policy** (at which steps?), **selection** (at which samples?) and
    **descent** (what do we keep of what we saw?). The parts left out are SAM's, as above. The named
    methods (`flatmin.SAM`, …) are such choices.

    It is a `torch.optim.Optimizer` whose `param_groups` and `state` are the base optimizer's own,
    so that schedulers, checkpoints and parameter groups reach both at once. `rho` stands in the
    groups, next to `lr`.

    Args:
        base: any `torch.optim` optimizer, built on the parameters to train; it takes the step. A
            list of them is one base, each stepping the parameters that it holds.
        rho: radius of the perturbation, at least 0, for groups that bring no `rho` of their own;
            default 0.05. A length over all parameters together, in the metric of the geometry: with
            `Adaptive` start at ten times the Euclidean one. It knows nothing of `lr` or of how the
            base scales a gradient, but its best value moves with the batch size and the noise of
            the labels: tune it before anything else, by factors of two. Where every radius is 0, a
            step is the base optimizer's own, bit for bit.
        direction: one of `flatmin.direction`; default None, which is `Ascent()`: up the gradient.
        geometry: one of `flatmin.geometry`; default None, which is `Euclidean()`.
        policy: one of `flatmin.policy`; default None, which is `Always()`.
        descent: one of `flatmin.descent`; default None, which is `Plain()`: what was seen.
        selection: one of `flatmin.selection`; default None, which is `WholeBatch()`.
        model: the model that the closures evaluate; default None. With it, running statistics
            (BatchNorm) move in the first primary pass alone, a batch seen again is seen through the
            same dropout masks, and `cost.samples` counts: give it to every model that has such
            layers.
        nonfinite: what to do when a loss or a gradient norm is inf or nan; default "skip". "skip"
            drops the step, leaving weights and state untouched, counts it in `cost.skipped` and
            warns once; "raise" raises `FloatingPointError`; "ignore" does not look, and so spares a
            GPU the wait at the end of each step.
        max_norm: norm to which the gradient that is descended is clipped, above 0; default None:
            unclipped. It goes over all parameters together. What is climbed is never clipped.
        ascent: whose gradient is climbed with many processes, "global" or "local"; default
            "global". "global" climbs the gradient of the joined batch; "local" lets each rank climb
            its own batch's without communication (m-sharpness), and needs `model`, a
            `DistributedDataParallel`. A method that climbs smaller batches has another best `rho`.
        masters: whether to keep float32 masters of bfloat16 and float16 parameters; default False.
            The base optimizer, which must be new, then steps on them; one more copy of the weights.
        replay_random: whether passes on one batch draw the same random numbers; default True. It
            needs `model`. False draws new dropout masks in every pass; a list of random generators
            of your own (of torch, of NumPy, `random.Random`) replays these too.
        measure_radius: whether to measure `‖eps‖` of every perturbed step for `cost.radius`;
            default False. It costs a sweep over the weights.
        max_skips: steps that may be skipped in a row before that is an error, at least 1; default
            20. Then `step` raises `FloatingPointError`; None never does. It counts only with
            `nonfinite="skip"`, and not under loss scaling, which starts by skipping.

    Cost: 2 gradients a step and one copy of the weights with the parts of SAM; each other part says
    what it asks for. `gradients_per_step()` adds it up.

    Raises:
        TypeError: `base` is not an optimizer instance, `model` not a module, or a part not a part.
        ValueError: a radius is negative, a hyperparameter out of range, or `base`, `model`, the
            sharding or `ascent` cannot work.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021, arXiv:2010.01412, Algorithm 1,
    for the step; the parts name their own.

    Examples:
        >>> import torch, flatmin
        >>> model = torch.nn.Linear(4, 2)
        >>> x, y = torch.randn(8, 4), torch.randint(2, (8,))
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = flatmin.SharpnessAware(base, rho=0.5, geometry=flatmin.geometry.Adaptive())
        >>> def closure():
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> optimizer.cost.gradients
        2
    """

    direction: Direction
    geometry: Geometry
    policy: Policy
    descent: Descent
    selection: Selection
    model: nn.Module | None
    nonfinite: NonFinite
    max_norm: float | None
    ascent: AscentMode
    masters: bool
    replay_random: bool | Generators
    measure_radius: bool
    max_skips: int | None
    _masters: Masters | None

    if not TYPE_CHECKING:  # a type checker sees what is wrong by itself

        def __new__(cls, *args: Any, **options: Any) -> SharpnessAware:
            check_call(args, options, cls.__init__.__kwdefaults__)
            return super().__new__(cls)

    def __init__(
        self,
        base: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        rho: float = 0.05,
        *,
        direction: Direction | None = None,
        geometry: Geometry | None = None,
        policy: Policy | None = None,
        descent: Descent | None = None,
        selection: Selection | None = None,
        model: nn.Module | None = None,
        nonfinite: NonFinite = "skip",
        max_norm: float | None = None,
        ascent: AscentMode = "global",
        masters: bool = False,
        replay_random: bool | Generators = True,
        measure_radius: bool = False,
        max_skips: int | None = 20,
    ) -> None:
        base = joined(base)
        check_base(base)
        check.at_least_zero("rho", rho)
        key = RADIUS_BESIDE if RADIUS in base.defaults else RADIUS
        check_radius(base, key, rho)
        _check_parts(direction, geometry, policy, descent, selection)
        if max_skips is not None:
            check.positive_int("max_skips", max_skips)
        check.one_of("nonfinite", nonfinite, ("skip", "raise", "ignore"))
        if max_norm is not None:
            check.finite("max_norm", max_norm)
            check.in_range("max_norm", max_norm, 0.0, float("inf"), open_low=True)
        params: list[Tensor] = [p for group in base.param_groups for p in group["params"]]
        names = _check_model(model, params)
        if geometry is not None:
            geometry.require({names.get(p, f" {i}"): p for i, p in enumerate(params)})
        Ranks(params, model, ascent)
        direction, geometry = direction or Ascent(), geometry or Euclidean()
        policy, descent = policy or Always(), descent or Plain()
        selection = selection or WholeBatch()
        _require_fit(direction, geometry, policy, descent, selection)
        direction.require(base.param_groups)
        # Optimizer.__init__ would build groups and state of our own; __setstate__ sets up the rest.
        self.__setstate__(
            {
                "base": base,
                "defaults": {**base.defaults, key: rho},
                "direction": direction,
                "geometry": geometry,
                "policy": policy,
                "descent": descent,
                "selection": selection,
                "model": model,
                "nonfinite": nonfinite,
                "max_norm": max_norm,
                "ascent": ascent,
                "masters": masters,
                "_masters": Masters(base) if masters else None,
                "replay_random": replay_random,
                "measure_radius": measure_radius,
                "max_skips": max_skips,
            }
        )

    @torch._disable_dynamo  # pyright: ignore[reportPrivateUsage,reportUntypedFunctionDecorator]
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Closure | None = None, aux_closure: Closure | None = None
    ) -> Any:
        """Take one step and return the loss of its first pass, at the unperturbed weights.

        A direction that needs no gradient there (`MSAM`, `RWP`, `PreviousSAM`,
        `PreviousAgnosticSAM`) begins perturbed: then it is the loss at `w + eps`.

        Args:
            closure: runs forward and backward on the primary batch and returns the loss, as in
                `torch.optim`. Gradients are cleared before each call. With a per-sample selection
                (ESAM) it takes indices, or None, and returns per-sample losses, without backward.
                Default None, which is for checkpoint loaders alone: with zero gradients it sets up
                all state and moves nothing.
            aux_closure: the same on the auxiliary batch, for directions that measure one; default
                None.

        Raises:
            TypeError: a closure is missing or cannot be called, or a gradient is sparse.
            ValueError: the auxiliary closure is missing, or there is none to be.
            RuntimeError: a closure left no gradient, or another rank has failed.
            FloatingPointError: a loss or gradient is not finite, with `nonfinite="raise"`.

        Whatever is raised, also by a closure: weights, state and running statistics are as before.
        """
        if closure is None and aux_closure is None:
            return self._materialise()
        self._check_closures(closure, aux_closure)
        self._finish_before()
        closures = {"primary": closure, "auxiliary": aux_closure}
        with closing(self._run()) as run, self._ranks.together():
            told: tuple[Any, ...] = ()
            while True:
                try:
                    wanted = advance(run, *told)
                except StopIteration as done:
                    return done.value
                # Apart, since a closure may come to the end of an iterator of its own.
                with self._ranks.silence(wanted.communicate):
                    told = (self._evaluate(wanted, closures[wanted.batch]),)

    def passes(self) -> Passes:
        """The same step for loops that own their backward pass.

        Each pass says which batch to evaluate, whether the weights are perturbed, whether to
        communicate, and whether it is the last; see `flatmin.engine.passes.Turn`. Gradients are
        cleared and weights moved between passes. A pass left out or repeated raises RuntimeError,
        and takes the weights back.

        Examples:
            >>> import torch, flatmin
            >>> model, x = torch.nn.Linear(4, 1), torch.randn(8, 4)
            >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
            >>> with optimizer.passes() as passes:
            ...     for p in passes:
            ...         loss = model(x).square().mean()
            ...         loss.backward()  # or accelerator.backward(loss)
            ...         p.done(loss)
            >>> loss = passes.loss
        """
        self._finish_before()
        begun = Passes(self._run_with_hooks(), self._ranks)
        self._open = weakref.ref(begun)
        return begun

    def _finish_before(self) -> None:
        """Raise if a step is under way; it is given up."""
        begun = self._open() if self._open is not None else None
        if begun is not None and not begun.finished:
            begun.close()
            raise RuntimeError(
                "the passes of the step before were not all run; the weights are back where they "
                "were. Run every pass of optimizer.passes(), or close() it to give the step up"
            )

    @contextmanager
    def scaling(
        self, scale: Callable[[Tensor], Any], unscale: Callable[[], None]
    ) -> Generator[None]:
        """Losses are scaled before backward, gradients unscaled after; an overflow is no accident.

        Args:
            scale: scales a loss, for the backward passes that the optimizer runs (those of closures
                that return per-sample losses); other closures scale by themselves.
            unscale: called after each backward pass, to unscale the gradients that it has left.
        """
        self._scale, self._unscale = scale, unscale
        try:
            yield
        finally:
            self._scale = self._unscale = None

    @property
    def evaluated(self) -> list[Tensor]:
        """The parameters as the model holds them; with masters, the rounded copies of them."""
        params: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        return [self._masters.evaluated.get(p, p) for p in params] if self._masters else params

    # One step.

    def _run_with_hooks(self) -> PassGenerator[Tensor | None]:
        """A step that is not a call of `step`, to which torch ties step hooks and schedulers."""
        own = self._optimizer_step_pre_hooks.values()
        for hook in (*_global_optimizer_pre_hooks.values(), *own):
            hook(self, (), {})
        loss = yield from self._run()
        self._opt_called = True  # what schedulers ask, so as to warn
        own = self._optimizer_step_post_hooks.values()
        for hook in (*own, *_global_optimizer_post_hooks.values()):
            hook(self, (), {})
        return loss

    def _run(self) -> PassGenerator[Tensor | None]:
        """The step as a sequence of passes; it keeps every promise whatever a pass does."""
        walk = self._walk_now()
        at = self._probe(walk)
        state = self._model_state
        if state:
            state.begin()
        self._looking_at = at
        try:
            reaches = self._reaches()
            foreseen = None if self.policy.needs_gradient else reaches and self.policy.perturbs(at)
            if not (foreseen and self._begins_perturbed):
                at.grad = yield from at.first(foreseen)
            perturbed = (reaches and self.policy.perturbs(at)) if foreseen is None else foreseen
            gradients = (
                (yield from self._look_around(at, walk))
                if perturbed
                else self._unperturbed(at, foreseen, reaches)
            )
            gradients = [self._clipped(at, gradient) for gradient in gradients]
            at.finish()
        except BaseException as trouble:
            with torch.no_grad():  # also where the step is given up from outside
                walk.back()
                if state:
                    state.abort()
            if isinstance(trouble, NotFinite):
                self._skip(at)
                return at.loss
            raise
        finally:
            self._looking_at = None
        walk.back()
        if state:
            state.finish()
        self._skips_in_a_row = 0
        self._descend(at, walk, gradients, perturbed)
        return at.loss

    def _look_around(self, at: Probe, walk: Walk) -> PassGenerator[list[Vector]]:
        """The perturbed pass, and what the descent makes of it."""
        eps = yield from run_passes(self.direction.displacement(at))
        chosen = yield from run_passes(self.selection.choose(at, eps))
        at.move_to(eps)
        self._warn_if_standing_still(walk)
        if self.descent.looks_back:
            at.agree_on_gradient()
        else:
            eps = at.forget()
        last = not self.descent.further_passes
        seen = yield from at.primary(eps, chosen, last=last)
        self.direction.learn(at, seen)
        gradients = yield from run_passes(self.descent.after(at, seen, eps))
        at.travelled = walk.distance() if self.measure_radius else 0.0
        return gradients

    @property
    def _begins_perturbed(self) -> bool:
        """Is the first and only pass of a perturbed step at `w + eps`?"""
        return not (self.direction.needs_gradient or self.descent.asks_for_gradient)

    @property
    def _looks_for_inf(self) -> bool:
        return self.nonfinite != "ignore" or self._unscale is not None

    def _unperturbed(self, at: Probe, foreseen: bool | None, reaches: bool) -> list[Vector]:
        """The gradients of a step that looks nowhere."""
        if foreseen is None:
            at.agree_on_gradient()
        if reaches:  # with every radius 0 a step is the base optimizer's own
            self.direction.skipped(at)
        return self.descent.without(at)

    def _clipped(self, at: Probe, gradient: Vector) -> Vector:
        """The gradient, no longer than `max_norm`; its norm is looked at in any case."""
        if self.max_norm is None and not self._looks_for_inf:
            return gradient
        norm = at.norm(gradient)
        if self.max_norm is None:
            return gradient
        factor = self.max_norm / (norm + TINY)
        if isinstance(factor, Tensor):
            return factor.clamp(max=1.0) * gradient
        return gradient if factor >= 1.0 else factor * gradient

    def _descend(self, at: Probe, walk: Walk, gradients: list[Vector], perturbed: bool) -> None:
        """Step the base optimizer from the unperturbed weights; only then remember."""
        at.update_memory()
        for gradient in gradients:
            at.hand_over(gradient)
            self._step_base()
        if perturbed:
            walk.pull(self.descent.way)
        walk.space.write_evaluated()
        at.settle_accounts(perturbed=perturbed)
        if self._masters:
            self._masters.store(self._buffers)

    def _step_base(self) -> None:
        try:
            self.base.step()
        except RuntimeError as error:
            if "does not require grad" in str(error):
                raise ValueError(
                    f"the base optimizer {type(self.base).__name__} differentiates the gradient, "
                    "which is not part of a graph here: use one that takes gradients as they are"
                ) from error
            raise

    def _skip(self, at: Probe) -> None:
        """The step is dropped: say so as often as the user wants to hear it."""
        at.clear()
        if self._unscale is None and self.nonfinite == "raise":
            raise FloatingPointError(
                "a loss or gradient norm of this step is inf or nan; weights and state are as "
                'before it. nonfinite="skip" drops such steps and counts them'
            ) from None
        if self._unscale is None and not self._warned_of_skipping:
            self._warned_of_skipping = True
            warnings.warn(
                "a step was skipped because a loss or gradient norm was inf or nan; weights and "
                "state are as before it. optimizer.cost.skipped counts such steps; this is said "
                "once",
                RuntimeWarning,
                stacklevel=check.callers_level(),
            )
        at.settle_accounts(failed=True)
        self._skips_in_a_row += 1
        # A loss scale that starts too high is found by skipping, and is no accident.
        if self._unscale is None and self.max_skips == self._skips_in_a_row:
            self._skips_in_a_row = 0
            raise FloatingPointError(
                f"{self.max_skips} steps in a row were skipped, since a loss or gradient norm was "
                "inf or nan: the training has diverged, or a batch is broken; weights and state "
                "are as before the first of them. Lower lr or rho, look at the data, or allow "
                "more: max_skips=None"
            ) from None

    def _reaches(self) -> bool:
        """Does any radius differ from 0?"""
        key = self.radius_key
        return any(self.direction.largest_radius(group[key]) > 0 for group in self.param_groups)

    def _evaluate(self, wanted: Pass, closure: Closure | None) -> Any:
        """Run the closure that a pass asks for."""
        assert closure is not None
        try:
            if not wanted.per_sample:
                with torch.enable_grad():
                    return closure()
            with torch.set_grad_enabled(wanted.gradient):
                losses = wanted.losses(closure(wanted.samples))
                if wanted.gradient and losses is not None:
                    mean = losses.mean() if self._scale is None else self._scale(losses.mean())
                    mean.backward()
            return losses
        except RuntimeError as error:
            if any(sign in str(error) for sign in _GRAPH_OF_BEFORE):
                check.add_note(
                    error,
                    "flatmin calls the closure more than once a step, at other weights each time: "
                    "compute everything that depends on the weights inside it, from the inputs on",
                )
            raise
        except TypeError as error:
            if wanted.per_sample and "argument" in str(error):
                check.add_note(
                    error,
                    f"the selection {type(self.selection).__name__} (ESAM) calls closure(indices), "
                    "with indices None for the whole batch, and wants one loss a sample, without "
                    "backward: def closure(i=None): ... return criterion(model(x[i]), y[i]) with "
                    'reduction="none" (and x, y whole for None)',
                )
            raise

    def _check_closures(self, closure: Closure | None, aux_closure: Closure | None) -> None:
        for name, value in (("closure", closure), ("aux_closure", aux_closure)):
            if value is not None and not callable(value):  # pyright: ignore[reportUnnecessaryComparison]
                raise TypeError(
                    f"{name} must be a function that evaluates the loss and calls backward, got "
                    f"{check.describe(value)}: write step(lambda: loss_on(batch))"
                )
        if check.continues_accumulation(closure):
            raise RuntimeError(
                "Lightning accumulates: it ran all but the last micro-batch of this step alone, "
                "and none of them at the perturbed weights. Leave accumulate_grad_batches at 1 and "
                "derive from flatmin.integrations.lightning.SharpnessAwareModule, whose "
                "micro_batches cut a batch in pieces"
            )
        if closure is None:
            raise TypeError("step(closure, aux_closure) needs the primary closure too, got None")
        name = type(self.direction).__name__
        if self.direction.auxiliary_passes and aux_closure is None:
            raise ValueError(
                f"the direction {name} measures a second batch: call step(closure, aux_closure), "
                "with batches from flatmin.paired(loader) or flatmin.split(batch)"
            )
        if aux_closure is not None and not self.direction.auxiliary_passes:
            raise ValueError(
                f"the direction {name} measures no second batch, so aux_closure would never run: "
                "call step(closure)"
            )

    @torch.no_grad()
    def _materialise(self) -> None:
        """Set up all state without moving, for checkpoint loaders (zero gradients and lr 0)."""
        walk = self._walk_now()
        space = walk.space
        grads = [p.grad for p in space.params]
        if all(g is None for g in grads) or any(g is not None and bool(g.any()) for g in grads):
            raise TypeError(
                "step() needs a closure that runs forward and backward and returns the loss, "
                "since it evaluates the loss more than once: step(closure). Loops that scale the "
                "loss use flatmin.amp instead of a GradScaler beside it"
            )
        walk.go(ZERO)
        self.base.step()
        walk.back()
        for name in (*self.direction.kept(self._probe(walk)), *self.descent.buffers):
            for i, p in enumerate(space.params):
                zero = space.wrap(i, torch.zeros_like(space.pieces[i]))
                self._buffers[p].setdefault(name, zero)

    # What a step works with.

    def _walk_now(self) -> Walk:
        """The trainable parameters as they are now, with the copy that earlier steps have used."""
        groups = [[p for p in g["params"] if p.requires_grad] for g in self.param_groups]
        ascending = [bool(g.get("maximize", False)) for g in self.param_groups]
        known = self._walk
        if known is None or ascending != self._ascending or not known.fits(groups):
            self._walk = known = self._laid_out(groups, ascending)
        known.begin()
        return known

    def _laid_out(self, groups: list[list[Tensor]], ascending: list[bool]) -> Walk:
        """All that follows from which parameters there are, and in which form."""
        evaluated = self._masters.evaluated if self._masters else None
        space = Space(_once(groups), evaluated, ascending, names_in(self.model))
        before = self._walk
        for p in before.space.params if before else ():
            if not p.requires_grad:  # frozen since: the base is not to take our last gradient again
                p.grad = None
        for p, shape, dtype in space.changed(before.space) if before else ():
            self._fit_buffers(p, shape, dtype, space.name_of(p))
        walk = Walk(space, groups)
        self._ascending = ascending
        self._memory = Memory(self.base, self._buffers, space)
        if self.model is not None:
            self._model_state = ModelState(
                self.model,
                space.evaluated,
                replay=self.replay_random is not False,
                generators=() if isinstance(self.replay_random, bool) else self.replay_random,
                shares_gradients=self._ranks.share_memory,
            )
        return walk

    def _fit_buffers(self, p: Tensor, shape: torch.Size, dtype: torch.dtype, whose: str) -> None:
        """What is kept beside a parameter that has grown, or changed its type, does so too."""
        kept: dict[str, Any] = self.state.get(p, {})
        for name, buffer in kept.items():
            if isinstance(buffer, Tensor) and buffer.shape == shape and buffer.ndim:
                wanted = p.dtype if buffer.dtype == dtype else buffer.dtype
                kept[name] = fitted(buffer, p.shape, wanted, f"the buffer {name!r}", whose)

    def _probe(self, walk: Walk) -> Probe:
        self._complete_groups()
        rho = [group[self.radius_key] for group in self.param_groups]
        self._memory.begin(self._buffers, self.direction.moving)
        return Probe(
            walk,
            rho,
            self.geometry,
            self._memory,
            self._model_state,
            self._ranks,
            finite=self._looks_for_inf,
            unscale=self._unscale,
            keeps_gradients=not self._begins_perturbed
            and bool(
                self.descent.looks_back or self.direction.buffers or self.direction.auxiliary_passes
            ),
            per_sample=self.selection.per_sample,
        )

    def _warn_if_standing_still(self, walk: Walk) -> None:
        """Look at perturbed steps 1, 10, 100, …: the check is a sweep over the weights."""
        done = self.param_groups[0][KEY]["perturbed"] + 1
        if (
            self._warned_of_precision
            or not walk.space.cheap_to_inspect
            or str(done).strip("0") != "1"
        ):
            return
        self._warned_of_precision = walk.warn_if_standing_still()

    # What is known about it.

    @property
    def cost(self) -> Cost:
        """Steps, perturbed steps, gradients and samples since the start of training."""
        return Cost.of(self.param_groups[0][KEY])

    def gradients_per_step(self, fraction: float = 0.25) -> float:
        """The gradients that a step costs on average, in units of one on the primary batch.

        It is nan where only training can tell (the adaptive policy).

        Args:
            fraction: size of the auxiliary batch against the primary one, above 0; default 0.25,
                that of `flatmin.paired`.
        """
        if not self._reaches():
            return 1.0
        look = self.direction.auxiliary_passes * fraction + self.selection.share
        look += self.descent.further_passes - self._begins_perturbed
        return 1.0 + self.policy.rate * look if look else 1.0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it may bring a `rho` of its own.

        Args:
            param_group: a dictionary with "params", as in `torch.optim`; options that it leaves out
                are those that the base optimizer and this one were built with.
        """
        self.direction.require([{**self.defaults, **param_group}])
        super().add_param_group(param_group)
        if self._masters:
            self._masters.adopt(self.param_groups[-1])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, of masters and of what the model evaluates.

        `step` clears them by itself, before each pass.

        Args:
            set_to_none: whether to drop them rather than fill them with zeros; default True.
        """
        super().zero_grad(set_to_none)
        for rounded in self._masters.evaluated.values() if self._masters else ():
            rounded.grad = None

    @property
    def looking(self) -> Looking | None:
        """The pass under way, for closures, hooks and signal handlers; None outside of a step.

        A metric or a cache that is to see each batch once asks `optimizer.looking.first`.

        Examples:
            >>> import torch, flatmin
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
            >>> x, seen = torch.randn(4, 2), 0
            >>> def closure():
            ...     global seen
            ...     if optimizer.looking.first:
            ...         seen += len(x)
            ...     loss = model(x).square().mean()
            ...     loss.backward()
            ...     return loss
            >>> loss = optimizer.step(closure)
            >>> seen, optimizer.looking
            (4, None)
        """
        return None if self._looking_at is None else self._looking_at.looking

    def _buffer_names(self) -> tuple[str, ...]:
        return (*self.direction.buffers, *self.descent.buffers, MASTER)

    def _loaded(self) -> None:
        if self._masters:
            self._masters.load(self._buffers)

    def _numbers_at_start(self) -> dict[str, float]:
        return {**super()._numbers_at_start(), **self.policy.memory}

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in _KEPT}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(state)
        params = [p for group in self.param_groups for p in group["params"]]
        self._ranks = Ranks(params, self.model, self.ascent)
        self._model_state: ModelState | None = None
        self._walk: Walk | None = None
        self._ascending: list[bool] = []
        self._looking_at: Probe | None = None
        self._skips_in_a_row = 0
        self._open: weakref.ref[Passes] | None = None
        self._scale: Callable[[Tensor], Any] | None = None
        self._unscale: Callable[[], None] | None = None
        self._warned_of_skipping = self._warned_of_precision = False

    def __repr__(self) -> str:
        parts = (self.direction, self.geometry, self.policy, self.descent, self.selection)
        rho = ", ".join(f"{group[self.radius_key]:g}" for group in self.param_groups)
        inner = "\n  ".join([f"rho: {rho}", *map(repr, parts), *repr(self.base).splitlines()])
        return f"{type(self).__name__} (\n  {inner}\n)"


def _require_fit(
    direction: Direction,
    geometry: Geometry,
    policy: Policy,
    descent: Descent,
    selection: Selection,
) -> None:
    """Raise ValueError for parts that cannot go together."""
    name = type(direction).__name__
    if not direction.takes_metric and not geometry.trivial:
        raise ValueError(
            f"the direction {name} has lengths of its own and climbs in no metric: leave out "
            f"geometry={geometry!r}, or take direction.Ascent() in it"
        )
    if direction.needs_gradient or descent.asks_for_gradient:
        return
    begins = f"the direction {name} begins at w + eps and has no gradient at w"
    if policy.needs_gradient:
        raise ValueError(
            f"{begins}, which the policy {type(policy).__name__} asks for: take policy.EveryK(), "
            "policy.Late() or policy.Bernoulli(), or direction.Ascent()"
        )
    if descent.looks_back:
        raise ValueError(
            f"{begins}, to which the descent {type(descent).__name__} looks back: take "
            "descent.Plain() or descent.Mixed(), which pays for it, or direction.Ascent()"
        )
    if selection.per_sample:
        raise ValueError(
            f"{begins}, and no losses there to which the selection {type(selection).__name__} "
            "could compare: take selection.WholeBatch(), or direction.Ascent()"
        )
    if geometry.needs_gradient:
        raise ValueError(
            f"{begins}, of which the geometry {geometry!r} is made: take geometry.Euclidean() or "
            "geometry.Adaptive(), or direction.Ascent()"
        )


def _once(groups: list[list[Tensor]]) -> list[list[Tensor]]:
    """The groups, each parameter where it first stands: one that is listed twice moves once."""
    seen: set[int] = set()
    return [[p for p in group if not (id(p) in seen or seen.add(id(p)))] for group in groups]


def _check_parts(*parts: object) -> None:
    """Raise TypeError for what is none of a direction, geometry, policy, descent, selection."""
    kinds: tuple[tuple[str, type, str], ...] = (
        ("direction", Direction, "flatmin.direction.Ascent()"),
        ("geometry", Geometry, "flatmin.geometry.Euclidean()"),
        ("policy", Policy, "flatmin.policy.Always()"),
        ("descent", Descent, "flatmin.descent.Plain()"),
        ("selection", Selection, "flatmin.selection.WholeBatch()"),
    )
    for part, (name, kind, example) in zip(parts, kinds, strict=True):
        if part is not None:
            check.kind(name, part, kind, example)


def _check_model(model: object, params: list[Tensor]) -> dict[Tensor, str]:
    """The names of its parameters. Raises TypeError or ValueError for what cannot be it."""
    if any(map(is_lazy, params)):
        raise ValueError(
            "the model has lazy parameters without a shape yet: run it once on a batch, then "
            "build the base optimizer"
        )
    if model is None:
        return {}
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model is a ScriptModule, which takes no hooks and keeps its buffers to itself: "
            "train the module that was scripted, or leave out model="
        )
    names = names_in(model)
    if params and not any(p in names for p in params):
        raise ValueError(
            "model holds none of the parameters of the optimizer, so it is not the one that "
            "the closures train: pass the model whose parameters() the base was given"
        )
    return names


def names_in(model: nn.Module | None) -> dict[Tensor, str]:
    """What a model calls its parameters, without what DDP and torch.compile put before it."""
    if model is None:
        return {}
    return {
        p: name.replace("_orig_mod.", "").removeprefix("module.")
        for name, p in model.named_parameters()
    }


if not TYPE_CHECKING:  # what __new__ would hide from help() and inspect
    _whole = inspect.signature(SharpnessAware.__init__)
    SharpnessAware.__signature__ = _whole.replace(
        parameters=[p for p in _whole.parameters.values() if p.name != "self"],
        return_annotation=inspect.Signature.empty,
    )

_GRAPH_OF_BEFORE = (
    "backward through the graph a second time",
    "modified by an inplace operation",
    "modified inplace",
)
"""What torch says where a part of the graph was built outside the closure."""

_KEPT = (
    "base",
    "defaults",
    "_apart",
    *(name for name in SharpnessAware.__annotations__ if name not in ("base", "defaults")),
)

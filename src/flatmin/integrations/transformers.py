"""Hugging Face: a Trainer whose every step is a sharpness-aware one."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback

import flatmin
from flatmin import methods
from flatmin.engine import check
from flatmin.integrations import before_descent, join, looking_around, stepped
from flatmin.integrations.records import metrics_among, unrecorded
from flatmin.optimizer import SharpnessAware

Inputs: TypeAlias = Any
"""What a loader yields: a mapping, or what the Trainer's own `_prepare_inputs` turns into one."""
Auxiliary: TypeAlias = Literal["drawn", "split"]


class SharpnessAwareTrainer(Trainer):
    """The Hugging Face Trainer with a sharpness-aware step, by any method.

    Name a `method`, and the Trainer builds it over the base optimizer that its arguments ask for
    (AdamW unless `optim` says otherwise); or hand over a flatmin optimizer of your own, as
    `optimizers=(optimizer, scheduler)`. All else is the Trainer's, and

    - `gradient_accumulation_steps`: all micro-batches are evaluated at every point where the method
      looks, which equals the large batch;
    - every precision works, fp16 by `flatmin.amp`;
    - `max_grad_norm` clips the gradient that is descended, never one that is climbed, and the
      logged `grad_norm` is that gradient's; the logged loss is the one at the unperturbed weights;
    - a resumed run equals one that was not stopped, bit for bit, auxiliary batches included;
    - overrides of `training_step` and `compute_loss`, in front of this class or behind it (TRL's
      trainers: `class SharpSFT(SharpnessAwareTrainer, SFTTrainer)`), run at every look. What they
      record counts once: `self.log`, metrics, numbers, and small tensors and containers that are
      attributes of the trainer stay as the first look left them. `self.looking_around` says which
      look it is;
    - inputs are prepared once a step, at the unperturbed weights (GRPO's completions);
    - DDP; and FSDP2 where transformers shards the model as it loads it (`distributed_config`);
    - methods that choose samples (`esam`) need `compute_loss_func` to return one loss a sample.

    Since all passes of a step are over before the base optimizer steps, the callbacks
    `on_pre_optimizer_step` and `on_optimizer_step` both come after the step.

    Args:
        *args: the Trainer's.
        method: a name from `flatmin.methods`, such as "agnostic-sam"; or a function that takes the
            base optimizer and returns a `SharpnessAware`; default None: `optimizers` brings it.
        rho: radius of a named method, at least 0; default None: its own. Fine-tuning with AdamW
            starts at SAM's 0.05 as well.
        auxiliary: where methods that measure an auxiliary batch get it from, "drawn" or "split";
            default "drawn". "drawn" samples the training set anew, seeded by `data_seed` or `seed`,
            the step and the rank, in pieces no larger than a micro-batch; "split" takes a part of
            each batch, which the primary batch then lacks: the only way for an iterable data set.
        auxiliary_fraction: size of the auxiliary batch against the primary one (drawn), or share of
            a batch (split), in (0, 1]; default 0.25.
        **kwargs: the Trainer's.

    Cost: what the method says, for each micro-batch.

    Raises:
        ValueError: the method is unknown, given twice or not at all, or what the Trainer is asked
            to do cannot be right: DeepSpeed, Accelerate's FSDP and their like (they own gradients
            or weights); fp16, several micro-batches or overrides of `training_step` for a method
            that chooses samples; an auxiliary batch of completions.
        RuntimeError: `generate` is called in a later look.
        TypeError: `optimizers` brings an optimizer that is not flatmin's, or a drawn auxiliary
            batch is asked of an iterable data set.

    Examples:
        >>> import torch
        >>> from transformers import TrainingArguments
        >>> from flatmin.integrations.transformers import SharpnessAwareTrainer
        >>> class Classifier(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(4, 2)
        ...
        ...     def forward(self, x, labels):
        ...         logits = self.layer(x)
        ...         return {"loss": torch.nn.functional.cross_entropy(logits, labels)}
        >>> data = [{"x": torch.randn(4), "labels": i % 2} for i in range(16)]
        >>> arguments = TrainingArguments(
        ...     "runs", max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
        ... )
        >>> trainer = SharpnessAwareTrainer(
        ...     Classifier(), arguments, train_dataset=data, method="agnostic-sam", rho=0.1
        ... )
        >>> trained = trainer.train()  # doctest: +ELLIPSIS
        {...}
        >>> trainer.optimizer.optimizer.cost.gradients
        4
    """

    def __init__(
        self,
        *args: Any,
        method: str | Callable[[Optimizer], SharpnessAware] | None = None,
        rho: float | None = None,
        auxiliary: Auxiliary = "drawn",
        auxiliary_fraction: float = 0.25,
        **kwargs: Any,
    ) -> None:
        check.one_of("auxiliary", auxiliary, ("drawn", "split"))
        check.in_range("auxiliary_fraction", auxiliary_fraction, 0.0, 1.0, open_low=True)
        if isinstance(method, str):
            methods.find(method)
        elif rho is not None:
            raise ValueError("rho is the radius of a named method: write method='sam', rho=0.05")
        self.method, self.rho = method, rho
        self.auxiliary: Auxiliary = auxiliary
        self.auxiliary_fraction = auxiliary_fraction
        self._waiting: list[Inputs] = []
        self._grad_norm: Any = None
        self._drawn: _Drawn | None = None
        super().__init__(*args, **kwargs)
        given = cast(object, self.optimizer) is not None
        if given == (method is not None):
            raise ValueError(
                "an optimizer and a method were given: leave out one of them"
                if given
                else "which method? Write method='sam' (flatmin.methods.TABLE lists them), or hand "
                "over optimizers=(flatmin.SAM(base), None)"
            )
        if given:
            _sharpness_aware(self.optimizer)
        self.add_callback(_Steps(self))

    # What the Trainer builds.

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        engine = self.accelerator.distributed_type.value
        if engine != "NO" and not engine.startswith("MULTI_"):
            instead = (
                "let transformers shard the model as it loads it, before there is an optimizer: "
                "from_pretrained(..., distributed_config=DistributedConfig(fsdp_size=...))"
                if engine == "FSDP"
                else "train with DDP (torchrun), or FSDP2 by from_pretrained's distributed_config"
            )
            raise ValueError(
                f"with {engine}, gradients or weights belong to an engine that evaluates one "
                f"gradient a step, or swaps parameters under the optimizer: {instead}"
            )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        known = cast(object, self.optimizer)
        optimizer = super().create_optimizer(*args, **kwargs)
        if known is None:
            self.optimizer = optimizer = self._sharpen(optimizer)
        return optimizer

    def _sharpen(self, base: Optimizer) -> SharpnessAware:
        if isinstance(self.method, str):
            steps = max(1, self.state.max_steps)
            model = cast(nn.Module, self.model)
            return methods.find(self.method).build(base, self.rho, total_steps=steps, model=model)
        assert self.method is not None
        return _sharpness_aware(self.method(base))

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = cast("DataLoader[Any]", super().get_train_dataloader())
        self._drawn = _Drawn(
            loader,
            share=self.auxiliary_fraction,
            batch=cast(int, self._train_batch_size),
            pieces=self.args.gradient_accumulation_steps,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            rank=cast(int, self.args.process_index),
        )
        return loader

    # One step.

    def training_step(
        self,
        model: nn.Module,
        inputs: Inputs,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Wait for the last micro-batch of a step; then take the step, and return its loss.

        Args:
            model: the model, as the Trainer has wrapped it.
            inputs: one micro-batch.
            num_items_in_batch: the Trainer's count; default None. Each pass counts by itself.
        """
        self._waiting.append(inputs)
        if not self.accelerator.gradient_state.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batches, self._waiting = self._waiting, []
        sharp = _sharpness_aware(self.optimizer)
        join(sharp, model)
        closures = self._closures(sharp, model, batches, num_items_in_batch)
        self._grad_norm = None
        with before_descent(sharp, lambda: self._clip(sharp)):
            scaler = cast(Any, self.accelerator.scaler)
            loss = cast("Tensor | None", stepped(sharp, scaler, *closures))
        # The Trainer goes on to clip, in one way or another, and to step. Both are done: it is told
        # the norm there was, and `_Steps` lets Accelerate pass over the step.
        vars(self.accelerator)["clip_grad_norm_"] = self._told_norm
        return torch.zeros((), device=self.args.device) if loss is None else loss.detach()

    @property
    def looking_around(self) -> bool:
        """Whether the loss is evaluated at perturbed weights, again, or on an auxiliary batch."""
        return looking_around(self.optimizer)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log what the batch says at the unperturbed weights, once a step."""
        if not self.looking_around:
            super().log(*args, **kwargs)

    def _told_norm(self, *_: Any, **__: Any) -> Any:
        return self._grad_norm

    def _clip(self, sharp: SharpnessAware) -> None:
        # Not Accelerate's: in fp16 it would unscale a gradient that has been unscaled.
        most = self.args.max_grad_norm or 0.0
        params = [p for group in sharp.param_groups for p in group["params"]]
        self._grad_norm = nn.utils.clip_grad_norm_(params, most if most > 0 else float("inf"))

    def _closures(
        self,
        sharp: SharpnessAware,
        model: nn.Module,
        batches: list[Inputs],
        items: Tensor | int | None,
    ) -> list[Callable[..., Tensor]]:
        auxiliary: list[Inputs] = []
        if sharp.direction.auxiliary_passes:
            batches, auxiliary = self._with_auxiliary(batches)
            items = self._items_in(batches)
        if sharp.selection.per_sample:
            primary = self._losses_of(model, batches)
        else:
            primary = self._gradient_on(model, batches, items)
        if not auxiliary:
            return [primary]
        return [primary, self._gradient_on(model, auxiliary, self._items_in(auxiliary))]

    def _with_auxiliary(self, batches: list[Inputs]) -> tuple[list[Inputs], list[Inputs]]:
        strange = [batch for batch in batches if not isinstance(batch, Mapping)]
        if strange:
            raise ValueError(
                f"this Trainer prepares its batches from a {type(strange[0]).__name__}, as those "
                "do that generate completions, and an auxiliary batch cannot be taken from it: "
                "use a method with one batch, such as method='sam' or 'agnostic-sam-previous'"
            )
        if self.auxiliary == "drawn":
            assert self._drawn is not None
            return batches, self._drawn.at(self.state.global_step)
        parts = [flatmin.split(dict(batch), self.auxiliary_fraction) for batch in batches]
        return [primary for primary, _ in parts], [auxiliary for _, auxiliary in parts]

    def _items_in(self, batches: list[Inputs]) -> Tensor | int | None:
        """What the Trainer divides the loss of these micro-batches by."""
        return self.get_batch_samples(iter(batches), len(batches), self.args.device)[1]

    def _gradient_on(
        self, model: nn.Module, batches: Sequence[Inputs], items: Tensor | int | None
    ) -> Callable[[], Tensor]:
        """The Trainer's own forward and backward over micro-batches; ranks meet at the last."""
        pieces = [_Piece(batch) for batch in batches]

        def closure() -> Tensor:
            losses: list[Tensor] = []
            with self._counted_once(), self._divided_by(len(pieces)):
                for i, piece in enumerate(pieces, start=1):
                    alone = i < len(pieces)
                    self._sync_gradients(not alone)
                    with (
                        self.accelerator.no_sync(model) if alone else nullcontext(),
                        self._preparing(piece) as inputs,
                        self._generating_nothing(),
                    ):
                        loss = super(SharpnessAwareTrainer, self).training_step(
                            model, inputs, items
                        )
                        losses.append(loss)
            return torch.stack(losses).sum()

        return closure

    def _losses_of(self, model: nn.Module, batches: list[Inputs]) -> Callable[..., Tensor]:
        """One loss a sample, of all or of chosen samples, for methods that choose."""
        if len(batches) != 1 or self.accelerator.scaler is not None:
            raise ValueError(
                "this method chooses among the samples of one batch and runs backward itself: set "
                f"gradient_accumulation_steps=1 (got {len(batches)} micro-batches) and bf16=True "
                "rather than fp16=True"
            )
        if self._stepping is not Trainer:
            raise ValueError(
                "this method chooses among the samples and runs backward itself, so that the "
                f"training_step of {self._stepping.__name__} would never run: use another method"
            )
        piece = _Piece(batches[0])

        def closure(chosen: Tensor | None) -> Tensor:
            model.train()
            with self._counted_once():
                with self._preparing(piece) as raw:
                    inputs = self._prepare_inputs(raw)
                if chosen is not None:
                    inputs = tree_map(partial(_rows, chosen=chosen), inputs)
                with self.compute_loss_context_manager():
                    losses = cast(Tensor, self.compute_loss(model, inputs))
            if losses.ndim != 1:
                raise ValueError(
                    "this method chooses samples by their losses: give the Trainer a "
                    "compute_loss_func that returns one loss a sample, such as cross_entropy("
                    'outputs.logits, labels, reduction="none"); got a loss of shape '
                    f"{tuple(losses.shape)}"
                )
            return losses

        return closure

    @contextmanager
    def _counted_once(self) -> Generator[None]:
        """What the trainer holds of records and metrics stays as the first look left it."""
        if not self.looking_around:
            yield
            return
        metrics = list(metrics_among(vars(self).values()))
        with unrecorded(metrics, self, leave=("train_dataset", "eval_dataset")):
            yield

    @contextmanager
    def _divided_by(self, pieces: int) -> Generator[None]:
        """The Trainer's mean over micro-batches is one over as many, in every version of it."""
        asked = self.args.gradient_accumulation_steps
        self.current_gradient_accumulation_steps = pieces
        self.args.gradient_accumulation_steps = pieces
        try:
            yield
        finally:
            self.args.gradient_accumulation_steps = asked

    def _sync_gradients(self, wanted: bool) -> None:
        """Tell Accelerate whether a step comes next."""
        gradients = self.accelerator.gradient_state
        gradients._set_sync_gradients(wanted)  # pyright: ignore[reportPrivateUsage]

    @contextmanager
    def _preparing(self, piece: _Piece) -> Generator[Inputs]:
        """Inputs to hand to the Trainer, which it prepares in the first look and no other.

        Whoever generates completions there generates them once a step, at the unperturbed weights.
        """
        handed = _shallow(piece.inputs)
        prepare = type(self)._prepare_inputs

        def once(inputs: Inputs) -> Inputs:
            if inputs is not handed:
                return prepare(self, inputs)
            if piece.prepared is None:
                before = self._random_state()
                piece.prepared = prepare(self, inputs)
                after = self._random_state()
                drawn = not all(map(torch.equal, before, after))
                piece.random = after if drawn else []
            elif piece.random and self._replays:
                # What preparing drew is not drawn again, so that dropout masks are the same.
                self._set_random_state(piece.random)
            return _shallow(piece.prepared)

        self._prepare_inputs = once
        try:
            yield handed
        finally:
            del self._prepare_inputs

    @contextmanager
    def _generating_nothing(self) -> Generator[None]:
        """Completions generated anew in a later look would be other data than the first look's."""
        model = cast(Any, self.model)
        if not self.looking_around or not hasattr(model, "generate"):
            yield
            return
        attributes = cast("dict[str, Any]", model.__dict__)
        before = {k: v for k, v in attributes.items() if k == "generate"}

        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError(
                f"{self._stepping.__name__} calls generate in every look of a step, and so anew at "
                "perturbed weights: generate in _prepare_inputs, which runs once a step, or only "
                "where self.looking_around is False"
            )

        model.generate = refuse
        try:
            yield
        finally:
            del model.generate
            attributes.update(before)

    @property
    def _stepping(self) -> type:
        """The class behind ours whose `training_step` runs at every look."""
        mro = type(self).__mro__
        behind = mro[mro.index(SharpnessAwareTrainer) + 1 :]
        return next(c for c in behind if "training_step" in vars(c))

    @property
    def _replays(self) -> bool:
        sharp = _sharpness_aware(self.optimizer)
        return sharp.model is not None and bool(sharp.replay_random)

    def _random_state(self) -> list[Tensor]:
        device = self.args.device
        own = (
            [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]
        )
        return [torch.get_rng_state(), *own]

    def _set_random_state(self, state: list[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for own in state[1:]:
            device = self.args.device
            torch.get_device_module(device).set_rng_state(own, device)

    def give_up_waiting(self) -> None:
        """A step whose last micro-batch never came is not taken: say so."""
        if not self._waiting:
            return
        left, self._waiting = len(self._waiting), []
        warnings.warn(
            f"training was stopped within a step, so that {left} of its "
            f"{self.args.gradient_accumulation_steps} micro-batches were not trained on; resume "
            "from a checkpoint to see them again",
            RuntimeWarning,
            stacklevel=2,
        )


@dataclass
class _Piece:
    """A micro-batch of one step: as the loader yields it, and as the first look prepared it."""

    inputs: Inputs
    prepared: Any = field(default=None, init=False)
    random: list[Tensor] = field(default_factory=list[Tensor], init=False)


class _Steps(TrainerCallback):
    """Lets Accelerate pass over the step that was taken, and watches over what waits for one."""

    def __init__(self, trainer: SharpnessAwareTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        vars(self._trainer.accelerator).pop("clip_grad_norm_", None)
        self._trainer._sync_gradients(False)  # pyright: ignore[reportPrivateUsage]

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._trainer._sync_gradients(True)  # pyright: ignore[reportPrivateUsage]

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.give_up_waiting()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.give_up_waiting()


@dataclass
class _Drawn:
    """Auxiliary batches: those of a step depend on the seed, the step and the rank alone."""

    loader: DataLoader[Any]
    share: float
    batch: int
    pieces: int
    seed: int
    rank: int

    def __post_init__(self) -> None:
        self._next = -1
        self._iterator: Iterator[Any] = iter(())

    def at(self, step: int) -> list[Inputs]:
        """The auxiliary batch of a step, in pieces of equal size that fit where a batch fits."""
        if isinstance(self.loader.dataset, IterableDataset):
            raise TypeError(
                "an iterable data set cannot be sampled a second time for the auxiliary batch: "
                "write SharpnessAwareTrainer(..., auxiliary='split')"
            )
        if step != self._next:
            self._iterator = iter(self._from(step))
        self._next = step + 1
        pieces, _ = self._sizes()
        return [next(self._iterator) for _ in range(pieces)]

    def _sizes(self) -> tuple[int, int]:
        size = max(1, round(self.share * self.batch * self.pieces))
        pieces = -(-size // self.batch)
        return pieces, -(-size // pieces)

    def _from(self, step: int) -> DataLoader[Any]:
        given = self.loader
        return DataLoader(
            given.dataset,
            batch_sampler=_Batches(self._indices, step),
            num_workers=given.num_workers,
            collate_fn=given.collate_fn,
            pin_memory=given.pin_memory,
            worker_init_fn=given.worker_init_fn,
            prefetch_factor=given.prefetch_factor,
            # Of its own, so that the stream of random numbers is the one without it.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _indices(self, step: int) -> list[list[int]]:
        pieces, size = self._sizes()
        total = len(cast("Any", self.loader.dataset))
        drawn = drawn_indices(total, pieces * size, seed=self.seed, step=step, rank=self.rank)
        return [drawn[i * size : (i + 1) * size] for i in range(pieces)]


@dataclass
class _Batches:
    """Endless batches of indices, from a step on."""

    indices: Callable[[int], list[list[int]]]
    step: int

    def __iter__(self) -> Iterator[list[int]]:
        step = self.step
        while True:
            yield from self.indices(step)
            step += 1


def drawn_indices(total: int, size: int, *, seed: int, step: int, rank: int = 0) -> list[int]:
    """Draw the samples of the auxiliary batch that "drawn" takes at a step, without replacement.

    Seed, step and rank are all that it depends on, so a resumed run draws what it would have drawn.

    Args:
        total: samples in the training set.
        size: samples wanted; no more than `total` are given.
        seed: of the draws.
        step: number of the step, from 0.
        rank: number of the process; default 0.

    Examples:
        >>> from flatmin.integrations.transformers import drawn_indices
        >>> drawn_indices(1000, 3, seed=0, step=7) == drawn_indices(1000, 3, seed=0, step=7)
        True
    """
    draw = random.Random(f"flatmin auxiliary {seed} {step} {rank}")
    return draw.sample(range(total), min(size, total))


def _sharpness_aware(optimizer: Any) -> SharpnessAware:
    """The optimizer, out of Accelerate's wrapper."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, SharpnessAware):
        raise TypeError(
            f"SharpnessAwareTrainer steps flatmin optimizers, got {type(inner).__name__}: hand "
            "over optimizers=(flatmin.SAM(base), None), or name a method: method='sam'"
        )
    return inner


def _shallow(inputs: Inputs) -> Inputs:
    """Inputs that may be popped from."""
    return dict(cast("Mapping[str, Any]", inputs)) if isinstance(inputs, Mapping) else inputs


def _rows(leaf: Any, chosen: Tensor) -> Any:
    return leaf[chosen.to(leaf.device)] if isinstance(leaf, Tensor) and leaf.ndim else leaf


__all__ = ["SharpnessAwareTrainer", "drawn_indices"]

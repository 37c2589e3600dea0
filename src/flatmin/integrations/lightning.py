"""Lightning: a LightningModule whose automatic optimization runs a sharpness-aware optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops.optimization.closure import AbstractClosure
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import FSDPStrategy, ParallelStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.signature_utils import (
    is_param_in_hook_signature,  # pyright: ignore[reportUnknownVariableType]
)
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.utils._pytree import tree_leaves
from torch.utils.data import DistributedSampler

import flatmin
from flatmin.integrations import before_descent, join, looking_around, stepped
from flatmin.integrations.records import metrics_in, unrecorded
from flatmin.optimizer import SharpnessAware
from flatmin.pairs import PairedLoader


class SharpnessAwareModule(LightningModule):
    """A LightningModule that knows how a sharpness-aware step evaluates its batch.

    Return a flatmin optimizer from `configure_optimizers`; all else stays as it is. `training_step`
    runs once at every point where the method looks, and

    - a method with an auxiliary batch gets one: from `flatmin.paired(loader)`, if
      `train_dataloader` returns that, and else by splitting each batch. `training_step` sees either
      batch in the form that the loader yields;
    - `self.log` records the look at the unperturbed weights, and so does what `training_step`
      returns to callbacks; metrics of the module (torchmetrics', or anything that has `update`, and
      `compute` or `reset`) count each primary batch once;
    - a batch for which `training_step` returns None is skipped;
    - `gradient_clip_val` and `on_before_optimizer_step` meet the gradient that is descended, never
      one that is climbed;
    - `micro_batches` cuts each batch into pieces, for batches that do not fit into memory.

    With bases of your own, name it first: `class Digits(SharpnessAwareModule, YourBase)`.

    It takes no argument of its own; its settings are class attributes.

    Attributes:
        auxiliary_fraction: the share of a batch that becomes the auxiliary batch where the loader
            is not a `flatmin.paired` one, in (0, 1); default 0.25.
        micro_batches: pieces in which a batch is evaluated at each point, at least 1; default 1.
            They equal the whole batch, up to rounding, if `training_step` returns a mean over
            samples. Lightning's `accumulate_grad_batches` is refused: it calls the closure of all
            but the last micro-batch outside of the step, so that none of them is seen at the
            perturbed weights.

    `training_step` may ask `self.looking_around` in order to count by other means once a step.
    Overrides of `on_before_batch_transfer`, `on_train_epoch_start` and `log` call `super()`, as
    does one of `backward` where `micro_batches` is not 1.

    Every precision works, "16-mixed" by `flatmin.amp`. Refused, with the reason:
    `accumulate_grad_batches` above 1, also by a `GradientAccumulationScheduler`, DeepSpeed and
    FSDP1 (they own gradients or weights), methods that choose samples (ESAM; `training_step`
    returns one loss), and in several processes a `flatmin.paired` loader without a
    `DistributedSampler`.

    Raises:
        MisconfigurationException: in the first step, for what is refused.

    Examples:
        >>> import torch, flatmin
        >>> from flatmin.integrations.lightning import SharpnessAwareModule
        >>> class Digits(SharpnessAwareModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = torch.nn.Linear(64, 10)
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         images, labels = batch
        ...         return torch.nn.functional.cross_entropy(self.model(images), labels)
        ...
        ...     def configure_optimizers(self):
        ...         base = torch.optim.SGD(self.parameters(), lr=0.1)
        ...         return flatmin.AgnosticSAM(base, model=self.model)
    """

    auxiliary_fraction: float = 0.25
    micro_batches: int = 1

    _share: float = 1.0
    _later_pieces: Sequence[Any] = ()
    _auxiliary: Any = None
    _metrics_of_epoch: tuple[int, Sequence[object]] = (-1, ())

    @property
    def looking_around(self) -> bool:
        """Whether `training_step` runs at perturbed weights, again, or on an auxiliary batch."""
        sharp = _sharpness_aware(self._trainer.optimizers) if self._trainer is not None else None
        return looking_around(sharp)

    # What Lightning calls.

    def on_train_epoch_start(self) -> None:
        """Let a `flatmin.paired` loader draw the auxiliary batches of this epoch, also resumed.

        Raises:
            MisconfigurationException: for what is refused and known before the first step.
        """
        super().on_train_epoch_start()
        sharp = _sharpness_aware(self.trainer.optimizers)
        if sharp is not None and self.automatic_optimization and not self._only_statistics:
            self._refuse(sharp)
        loader = self.trainer.train_dataloader
        if isinstance(loader, PairedLoader):
            loader.set_epoch(self.current_epoch)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Keep the auxiliary batch and the later pieces aside, and let Lightning see the first.

        Args:
            batch: as the loader yields it.
            dataloader_idx: Lightning's number of the loader.
        """
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        sharp = _sharpness_aware(self.trainer.optimizers) if self.trainer.training else None
        if sharp is None:
            return batch
        if self._only_statistics:
            return batch[0] if isinstance(self.trainer.train_dataloader, PairedLoader) else batch
        auxiliary = None
        if isinstance(self.trainer.train_dataloader, PairedLoader):
            batch, auxiliary = batch
        elif sharp.direction.auxiliary_passes:
            batch, auxiliary = flatmin.split(batch, self.auxiliary_fraction)
        first, *later = _pieces(batch, self.micro_batches)
        sizes = [_samples(piece) for piece in (first, *later)]
        self._shares = [size / sum(sizes) for size in sizes]
        self._later_pieces, self._auxiliary = later, auxiliary
        return first

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Weigh the `loss` of a piece of a batch by its share of the samples."""
        super().backward(loss if self._share == 1.0 else loss * self._share, *args, **kwargs)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log what the batch says at the unperturbed weights, once a step."""
        if not self.looking_around:
            super().log(*args, **kwargs)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step with closures for the primary and, if the method measures one, the auxiliary batch.

        Args:
            epoch: number of the epoch.
            batch_idx: number of the batch.
            optimizer: the optimizer, in Lightning's wrapper or not; any but flatmin's steps as
                ever.
            optimizer_closure: Lightning's evaluation of the batch; default None.

        Raises:
            MisconfigurationException: for what is refused; see the class.
        """
        sharp = _sharpness_aware([optimizer])
        if sharp is None or not isinstance(optimizer_closure, AbstractClosure):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        if self._only_statistics:
            optimizer_closure()
            return
        self._refuse(sharp)
        self._refuse_without_auxiliary(sharp)
        join(sharp, self.trainer.strategy.model)
        closure = cast("AbstractClosure[Any]", optimizer_closure)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        step = cast(Any, _Step(sharp, scaler, self._closures(sharp, closure, batch_idx)))
        try:
            # Lightning runs its closure, with the clipping and the hooks that follow it, when the
            # optimizer asks. We ask when the looks are over, so what is clipped is descended.
            if scaler is None:
                self.trainer.strategy.optimizer_step(step, _nothing)
            else:  # the plugin's own step would unscale and descend the first gradient it sees
                plugin = self.trainer.precision_plugin
                Precision.optimizer_step(plugin, step, model=self, closure=_nothing)
        finally:
            self._later_pieces, self._auxiliary = (), None

    # The passes of a step.

    def _closures(
        self, sharp: SharpnessAware, closure: AbstractClosure[Any], batch_idx: int
    ) -> list[Callable[[], Tensor]]:
        later = [self._moved(piece) for piece in self._later_pieces]
        seen = False

        def first_piece() -> Tensor | None:
            nonlocal seen
            again, seen = seen, True
            # Called as such, it keeps its result for Lightning: the one at unperturbed weights.
            return closure.closure().loss if again else closure()

        def primary() -> Tensor:
            looks = [first_piece, *((lambda x=x: self._look(x, batch_idx)) for x in later)]
            with self._counted_once():
                return self._weighted(looks)

        def auxiliary() -> Tensor:
            with self._counted_once():
                return self._weighted([lambda: self._look(batch, batch_idx)], [1.0])

        if not sharp.direction.auxiliary_passes:
            return [primary]
        batch = self._moved(self._auxiliary)
        return [primary, auxiliary]

    def _weighted(
        self, looks: Sequence[Callable[[], Tensor | None]], shares: Sequence[float] | None = None
    ) -> Tensor:
        """The mean loss over pieces, its gradient gathered one by one; ranks meet at the last."""
        losses: list[Tensor] = []
        shares = self._shares if shares is None else shares
        for i, (look, share) in enumerate(zip(looks, shares, strict=True), start=1):
            self._share = share
            try:
                with self._alone(i < len(looks)):
                    loss = look()
            finally:
                self._share = 1.0
            if loss is not None:
                losses.append(loss * share)
        if not losses:
            raise _SkippedBatch
        return torch.stack(losses).sum()

    def _look(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Forward and backward on a batch that Lightning does not know of; None: it is skipped."""
        named = is_param_in_hook_signature(self.training_step, "batch_idx", min_args=2)
        output = _strategy(self.trainer, "training_step", batch, *([batch_idx] if named else []))
        if isinstance(output, Mapping):
            output = cast("Mapping[str, Any]", output)["loss"]
        if output is None:
            return None
        loss = cast(Tensor, output)
        _strategy(self.trainer, "backward", loss, None)
        return loss.detach()

    def _moved(self, batch: Any) -> Any:
        return _strategy(self.trainer, "batch_to_device", batch, dataloader_idx=0)

    def _alone(self, alone: bool) -> AbstractContextManager[Any]:
        """No communication, until the last piece."""
        strategy = self.trainer.strategy
        if alone and isinstance(strategy, ParallelStrategy):
            return cast("AbstractContextManager[Any]", strategy.block_backward_sync())
        return nullcontext()

    def _counted_once(self) -> AbstractContextManager[None]:
        """The module's metrics stay as the first look at the primary batch left them."""
        if not self.looking_around:
            return nullcontext()
        epoch, metrics = self._metrics_of_epoch
        if epoch != self.current_epoch:
            metrics = metrics_in(self)
            self._metrics_of_epoch = self.current_epoch, metrics
        return unrecorded(metrics)

    @property
    def _only_statistics(self) -> bool:
        """Whether this epoch gathers BatchNorm's statistics of averaged weights, no gradients.

        StochasticWeightAveraging ends so: without backward passes, and without a step.
        """
        return self.trainer.fit_loop._skip_backward  # pyright: ignore[reportPrivateUsage]

    # What is refused.

    def _refuse(self, sharp: SharpnessAware) -> None:
        trainer = self.trainer
        loader = trainer.train_dataloader
        factor, source = _accumulation(trainer)
        if factor != 1:
            raise MisconfigurationException(
                f"{source} runs all but the last "
                "micro-batch outside of the optimizer's step, where a sharpness-aware method "
                "cannot evaluate them again: let the loader yield the whole batch, set "
                f"micro_batches = {factor} on your {_name(self)}, and "
                "leave accumulate_grad_batches at 1, without a scheduler"
            )
        if trainer.strategy.handles_gradient_accumulation:
            raise MisconfigurationException(
                f"{_name(trainer.strategy)} steps inside its own engine, which evaluates one "
                'gradient a step: use strategy="ddp"'
            )
        if isinstance(trainer.strategy, FSDPStrategy):
            raise MisconfigurationException(
                "FSDPStrategy swaps the storage of the weights between passes, so they cannot be "
                'moved: use strategy="ddp", or ModelParallelStrategy with fully_shard'
            )
        if sharp.selection.per_sample:
            raise MisconfigurationException(
                f"{_name(sharp.selection)} chooses samples by their losses, but training_step "
                "returns one loss for all: use a loop of your own, or manual optimization with "
                "self.optimizers().step(closure)"
            )
        paired = isinstance(loader, PairedLoader)
        if paired and trainer.world_size > 1 and not isinstance(loader.sampler, DistributedSampler):
            raise MisconfigurationException(
                "every process would draw the same batches, since Lightning cannot put a "
                "DistributedSampler into a flatmin.paired loader: give one to the DataLoader "
                "before pairing it, or let the module split the batches of a plain DataLoader"
            )

    def _refuse_without_auxiliary(self, sharp: SharpnessAware) -> None:
        if sharp.direction.auxiliary_passes and self._auxiliary is None:
            raise MisconfigurationException(
                f"{_name(sharp.direction)} measures an auxiliary batch, but none was kept: "
                f"on_before_batch_transfer of your {_name(self)} must call "
                "super().on_before_batch_transfer(batch, dataloader_idx) and return what it returns"
            )


class _SkippedBatch(Exception):
    """`training_step` returned None: this batch is to be skipped, and the step with it."""


class _Step:
    """Stands in for the optimizer while Lightning steps it."""

    def __init__(
        self,
        optimizer: SharpnessAware,
        scaler: GradScaler | None,
        closures: Sequence[Callable[[], Tensor]],
    ) -> None:
        self._optimizer = optimizer
        self._scaler = scaler
        self._closures = closures

    def step(self, closure: Callable[[], Any]) -> Any:
        """Take the step; `closure` is what Lightning does to a gradient before it is descended."""
        with before_descent(self._optimizer, closure), suppress(_SkippedBatch):
            return stepped(self._optimizer, self._scaler, *self._closures)
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


def _nothing() -> None:
    """In place of the closure: when Lightning calls it, the gradient is there."""


def _sharpness_aware(optimizers: Sequence[Any]) -> SharpnessAware | None:
    """The optimizer, out of Lightning's wrapper, if it is one of ours and the only one."""
    if len(optimizers) != 1:
        return None
    optimizer = optimizers[0]
    while isinstance(optimizer, LightningOptimizer):
        optimizer = optimizer.optimizer
    return optimizer if isinstance(optimizer, SharpnessAware) else None


def _accumulation(trainer: Any) -> tuple[int, str]:
    """The largest number of batches that Lightning would accumulate, and who asks for it."""
    now = int(trainer.accumulate_grad_batches)
    factor, source = now, f"accumulate_grad_batches={now}"
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            largest = max(callback.scheduling.values())
            if largest > factor:
                factor, source = largest, f"GradientAccumulationScheduler({callback.scheduling})"
    return factor, source


def _pieces(batch: Any, number: int) -> list[Any]:
    """Cut a batch into pieces whose sizes differ by one at most."""
    if isinstance(number, bool) or number < 1:
        raise ValueError(f"micro_batches must be a whole number of at least 1, got {number!r}")
    pieces: list[Any] = []
    for left in range(number, 1, -1):
        batch, last = flatmin.split(batch, 1 / left)
        pieces.append(last)
    return [batch, *reversed(pieces)]


def _samples(batch: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim]
    return len(tensors[0]) if tensors else 1


def _strategy(trainer: Any, hook: str, *args: Any, **kwargs: Any) -> Any:
    """Call the strategy as Lightning's own loops do: self.log must know where it is called from."""
    return call._call_strategy_hook(trainer, hook, *args, **kwargs)  # pyright: ignore[reportPrivateUsage]


def _name(thing: object) -> str:
    return type(thing).__name__


__all__ = ["SharpnessAwareModule"]

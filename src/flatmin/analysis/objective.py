"""A mean loss over data as a function of some parameters: what all of analysis looks at."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from flatmin.analysis.batches import Chunk, batches_of, chunks_of, in_type, size_of
from flatmin.analysis.parameters import Parameters, Subset
from flatmin.analysis.untouched import Mode, Visit, moving_layers, untouched
from flatmin.engine import check
from flatmin.engine.space import Space
from flatmin.engine.vec import Vector
from flatmin.engine.walk import Walk
from flatmin.pairs import part_of

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""`loss(model, batch)`: the mean loss over the samples of a batch, without a backward pass."""

SUM_SAMPLES = 8
"""How many samples are looked at to tell a sum from a mean."""


class Objective:
    """`L(w) = Σ_b n_b / N · loss(model, b)`: a mean loss as a function of some parameters.

    Batches are evaluated in chunks and weighted by their number of samples, so that uneven ones
    count right. The data is read once and held: shuffling and augmentation do not make two looks
    differ. The model is never changed: see `untouched`.

    Args:
        model: any module; of a `DistributedDataParallel` or compiled one, `loss` sees the module
            inside. With DDP each rank brings its own share of the data, and all get the whole.
        loss: `loss(model, batch)` returns the mean over the samples of `batch`, a tensor of one
            number, without a backward pass.
        data: one batch, a list of batches, a `DataLoader`, or a data set of batches. A tuple, a
            mapping or a tensor is one batch, in any structure; samples are counted along the first
            dimension.
        parameters: which: a list of parameters, of names or patterns, or a function of name and
            parameter; None (default): all that require gradients.
        mode: "eval" or "train"; None (default): each module in the mode that it is in.
        dtype: the type to compute in, such as `torch.float64`; None (default): the model's. Another
            type costs a copy of the parameters; the model stays as it is.
        chunk: most samples evaluated at once; default 128. With batch normalization on batch
            statistics, the batches of `data` are never split.

    Raises:
        TypeError: `model` is no module, or the data no batch.
        ValueError: the subset or the data is empty.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from flatmin.analysis import Objective
        >>> model = nn.Linear(1, 1, bias=False)
        >>> at = Objective(model, lambda m, x: m(x).square().mean(), torch.ones(4, 1))
        >>> loss, gradient = at.value_and_gradient()
        >>> abs(loss - model.weight.item() ** 2) < 1e-6, gradient.shape
        (True, torch.Size([1]))
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        parameters: Subset = None,
        *,
        mode: Mode | None = None,
        dtype: torch.dtype | None = None,
        chunk: int | None = 128,
    ) -> None:
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"model must be a torch.nn.Module, got {check.describe(model)}")
        if not callable(loss):
            raise TypeError(
                "loss must be a function of a model and a batch, loss(model, batch), got "
                + check.describe(loss)
            )
        if mode is not None:
            check.one_of("mode", mode, ("eval", "train"))
        self.group: Any = getattr(model, "process_group", None) if _is_ddp(model) else None
        self.model = inside(model)
        self.sharded = any(map(_is_fsdp, self.model.modules()))
        """Is it an FSDP2 model, whose gradients only `backward()` brings together?"""
        if self.sharded:
            self.group = _group_of(self.model)
        self.loss = loss
        self.mode: Mode | None = mode
        self.parameters = Parameters(self.model, parameters)
        self.dtype = dtype or self.parameters.dtype
        with untouched(self.model, mode):  # reading a DataLoader draws random numbers
            batches = batches_of(data)
            self.coupled = next(moving_layers(self.model), None)
        if dtype is not None:
            batches = [in_type(batch, dtype) for batch in batches]
        self.samples = self.total(sum(size_of(batch) for batch in batches))
        """Number of samples, on all ranks."""
        self.chunks = chunks_of(batches, None if self.coupled else chunk, self.samples)
        self._cast = any(p.dtype != self.dtype for p in self.model.parameters() if _real(p))
        self.leaves = self._leaves()
        """What is differentiated by: the parameters, or copies of them in `dtype`."""
        self._checked = False

    # Evaluate.

    @contextmanager
    def evaluating(self) -> Generator[Visit]:
        """Within, `term` may be called; afterwards the model is as it was before."""
        with untouched(self.model, self.mode) as visit:
            chosen = set(map(id, self.parameters.tensors))
            for p in self.model.parameters():
                if not self.sharded:
                    p.requires_grad_(id(p) in chosen and not self._cast)
            try:
                yield visit
            finally:
                self._reshard()

    def _reshard(self) -> None:
        """Gathered weights are let go: they may be about to move."""
        if self.sharded:
            for m in self.model.modules():
                if _is_fsdp(m):
                    cast(Any, m).reshard()

    def term(self, chunk: Chunk, visit: Visit, *, finite: bool = True) -> Tensor:
        """The mean loss over one `chunk`, to be differentiated by `leaves`.

        `visit` is that of `evaluating`; `finite=False` lets inf and nan pass.

        Raises:
            TypeError, ValueError: the loss is no number, not finite, has no gradient, was called
                backward on, or depends on random numbers.
        """
        self.prepare(chunk, visit)
        visit.fresh()
        loss = self._evaluated(chunk.batch)
        self._check(loss, visit, finite)
        return loss

    def raw(self, chunk: Chunk) -> Tensor:
        """The same of `chunk` within `evaluating`: unchecked, and from buffers as they are."""
        return self._evaluated(chunk.batch)

    @contextmanager
    def moving(self) -> Generator[Callable[[Tensor | None], None]]:
        """Within, `move(v)` takes the weights to `w + v`, and `move(None)` home.

        Every place is computed from a copy of `w`, which comes back bit for bit at the end, also
        after an exception. It costs two copies of the weights.
        """
        with self._away() as walk:

            @torch.no_grad()
            def move(v: Tensor | None) -> None:
                walk.go(None if v is None else self.displacement(walk.space, v))

            yield move

    @contextmanager
    def along(self, *directions: Tensor) -> Generator[Callable[..., None]]:
        """Within, `go(a, b)` takes the weights to `w + a u + b v`, for flat directions `u`, `v`.

        As `moving`, and one sweep over the weights a place.
        """
        with self._away() as walk:
            ways = [self.displacement(walk.space, v) for v in directions]

            @torch.no_grad()
            def go(*coefficients: float) -> None:
                to = Vector()
                for way, c in zip(ways, coefficients, strict=True):
                    to = to + way * c
                walk.go(to if to.terms else None)

            yield go

    @contextmanager
    def _away(self) -> Generator[Walk]:
        walk = Walk(Space([self.leaves]), [self.leaves])
        walk.begin()
        try:
            yield walk
        finally:
            with torch.no_grad():
                walk.back()

    def displacement(self, space: Space, v: Tensor) -> Vector:
        """A flat vector `v` as the engine's, laid out as `space` over `leaves`."""
        return self.parameters.displacement(space, v, self.leaves)

    def value(self, *, finite: bool = False) -> float:
        """The loss at the weights as they are, which may be inf or nan.

        Args:
            finite: whether to raise ValueError where it is; default False.
        """
        total = torch.zeros((), dtype=torch.float64)
        with self.evaluating() as visit, torch.no_grad():
            for chunk in self.chunks:
                total += self.term(chunk, visit, finite=finite).double().cpu() * chunk.weight
        return float(self.summed(total))

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """The loss, and its gradient as one flat vector, summed in double precision."""
        if self.sharded:
            return self._by_backward()
        loss = torch.zeros((), dtype=torch.float64)
        total = torch.zeros(self.parameters.count, dtype=torch.float64, device=self.device)
        with self.evaluating() as visit:
            for chunk in self.chunks:
                term = self.term(chunk, visit)
                grads = torch.autograd.grad(term, self.leaves, allow_unused=True)
                total.add_(self.parameters.flatten(grads), alpha=chunk.weight)
                loss += term.detach().double().cpu() * chunk.weight
        return float(self.summed(loss)), self.summed(total)

    def _by_backward(self) -> tuple[float, Tensor]:
        """The same over shards: every rank brings as many chunks, and gets the whole gradient."""
        loss = torch.zeros((), dtype=torch.float64)
        ranks = dist.get_world_size(self.group)
        with self.evaluating() as visit:
            for chunk in self.chunks:
                term = self.term(chunk, visit)
                (term * (chunk.weight * ranks)).backward()  # FSDP2 takes the mean over ranks
                loss += term.detach().double().cpu() * chunk.weight
            grads = [p.grad for p in self.parameters.tensors]
            total = self.parameters.flatten(grads, torch.float64)
        return float(self.summed(loss)), total

    def gradient(self) -> Tensor:
        """The gradient of the loss as one flat vector in double precision."""
        return self.value_and_gradient()[1]

    @property
    def device(self) -> torch.device:
        return self.parameters.device

    def summed(self, x: Tensor) -> Tensor:
        """The sum of `x` over all ranks that bring data of their own."""
        if self.group is not None:
            dist.all_reduce(x, group=self.group)
        return x

    def total(self, count: int) -> int:
        """The sum of whole numbers `count` over all ranks that bring data of their own."""
        return int(self.summed(torch.tensor(count, device=self.device)))

    # What is inside.

    def _leaves(self) -> list[Tensor]:
        if not self._cast:
            return self.parameters.tensors
        return [p.detach().to(self.dtype).requires_grad_() for p in self.parameters.tensors]

    def _evaluated(self, batch: Any) -> Tensor:
        if not self._cast:
            return self.loss(self.model, batch)
        scope = _Scope(self.model, self.loss)
        named = {
            f"model.{name}": x.to(self.dtype) if _real(x) else x
            for name, x in [*self.model.named_parameters(), *self.model.named_buffers()]
        }
        for name, leaf in zip(self.parameters.names, self.leaves, strict=True):
            named[f"model.{name}"] = leaf
        return cast(Tensor, functional_call(scope, named, (batch,)))

    # What can go wrong.

    def _check(self, loss: object, visit: Visit, finite: bool = True) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(
                "loss(model, batch) must return the mean loss over the batch, a tensor of one "
                f"number, got {check.describe(loss)}"
            )
        leaves = [] if self.sharded else [*self.parameters.tensors, *self.leaves]
        if any(p.grad is not None for p in leaves):
            for leaf in self.leaves:
                leaf.grad = None
            raise ValueError(
                "loss(model, batch) has called backward(): return the loss alone, its derivatives "
                "are taken by us"
            )
        if visit.drew():
            raise ValueError(
                "the loss draws random numbers: " + self._random_layers() + ", or pass mode='eval'"
            )
        if finite and not math.isfinite(float(loss.detach())):
            raise ValueError(
                f"the loss is {float(loss.detach())} at these weights, and has no derivatives "
                "there: look at the weights and at the data for values that are not finite"
            )
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ValueError(
                "the loss does not depend on the chosen parameters through operations that torch "
                "can differentiate: look for detach(), item() or no_grad() in loss and model"
            )

    def _random_layers(self) -> str:
        kinds = (nn.modules.dropout._DropoutNd, nn.RReLU)  # pyright: ignore[reportPrivateUsage]
        modules: list[tuple[str, nn.Module]] = list(cast(Any, self.model).named_modules())
        for name, m in modules:
            if isinstance(m, kinds) and m.training and getattr(m, "p", 1.0) > 0:
                kind = type(m).__name__
                return f"{name or 'the model'} is a {kind} in training mode; call model.eval()"
        return "a layer in training mode, or the loss itself; call model.eval()"

    def prepare(self, chunk: Chunk, visit: Visit) -> None:
        """Warn, once, where the loss of a batch is the sum of those of its halves, not the mean.

        It is tried on `chunk`, within the `visit` of `evaluating`.
        """
        n = min(chunk.size, SUM_SAMPLES)
        if self._checked or n < 2:
            return
        self._checked = True
        parts = slice(0, n), slice(0, n // 2), slice(n // 2, n)
        values: list[float] = []
        with torch.no_grad():
            for part in parts:
                visit.fresh()
                loss = self._evaluated(part_of(chunk.batch, part))
                self._check(loss, visit, finite=False)
                values.append(float(loss))
        whole, first, second = values
        share = (n // 2) / n
        mean = abs(whole - share * first - (1 - share) * second)
        if mean > 1e-2 * abs(whole) and abs(whole - first - second) < 1e-3 * abs(whole):
            warnings.warn(
                f"the loss of {n} samples, {whole:.4g}, is the sum of those of its halves, "
                f"{first:.4g} and {second:.4g}, and not their mean: batches are weighted by size, "
                'which needs a mean, as with reduction="mean"',
                UserWarning,
                stacklevel=2,
            )


class _Scope(nn.Module):
    """A model and a loss as one module, so that both see the parameters that are put in place."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


def inside(model: nn.Module) -> nn.Module:
    """The module that a wrapper holds which would get in the way of second derivatives."""
    if _is_ddp(model):
        return inside(cast(nn.Module, model.module))
    compiled = getattr(model, "_orig_mod", None)
    return inside(compiled) if isinstance(compiled, nn.Module) else model


def _is_ddp(model: nn.Module) -> bool:
    return isinstance(model, nn.parallel.DistributedDataParallel)


def _is_fsdp(module: nn.Module) -> bool:
    return hasattr(module, "unshard") and hasattr(module, "set_requires_gradient_sync")


def _group_of(model: nn.Module) -> Any:
    """The process group over which the parameters of an FSDP2 model are split."""
    shards = next(p for p in model.parameters() if hasattr(p, "device_mesh"))
    return cast(Any, shards).device_mesh.get_group()


def _real(x: Tensor) -> bool:
    return x.is_floating_point()

"""Matrices of second derivatives as operators: what they share, and the Hessian."""

from __future__ import annotations

import math
import re
import sys
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from flatmin.analysis.batches import Chunk, chunks_of, tensors_of
from flatmin.analysis.objective import Loss, Objective
from flatmin.analysis.parameters import Subset
from flatmin.analysis.second import (
    Meter,
    attention_by_math,
    derivatives,
    explained,
    is_fused,
    light_norms,
    refuse_once_differentiable,
    say_once,
)
from flatmin.analysis.untouched import Mode, Visit
from flatmin.pairs import part_of

BITE = 128 << 20
"""Bytes of a graph that is built at once on a CPU, where larger ones outgrow caches."""

PIECE = 1 << 20
"""Elements that are widened to double precision at once."""

ROUGH = 1e-2
"""Differences that are off by more than this are warned about."""

FEWEST = 16
"""Samples that are evaluated at once at least, and by which the bytes of a graph are measured."""


class Curvature(LinearOperator):
    """A symmetric matrix of second derivatives of a mean loss, known by its products.

    It is a scipy `LinearOperator` of shape (parameters, parameters) in double precision, and also
    multiplies tensors: `H @ v` of a tensor is a tensor of its type. Sums over chunks are taken in
    double precision. Graphs of the first derivative are kept up to a budget of memory and built
    anew beyond it. `Hessian`, `GaussNewton` and `EmpiricalFisher` are such matrices.

    Args:
        model: any module; it is never changed.
        loss: `loss(model, batch)` returns the mean over the samples of `batch`, without backward.
        data: one batch, a list of batches, a `DataLoader`, or a data set of batches.
        parameters: a list of parameters, names or patterns, or a function; default all that require
            gradients.
        dtype: the type to compute in; default the model's.
        chunk: most samples evaluated at once; default 128.
        memory: for graphs that are kept between products; default "4 GiB".
        progress: whether each product is told on standard error; default False.
        mode: "eval", "train", or None (default) for the model's own.
        differences: whether products are differences of gradients, for those that know how; default
            False.

    Attributes:
        objective: the loss as a function of the parameters.
        parameters: names, shapes, and flat vectors from and to tensors.
        products: how many were taken so far.
        bytes_per_sample: what the graph of one sample holds, known after the first product.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from flatmin import analysis
        >>> def loss(model, x):
        ...     return model(x).square().mean()
        >>> H = analysis.Hessian(nn.Linear(1, 1), loss, torch.ones(4, 1))
        >>> isinstance(H, analysis.Curvature), H.shape, H.parameters.names
        (True, (2, 2), ['weight', 'bias'])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        parameters: Subset = None,
        *,
        dtype: torch.dtype | None = None,
        chunk: int | None = 128,
        memory: int | str = "4 GiB",
        progress: bool = False,
        mode: Mode | None = None,
        differences: bool = False,
    ) -> None:
        self.objective = Objective(
            model, loss, data, parameters, mode=mode, dtype=dtype, chunk=chunk
        )
        if self.objective.sharded and not differences:
            raise ValueError(
                "FSDP2 brings parameters and gradients together outside of what torch "
                "differentiates, so there are no second derivatives of this model: take an "
                "unsharded copy of it, or Hessian(..., differences=True)"
            )
        self.parameters = self.objective.parameters
        self.products = 0
        self.bytes_per_sample = 0.0
        self.progress = ProgressLine(progress)
        self._budget = bytes_in(memory)
        self._chunks: Sequence[Chunk] | None = None
        self._chunk = chunk
        self._graphs: dict[int, Any] = {}
        self._keepable: frozenset[int] = frozenset()
        self._by_math = self._inspected = False
        self._weights = list(self.objective.model.parameters())
        self._versions = self._versions_now()
        self._prints = self._prints_now()
        count = self.parameters.count
        super().__init__(np.dtype(np.float64), (count, count))

    # What a matrix is, chunk by chunk.

    def _graph(self, chunk: Chunk, visit: Visit) -> Any:
        """What `_multiplied` needs of a chunk: a graph of its first derivatives."""
        raise NotImplementedError

    def _multiplied(self, graph: Any, vs: list[Tensor], keep: bool) -> Sequence[Tensor | None]:
        """The matrix of one chunk times a vector, given and returned by parameter."""
        raise NotImplementedError

    # Products.

    def times(self, v: Tensor) -> Tensor:
        """The product with a flat vector `v`, in double precision.

        Raises ValueError where the loss has no second derivative or none that is finite, and where
        the weights are no longer those that the operator was made for.
        """
        self._check_weights()
        started = time.monotonic()
        vs = self.parameters.like(v, self.objective.leaves)
        total: Tensor | None = None
        pieces: list[Tensor] = []
        with self._looking() as visit:
            for i, chunk in enumerate(self._planned(visit)):
                keep = i in self._keepable
                graph = self._graphs.get(i)
                if graph is None:
                    graph = self._built(chunk, visit)
                    if keep:
                        self._graphs[i] = graph
                parts = self._multiplied(graph, vs, keep)
                if total is None:  # not before: the first product is where memory peaks
                    total = torch.zeros(len(v), dtype=torch.float64, device=v.device)
                    pieces = self.parameters.unflatten(total)
                for piece, h in zip(pieces, parts, strict=True):
                    if h is not None:
                        _add(piece, _whole(h), chunk.weight)
                del graph, parts
        assert total is not None
        self.objective.summed(total)
        if not math.isfinite(float(total.sum())):  # isfinite() would take two copies
            raise ValueError(self._not_finite(pieces))
        self.products += 1
        self.progress.say(f"product {self.products}: {time.monotonic() - started:.1f} s")
        return total

    @contextmanager
    def displaced(self, v: Tensor) -> Generator[None]:
        """Within, gradients and products are those at `w + v`; graphs kept so far are let go.

        Args:
            v: a flat vector.
        """
        home = self._versions, self._prints
        self._graphs.clear()
        with self.objective.moving() as move:
            move(v)
            self._versions, self._prints = self._versions_now(), self._prints_now()
            try:
                yield
            finally:
                self._graphs.clear()
                self._versions, self._prints = home

    def __matmul__(self, other: Any) -> Any:
        return self.dot(other)

    def dot(self, x: Any) -> Any:
        """The product with `x`, a vector or the columns of a matrix, of numpy or torch."""
        if not isinstance(x, Tensor):
            return cast(Any, super()).dot(x)
        if x.ndim == 1:
            return self.times(x).to(x.dtype)
        return torch.stack([self.times(column).to(x.dtype) for column in x.unbind(1)], 1)

    def _matvec(self, x: Any) -> Any:
        v = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64).reshape(-1))
        return self.times(v.to(self.objective.device)).cpu().numpy()

    def _adjoint(self) -> Any:
        return self

    def _transpose(self) -> Any:
        return self

    # Graphs and memory.

    @contextmanager
    def _looking(self) -> Generator[Visit]:
        with ExitStack() as stack:
            visit = stack.enter_context(self.objective.evaluating())
            stack.enter_context(light_norms(self.objective.model))
            if self._by_math:
                stack.enter_context(attention_by_math())
            yield visit

    def _built(self, chunk: Chunk, visit: Visit) -> Any:
        with attention_by_math() if self._by_math else ExitStack():
            return self._graph(chunk, visit)

    def _begins_anew(self, *tensors: Tensor) -> bool:
        """Did these come through attention as one kernel? Then from now on they do not.

        Raises ValueError where they came through what can be differentiated only once.
        """
        if self._inspected:
            return False
        refuse_once_differentiable(*tensors)
        self._inspected = True
        if not is_fused(*tensors):
            return False
        self._by_math = True
        say_once(
            "attention is computed by torch's math kernel here: the fused one, which the model "
            "takes otherwise, has no second derivative"
        )
        return True

    def _planned(self, visit: Visit) -> Sequence[Chunk]:
        """The chunks, of a size that suits the machine."""
        if self._chunks is not None:
            return self._chunks
        first = self.objective.chunks[0]
        if not self.objective.coupled and first.size > FEWEST:
            first = Chunk(part_of(first.batch, slice(0, FEWEST)), FEWEST, first.weight)
        known = [*self.objective.model.parameters(), *self.objective.leaves]
        meter = Meter(*known, *tensors_of(first.batch))
        with meter.measuring():
            graph = self._built(first, visit)
        del graph
        self.bytes_per_sample = each = meter.bytes / first.size
        chunks: Sequence[Chunk] = self.objective.chunks
        on_cpu = self.objective.device.type == "cpu"
        if on_cpu and not self.objective.coupled and self._chunk is not None and each:
            size = max(FEWEST, min(self._chunk, int(BITE / each)))
            whole = [c.batch for c in chunks]
            chunks = chunks_of(whole, size, self.objective.samples)
        element = torch.empty((), dtype=self.objective.dtype).element_size()
        held, keepable = 0.0, set[int]()
        for i, chunk in enumerate(chunks):
            held += each * chunk.size + element * self.parameters.count
            if held <= self._budget:
                keepable.add(i)
        self._chunks, self._keepable = chunks, frozenset(keepable)
        return chunks

    @property
    def kept(self) -> float:
        """The share of samples whose graphs are kept between products."""
        sizes = [c.size for c in self._chunks or ()]
        return sum(sizes[i] for i in self._graphs) / (sum(sizes) or 1)

    # What can go wrong.

    def _versions_now(self) -> list[tuple[int, int]]:
        return [(p._version, p.data_ptr()) for p in self._weights]

    def _prints_now(self) -> Tensor:
        """Two numbers for each parameter, which change where one of its own does."""
        prints: list[Tensor] = []
        for p in self._weights:
            own = _whole(p.detach())
            prints.append(own.sum(dtype=torch.float64).cpu())
            if own.is_floating_point():
                length: Tensor = cast(Any, torch.linalg).vector_norm(own, dtype=torch.float64)
                prints.append(length.cpu())
        return torch.stack(prints)

    def _check_weights(self) -> None:
        """The operator is that of the weights as they were: notice if they moved."""
        now = self._versions_now()
        if now == self._versions:
            return
        if not torch.equal(self._prints_now(), self._prints):
            raise ValueError(
                "the weights have changed since this operator was made, and the graphs that it "
                "keeps are of those before: make another one"
            )
        self._versions = now  # they went away and came back
        self._graphs.clear()

    def _not_finite(self, pieces: Sequence[Tensor]) -> str:
        names = [
            name
            for name, x in zip(self.parameters.names, pieces, strict=True)
            if not bool(x.isfinite().all())
        ]
        return (
            f"the second derivatives by {names[0]} are not finite at these weights: look for roots "
            "and norms of what is zero, and for values that are too large for "
            f"{str(self.objective.dtype).removeprefix('torch.')} (dtype=torch.float64)"
        )

    def __repr__(self) -> str:
        o = self.objective
        mode = o.mode or ("train" if o.model.training else "eval")
        return (
            f"<{type(self).__name__} of {self.parameters.count:,} parameters on {o.samples:,} "
            f"samples, {mode} mode, {str(o.dtype).removeprefix('torch.')}>"
        )


class Hessian(Curvature):
    """The Hessian of a mean loss, as an operator.

        H v = Σ_b n_b / N · ∂/∂w (∇L(w; b)ᵀ v)

    By double backward: the graph of the gradient is differentiated once more.

    Args:
        model: any module; left bit for bit as it is. Of a `DistributedDataParallel` or compiled
            one, `loss` sees the module inside.
        loss: `loss(model, batch)` returns the mean over the samples of `batch`, without backward.
        data: one batch (a tensor, a tuple, a mapping), a list of batches, a `DataLoader`, or a data
            set of batches; read once and held. Batches count by their number of samples. A few
            hundred samples show the largest eigenvalues to a few percent.
        parameters: a list of parameters, names or patterns (`"head.*"`), or a function of name and
            parameter; None (default): all that require gradients.
        dtype: the type to compute in; None (default): the model's. `torch.float64` costs a copy of
            the parameters and about twice the time, and shows what float32 rounds away.
        chunk: most samples evaluated at once; default 128. Fewer are, on a CPU, where they would
            not fit its caches. With batch normalization on batch statistics batches stay whole.
        memory: for graphs that are kept between products, in bytes or as "4 GiB" (the default).
        progress: whether each product is told on standard error; default False.
        mode: "eval" or "train"; None (default): each module in the mode that it is in. Eigenvalues
            are commonly reported in "eval".
        differences: products by differences of gradients, `(∇L(w + s v) - ∇L(w - s v)) / 2s`, where
            there is no second derivative; default False. Two gradients a product, no graphs, and an
            error that is estimated at the first product (`error`, with a warning above 1 %): on
            networks with kinks, such as ReLU, from a sixth of the product to many times it.

    Cost: a product is about 2.2 gradients where graphs are kept, which hold 3.7 MiB an image for
    ResNet-20, and 3.2 where they are not. Memory beside graphs: three vectors.

    Raises:
        TypeError: the loss is no number; a parameter or the data is of the wrong kind.
        ValueError: the loss draws random numbers, is not finite, or has no second derivative (the
            operation is named); the subset or the data is empty.

    Reference: Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 1994.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from flatmin import analysis
        >>> def loss(model, batch):
        ...     x, y = batch
        ...     return nn.functional.mse_loss(model(x), y)
        >>> model, x = nn.Linear(2, 1, bias=False), torch.eye(2)
        >>> H = analysis.Hessian(model, loss, (x, torch.zeros(2, 1)))
        >>> H @ torch.tensor([1.0, 0.0])
        tensor([1., 0.])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        parameters: Subset = None,
        *,
        dtype: torch.dtype | None = None,
        chunk: int | None = 128,
        memory: int | str = "4 GiB",
        progress: bool = False,
        mode: Mode | None = None,
        differences: bool = False,
    ) -> None:
        super().__init__(
            model,
            loss,
            data,
            parameters,
            dtype=dtype,
            chunk=chunk,
            memory=memory,
            progress=progress,
            mode=mode,
            differences=differences,
        )
        self._differences = differences
        self.error: float | None = None
        """Of differences: how far the first product may be off, relatively; None if it is exact."""

    def times(self, v: Tensor) -> Tensor:
        if not self._differences:
            return super().times(v)
        self._check_weights()
        eps = torch.finfo(self.objective.dtype).eps
        length = _norm(v)
        if length == 0.0:
            return torch.zeros_like(v, dtype=torch.float64)
        step = eps ** (1 / 3) * (1.0 + _norm(self.parameters.vector())) / length
        product = self._difference(v, step)
        if self.error is None:
            # twice the step: four times the error of the cut series, half of that of rounding
            other = self._difference(v, 2 * step)
            self.error = _norm(other - product) / (_norm(product) + 1e-300) / 3
            if self.error > ROUGH:
                warnings.warn(
                    f"differences of gradients are off by about {self.error:.1%} here: on networks "
                    "with kinks, such as ReLU, they mean nothing; products are exact without "
                    "differences=True",
                    UserWarning,
                    stacklevel=2,
                )
        self._versions = self._versions_now()
        self.products += 1
        self.progress.say(f"product {self.products}, by differences")
        return product

    def gradient(self) -> Tensor:
        """`∇L(w)` in double precision, from the graphs that the next product takes, too.

        Together they cost one gradient less than apart.
        """
        if self._differences:
            return self.objective.gradient()
        self._check_weights()
        device = self.parameters.device
        total = torch.zeros(self.parameters.count, dtype=torch.float64, device=device)
        pieces = self.parameters.unflatten(total)
        with self._looking() as visit:
            for i, chunk in enumerate(self._planned(visit)):
                graph: list[tuple[int, Tensor]] = self._graphs.get(i) or self._built(chunk, visit)
                if i in self._keepable:
                    self._graphs[i] = graph
                for j, g in graph:
                    _add(pieces[j], _whole(g.detach()), chunk.weight)
        return self.objective.summed(total)

    def _difference(self, v: Tensor, step: float) -> Tensor:
        """`(∇L(w + s v) - ∇L(w - s v)) / 2s`."""
        with self.objective.moving() as move:
            move(v * step)
            ahead = self.objective.gradient()
            move(v * -step)
            return ahead.sub_(self.objective.gradient()).div_(2 * step)

    def _graph(self, chunk: Chunk, visit: Visit) -> Any:
        term = self.objective.term(chunk, visit)
        if self._begins_anew(term):
            return self._built(chunk, visit)
        leaves = self.objective.leaves
        with explained(term):
            grads = derivatives(term, leaves, create=True)
        return [(i, g) for i, g in enumerate(grads) if g is not None]

    def _multiplied(self, graph: Any, vs: list[Tensor], keep: bool) -> Sequence[Tensor | None]:
        # a gradient that no longer depends on the weights has no second derivative but zero
        pairs: list[tuple[int, Tensor]] = [(i, g) for i, g in graph if g.requires_grad]
        if not pairs:
            return [None] * len(vs)
        grads = [g for _, g in pairs]
        with explained(*grads):
            return derivatives(grads, self.objective.leaves, [vs[i] for i, _ in pairs], keep=keep)


class ProgressLine:
    """One line on standard error, written over as work goes on."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown

    def say(self, text: str) -> None:
        if self._shown:
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{text:<70}", end=end, file=sys.stderr, flush=True)


UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}


def bytes_in(memory: int | str) -> int:
    """A number of bytes, or a text such as "4 GiB", as a number of bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(memory))
    if isinstance(memory, bool) or found is None or found[2].lower() not in UNITS:
        raise ValueError(f'memory must be a number of bytes or a text like "4 GiB", got {memory!r}')
    return int(float(found[1]) * UNITS[found[2].lower()])


def _add(total: Tensor, x: Tensor, weight: float) -> None:
    """`total + weight x` in place, where `x` is of a narrower type: torch would widen all of it."""
    total, x = total.view(-1), x.reshape(-1)
    for begin in range(0, len(x), PIECE):
        part = slice(begin, begin + PIECE)
        total[part].add_(x[part], alpha=weight)


def _norm(x: Tensor) -> float:
    return float(cast(Any, torch.linalg).vector_norm(x))


def _whole(t: Tensor) -> Tensor:
    return cast(Any, t).full_tensor() if hasattr(t, "full_tensor") else t


__all__ = ["Curvature", "Hessian", "ProgressLine", "bytes_in"]

"""The Gauss-Newton matrix and the empirical Fisher information, as operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree  # pyright: ignore[reportMissingTypeStubs]

from flatmin.analysis.batches import Chunk
from flatmin.analysis.curvature import Curvature
from flatmin.analysis.second import derivatives, explained
from flatmin.analysis.untouched import Visit


@dataclass
class _Graph:
    """From the weights to the outputs, and from the outputs to the loss.

    Fields:
        outputs: of the model, as functions of the weights.
        seen: the same numbers, as the loss has seen them: where the two parts were cut.
        slopes: the gradient of the loss by `seen`.
        probes: a vector `u` beside the outputs.
        pulled: `Jᵀ u` as a function of `u`, by parameter.
        size: number of samples.
    """

    outputs: list[Tensor]
    seen: list[Tensor]
    slopes: list[Tensor | None]
    probes: list[Tensor]
    pulled: list[tuple[int, Tensor]]
    size: int


class GaussNewton(Curvature):
    """The generalised Gauss-Newton matrix of a mean loss, as an operator.

        G v = Σ_b n_b / N · Jᵀ (∇²_z L) J v,   J = ∂z/∂w,   z the outputs of the model on b

    It is the Hessian without the curvature of the model itself: positive semidefinite for convex
    losses. `loss(model, batch)` must call the model once, and depend on the parameters through its
    output alone. For cross-entropy it is the Fisher information.

    Args:
        model: as `Hessian` takes it, and so are the others.
        loss: `loss(model, batch)` returns the mean over the samples of `batch`, without backward.
        data: one batch, a list of batches, a `DataLoader`, or a data set of batches.
        parameters: a list of parameters, names or patterns, or a function; default all.
        dtype: the type to compute in; default the model's.
        chunk: most samples evaluated at once; default 128.
        memory: for graphs that are kept between products; default "4 GiB".
        progress: whether each product is told on standard error; default False.
        mode: "eval", "train", or None (default) for the model's own.
        differences: what only `Hessian` knows how to do; default False.

    Cost: a product is about 2 gradients where graphs are kept; memory as for `Hessian`.

    Raises:
        ValueError: the model is not called once, or the loss depends on the parameters beside its
            output; and what `Hessian` raises.

    Reference: Schraudolph, Fast curvature matrix-vector products, Neural Computation 2002.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from flatmin import analysis
        >>> def loss(model, batch):
        ...     x, y = batch
        ...     return nn.functional.cross_entropy(model(x), y)
        >>> batch = torch.eye(2), torch.tensor([0, 1])
        >>> G = analysis.GaussNewton(nn.Linear(2, 2), loss, batch)
        >>> bool((G @ torch.ones(6)).abs().max() < 1e-6)  # shifting all logits changes nothing
        True
    """

    def _graph(self, chunk: Chunk, visit: Visit) -> Any:
        self.objective.prepare(chunk, visit)
        cut = _Cut()
        handle = self.objective.model.register_forward_hook(cut)
        try:
            term = self.objective.term(chunk, visit)
        finally:
            handle.remove()
        if self._begins_anew(term, *cut.outputs):
            return self._built(chunk, visit)
        self._check_cut(cut, term)
        with explained(term):
            slopes = derivatives(term, cut.seen, create=True)
        self._check_slopes(cut, slopes, chunk)
        probes = [torch.zeros_like(z).requires_grad_() for z in cut.outputs]
        with explained(*cut.outputs):
            pulled = derivatives(cut.outputs, self.objective.leaves, probes, create=True)
        found = [(i, p) for i, p in enumerate(pulled) if p is not None]
        return _Graph(cut.outputs, cut.seen, list(slopes), probes, found, chunk.size)

    def _multiplied(self, graph: Any, vs: list[Tensor], keep: bool) -> Sequence[Tensor | None]:
        at: _Graph = graph
        with explained(*at.outputs):
            pushed = derivatives(
                [p for _, p in at.pulled], at.probes, [vs[i] for i, _ in at.pulled], keep=True
            )
        pairs = zip(at.outputs, pushed, strict=True)
        bent = self._between(at, [torch.zeros_like(z) if j is None else j for z, j in pairs])
        through = [(z, b) for z, b in zip(at.outputs, bent, strict=True) if b is not None]
        if not through:
            return [None] * len(vs)
        outputs, along = [z for z, _ in through], [b for _, b in through]
        return derivatives(outputs, self.objective.leaves, along, keep=keep)

    def _between(self, at: _Graph, pushed: list[Tensor]) -> Sequence[Tensor | None]:
        """`(∇²_z L) J v` from `J v`."""
        slopes = [
            (s, j)
            for s, j in zip(at.slopes, pushed, strict=True)
            if s is not None and s.requires_grad
        ]
        if not slopes:
            return [None] * len(pushed)
        with explained(*[s for s, _ in slopes]):
            return derivatives([s for s, _ in slopes], at.seen, [j for _, j in slopes], keep=True)

    def _check_cut(self, cut: _Cut, term: Tensor) -> None:
        name = type(self).__name__
        if cut.calls != 1:
            raise ValueError(
                f"{name} needs the outputs of the model, and loss(model, batch) calls it "
                f"{cut.calls} times: call it once"
            )
        beside = derivatives(term, self.objective.leaves, keep=True)
        if any(g is not None for g in beside):
            raise ValueError(
                f"{name} needs a loss that depends on the parameters through the model's output "
                "alone, and this one also does beside it: leave penalties on weights out"
            )

    def _check_slopes(self, cut: _Cut, slopes: Sequence[Tensor | None], chunk: Chunk) -> None:
        through = [z for z, s in zip(cut.outputs, slopes, strict=True) if s is not None]
        if not through or all(z.ndim == 0 for z in through):
            raise ValueError(
                f"{type(self).__name__} needs the loss as a function of the model's outputs, and "
                "this model computes the loss itself: take its logits, and the loss of them"
            )


class EmpiricalFisher(GaussNewton):
    """The second moment of the gradients of single samples, as an operator.

        F v = 1/N Σ_n g_n (g_nᵀ v),   g_n the gradient of the loss of sample n

    No single gradient is formed: `g_n = J_nᵀ r_n`, with `r_n` the gradient of the loss by the
    model's outputs for sample n. The loss of a batch must be the mean of losses of its samples.

    Args:
        model: as `GaussNewton` takes it, and so are the others.
        loss: `loss(model, batch)` returns the mean over the samples of `batch`, without backward.
        data: one batch, a list of batches, a `DataLoader`, or a data set of batches.
        parameters: a list of parameters, names or patterns, or a function; default all.
        dtype: the type to compute in; default the model's.
        chunk: most samples evaluated at once; default 128.
        memory: for graphs that are kept between products; default "4 GiB".
        progress: whether each product is told on standard error; default False.
        mode: "eval", "train", or None (default) for the model's own.
        differences: what only `Hessian` knows how to do; default False.

    Cost: a product is about 2 gradients where graphs are kept; memory as for `Hessian`.

    Raises:
        ValueError: samples depend on each other (batch normalization on batch statistics), or the
            first dimension of the outputs does not count them; and what `GaussNewton` raises.

    Reference: Kunstner et al., Limitations of the empirical Fisher approximation, NeurIPS 2019,
    arXiv:1905.12558.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from flatmin import analysis
        >>> def loss(model, batch):
        ...     x, y = batch
        ...     return ((model(x) - y) ** 2).mean() / 2
        >>> model = nn.Linear(1, 1, bias=False)
        >>> nn.init.zeros_(model.weight).numel()
        1
        >>> batch = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [1.0]])
        >>> float(analysis.EmpiricalFisher(model, loss, batch) @ torch.ones(1))  # (3² + 2²) / 2
        6.5
    """

    def _between(self, at: _Graph, pushed: list[Tensor]) -> Sequence[Tensor | None]:
        """`r_n (r_nᵀ J_n v)` for every sample, from `J v`; the slopes are `r_n / size`."""
        pairs = [(s, j) for s, j in zip(at.slopes, pushed, strict=True) if s is not None]
        along = torch.stack([(s.detach() * j).reshape(len(s), -1).sum(1) for s, j in pairs]).sum(0)
        return [None if s is None else s.detach() * _beside(along, s) * at.size for s in at.slopes]

    def _check_slopes(self, cut: _Cut, slopes: Sequence[Tensor | None], chunk: Chunk) -> None:
        super()._check_slopes(cut, slopes, chunk)
        if self.objective.coupled:
            raise ValueError(
                "EmpiricalFisher needs the gradients of single samples, which batch normalization "
                f"on batch statistics ({self.objective.coupled}) does not have: pass mode='eval'"
            )
        for z, s in zip(cut.outputs, slopes, strict=True):
            if s is not None and (z.ndim == 0 or len(z) != chunk.size):
                raise ValueError(
                    f"an output of shape {tuple(z.shape)} for a batch of {chunk.size}: its first "
                    "dimension must count the samples"
                )


class _Cut:
    """A forward hook that lets the loss see the outputs as numbers of their own."""

    def __init__(self) -> None:
        self.calls = 0
        self.outputs: list[Tensor] = []
        self.seen: list[Tensor] = []

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        self.calls += 1
        self.outputs, self.seen = [], []
        leaves, shape = tree.tree_flatten(output)
        for i, z in enumerate(leaves):
            if isinstance(z, Tensor) and z.requires_grad:
                leaves[i] = z.detach().requires_grad_()
                self.outputs.append(z)
                self.seen.append(leaves[i])
        return tree.tree_unflatten(leaves, shape)


def _beside(along: Tensor, s: Tensor) -> Tensor:
    return along.reshape(-1, *[1] * (s.ndim - 1))

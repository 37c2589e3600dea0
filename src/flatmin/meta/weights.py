"""A module as a function of one vector of weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap  # pyright: ignore[reportUnknownVariableType]

Loss = Callable[[Any, Tensor], Tensor]
"""From the model's outputs and the targets to a number."""


class FunctionalModel:
    """What `model` answers at any weights: its adapted parameters are one vector `(n,)`.

    One vector makes a norm one sum and a step one addition, whatever the number of layers.

    Args:
        model: any module without running statistics.
        loss: of its outputs and the targets, with a graph.
        adapted: names of the parameters that the vector holds; default those that require a
            gradient. The others are the module's own.

    Raises ValueError for a module or names that cannot work.
    """

    def __init__(self, model: nn.Module, loss: Loss, adapted: Sequence[str] | None = None) -> None:
        refuse_running_statistics(model)
        known = dict(model.named_parameters())
        trained = [name for name, p in known.items() if p.requires_grad]
        if adapted is None:
            adapted = trained
        for name in adapted:
            if name not in known:
                raise ValueError(f"no parameter {name!r} in the model: there are {_some(known)}")
            if name not in trained:
                raise ValueError(f"{name} does not require a gradient: it cannot be adapted")
        if not adapted:
            raise ValueError("the model has no parameter that requires a gradient: none can learn")
        kinds = {(known[name].dtype, known[name].device) for name in adapted}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(
                f"the adapted parameters are {found}, and they are to be one vector: move the "
                "model to one device and type"
            )
        self.model = model
        self.loss = loss
        self.names = list(adapted)
        self.shapes = [known[name].shape for name in adapted]
        self.sizes = [known[name].numel() for name in adapted]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The module's own parameters that the vector holds, by name."""
        known = dict(self.model.named_parameters())
        return {name: known[name] for name in self.names}

    def vector(self) -> Tensor:
        """The module's own weights as a vector, through which gradients reach its parameters."""
        return torch.cat([p.reshape(-1) for p in self.parameters.values()])

    def named(self, w: Tensor) -> dict[str, Tensor]:
        """A vector as parameters by name: views of it."""
        pieces: tuple[Tensor, ...] = torch.split(w, self.sizes)
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)
        }

    def one(self, w: Tensor, x: Any, y: Tensor) -> tuple[Tensor, Any]:
        """The loss and the outputs of one task at weights `(n,)`."""
        out = functional_call(self.model, self.named(w), (x,))
        return self.loss(out, y), out

    def many(self, w: Tensor, x: Any, y: Tensor) -> tuple[Tensor, Any]:
        """The losses and the outputs of many tasks at weights `(tasks, n)`, or of one at `(n,)`."""
        if w.ndim == 1:
            return self.one(w, x, y)
        with warnings.catch_warnings():
            # an operator without a rule of its own is slower, and as right
            warnings.filterwarnings("ignore", ".*performance drop.*", UserWarning)
            return vmap(self.one, randomness="different")(w, x, y)  # pyright: ignore[reportUnknownVariableType]

    def rehearse(self, x: Any, y: Tensor) -> None:
        """Evaluate one task and look whether the module is a function of the vector.

        Raises ValueError or RuntimeError, in one line, where it is none.
        """
        w = self.vector().detach()
        parts = {name: p.clone().requires_grad_() for name, p in self.named(w).items()}
        buffers = dict(self.model.named_buffers())
        watched = {f"parameter {n}": p for n, p in parts.items()}
        watched |= {f"buffer {n}": b for n, b in buffers.items()}
        watched |= {"the input": x} if isinstance(x, Tensor) else {}
        before = {name: t._version for name, t in watched.items()}  # pyright: ignore[reportPrivateUsage]
        try:
            with torch.enable_grad():
                loss = self.loss(functional_call(self.model, parts, (x,)), y)
        except RuntimeError as error:
            if "in-place operation" in str(error):
                raise ValueError(
                    "the model changes a parameter in place in its forward pass, which has no "
                    "gradient: compute a new tensor there (w * c in place of w.mul_(c))"
                ) from None
            raise
        for name, t in watched.items():
            if t._version != before[name]:  # pyright: ignore[reportPrivateUsage]
                raise ValueError(
                    f"the model changes {name} in place in its forward pass, and every task would "
                    "change it for the next: compute a new tensor there"
                )
        if not isinstance(loss, Tensor) or not loss.requires_grad:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                "the loss has no graph to the weights, so there is no gradient: return a tensor, "
                "and leave out no_grad, .detach(), .data, .item() and numpy in model and loss"
            )
        if loss.ndim:
            raise TypeError(
                f"the loss of a task must be one number, got shape {tuple(loss.shape)}: take the "
                'mean, as with reduction="mean"'
            )
        found = torch.autograd.grad(loss, list(parts.values()), allow_unused=True)
        for name, g in zip(parts, found, strict=True):
            if g is None:  # pyright: ignore[reportUnnecessaryComparison]
                raise ValueError(
                    f"{name} gets no gradient: the forward pass reads its .data or .detach(), or "
                    "leaves it out; use the parameter itself, or requires_grad_(False) on it"
                )


def refuse_running_statistics(model: nn.Module) -> None:
    """Raise ValueError if a layer normalises by statistics that it gathers from task to task."""
    modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    for name, module in modules:
        if getattr(module, "track_running_stats", False):
            raise ValueError(
                f"{name or 'the model'} ({type(module).__name__}) gathers running statistics, which"
                " would leak from task to task: build it with track_running_stats=False, so that "
                "each batch is normalised by its own"
            )


def _some(names: Sequence[str] | dict[str, Any]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


__all__ = ["FunctionalModel", "Loss", "refuse_running_statistics"]

"""The step as a sequence of passes, for loops that own their backward pass."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from flatmin.engine.distributed import Ranks
from flatmin.engine.probe import BatchName, Pass, PassGenerator


def advance(run: PassGenerator[Tensor | None], *loss: Any) -> Pass:
    """Go on to the next pass, in full precision whatever autocast surrounds the step.

    An autocast around several passes would also keep its narrow copies of the weights, which move
    between them: they are dropped.
    """
    with torch.no_grad(), _full_precision():
        return run.send(*loss) if loss else next(run)


def _full_precision() -> AbstractContextManager[Any]:
    if not torch._C._is_any_autocast_enabled():
        return _NOTHING
    with ExitStack() as full_precision:
        for device in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(device):
                full_precision.enter_context(torch.autocast(device, enabled=False))
                torch.clear_autocast_cache()
        return full_precision.pop_all()


_NOTHING = nullcontext()


class Turn:
    """One pass, to be run by the loop: evaluate the loss, run backward, say `done(loss)`.

    `optimizer.passes()` yields them; nobody makes one.

    Args:
        wanted: the pass that the step asks for.

    Attributes:
        batch: the batch to evaluate, "primary" or "auxiliary".
        perturbed: whether the weights now stand at `w + eps`.
        gradient: whether a backward pass is wanted; without it, only the losses are.
        samples: indices of the chosen samples; None for all.
        communicate: whether ranks reduce the gradient of this pass; if not, forward and backward
            belong under `no_sync()`.
        last: whether it is the last pass of the step; None if that depends on its gradient.

    Examples:
        >>> import torch, flatmin
        >>> model, x = torch.nn.Linear(4, 1), torch.randn(8, 4)
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> with optimizer.passes() as passes:
        ...     for p in passes:
        ...         print(p.batch, p.perturbed, p.last)
        ...         loss = model(x).square().mean()
        ...         loss.backward()
        ...         p.done(loss)
        primary False False
        primary True True
    """

    def __init__(self, wanted: Pass) -> None:
        self.batch: BatchName = wanted.batch
        self.perturbed = wanted.perturbed
        self.gradient = wanted.gradient
        self.samples = wanted.samples
        self.communicate = wanted.communicate
        self.last = wanted.last
        self._loss: tuple[Any] | None = None

    def done(self, loss: Any = None) -> None:
        """The pass was run.

        Args:
            loss: the loss that it has found, one a sample where that is wanted; default None, for
                loops that keep it to themselves (a loss that is inf or nan then shows in the
                gradient alone).

        Raises:
            RuntimeError: that was said before.
        """
        if self._loss is not None:
            raise RuntimeError(
                f"this {self.batch} pass was run twice: call done(loss) once for each pass"
            )
        self._loss = (loss,)

    @property
    def loss(self) -> Any:
        """What `done` was told. Raises RuntimeError if it was not called."""
        if self._loss is None:
            raise RuntimeError(
                f"a {self.batch} pass was left out: for each pass run forward and backward on its "
                "batch, then call done(loss). The weights are back where they were; no step was "
                "taken"
            )
        return self._loss[0]


class Passes(Iterator[Turn]):
    """What `optimizer.passes()` returns: iterate once, run each pass.

    A pass left out or repeated raises. Who leaves the loop early, or by an error, gives the step
    up: the weights go back where they were when the `with` block ends or, without one, when the
    loop's iterator is dropped; at the latest when the next step begins.

    Args:
        run: the step, as a generator of passes.
        ranks: the processes that take it together.

    Attributes:
        loss: the loss at the unperturbed weights, once all passes were run; None before.
        finished: whether the step was taken, or given up.

    Raises:
        RuntimeError: while iterating: a pass was left out or run twice.

    Examples:
        >>> import torch, flatmin
        >>> model, x = torch.nn.Linear(4, 1), torch.randn(8, 4)
        >>> optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> with optimizer.passes() as passes:
        ...     for p in passes:
        ...         loss = model(x).square().mean()
        ...         loss.backward()
        ...         p.done(loss)
        >>> passes.finished, passes.loss is not None
        (True, True)
    """

    def __init__(self, run: PassGenerator[Tensor | None], ranks: Ranks) -> None:
        self._run = run
        self._together = ranks.together()
        self._turn: Turn | None = None
        self.finished = False
        self.loss: Tensor | None = None

    def __next__(self) -> Turn:
        if self.finished:
            raise StopIteration
        try:
            told = () if self._turn is None else (self._told(),)
            wanted = advance(self._run, *told)
        except StopIteration as done:
            self.finished = True
            self.loss = done.value
            raise StopIteration from None
        except BaseException:
            self.finished = True
            raise
        self._turn = Turn(wanted)
        return self._turn

    def _told(self) -> Any:
        assert self._turn is not None
        try:
            return self._turn.loss
        except RuntimeError:
            self.close()
            raise

    def __enter__(self) -> Passes:
        self._together.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
        self._together.__exit__(*error)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the step up: the weights go back where they were."""
        self.finished = True
        self._run.close()

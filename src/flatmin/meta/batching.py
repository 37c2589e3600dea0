"""How the tasks of a meta-batch run: one after another, all at once, or some at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch

from flatmin.engine import check

Batching: TypeAlias = "Literal['auto', 'loop', 'vmap'] | int"

LOOP = 0
"""The size of a chunk that stands for no chunk: tasks one after another, without vmap."""

TRIED = (4, 8)
"""Sizes of chunks that "auto" tries, beside the loop and the whole meta-batch."""


ROUNDS = 2
"""Timed runs of each form, of which the faster counts."""


class Chunks:
    """Chooses how many tasks run together, once, and can say why.

    Which form is the fastest depends on the network, the ways, the cache and the cores, and no rule
    was found that always guesses it: a network of 64 filters at 5 ways gains from `vmap` on some
    machines, one with max-pooling at 20 ways loses. So "auto" measures.
    """

    def __init__(self, wanted: Batching) -> None:
        self.wanted = wanted
        self.size: int | None = None
        """Tasks in a chunk; `LOOP` for none; None while that is open."""
        self.seconds: dict[int, float] = {}
        self.failed: dict[int, str] = {}
        if wanted == "loop":
            self.size = LOOP
        elif not isinstance(wanted, str):
            self.size = wanted

    @classmethod
    def of(cls, wanted: Batching) -> Chunks:
        if isinstance(wanted, str):
            check.one_of("batching", wanted, ("auto", "loop", "vmap"))
        else:
            check.positive_int("batching", wanted)
        return cls(wanted)

    def now(self, count: int) -> int:
        """The size for `count` tasks, as far as it is known."""
        if self.size is not None:
            return min(self.size, count)
        return count if self.wanted == "vmap" else LOOP

    @property
    def is_open(self) -> bool:
        """Is it still to be measured?"""
        return self.wanted == "auto" and self.size is None

    def measure(self, count: int, run: Callable[[int], object], wait: Callable[[], None]) -> None:
        """Time `run(size)` for each form of `count` tasks, and keep the fastest.

        A form that cannot run, for want of memory or of a rule for vmap, is out; the loop must run.
        """
        for size in dict.fromkeys([LOOP, *(n for n in TRIED if n < count), count]):
            found = _failure(size, run)  # also sets up kernels and memory
            if found is None:
                self.seconds[size] = math.inf
            else:
                self.failed[size] = found
        # In turns, so that what else the machine does meets every form.
        for size in [*self.seconds] * ROUNDS:
            wait()
            begun = time.perf_counter()
            run(size)
            wait()
            self.seconds[size] = min(self.seconds[size], time.perf_counter() - begun)
        self.size = min(self.seconds, key=self.seconds.__getitem__)

    def says(self) -> str:
        """What was chosen, and why."""
        if self.is_open:
            return "batching: to be measured on the first meta-batch"
        if not self.seconds:
            return f"batching: {_form(self.size) if self.size is not None else 'all at once'}"
        times = ", ".join(f"{_form(n)} {1000 * s:.0f} ms" for n, s in self.seconds.items())
        lost = "".join(f"; {_form(n)} cannot run ({why})" for n, why in self.failed.items())
        return f"batching: {_form(self.size or LOOP)} (measured: {times}{lost})"

    def state(self) -> int | None:
        """What a checkpoint keeps, so that a resumed run rounds as it did before."""
        return self.size


def _failure(size: int, run: Callable[[int], object]) -> str | None:
    """Why a form cannot run; None if it can."""
    try:
        run(size)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if size == LOOP:
            raise
        return str(error).partition("\n")[0]
    return None


def _form(size: int) -> str:
    return "loop" if size == LOOP else f"{size} at once"


@contextmanager
def together(size: int) -> Generator[None, None, None]:
    """Say in one line that something in here has no answer for many tasks at once."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if size == LOOP or not any(words in said for words in _NO_RULE):
            raise
        raise RuntimeError(
            "the model, the loss or the direction branches on a number or calls .item(), for which "
            'tasks that run together have no one answer: use batching="loop", or torch.where'
        ) from None


_NO_RULE = ("vmap", "Boolean value of Tensor", "cannot be converted to Scalar")
"""What stands in torch's errors where many tasks are asked for one number."""


def cut(count: int, size: int) -> Sequence[slice]:
    """Chunks of `size` of `count` tasks; the last may be smaller."""
    step = max(size, 1)
    return [slice(i, min(i + step, count)) for i in range(0, count, step)]


def synchronise(device: torch.device) -> Callable[[], None]:
    """What waits until `device` has done its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None

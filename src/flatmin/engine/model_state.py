"""What a look around must not move: running statistics and the stream of random numbers.

A step evaluates the model several times but is one visit to the batch. So running statistics move
in the first primary pass alone, and a batch seen again is seen through the same dropout masks.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class RunningStatistics:
    """The running statistics of a model's normalisation layers.

    Any module with torch's own protocol counts: `track_running_stats` and the buffers
    `running_mean`, `running_var`, `num_batches_tracked` (BatchNorm, SyncBatchNorm, InstanceNorm).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers: list[nn.Module] = []
        self._saved: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def frozen(self) -> Generator[None]:
        """Layers in training mode normalise by the batch, as ever, and record nothing.

        Nothing is copied for it. A BatchNorm that tracks no statistics leaves its buffers alone; an
        InstanceNorm moves them wherever it has some, so they are put out of its reach.
        """
        training = [(layer, layer._buffers) for layer in self._layers if layer.training]
        for layer, buffers in training:
            layer.track_running_stats = False  # type: ignore[assignment]
            layer._buffers = dict.fromkeys(buffers)
        try:
            yield
        finally:
            for layer, buffers in training:
                layer.track_running_stats = True  # type: ignore[assignment]
                layer._buffers = buffers

    def save(self) -> None:
        """Remember the statistics as they are, for `restore`; a step begins."""
        modules = self._model.modules()
        self._layers = [m for m in modules if getattr(m, "track_running_stats", False)]
        buffers = [b for layer in self._layers for b in layer.buffers(recurse=False)]
        self._saved = [(b, b.clone()) for b in buffers]

    def restore(self) -> None:
        """Put the statistics back as `save` found them."""
        for buffer, saved in self._saved:
            buffer.copy_(saved)


class RandomStreams:
    """The default random generators of the CPU and of the accelerators that hold the parameters."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._devices = sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)

    def state(self) -> list[Tensor]:
        modules: Iterator[tuple[Any, torch.device]] = self._modules()
        return [torch.get_rng_state(), *(m.get_rng_state(d) for m, d in modules)]

    def set(self, state: list[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for (module, device), saved in zip(self._modules(), state[1:], strict=True):
            module.set_rng_state(saved, device)

    def _modules(self) -> Iterator[tuple[Any, torch.device]]:
        return ((torch.get_device_module(d), d) for d in self._devices)


class Surroundings:
    """What `model=` lets the optimizer keep still, and count."""

    def __init__(self, model: nn.Module, devices: set[torch.device], replay: bool) -> None:
        self.model = model
        self.statistics = RunningStatistics(model)
        self._streams = RandomStreams(devices) if replay else None
        self._starts: dict[str, list[Tensor]] = {}
        self.samples = 0

    def begin(self) -> None:
        self._starts.clear()
        self.statistics.save()

    def abort(self) -> None:
        self.statistics.restore()

    @contextmanager
    def visit(self, batch: str) -> Generator[None]:
        """One pass over `batch`: what it may move depends on whether the batch was seen before.

        A batch seen again replays the random numbers of its first pass; then the stream goes on
        from where the first passes had left it.
        """
        again = batch in self._starts
        first_primary = batch == "primary" and not again
        after: list[Tensor] | None = None
        if self._streams is not None:
            now = self._streams.state()
            if again:
                after = now
                self._streams.set(self._starts[batch])
        else:
            now = []
        self._starts.setdefault(batch, now)
        hook = self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.samples = 0
        try:
            if first_primary:
                yield
            else:
                with self.statistics.frozen():
                    yield
        finally:
            hook.remove()
            if after is not None and self._streams is not None:
                self._streams.set(after)

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                self.samples += value.shape[0] if value.ndim else 1
                return

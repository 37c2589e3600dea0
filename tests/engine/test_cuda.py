"""On a GPU: the numbers of the CPU, no wait, float16 with loss scaling, a captured step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from tables import METHODS, Trainer, network
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.functional import cross_entropy

import flatmin
from flatmin import amp, methods

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

RANDOM = ("rwp", "mixed-rwp")
"""Methods that draw numbers, which a GPU draws otherwise."""


@pytest.fixture
def smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dropout, whose numbers a GPU draws otherwise."""

    def without(dtype: torch.dtype = torch.float32) -> nn.Sequential:
        return nn.Sequential(*(part for part in network(dtype) if not isinstance(part, nn.Dropout)))

    monkeypatch.setattr("tables.network", without)


def still(trainer: Trainer) -> Trainer:
    """Its batches wait on the device already: what moves them must not count as a wait."""
    batch, kept = trainer.batch, {}

    def ready(kind: str) -> tuple[Tensor, Tensor]:
        if (kind, trainer.steps) not in kept:
            kept[kind, trainer.steps] = batch(kind)
        return kept[kind, trainer.steps]

    trainer.batch = ready  # type: ignore[method-assign]
    for step in range(trainer.steps, trainer.steps + 8):
        now, trainer.steps = trainer.steps, step
        ready("primary"), ready("auxiliary")
        trainer.steps = now
    return trainer


@contextmanager
def no_waits() -> Generator[None]:
    """Torch raises where the host would wait for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that not every wait is noticed yet
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("smooth")
@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in RANDOM])
def test_a_gpu_gives_the_numbers_of_the_cpu(method: str, base: str):
    here, there = (
        Trainer(method, base, dtype=torch.float64, max_norm=1.0, device=device).run(6)
        for device in ("cpu", "cuda")
    )
    assert here.optimizer.cost == there.optimizer.cost
    for name, x in here.model.state_dict().items():
        torch.testing.assert_close(there.model.state_dict()[name].cpu(), x, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_the_host_never_waits_for_the_gpu(method: str):
    trainer = Trainer(method, nonfinite="ignore", max_norm=1.0, device="cuda").run(2)
    if isinstance(trainer.optimizer.policy, flatmin.policy.LargeGradient):
        pytest.skip("branches on a norm, as documented")
    still(trainer)
    with no_waits():
        trainer.run(4)
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_float16_with_loss_scaling(method: str):
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    model.cuda()
    kind = methods.TABLE[method]
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = kind.build(base, 0.02, total_steps=60, model=model)
    scaler = GradScaler("cuda", init_scale=2.0**40, growth_interval=10**6)
    x, y = torch.randn(96, 32, device="cuda"), torch.randint(10, (96,), device="cuda")

    def closure(chosen: Tensor | None = None, *, batch: slice = slice(64)) -> Tensor:
        inputs, targets = x[batch], y[batch]
        with torch.autocast("cuda", torch.float16):
            at = slice(None) if chosen is None else chosen
            losses = cross_entropy(model(inputs[at]), targets[at], reduction="none")
        if kind.per_sample:
            return losses
        scaler.scale(losses.mean()).backward()
        return losses.mean()

    def several(count: int) -> list[float]:
        other = partial(closure, batch=slice(64, None))
        given: tuple[Callable[..., Any], ...] = (closure, other) if kind.auxiliary else (closure,)
        return [float(amp.step(optimizer, scaler, *given).mean()) for _ in range(count)]

    first = several(60)[0]
    assert optimizer.cost.skipped >= 10  # 2^40 is far beyond what float16 holds
    assert scaler.get_scale() < 2.0**30
    assert several(20)[-1] < 0.7 * first


@pytest.mark.parametrize("method", ["sam", "asam", "friendly-sam", "agnostic-sam", "gsam", "msam"])
def test_a_captured_step_is_the_step(method: str):
    def made() -> tuple[nn.Module, flatmin.SharpnessAware, Callable[[], Any], Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
        model.cuda()
        base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        optimizer = methods.TABLE[method].build(
            base, 0.05, total_steps=60, model=model, nonfinite="ignore", replay_random=False
        )
        x, y = torch.randn(64, 32, device="cuda"), torch.randint(10, (64,), device="cuda")

        def closure() -> Tensor:
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss.detach()

        two = methods.TABLE[method].auxiliary
        given = (closure, closure) if two else (closure,)
        return model, optimizer, lambda: optimizer.step(*given), x

    plain, _, step, _ = made()
    for _ in range(12):
        step()
    captured, _, step, _ = made()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(8):
        graph.replay()
    for a, b in zip(plain.parameters(), captured.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

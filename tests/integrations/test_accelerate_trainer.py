"""With Accelerate's prepared objects, steps are those of a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tables import IMAGES, LABELS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from weights import deviation, same_bits

import flatmin

pytest.importorskip("accelerate", reason="Accelerate is not installed")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from flatmin.integrations import accelerate as flat

METHODS = ["sam", "agnostic-sam", "ae-agnostic-sam-previous", "look-sam"]
STEPS = 6
BATCH = 24

Batch = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def _forget():
    """Accelerate remembers the first accelerator of a process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def batches(dtype: torch.dtype = torch.float32) -> list[tuple[Batch, Batch]]:
    """Primary and auxiliary batches."""
    at = [(BATCH * i, BATCH * (i + 1)) for i in range(2 * STEPS)]
    cut = [(IMAGES[a:b].to(dtype), LABELS[a:b]) for a, b in at]
    return [(p, (x[:6], y[:6])) for p, (x, y) in zip(cut[:STEPS], cut[STEPS:], strict=True)]


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 10)).to(dtype)


def optimizer_of(method: str, model: nn.Module, **options: Any) -> flatmin.SharpnessAware:
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    build = flatmin.methods.find(method).build
    return build(base, 0.1, total_steps=STEPS, model=model, **options)


def plain(
    method: str,
    dtype: torch.dtype = torch.float32,
    cast: Callable[[], Any] = nullcontext,
    **options: Any,
) -> nn.Module:
    model = network(dtype)
    optimizer = optimizer_of(method, model, **options)

    def look(batch: Batch) -> Tensor:
        with cast():
            output = model(batch[0])
        loss = cross_entropy(output.to(dtype), batch[1])
        loss.backward()
        return loss

    for primary, auxiliary in batches(dtype):
        needed = flatmin.methods.find(method).auxiliary
        optimizer.step(*(partial(look, b) for b in (primary, auxiliary)[: 1 + needed]))
    return model


class Prepared:
    """A model and an optimizer that Accelerate has prepared."""

    def __init__(
        self,
        method: str,
        dtype: torch.dtype = torch.float32,
        options: dict[str, Any] | None = None,
        **asked: Any,
    ) -> None:
        self.accelerator = Accelerator(cpu=True, **asked)
        model = network(dtype)
        made = optimizer_of(method, model, **(options or {}))
        self.model, self.optimizer = self.accelerator.prepare(model, made)
        self.auxiliary = flatmin.methods.find(method).auxiliary

    def loss_on(self, batch: Batch) -> Tensor:
        return cross_entropy(self.model(batch[0]), batch[1])

    def look(self, batch: Batch) -> Tensor:
        loss = self.loss_on(batch)
        self.accelerator.backward(loss)
        return loss

    def step(self, primary: Batch, auxiliary: Batch) -> Tensor:
        closures = [partial(self.look, b) for b in (primary, auxiliary)[: 1 + self.auxiliary]]
        return flat.step(self.accelerator, self.optimizer, *closures)

    def run(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        for pair in batches(dtype):
            self.step(*pair)
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)


# --- the same weights


@pytest.mark.parametrize("method", METHODS)
def test_the_example_ends_with_the_weights_of_the_plain_loop(method: str, example: Any):
    trained = example("accelerate_digits").train(method, 2)
    assert same_bits(trained, example("plain").train(method, 2))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_the_plain_one(method: str):
    assert same_bits(Prepared(method).run(), plain(method))


def test_it_returns_the_loss_at_the_unperturbed_weights():
    made = Prepared("sam")
    primary, auxiliary = batches()[0]
    expected = cross_entropy(network()(primary[0]), primary[1])
    assert torch.equal(made.step(primary, auxiliary), expected)


@pytest.mark.parametrize("method", ["sam", "ae-agnostic-sam-previous", "look-sam", "gsam"])
def test_the_prepared_optimizer_alone_steps_methods_with_one_batch(method: str):
    made = Prepared(method)
    for primary, _ in batches():
        made.optimizer.step(partial(made.look, primary))
    assert same_bits(made.model, plain(method))


def test_the_optimizer_may_be_handed_over_unwrapped():
    made = Prepared("sam")
    made.optimizer = made.optimizer.optimizer
    assert same_bits(made.run(), plain("sam"))


def test_a_prepared_schedule_reaches_the_base_optimizer():
    made = Prepared("sam")
    schedule = torch.optim.lr_scheduler.StepLR(made.optimizer, 2, gamma=0.1)
    schedule = made.accelerator.prepare(schedule)
    rates = []
    for pair in batches():
        rates.append(made.optimizer.optimizer.base.param_groups[0]["lr"])
        made.step(*pair)
        schedule.step()
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


# --- precision and clipping


def test_bfloat16_is_the_loop_under_autocast():
    cast = partial(torch.autocast, "cpu", torch.bfloat16)
    trained = Prepared("agnostic-sam", mixed_precision="bf16").run()
    assert same_bits(trained, plain("agnostic-sam", cast=cast))
    assert not same_bits(trained, plain("agnostic-sam"))


def test_a_loss_scaler_is_used_by_flatmin_amp():
    made = Prepared("agnostic-sam")
    # On a CPU Accelerate makes none. A power of two, so that scaling changes no bit.
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert same_bits(made.run(), plain("agnostic-sam"))
    assert made.accelerator.scaler.state_dict()["_growth_tracker"] == STEPS


def test_clipping_is_the_optimizers():
    made = Prepared("agnostic-sam", options={"max_norm": 0.2})
    model = made.run()
    assert same_bits(model, plain("agnostic-sam", max_norm=0.2))
    assert not same_bits(model, plain("agnostic-sam"))


# --- micro-batches


@pytest.mark.parametrize("told", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_equal_the_large_batch(method: str, told: int):
    made = Prepared(method, torch.float64, gradient_accumulation_steps=told)
    for primary, auxiliary in batches(torch.float64):
        gather = partial(flat.accumulated, made.accelerator, made.model, made.loss_on)
        closures = [gather(zip(*(part.chunk(3) for part in primary), strict=True))]
        if made.auxiliary:
            closures.append(gather(zip(*(part.chunk(2) for part in auxiliary), strict=True)))
        flat.step(made.accelerator, made.optimizer, *closures)
    assert deviation(made.model, plain(method, torch.float64)) < 1e-12


def test_no_micro_batch_is_an_error():
    made = Prepared("sam")
    with pytest.raises(ValueError, match="at least one micro-batch, got none"):
        flat.accumulated(made.accelerator, made.model, made.loss_on, [])


def test_within_accumulate_it_is_refused():
    made = Prepared("sam", gradient_accumulation_steps=2)
    with (
        made.accelerator.accumulate(made.model),
        pytest.raises(RuntimeError, match=r"within accelerator.accumulate\(model\)"),
    ):
        made.step(*batches()[0])
    assert same_bits(made.model, network())


# --- resuming


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_one_that_was_not_stopped(method: str, tmp_path: Path):
    made = Prepared(method)
    for pair in batches()[:3]:
        made.step(*pair)
    made.accelerator.save_state(str(tmp_path))
    _forget.__wrapped__()

    resumed = Prepared(method)
    resumed.accelerator.load_state(str(tmp_path))
    for pair in batches()[3:]:
        resumed.step(*pair)
    assert same_bits(resumed.model, plain(method))


# --- what is refused


def test_an_optimizer_of_another_kind_is_refused():
    made = Prepared("sam")
    model = network()
    other = made.accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="this steps flatmin optimizers, got SGD"):
        flat.step(made.accelerator, other, lambda: None)


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_engines_that_own_the_gradients_are_refused(engine: str):
    made = Prepared("sam")
    accelerator = SimpleNamespace(
        distributed_type=SimpleNamespace(value=engine), is_fsdp2=False, sync_gradients=True
    )
    with pytest.raises(ValueError, match="belong to an engine that evaluates one gradient"):
        flat.step(accelerator, made.optimizer, lambda: None)


def test_a_missing_auxiliary_closure_is_the_optimizers_error():
    made = Prepared("agnostic-sam")
    with pytest.raises(ValueError, match="measures a second batch"):
        flat.step(made.accelerator, made.optimizer, partial(made.look, batches()[0][0]))

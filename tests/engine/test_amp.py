"""Mixed precision: bfloat16 as it is, float16 with torch's scaler, every pass unscaled once."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from tables import ALONE, LOOKING, METHODS, Trainer, assert_same_bits, each_over_one
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.functional import cross_entropy

from flatmin import amp

every_method_over_a_base = pytest.mark.parametrize("method, base", each_over_one(METHODS, ALONE))
every_method = pytest.mark.parametrize("method", METHODS)
every_looking_method = pytest.mark.parametrize("method", LOOKING)
every_base = pytest.mark.parametrize("base", ALONE)

HUGE = 1e30
"""A factor of the loss that float16 gradients cannot hold; float32, the loss's type, can."""


def scaler(scale: float = 2.0**4, **options: Any) -> GradScaler:
    return GradScaler("cpu", init_scale=scale, **options)


class Mixed(Trainer):
    """A trainer under autocast, and with a scaler if it is given one."""

    def __init__(
        self,
        method: str = "sam",
        base: str = "sgd",
        scaler: GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        **options: Any,
    ) -> None:
        super().__init__(method, base, **options)
        self.scaler = scaler
        self.autocast = partial(torch.autocast, "cpu", precision)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        with self.autocast():
            return super().losses(x, y)

    def differentiate(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def advance(self) -> Tensor:
        if self.scaler is None:
            return super().advance()
        return amp.step(self.optimizer, self.scaler, *self.closures())


def tame(method: str, base: str = "sgd", **options: Any) -> Mixed:
    """A trainer without BatchNorm, with gradients large enough for float16 to hold them all."""
    trainer = Mixed(method, base, lr=1e-5, **options)
    trainer.factor = lambda batch, call: 2.0**10
    return trainer


@pytest.fixture
def smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
        return nn.Sequential(nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 10)).to(dtype)

    monkeypatch.setattr("tables.network", network)


COUNTS = ("skipped", "gradients", "auxiliary", "samples", "primary_samples")


def without_counts(bits: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in bits.items() if not name.endswith(COUNTS)}


def overflow_at(trainer: Mixed, spoiled: int) -> None:
    trainer.factor = lambda batch, call: HUGE if call == spoiled else 1.0


def differentiated(method: str, after: int = 0) -> list[int]:
    """The calls of a step that run backward."""
    trainer = Mixed(method).run(after)
    gradients: list[bool] = []
    trainer.on_call = lambda batch, call: gradients.append(torch.is_grad_enabled())
    trainer.step()
    return [call for call, gradient in enumerate(gradients) if gradient]


def test_it_is_there_where_flatmin_is():
    program = "import flatmin; print(flatmin.amp.step.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "step\n", done.stderr


def passes_of_second_step(method: str) -> int:
    return len(Mixed(method).run(2).calls)


# --- the same step


@pytest.mark.usefixtures("smooth")
@every_method_over_a_base
def test_scaling_by_a_power_of_two_changes_no_bit(method, base):
    plain, scaled = tame(method, base), tame(method, base, scaler=scaler())
    for _ in range(6):
        assert torch.equal(scaled.step(), plain.step())
    assert_same_bits(scaled.bits(), plain.bits())
    assert scaled.optimizer.cost == plain.optimizer.cost
    assert scaled.scaler.get_scale() == 2.0**4


@pytest.mark.usefixtures("smooth")
@every_method
def test_scaling_by_any_number_changes_little(method):
    plain, scaled = tame(method), tame(method, scaler=scaler(10.0))
    plain.run(6), scaled.run(6)
    for a, b in zip(scaled.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert scaled.optimizer.cost == plain.optimizer.cost


@every_method
def test_with_statistics_and_dropout_too(method):
    plain, scaled = Mixed(method), Mixed(method, scaler=scaler(2.0**8))
    plain.run(3), scaled.run(3)
    assert scaled.optimizer.cost == plain.optimizer.cost
    for name, x in plain.model.state_dict().items():
        torch.testing.assert_close(scaled.model.state_dict()[name], x, rtol=1e-2, atol=1e-2)


@every_method
def test_gradients_that_float16_cannot_hold_unscaled_arrive(method):
    """What loss scaling is for: of a tiny loss nothing is left unless it is scaled."""
    trainer = Mixed(method, scaler=scaler(2.0**24), rho=1e-3)
    trainer.factor = lambda batch, call: 2.0**-24
    seen: list[float] = []
    trainer.base.register_step_pre_hook(
        lambda base, *_: seen.append(float(trainer.model[0].weight.grad.norm()))
    )
    trainer.step()
    exact = Trainer(method, rho=1e-3)
    expected: list[float] = []
    exact.base.register_step_pre_hook(
        lambda base, *_: expected.append(float(exact.model[0].weight.grad.norm()))
    )
    exact.step()
    assert [x * 2.0**24 for x in seen] == pytest.approx(expected, rel=0.05)


@every_method
def test_what_is_remembered_is_unscaled(method):
    plain, scaled = Mixed(method), Mixed(method, scaler=scaler(2.0**10))
    plain.run(2), scaled.run(2)
    optimizer = plain.optimizer
    names = (*optimizer.direction.buffers, *optimizer.descent.buffers)
    names = () if method == "msam" else names  # of a base with momentum it keeps nothing
    for p, q in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        for name in names:
            kept, expected = scaled.optimizer.state[q][name], optimizer.state[p][name]
            torch.testing.assert_close(kept, expected, rtol=0.05, atol=1e-3)
            assert expected.abs().max() < 10
    for name, value in optimizer.policy.memory.items():
        numbers = scaled.optimizer.param_groups[0]["flatmin"]
        assert numbers[name] != value
        expected_number = optimizer.param_groups[0]["flatmin"][name]
        assert numbers[name] == pytest.approx(expected_number, rel=0.02)


@every_method
def test_the_radius_is_that_of_the_unscaled_gradients(method):
    plain = Mixed(method, measure_radius=True).run(2)
    scaled = Mixed(method, scaler=scaler(2.0**8), measure_radius=True).run(2)
    expected = pytest.approx(plain.optimizer.cost.distance, rel=0.02)
    assert scaled.optimizer.cost.distance == expected


@every_method
def test_clipping_sees_unscaled_gradients(method):
    trainer = Mixed(method, scaler=scaler(2.0**8), max_norm=0.05)
    seen: list[float] = []
    trainer.base.register_step_pre_hook(
        lambda base, *_: seen.append(
            float(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm())
        )
    )
    trainer.run(2)
    assert seen == pytest.approx([0.05] * len(seen), rel=1e-5)


@every_method
def test_the_loss_is_returned_unscaled(method):
    plain, scaled = Mixed(method), Mixed(method, scaler=scaler(2.0**8))
    assert torch.equal(scaled.step(), plain.step())


# --- one decision, one update


@pytest.mark.parametrize("nonfinite", ["skip", "raise", "ignore"])
@every_method
def test_an_overflow_in_any_pass_drops_the_step_in_silence(method, nonfinite):
    for spoiled in differentiated(method):
        trainer = Mixed(method, scaler=scaler(2.0**8), nonfinite=nonfinite)
        before = trainer.bits()
        overflow_at(trainer, spoiled)
        trainer.step()
        assert len(trainer.calls) > spoiled
        assert_same_bits(without_counts(trainer.bits()), without_counts(before))
        assert trainer.optimizer.cost.skipped == 1
        assert trainer.optimizer.cost.steps == 0
        assert trainer.scaler.get_scale() == 2.0**7
        overflow_at(trainer, -1)
        trainer.steps = 0
        clean = Mixed(method, scaler=scaler(2.0**7)).run(2)
        assert_same_bits(without_counts(trainer.run(2).bits()), without_counts(clean.bits()))


@every_method
def test_an_overflow_after_some_steps_leaves_no_trace(method):
    for spoiled in differentiated(method, after=3):
        trainer = Mixed(method, scaler=scaler(2.0**8)).run(3)
        before = trainer.bits()
        overflow_at(trainer, spoiled)
        trainer.step()
        assert_same_bits(without_counts(trainer.bits()), without_counts(before))
        assert trainer.optimizer.cost.skipped == 1
        assert trainer.scaler.get_scale() == 2.0**7


@every_method
def test_a_scale_that_is_too_large_finds_its_way_down(method):
    trainer = Mixed(method, scaler=scaler(2.0**40))
    scale, skipped = 2.0**40, 0
    while trainer.optimizer.cost.steps < 2:
        trainer.step()
        now = trainer.optimizer.cost.skipped
        scale /= 2 ** (now - skipped)
        skipped = now
        assert trainer.scaler.get_scale() == scale > 1
    assert skipped > 10


@every_method
def test_the_scale_grows_once_in_so_many_steps_whatever_their_passes(method):
    trainer = Mixed(method, scaler=scaler(2.0**4, growth_interval=3))
    scales = []
    for _ in range(7):
        trainer.step()
        scales.append(trainer.scaler.get_scale())
    assert scales == [16, 16, 32, 32, 32, 64, 64]


@every_method
def test_an_overflow_begins_the_interval_anew(method):
    trainer = Mixed(method, scaler=scaler(2.0**4, growth_interval=3))
    scales = []
    for i in range(6):
        overflow_at(trainer, 0 if i == 2 else -1)
        trainer.step()
        scales.append(trainer.scaler.get_scale())
    assert scales == [16, 16, 8, 8, 8, 16]


@every_method
def test_a_skipped_step_is_resumed_with_the_scale(method):
    whole = Mixed(method, scaler=scaler(2.0**8))
    overflow_at(whole, 0)
    whole.step()
    overflow_at(whole, -1)
    whole.run(2)
    resumed = Mixed(method, scaler=scaler(), seed=1)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    resumed.scaler.load_state_dict(whole.scaler.state_dict())
    resumed.steps = whole.steps
    assert_same_bits(resumed.run(2).bits(), whole.run(2).bits())
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()


# --- what cannot work


@every_method
def test_an_exception_in_any_pass_leaves_the_scale_and_the_scaler_as_they_were(method):
    """As when memory runs out and the loop goes on with the next batch."""
    for broken in range(passes_of_second_step(method)):
        trainer = Mixed(method, scaler=scaler(2.0**8)).run(1)
        before, scale = trainer.bits(), trainer.scaler.state_dict()

        def break_down(batch, call, broken=broken):
            if call == broken:
                raise MemoryError

        trainer.on_call = break_down
        for _ in range(3):  # what a failed pass leaves behind may meet the next one
            with pytest.raises(MemoryError):
                trainer.step()
        assert_same_bits(trainer.bits(), before)
        assert trainer.scaler.state_dict() == scale
        trainer.on_call = lambda batch, call: None
        clean = Mixed(method, scaler=scaler(2.0**8)).run(3)
        assert_same_bits(trainer.run(2).bits(), clean.bits())


def test_an_overflow_of_a_step_that_failed_is_not_held_against_the_next():
    trainer = Mixed("agnostic-sam", scaler=scaler(2.0**8))
    trainer.factor = lambda batch, call: HUGE if call == 0 else 1.0

    def break_down(batch, call):
        if call == 1:
            raise MemoryError

    trainer.on_call = break_down
    with contextlib.suppress(MemoryError):
        trainer.step()
    trainer.on_call = lambda batch, call: None
    trainer.factor = lambda batch, call: 1.0
    scale = trainer.scaler.get_scale()
    trainer.step()
    assert trainer.scaler.get_scale() == scale
    assert trainer.optimizer.cost.steps == 1


@every_method
def test_the_scaler_beside_is_refused(method):
    trainer = Mixed(method, scaler=scaler(2.0**8))
    before = trainer.bits()
    with trainer.autocast():
        x, y = trainer.batch("primary")
        loss = cross_entropy(trainer.model.eval()(x), y)
    trainer.scaler.scale(loss).backward()
    with pytest.raises(TypeError, match=r"flatmin\.amp instead of a GradScaler"):
        trainer.scaler.step(trainer.optimizer)
    assert_same_bits(trainer.bits(), before)


@every_method
def test_the_scaler_beside_is_refused_after_a_step_too(method):
    trainer = Mixed(method, scaler=scaler(2.0**8)).run(1)
    before = trainer.bits()
    with pytest.raises(TypeError, match=r"flatmin\.amp instead of a GradScaler"):
        trainer.scaler.step(trainer.optimizer)
    assert_same_bits(trainer.bits(), before)


def test_parameters_in_float16_are_refused():
    trainer = Mixed("sam", scaler=scaler(), dtype=torch.float16)
    before = trainer.bits()
    with pytest.raises(ValueError, match="float32 parameters, these are float16"):
        trainer.step()
    assert trainer.calls == []
    assert_same_bits(trainer.bits(), before)


@pytest.mark.usefixtures("smooth")
@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_masters_and_a_scaler_work_together_or_are_refused(narrow):
    """The gradients are those of the narrow faces, and the scaler must see them."""
    options: dict[str, Any] = {"dtype": narrow, "precision": narrow, "masters": True}
    trainer, plain = Mixed("sam", scaler=scaler(2.0**8), **options), Mixed("sam", **options)
    try:
        trainer.run(2)
    except ValueError as error:
        assert "float32 parameters" in str(error)  # noqa: PT017
        assert trainer.calls == []
    else:
        plain.run(2)
        for a, b in zip(
            trainer.base.param_groups[0]["params"],
            plain.base.param_groups[0]["params"],
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_a_closure_that_forgets_to_scale_is_told_so():
    trainer = Mixed("sam", scaler=scaler())
    unscaled = Mixed("sam")
    unscaled.model, unscaled.optimizer = trainer.model, trainer.optimizer
    before = trainer.bits()
    with pytest.raises(Exception, match=r"scaler\.scale\(loss"):
        amp.step(trainer.optimizer, trainer.scaler, *unscaled.closures())
    assert_same_bits(without_counts(trainer.bits()), without_counts(before))


def test_missing_closures_are_refused_as_ever():
    trainer = Mixed("agnostic-sam", scaler=scaler())
    with pytest.raises(ValueError, match=r"step\(closure, aux_closure\)"):
        amp.step(trainer.optimizer, trainer.scaler, trainer.closures()[0])
    assert trainer.calls == []


# --- a scaler that is off, and bfloat16


@every_method
def test_a_scaler_that_is_off_changes_nothing(method):
    plain = Mixed(method, precision=torch.bfloat16)
    off = Mixed(method, scaler=scaler(enabled=False), precision=torch.bfloat16)
    assert_same_bits(off.run(4).bits(), plain.run(4).bits())


@every_method
def test_with_a_scaler_that_is_off_a_nan_is_an_accident(method):
    trainer = Mixed(method, scaler=scaler(enabled=False), precision=torch.bfloat16)
    trainer.factor = lambda batch, call: float("nan")
    with pytest.warns(RuntimeWarning, match="skipped"):
        trainer.step()
    strict = Mixed(method, scaler=scaler(enabled=False), nonfinite="raise")
    strict.factor = trainer.factor
    with pytest.raises(FloatingPointError):
        strict.step()


def test_a_step_without_the_scaler_afterwards_unscales_nothing():
    trainer, plain = tame("sam", scaler=scaler()), tame("sam")
    trainer.run(2), plain.run(2)
    trainer.scaler = None
    assert_same_bits(trainer.run(2).bits(), plain.run(2).bits())


class Enclosed(Mixed):
    """The loop's own backward pass is under autocast as well."""

    def closure(self, kind: str, chosen: Tensor | None = None) -> Tensor:
        with self.autocast():
            return super().closure(kind, chosen)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@every_method_over_a_base
def test_autocast_around_the_step_is_autocast_around_its_passes(method, base, precision):
    """Autocast keeps the weights that it has cast, but perturbed ones must be cast anew."""
    inside = Enclosed(method, base, precision=precision)
    around = Mixed(method, base, precision=precision)
    for _ in range(3):
        inside.step()
        with around.autocast():
            around.step()
    assert_same_bits(around.bits(), inside.bits())


@every_method
def test_autocast_around_the_loop_of_passes_too(method):
    inside = Enclosed(method, precision=torch.bfloat16).run(1)
    around = Mixed(method, precision=torch.bfloat16)
    torch.manual_seed(1000)
    with around.autocast():
        for turn in around.optimizer.passes():
            with torch.set_grad_enabled(turn.gradient):
                loss = around.closure(turn.batch, turn.samples)
            if around.method.per_sample and turn.gradient:
                loss.mean().backward()
            turn.done(loss)
    assert_same_bits(around.bits(), inside.bits())


@every_base
def test_bfloat16_autocast_is_sam_by_hand(base):
    trainer = Mixed("sam", base, rho=0.1, precision=torch.bfloat16)
    hand = Mixed("sgd", base, precision=torch.bfloat16)
    params = list(hand.model.parameters())
    for _ in range(3):
        trainer.step()
        hand.calls.clear()
        torch.manual_seed(1000 + hand.steps)
        hand.base.zero_grad()
        hand.closure("primary")
        grads = [p.grad.clone() for p in params]
        length = torch.cat([g.flatten() for g in grads]).double().norm()
        home = [p.detach().clone() for p in params]
        statistics = [b.clone() for b in hand.model.buffers()]
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p += 0.1 / length * g
        torch.manual_seed(1000 + hand.steps)
        hand.base.zero_grad()
        hand.closure("primary")
        with torch.no_grad():
            for p, w in zip(params, home, strict=True):
                p.copy_(w)
            for b, saved in zip(hand.model.buffers(), statistics, strict=True):
                b.copy_(saved)
        hand.base.step()
        hand.steps += 1
    for a, b in zip(trainer.model.parameters(), params, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 if base == "sgd" else 1e-3)
    assert trainer.optimizer.cost.perturbed == 3

"""Many small batches as one big one, and a gradient that is clipped where it is descended."""

from __future__ import annotations

from functools import partial
from math import inf, nan
from typing import Any

import pytest
import torch
from tables import ALONE, BEGIN_PERTURBED, LOOKING, METHODS, TOTAL, Trainer, each_over_one
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

import flatmin

every_method_over_a_base = pytest.mark.parametrize("method, base", each_over_one(METHODS, ALONE))
every_method = pytest.mark.parametrize("method", METHODS)
every_looking_method = pytest.mark.parametrize("method", LOOKING)

MICRO = 6
STEPS = 7

# A reuse divides by the norm of what it reuses, which is small, and so it magnifies rounding.
TOLERANCE = {name: 1e-5 if "look-" in name else 1e-6 for name in METHODS}


class Accumulator(Trainer):
    """A trainer whose closures run micro-batch by micro-batch, on a network that can tell none."""

    def __init__(self, method: str, base: str = "sgd", size: int = MICRO, **options: Any) -> None:
        super().__init__(method, base, **options)
        self.size = size

    def closure(self, kind: str, chosen: Tensor | None = None) -> Tensor:
        self.calls.append(kind)
        x, y = self.batch(kind)
        x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
        if self.method.per_sample:
            micro = zip(x.split(self.size), y.split(self.size), strict=True)
            return torch.cat([cross_entropy(self.model(x), y, reduction="none") for x, y in micro])
        total = torch.zeros((), dtype=self.dtype)
        for x_i, y_i in zip(x.split(self.size), y.split(self.size), strict=True):
            loss = cross_entropy(self.model(x_i), y_i) * len(x_i) / len(x)
            loss.backward()
            total += loss.detach()
        return total


def smooth(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Neither BatchNorm nor dropout: a big batch is then no more than its parts."""
    return nn.Sequential(nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 10)).to(dtype)


@pytest.fixture(autouse=True)
def _smooth_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tables.network", smooth)


def distance(a: nn.Module, b: nn.Module) -> float:
    """The relative distance of two networks' weights."""
    u, v = (nn.utils.parameters_to_vector(m.parameters()).double() for m in (a, b))
    return ((u - v).norm() / v.norm()).item()


class Recorded:
    """The gradients that a trainer's base optimizer gets, as it gets them."""

    def __init__(self, trainer: Trainer) -> None:
        self.seen: list[list[Tensor]] = []
        trainer.base.register_step_pre_hook(lambda base, *_: self.seen.append(gradients(base)))


def gradients(base: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad.clone() for group in base.param_groups for p in group["params"]]


def norm(tensors: list[Tensor]) -> float:
    return float(torch.cat([x.flatten() for x in tensors]).double().norm())


def clipped(tensors: list[Tensor], longest: float) -> list[Tensor]:
    """What torch makes of them."""
    params = [nn.Parameter(torch.zeros_like(x)) for x in tensors]
    for p, x in zip(params, tensors, strict=True):
        p.grad = x.clone()
    clip_grad_norm_(params, longest)
    return [p.grad for p in params]


# --- accumulation


@pytest.mark.parametrize("size", [6, 5, 1])
@every_method_over_a_base
def test_micro_batches_are_the_big_batch_in_double_precision(method, base, size):
    whole = Trainer(method, base, dtype=torch.float64).run(STEPS)
    parts = Accumulator(method, base, size, dtype=torch.float64).run(STEPS)
    assert distance(parts.model, whole.model) <= 1e-10
    assert parts.optimizer.cost == whole.optimizer.cost


@every_method
def test_micro_batches_are_the_big_batch_in_single_precision(method):
    whole, parts = Trainer(method).run(STEPS), Accumulator(method).run(STEPS)
    assert distance(parts.model, whole.model) <= TOLERANCE[method]
    assert parts.optimizer.cost == whole.optimizer.cost


@every_method
def test_the_loss_of_micro_batches_is_that_of_the_big_batch(method):
    whole, parts = Trainer(method), Accumulator(method)
    for _ in range(3):
        assert float(parts.step()) == pytest.approx(float(whole.step()), rel=1e-5)


@every_method
def test_micro_batches_by_passes_are_the_big_batch(method):
    whole = Trainer(method, dtype=torch.float64).run(STEPS)
    parts = Accumulator(method, dtype=torch.float64)
    for _ in range(STEPS):
        with parts.optimizer.passes() as step:
            for turn in step:
                with torch.set_grad_enabled(turn.gradient):
                    loss = parts.closure(turn.batch, turn.samples)
                if parts.method.per_sample and turn.gradient:
                    loss.mean().backward()
                turn.done(loss)
        parts.steps += 1
    assert distance(parts.model, whole.model) <= 1e-10


@every_looking_method
def test_the_radius_is_that_of_the_big_batch(method):
    whole = Trainer(method, dtype=torch.float64, measure_radius=True).run(STEPS)
    parts = Accumulator(method, dtype=torch.float64, measure_radius=True).run(STEPS)
    assert parts.optimizer.cost.radius == pytest.approx(whole.optimizer.cost.radius, rel=1e-9)
    assert whole.optimizer.cost.radius > 0.01


@every_method
def test_one_bad_micro_batch_drops_the_whole_step(method):
    trainer = Accumulator(method)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    spoiled = trainer.batch("primary")[0].clone()
    spoiled[7] = nan
    trainer.batch = lambda kind: (spoiled, Trainer.batch(trainer, kind)[1])  # type: ignore[method-assign]
    if trainer.method.auxiliary:
        plain = partial(Trainer.batch, trainer)
        trainer.batch = lambda kind: (  # type: ignore[method-assign]
            plain(kind) if kind == "auxiliary" else (spoiled, plain(kind)[1])
        )
    with pytest.warns(RuntimeWarning, match="skipped"):
        trainer.step()
    assert all(map(torch.equal, before, trainer.model.parameters()))
    assert trainer.optimizer.cost.skipped == 1


# --- clipping


@pytest.mark.parametrize("share", [0.5, 0.01])
@every_method_over_a_base
def test_the_gradient_that_is_descended_is_clipped_as_torch_does(method, base, share):
    free = Trainer(method, base, dtype=torch.float64)
    raw = Recorded(free)
    free.step()
    longest = share * min(map(norm, raw.seen))
    bound = Trainer(method, base, dtype=torch.float64, max_norm=longest)
    given = Recorded(bound)
    bound.step()
    assert len(given.seen) == len(raw.seen) > 0
    for ours, before in zip(given.seen, raw.seen, strict=True):
        # torch adds 1e-6 to the norm that it divides by, we add 1e-12
        torch.testing.assert_close(ours, clipped(before, longest), rtol=3e-5, atol=0)
        assert norm(ours) == pytest.approx(longest, rel=1e-9)


@every_method
def test_a_gradient_that_is_short_enough_is_not_touched(method):
    free, bound = Trainer(method).run(STEPS), Trainer(method, max_norm=1e6).run(STEPS)
    for a, b in zip(bound.model.parameters(), free.model.parameters(), strict=True):
        assert torch.equal(a, b)


@every_method
def test_a_step_that_looks_nowhere_is_clipped_too(method):
    """Of every kind of step there is: those of LookSAM between two looks, of AE-SAM without."""
    trainer = Trainer(method, max_norm=0.05)
    given = Recorded(trainer)
    trainer.run(TOTAL)
    assert all(norm(seen) == pytest.approx(0.05, rel=1e-5) for seen in given.seen)
    assert len(given.seen) == (5 * TOTAL if method == "lookbehind-sam" else TOTAL)


@pytest.mark.parametrize("groups", ["one group", "two groups"])
def test_the_norm_is_over_all_groups(groups):
    trainer = Trainer("sam", groups=groups, max_norm=0.05)
    given = Recorded(trainer)
    trainer.step()
    assert norm(given.seen[0]) == pytest.approx(0.05, rel=1e-6)


@every_looking_method
def test_the_gradient_that_is_climbed_is_never_clipped(method):
    """With a learning rate of 0 all else stays equal, so that every look is the same."""
    options: dict[str, Any] = {"dtype": torch.float64, "lr": 0.0, "measure_radius": True}
    free, bound = Trainer(method, **options), Trainer(method, max_norm=1e-3, **options)
    looks: dict[int, list[Tensor]] = {id(free): [], id(bound): []}
    for trainer in (free, bound):
        trainer.on_call = lambda batch, call, t=trainer: looks[id(t)].append(
            nn.utils.parameters_to_vector(t.model.parameters()).detach().clone()
        )
        trainer.run(TOTAL)
    if method != "msam":
        assert free.optimizer.cost == bound.optimizer.cost
    assert free.optimizer.cost.radius == pytest.approx(bound.optimizer.cost.radius, rel=1e-6)
    assert free.optimizer.cost.radius > 0.01
    passes = len(looks[id(free)])
    assert passes == len(looks[id(bound)])
    assert passes == TOTAL if method in BEGIN_PERTURBED else passes > TOTAL
    if method == "msam":  # it looks along the base's momentum, which is one of clipped gradients
        assert not all(map(torch.equal, looks[id(free)], looks[id(bound)]))
        return
    assert all(map(torch.equal, looks[id(free)], looks[id(bound)]))


@every_looking_method
def test_what_is_remembered_is_never_clipped(method):
    options: dict[str, Any] = {"dtype": torch.float64, "lr": 0.0}
    free = Trainer(method, **options).run(3)
    bound = Trainer(method, max_norm=1e-3, **options).run(3)
    names = (*free.optimizer.direction.buffers, *free.optimizer.descent.buffers)
    names = () if method == "msam" else names  # of a base with momentum it keeps nothing
    for p, q in zip(free.model.parameters(), bound.model.parameters(), strict=True):
        for name in names:
            assert torch.equal(free.optimizer.state[p][name], bound.optimizer.state[q][name])


@every_method
def test_clipping_and_micro_batches_go_together(method):
    whole = Trainer(method, dtype=torch.float64, max_norm=0.1).run(STEPS)
    parts = Accumulator(method, dtype=torch.float64, max_norm=0.1).run(STEPS)
    assert distance(parts.model, whole.model) <= 1e-10


@every_method
def test_without_looking_at_norms_clipping_still_does(method):
    trainer = Trainer(method, max_norm=0.05, nonfinite="ignore")
    given = Recorded(trainer)
    trainer.run(3)
    assert all(norm(seen) == pytest.approx(0.05, rel=1e-5) for seen in given.seen)


@every_method
def test_a_zero_gradient_is_clipped_to_zero(method):
    trainer = Trainer(method, max_norm=0.5)
    trainer.factor = lambda batch, call: 0.0
    given = Recorded(trainer)
    trainer.step()
    assert all(norm(seen) == 0.0 for seen in given.seen)


@pytest.mark.parametrize("longest", [0.0, -1.0, nan, inf, -inf])
def test_a_longest_norm_out_of_range_is_refused(longest):
    base = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="max_norm") as error:
        flatmin.SAM(base, max_norm=longest)
    assert repr(longest) in str(error.value)


@pytest.mark.parametrize("longest", ["1.0", [1.0]])
def test_a_longest_norm_that_is_no_number_is_refused(longest):
    base = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises((TypeError, ValueError), match="max_norm"):
        flatmin.SAM(base, max_norm=longest)

"""float32 masters of bfloat16 parameters."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from tables import LOOKING, METHODS, Trainer, assert_same_bits
from torch import nn

import flatmin


def quietly(trainer: Trainer, steps: int) -> Trainer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the perturbation", RuntimeWarning)
        return trainer.run(steps)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_resuming_with_masters_gives_the_same_bits(method, base):
    whole = quietly(Trainer(method, base, dtype=torch.bfloat16, masters=True), 3)
    resumed = Trainer(method, base, dtype=torch.bfloat16, masters=True, seed=1)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    resumed.steps = whole.steps
    assert_bits(quietly(resumed, 3), quietly(whole, 3))


def assert_bits(a: Trainer, b: Trainer) -> None:
    for x, y in zip(masters_of(a), masters_of(b), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y)


def masters_of(trainer: Trainer) -> list[torch.Tensor]:
    return [p for group in trainer.optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("method", METHODS)
def test_copies_keep_masters_and_copies_together(method):
    trainer = quietly(Trainer(method, dtype=torch.bfloat16, masters=True), 2)
    other = copy.deepcopy(trainer)
    assert_bits(quietly(other, 2), quietly(trainer, 2))


def test_small_updates_add_up_where_narrow_weights_alone_stand_still():
    def after_many(masters: bool) -> float:
        weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        base = torch.optim.SGD([weight], lr=1e-4)
        optimizer = flatmin.SAM(base, rho=0.0, masters=masters)
        for _ in range(1000):
            optimizer.step(lambda: (-weight.sum()).backward())
        return float(weight.detach())

    assert after_many(masters=False) == 1.0
    assert after_many(masters=True) == pytest.approx(1.1, abs=0.005)


@pytest.mark.parametrize("method", LOOKING)
def test_copies_are_rounded_masters_after_every_step_and_skip(method):
    trainer = Trainer(method, dtype=torch.bfloat16, masters=True, rho=0.5)
    for step in range(4):
        trainer.factor = lambda batch, call, bad=step == 2: float("nan") if bad else 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            trainer.step()
        for master, face in zip(masters_of(trainer), trainer.model.parameters(), strict=True):
            assert master.dtype == torch.float32
            assert face.dtype == torch.bfloat16
            assert torch.equal(face, master.bfloat16())
    assert trainer.optimizer.cost.skipped == 1


def test_an_exception_leaves_masters_and_copies_as_they_were():
    trainer = quietly(Trainer("agnostic-sam", dtype=torch.bfloat16, masters=True, rho=0.5), 2)
    before = [p.detach().clone() for p in masters_of(trainer)]
    copies = {
        name: p.detach().clone().view(torch.uint8) for name, p in trainer.model.named_parameters()
    }

    def fail(batch, call):
        if call == 2:
            raise KeyError(call)

    trainer.on_call = fail
    with pytest.raises(KeyError):
        trainer.step()
    for p, was in zip(masters_of(trainer), before, strict=True):
        assert torch.equal(p, was)
    now = {name: p.detach().view(torch.uint8) for name, p in trainer.model.named_parameters()}
    assert_same_bits(now, copies)


def test_zero_grad_clears_what_the_model_holds():
    trainer = quietly(Trainer("sam", dtype=torch.bfloat16, masters=True), 1)
    for p in trainer.model.parameters():
        p.grad = torch.ones_like(p)
    trainer.optimizer.zero_grad()
    assert all(p.grad is None for p in (*trainer.model.parameters(), *masters_of(trainer)))


def test_wide_parameters_are_their_own_masters():
    model = nn.Linear(2, 2)
    optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1), masters=True)
    assert optimizer.param_groups[0]["params"][0] is model.weight


def test_a_group_added_later_gets_masters():
    trainer = quietly(Trainer("sam", dtype=torch.bfloat16, masters=True), 1)
    late = nn.Linear(10, 10, dtype=torch.bfloat16)
    trainer.optimizer.add_param_group({"params": late.parameters()})
    trainer.model.append(late)
    quietly(trainer, 2)
    assert masters_of(trainer)[-1].dtype == torch.float32
    assert torch.equal(late.bias, masters_of(trainer)[-1].bfloat16())


def test_masters_of_a_base_that_has_stepped_are_refused():
    model = nn.Linear(2, 2, dtype=torch.bfloat16)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    base.step()
    with pytest.raises(ValueError, match="has stepped already"):
        flatmin.SAM(base, masters=True)

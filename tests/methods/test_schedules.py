"""Radii that move: by their formulas, and with the manners of torch's schedulers."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tables import Trainer, assert_same_bits
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR

import flatmin
from flatmin import schedules

TOTAL = 8


def two_groups(**options: Any) -> flatmin.SharpnessAware:
    layers = nn.Linear(3, 2), nn.Linear(2, 2)
    groups = [
        {"params": layers[0].parameters(), "lr": 0.1},
        {"params": layers[1].parameters(), "lr": 0.3, "rho": 0.8},
    ]
    return flatmin.GSAM(torch.optim.SGD(groups, lr=0.1), rho=0.2, **options)


def take_a_step(optimizer: flatmin.SharpnessAware) -> None:
    """So that torch's schedulers are content."""

    def closure() -> torch.Tensor:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        loss = torch.stack([p.square().sum() for p in params]).sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def radii(optimizer: flatmin.SharpnessAware) -> list[float]:
    return [group[optimizer.radius_key] for group in optimizer.param_groups]


def path(schedule: schedules.RhoScheduler, steps: int) -> list[list[float]]:
    """The radii of each step, as the groups have them."""
    found = [radii(schedule.optimizer)]
    for _ in range(steps):
        schedule.step()
        assert radii(schedule.optimizer) == schedule.get_last_rho()
        found.append(radii(schedule.optimizer))
    return found


class Growing:
    """A factor that can be saved."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def __call__(self, t: int) -> float:
        return 1 + self.slope * t


BUILDS: dict[str, Callable[[Any], schedules.RhoScheduler]] = {
    "lambda": partial(schedules.LambdaRho, rho_lambda=Growing(0.5)),
    "linear": partial(schedules.LinearRho, total_steps=TOTAL, end=0.5),
    "cosine": partial(schedules.CosineRho, total_steps=TOTAL, end=0.1),
    "proportional": partial(schedules.ProportionalRho, rho_min=0.05),
}
every_schedule = pytest.mark.parametrize("name", BUILDS)


# --- the formulas


def test_lambda_multiplies_the_radius_of_each_group():
    found = path(schedules.LambdaRho(two_groups(), lambda t: 1 / (1 + t)), 3)
    expected = [[rho / (1 + t) for rho in (0.2, 0.8)] for t in range(4)]
    assert found == [pytest.approx(x) for x in expected]
    found = path(schedules.LambdaRho(two_groups(), [lambda t: 2.0**t, lambda t: 0.5**t]), 3)
    assert found == [pytest.approx([0.2 * 2**t, 0.8 / 2**t]) for t in range(4)]


@pytest.mark.parametrize("end", [0.0, 0.5, 1.0])
def test_linear_and_cosine_go_from_the_radius_to_the_end_and_stay(end: float):
    linear = path(schedules.LinearRho(two_groups(), TOTAL, end), TOTAL + 2)
    cosine = path(schedules.CosineRho(two_groups(), TOTAL, end), TOTAL + 2)
    for t in range(TOTAL + 3):
        done = min(t / TOTAL, 1)
        line = [rho + done * (end - rho) for rho in (0.2, 0.8)]
        wave = [end + (rho - end) * (1 + math.cos(math.pi * done)) / 2 for rho in (0.2, 0.8)]
        assert linear[t] == pytest.approx(line, abs=1e-12)
        assert cosine[t] == pytest.approx(wave, abs=1e-12)
    assert linear[-1] == pytest.approx([end, end])


def test_cosine_is_torchs_of_a_learning_rate():
    optimizer = two_groups()
    for group in optimizer.param_groups:
        group["rho"] = group["lr"]
    rate = CosineAnnealingLR(optimizer, TOTAL, eta_min=0.05)
    radius = schedules.CosineRho(optimizer, TOTAL, end=0.05)
    take_a_step(optimizer)
    for _ in range(TOTAL):
        rate.step()
        radius.step()
        assert radius.get_last_rho() == pytest.approx(rate.get_last_lr(), abs=1e-9)


def test_proportional_is_gsams_line_between_the_bounds():
    optimizer = two_groups()
    rate = CosineAnnealingLR(optimizer, TOTAL, eta_min=0.02)
    radius = schedules.ProportionalRho(optimizer, rho_min=0.1, lr_min=0.02)
    take_a_step(optimizer)
    for _ in range(TOTAL):
        rate.step()
        radius.step()
        expected = [
            0.1 + (rho - 0.1) * (lr - 0.02) / (lr_max - 0.02)
            for rho, lr, lr_max in zip((0.2, 0.8), rate.get_last_lr(), (0.1, 0.3), strict=True)
        ]
        assert radius.get_last_rho() == pytest.approx(expected, abs=1e-9)
    assert radius.get_last_rho() == pytest.approx([0.1, 0.1])


def test_proportional_follows_a_warm_up_and_stays_within_its_bounds():
    optimizer = two_groups()
    rate = SequentialLR(
        optimizer,
        [LambdaLR(optimizer, lambda t: t / 2), LambdaLR(optimizer, lambda t: 1.5)],
        [2],
    )
    radius = schedules.ProportionalRho(optimizer, rho_min=0.1, rho_max=0.5)
    assert radii(optimizer) == [0.1, 0.1]  # the warm-up begins at no learning rate at all
    take_a_step(optimizer)
    found = []
    for _ in range(3):
        rate.step()
        radius.step()
        found.append(radii(optimizer)[0])
    assert found == pytest.approx([0.3, 0.5, 0.5])


# --- what a step makes of it


def test_a_step_takes_the_radius_that_was_set():
    moved, fixed = Trainer("sam"), Trainer("sam")
    schedule = schedules.LinearRho(moved.optimizer, TOTAL, end=0.5)
    for t in range(4):
        assert moved.optimizer.rho == pytest.approx(0.1 + t * 0.05)
        fixed.optimizer.rho = moved.optimizer.rho
        moved.step(), fixed.step()
        schedule.step()
    assert_same_bits(moved.bits(), fixed.bits())


def test_a_radius_that_begins_at_zero_costs_no_look():
    trainer = Trainer("sam")
    schedule = schedules.LambdaRho(trainer.optimizer, lambda t: float(t >= 2))
    for _ in range(4):
        trainer.step()
        schedule.step()
    assert (trainer.optimizer.cost.perturbed, trainer.optimizer.cost.gradients) == (2, 6)


def test_beside_a_rho_of_the_base_the_other_key_moves():
    base = torch.optim.Adadelta(nn.Linear(3, 2).parameters(), lr=0.1, rho=0.9)
    optimizer = flatmin.SAM(base, rho=0.2)
    schedules.LinearRho(optimizer, 2).step()
    assert (base.param_groups[0]["rho"], base.param_groups[0]["sam_rho"]) == (0.9, 0.1)


# --- manners


@every_schedule
@pytest.mark.parametrize("order", ["scheduler last", "optimizer last"])
def test_a_saved_schedule_goes_on(name: str, order: str):
    whole, other = two_groups(), two_groups()
    schedule = BUILDS[name](whole)
    path(schedule, 3)
    saved = copy.deepcopy((schedule.state_dict(), whole.state_dict()))
    if order == "optimizer last":
        resumed = BUILDS[name](other)
        resumed.load_state_dict(saved[0])
        other.load_state_dict(saved[1])
    else:
        other.load_state_dict(saved[1])
        resumed = BUILDS[name](other)
        resumed.load_state_dict(saved[0])
    assert radii(other) == radii(whole)
    assert path(resumed, 4) == path(schedule, 4)


@every_schedule
def test_a_saved_state_is_not_moved_and_is_plain(name: str):
    schedule = BUILDS[name](two_groups())
    saved = schedule.state_dict()
    was = copy.deepcopy(saved)
    path(schedule, 2)
    assert saved == was
    assert "optimizer" not in saved
    assert pickle.loads(pickle.dumps(saved)) == saved


def test_functions_are_not_saved_and_callable_objects_are():
    schedule = schedules.LambdaRho(two_groups(), [lambda t: 1.0, Growing(0.5)])
    saved = copy.deepcopy(schedule.state_dict())
    assert saved["rho_lambdas"] == [None, {"slope": 0.5}]
    resumed = schedules.LambdaRho(two_groups(), [lambda t: 1.0, Growing(9.0)])
    resumed.load_state_dict(saved)
    resumed.step()
    assert resumed.get_last_rho() == pytest.approx([0.2, 1.2])


@pytest.mark.parametrize("count", (1, 3))
def test_a_state_of_other_functions_is_refused_and_nothing_is_loaded(count: int):
    schedule = schedules.LambdaRho(two_groups(), [Growing(0.5), Growing(0.7)])
    saved = path(schedule, 2) and schedule.state_dict()
    saved["rho_lambdas"] = [{"slope": 7.0}] * count
    resumed = schedules.LambdaRho(two_groups(), [Growing(1.0), Growing(2.0)])
    was = copy.deepcopy(resumed.state_dict())
    with pytest.raises(ValueError, match=f"the state is of {count} functions and this sch.* has 2"):
        resumed.load_state_dict(saved)
    assert resumed.state_dict() == was


@every_schedule
def test_a_group_that_is_added_later_moves_too(name: str):
    optimizer = two_groups()
    schedule = BUILDS[name](optimizer)
    schedule.step()
    late = {"params": nn.Linear(2, 2).parameters(), "lr": 0.1, "rho": 0.6}
    optimizer.add_param_group(late)
    schedule.step()
    assert schedule.base_rhos == [0.2, 0.8, 0.6]
    alone = flatmin.GSAM(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), rho=0.6)
    assert schedule.get_last_rho()[-1] == path(BUILDS[name](alone), 2)[-1][0]


# --- bad input


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda o: schedules.LinearRho(o, 0), "total_steps"),
        (lambda o: schedules.CosineRho(o, TOTAL, -0.1), "end"),
        (lambda o: schedules.ProportionalRho(o, rho_min=0.5), "rho_min is 0.5 and rho_max 0.2"),
        (lambda o: schedules.ProportionalRho(o, 0.5, 0.4), "rho_min is 0.5 and rho_max 0.4"),
        (lambda o: schedules.ProportionalRho(o, lr_min=0.2), "lr_min is 0.2 and lr_max 0.1"),
        (lambda o: schedules.ProportionalRho(o, lr_min=0.2, lr_max=0.2), "lr_max"),
        (lambda o: schedules.ProportionalRho(o, rho_min=-1), "rho_min"),
        (lambda o: schedules.LambdaRho(o, lambda t: -1.0), "rho must be"),
        (lambda o: schedules.LambdaRho(o, [lambda t: 1.0]), "1 functions and 2 parameter groups"),
    ],
)
def test_what_cannot_be_is_refused_and_moves_no_radius(build: Any, words: str):
    optimizer = two_groups()
    with pytest.raises(ValueError, match=words):
        build(optimizer)
    assert radii(optimizer) == [0.2, 0.8]


def test_what_has_no_radius_and_what_is_no_function_is_refused():
    base = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"flatmin\.SAM\(base\)"):
        schedules.LinearRho(base, TOTAL)
    with pytest.raises(TypeError, match="lambda t: "):
        schedules.LambdaRho(two_groups(), 0.5)

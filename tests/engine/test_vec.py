"""The algebra of vectors, and that it is the same where numbers stay on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from tables import BEGIN_PERTURBED, LOOKING, METHODS, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import flatmin
from flatmin.engine import space as engine_space
from flatmin.engine.space import LARGE, Space
from flatmin.engine.vec import ZERO, Term, Vector


def space() -> Space:
    """Two groups, with tensors on both sides of what counts as large."""
    shapes = [[(3,), (LARGE + 5,), (2, 4)], [(), (0,), (300, 200)]]
    return Space([[torch.randn(s, dtype=torch.float64) for s in group] for group in shapes])


def test_blocks_are_large_and_empty_tensors_and_the_small_ones_of_a_group_joined():
    s = space()
    assert [b.members for b in s.blocks] == [(0, 2), (3,), (1,), (4,), (5,)]
    pieces = [p.clone() for p in s.params]
    back = {
        i: x
        for j, block in enumerate(s.join(pieces))
        for i, x in zip(s.blocks[j].members, s.split(j, block), strict=True)
    }
    assert all(torch.equal(back[i], p) for i, p in enumerate(pieces))


def test_a_combination_is_what_it_says_wherever_it_is_evaluated():
    s = space()
    x, y = (s.join([torch.randn_like(p) for p in s.params]) for _ in range(2))
    a, b = Vector(Term(x)), Vector(Term(y))
    combination = a - 0.5 * (0.9 * b + 0.25 * a)
    expected = [p - 0.5 * (0.9 * q + 0.25 * p) for p, q in zip(x, y, strict=True)]
    assert len(combination.terms) == 2
    for j, e in enumerate(expected):
        torch.testing.assert_close(combination.block(j), e)
        for out in (torch.empty_like(e), x[j].clone(), y[j].clone()):
            torch.testing.assert_close(combination.into(out, j), e)
        into_own = Vector(Term([z.clone() for z in x]))
        mixed = into_own - 0.5 * b
        out = into_own.terms[0].blocks[j]
        assert mixed.into(out, j) is out
        torch.testing.assert_close(out, x[j] - 0.5 * y[j])
        into_second = b - 2.0 * into_own
        into_second.into(out, j)
        torch.testing.assert_close(out, y[j] - 2.0 * (x[j] - 0.5 * y[j]))


@pytest.mark.parametrize("at", range(3))
def test_a_vector_in_a_metric_may_be_evaluated_where_one_of_its_terms_is(at: int):
    """Whether that one is plain or in the metric, or what the metric itself is made of."""
    x, y, z = torch.randn(3, 5, dtype=torch.float64).unbind()
    owned = [[x.clone()], [y.clone()], [z.clone()]]
    a, b, c = (Vector(Term(blocks)) for blocks in owned)

    def metric(j: int) -> Tensor:
        return 1.0 + owned[2][j].square()

    t = 1.0 + z.square()
    for combination, expected in (
        (a + 2.0 * b.in_metric(metric) + 3.0 * c, x + 2.0 * t * y + 3.0 * z),
        (b.in_metric(metric) + a, t * y + x),
        ((a - 2.0 * b + c).in_metric(metric), t * (x - 2.0 * y + z)),
        (c.in_metric(metric) + 2.0 * a.in_metric(metric) + b, t * z + 2.0 * t * x + y),
    ):
        for blocks, start in zip(owned, (x, y, z), strict=True):
            blocks[0].copy_(start)
        out = owned[at][0]
        torch.testing.assert_close(combination.into(out, 0), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_ranks_with_shards_of_any_size_sum_in_one_order(monkeypatch: pytest.MonkeyPatch):
    """A rank whose share of a tensor is small, or empty, joins it with others."""
    order: list[str] = []
    monkeypatch.setattr(dist, "all_reduce", lambda part, group: order.append(group))
    monkeypatch.setattr(engine_space, "_shard_groups", lambda p: tuple(p.split_over))

    def reduced(sizes: tuple[int, int, int]) -> list[str]:
        params = [torch.randn(size) for size in sizes]
        for p, groups in zip(params, (["a", "b"], ["a"], []), strict=True):
            p.split_over = groups  # type: ignore[attr-defined]
        space = Space([params])
        order.clear()
        space.norm(Vector(Term(space.join(params))))
        return list(order)

    assert reduced((LARGE + 1, 3, 5)) == ["a", "b", "a"]
    assert reduced((LARGE + 1, 0, 5)) == reduced((2, 3, 5)) == ["a", "b", "a"]


def test_a_running_mean_in_place_is_a_lerp():
    s = space()
    x, y = (s.join([torch.randn_like(p) for p in s.params]) for _ in range(2))
    old = [z.clone() for z in x]
    mean = 0.9 * Vector(Term(x)) + (1 - 0.9) * Vector(Term(y))
    for j, block in enumerate(x):
        mean.into(block, j)
        torch.testing.assert_close(block, 0.9 * old[j] + 0.1 * y[j])


def test_metrics_multiply_what_is_inside_them():
    s = space()
    x, y, t = (s.join([torch.rand_like(p) for p in s.params]) for _ in range(3))
    metric = t.__getitem__
    a, b = Vector(Term(x)).in_metric(metric), Vector(Term(y)).in_metric(metric)
    for combination, plain in ((2.0 * a - b, 0.0), (2.0 * a - b + Vector(Term(t)), 1.0)):
        for j in range(len(s.blocks)):
            torch.testing.assert_close(
                combination.block(j), plain * t[j] + t[j] * (2 * x[j] - y[j])
            )
    by_block = (a + Vector(Term(y))).scaled([1.0, 2.0, 3.0, 4.0, 5.0])
    for j in range(len(s.blocks)):
        torch.testing.assert_close(by_block.block(j), (j + 1) * (t[j] * x[j] + y[j]))


def test_dots_and_norms_are_over_everything():
    s = space()
    pieces = [torch.randn_like(p) for p in s.params], [torch.randn_like(p) for p in s.params]
    a, b = (Vector(Term(s.join(list(x)))) for x in pieces)
    flat, other = (torch.cat([x.flatten() for x in p]) for p in pieces)
    assert s.dot(a, b) == pytest.approx(float(flat @ other))
    assert s.norm(a - 3 * b) == pytest.approx(float((flat - 3 * other).norm()))
    assert s.norm(ZERO) == 0.0
    assert s.dot(a, ZERO) == 0.0
    with pytest.raises(ValueError, match="zero vector"):
        ZERO.block(0)


def test_tensors_in_channels_last_are_measured_without_a_copy_of_their_order():
    x = torch.randn(64, 64, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    s = Space([[x]])
    assert s.norm(Vector(Term([x]))) == pytest.approx(float(x.norm()))
    y = torch.randn(64, 64, 3, 3, dtype=torch.float64)
    assert s.dot(Vector(Term([x])), Vector(Term([y]))) == pytest.approx(float((x * y).sum()))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What accelerators do, done on the CPU: no number comes to the host by itself."""
    made = Space.__init__

    def elsewhere(self: Space, *args: Any) -> None:
        made(self, *args)
        self.on_host = False

    monkeypatch.setattr(Space, "__init__", elsewhere)


@pytest.mark.parametrize("method", LOOKING)
@pytest.mark.parametrize("groups", ["one group", "two groups"])
def test_numbers_that_stay_on_the_device_give_the_same_steps(method, groups, request):
    here = Trainer(method, "sgd", groups, dtype=torch.float64, max_norm=1.0).run(6)
    request.getfixturevalue("device")
    there = Trainer(method, "sgd", groups, dtype=torch.float64, max_norm=1.0).run(6)
    for a, b in zip(here.model.parameters(), there.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


class Waits(TorchDispatchMode):
    """Counts how often the host asks for a number."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("nonfinite", "once_a_step"), [("ignore", 0), ("skip", 1)])
def test_the_host_waits_for_the_device_once_a_step_to_skip_it_and_else_never(
    method, nonfinite, once_a_step
):
    trainer = Trainer(method, nonfinite=nonfinite, max_norm=1.0).run(1)
    branches = isinstance(trainer.optimizer.policy, flatmin.policy.LargeGradient)
    with Waits() as waits:
        trainer.run(4)
    assert waits.count == 4 * (once_a_step + branches)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("call", [0, 1])
def test_a_step_that_is_not_finite_is_dropped_on_the_device_too(method, call):
    trainer = Trainer(method).run(3)
    before = trainer.bits()
    trainer.factor = lambda batch, at: float("nan") if at == call else 1.0
    looks = method != "sgd" and isinstance(trainer.optimizer.policy, flatmin.policy.Always)
    if call and (not looks or method in BEGIN_PERTURBED):
        pytest.skip("this step has one pass")
    with pytest.warns(RuntimeWarning, match="skipped"):
        trainer.step()
    after = trainer.bits()
    assert trainer.optimizer.cost.skipped == 1
    for name, bits in before.items():
        if "flatmin" not in name and not name.startswith("group"):
            assert torch.equal(bits, after[name]), name


@pytest.mark.parametrize("shape", [(4, 3), (5,), (4, 3, 3, 3)])
def test_small_tensors_that_are_alike_but_for_their_first_dimension_are_joined_by_runs(shape):
    like = [torch.randn(n, *shape[1:]) for n in (shape[0], 2, 7, 1, 3)]
    if len(shape) == 4:
        like[1] = like[1].to(memory_format=torch.channels_last)
    others = [torch.randn(2, n) for n in (9, 8, 7)]
    for tensors, several in ((like, True), (like + others, False)):
        s = Space([tensors])
        (block,) = s.blocks
        assert bool(block.runs) is several
        (flat,) = s.join(tensors)
        assert torch.equal(flat, torch.cat([tensors[i].reshape(-1) for i in block.members]))
        for i, piece in zip(block.members, s.split(0, flat), strict=True):
            assert torch.equal(piece, tensors[i])
        runs = s.split_by_runs(0, flat)
        assert sum(run.numel() for run in runs) == (flat.numel() if several else 0)
        for run, members in zip(runs, block.runs, strict=True):
            assert torch.equal(run, torch.cat([tensors[i] for i in block.members[members]]))
            assert run.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()

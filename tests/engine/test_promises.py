"""What other libraries get wrong, and we must not: every promise over every method and base."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from inspect import signature
from typing import Any

import pytest
import torch
from tables import (
    BASES_IN_GROUPS,
    BEGIN_PERTURBED,
    LOOKING,
    METHODS,
    TOTAL,
    Trainer,
    assert_same_bits,
    each_over_one,
)
from torch import nn

import flatmin
from flatmin.engine.several import Several

every_method = pytest.mark.parametrize("method", METHODS)
every_looking_method = pytest.mark.parametrize("method", LOOKING)
every_base_and_grouping = pytest.mark.parametrize("base, groups", BASES_IN_GROUPS)


every_method_somewhere = pytest.mark.parametrize(
    "method, base, groups", each_over_one(METHODS, BASES_IN_GROUPS)
)


def everywhere(test):
    return every_method(every_base_and_grouping(test))


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@everywhere
def test_resuming_gives_the_same_bits_as_not_stopping(method, base, groups):
    whole = Trainer(method, base, groups).run(3)
    resumed = Trainer(method, base, groups, seed=1)
    resumed.model.load_state_dict(through_a_file(whole.model.state_dict()))
    resumed.optimizer.load_state_dict(through_a_file(whole.optimizer.state_dict()))
    resumed.steps = whole.steps
    assert_same_bits(resumed.bits(), whole.bits())
    assert_same_bits(resumed.run(4).bits(), whole.run(4).bits())
    assert resumed.optimizer.cost == whole.optimizer.cost


@every_method
def test_loading_between_steps_gives_the_same_bits_as_not_having_stepped(method):
    whole, other = Trainer(method).run(3), Trainer(method, seed=1).run(4)
    other.model.load_state_dict(whole.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    other.steps = whole.steps
    assert_same_bits(other.run(3).bits(), whole.run(3).bits())


@pytest.mark.parametrize("grows", (True, False))
@every_method_somewhere
def test_a_parameter_may_be_let_go_or_frozen_between_steps(method, base, groups, grows: bool):
    """As fine-tuning does, layer by layer: from there on as a training that begins so."""
    trainer, other = (Trainer(method, base, groups, seed=seed) for seed in (0, 1))
    for each in (trainer, other):
        each.model[4].weight.requires_grad_(not grows)
    walk = trainer.run(1).optimizer._walk
    assert trainer.run(1).optimizer._walk is walk  # nothing is laid out anew where nothing changed
    other.model[4].weight.requires_grad_(grows)
    trainer.model[4].weight.requires_grad_(grows)
    other.model.load_state_dict(trainer.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
    other.steps = trainer.steps
    was = trainer.model[4].weight.detach().clone()
    assert_same_bits(other.run(2).bits(), trainer.run(2).bits())
    assert torch.equal(trainer.model[4].weight, was) is not grows


@everywhere
def test_a_saved_state_is_not_moved_by_later_steps(method, base, groups):
    trainer = Trainer(method, base, groups).run(2)
    saved = trainer.optimizer.state_dict()
    numbers = copy.deepcopy([group["flatmin"] for group in saved["param_groups"]])
    trainer.run(2)
    assert [group["flatmin"] for group in saved["param_groups"]] == numbers


@every_method_somewhere
def test_resuming_through_a_distributed_checkpoint(method, base, groups, tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_state_dict,
    )

    flatten = groups == "two groups"  # both forms, each over every method
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    alone: Any = {"no_dist": True} if "no_dist" in signature(dcp.save).parameters else {}
    whole = Trainer(method, base, groups).run(3)
    resumed = Trainer(method, base, groups, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one process without a process group
        model, optimizer = get_state_dict(whole.model, whole.optimizer, options=options)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path, **alone)
        model, optimizer = get_state_dict(resumed.model, resumed.optimizer, options=options)
        dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path, **alone)
        set_state_dict(
            resumed.model,
            resumed.optimizer,
            model_state_dict=model,
            optim_state_dict=optimizer,
            options=options,
        )
    resumed.steps = whole.steps
    assert_same_bits(resumed.run(4).bits(), whole.run(4).bits())


@everywhere
def test_a_scheduler_reaches_the_base_after_loading_and_groups_may_be_added(method, base, groups):
    trainer = Trainer(method, base, groups)
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=1, gamma=0.5)
    trainer.step()
    scheduler.step()
    trainer.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
    before = trainer.base.param_groups[0]["lr"]
    trainer.step()
    scheduler.step()
    assert trainer.base.param_groups[0]["lr"] == pytest.approx(before / 2)

    late = nn.Linear(10, 10)
    several = isinstance(trainer.base, Several)  # which one is to step it?
    optimizer = trainer.base.optimizers[-1] if several else trainer.optimizer
    optimizer.add_param_group({"params": list(late.parameters()), "rho": 0.7})
    assert trainer.base.param_groups[-1]["rho"] == 0.7
    trainer.model.append(late)
    was = late.weight.detach().clone()
    trainer.step()
    assert not torch.equal(late.weight, was)
    assert len({str(group["flatmin"]) for group in trainer.optimizer.param_groups}) == 1


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@every_method_somewhere
def test_copies_of_the_optimizer_keep_the_base(method, base, groups, clone):
    trainer = Trainer(method, base, groups).run(3)
    other = Trainer(method, base, groups)
    other.model, other.optimizer = clone((trainer.model, trainer.optimizer))
    other.base, other.steps = other.optimizer.base, trainer.steps
    assert other.base is not trainer.base
    assert_same_bits(other.run(3).bits(), trainer.run(3).bits())


@every_method_somewhere
def test_statistics_move_once_a_step_and_dropout_repeats(method, base, groups):
    trainer = Trainer(method, base, groups)
    masks: dict[str, list[torch.Tensor]] = {"primary": [], "auxiliary": []}
    trainer.model[3].register_forward_hook(
        lambda module, inputs, output: masks[trainer.calls[-1]].append(output == 0)
    )
    inactive = {"primary": [], "auxiliary": []}
    trainer.model[2].register_forward_hook(
        lambda module, inputs, output: inactive[trainer.calls[-1]].append(output == 0)
    )
    plain = nn.BatchNorm1d(12)
    x, _ = trainer.batch("primary")
    # At `w`, or at `w + eps` where the step begins there.
    trainer.on_call = lambda batch, call: call or plain(trainer.model[0](x))
    trainer.step()
    norm = trainer.model[1]
    assert norm.num_batches_tracked == 1
    assert torch.equal(norm.running_mean, plain.running_mean)
    assert torch.equal(norm.running_var, plain.running_var)
    if not trainer.method.per_sample:  # ESAM evaluates other samples the second time
        for kind, seen in masks.items():
            for mask, dead in zip(seen[1:], inactive[kind][1:], strict=True):
                alive = ~(dead | inactive[kind][0])
                assert torch.equal(mask[alive], seen[0][alive])


@every_looking_method
def test_without_replay_the_masks_differ(method):
    replayed = Trainer(method).run(8).bits()
    fresh = Trainer(method, replay_random=False).run(8).bits()
    differ = any(not torch.equal(replayed[name], x) for name, x in fresh.items())
    assert differ is (method not in BEGIN_PERTURBED)  # of one pass there is nothing to replay


@every_method_somewhere
def test_random_numbers_go_on_as_if_the_base_alone_had_drawn(method, base, groups):
    trainer = Trainer(method, base, groups)
    if trainer.method.auxiliary:
        pytest.skip("an auxiliary batch is new to the stream and draws masks of its own")
    torch.manual_seed(1000)
    trainer.model[3](torch.ones(24, 12))
    expected = torch.rand(3)
    trainer.step()
    assert torch.equal(torch.rand(3), expected)


@every_method_somewhere
def test_the_loss_at_the_unperturbed_weights_is_returned(method, base, groups):
    """Or at the perturbed ones, where the step begins there."""
    trainer = Trainer(method, base, groups).run(1)
    before = copy.deepcopy(trainer.model)
    stood = []
    trainer.on_call = lambda batch, call: call or stood.append(copy.deepcopy(trainer.model))
    x, y = trainer.batch("primary")
    loss = trainer.step()
    begins = method in BEGIN_PERTURBED
    same = zip(stood[0].parameters(), before.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in same) is not begins
    torch.manual_seed(1001)
    expected = torch.nn.functional.cross_entropy(stood[0](x), y, reduction="none").mean()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert not loss.requires_grad


def spoiled_calls(method: str) -> list[int]:
    trainer = Trainer(method)
    trainer.run(1)
    return list(range(len(trainer.calls)))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@every_method_somewhere
def test_a_step_that_is_not_finite_leaves_no_trace(method, base, groups, bad):
    for spoiled in spoiled_calls(method):
        trainer = Trainer(method, base, groups)
        clean = Trainer(method, base, groups)
        trainer.factor = lambda batch, call, spoiled=spoiled: bad if call == spoiled else 1.0
        before = trainer.bits()
        with pytest.warns(RuntimeWarning, match="skipped"):
            loss = trainer.step()
        assert spoiled or not torch.isfinite(loss)
        counts = ("skipped", "gradients", "auxiliary", "samples", "primary_samples")
        after = {k: x for k, x in trainer.bits().items() if not k.endswith(counts)}
        assert_same_bits(after, {k: x for k, x in before.items() if not k.endswith(counts)})
        assert trainer.optimizer.cost.skipped == 1
        assert trainer.optimizer.cost.steps == 0
        trainer.factor = lambda batch, call: 1.0
        trainer.steps = 0
        trainer.step()
        clean.step()
        assert_same_bits(dict(trainer.model.state_dict()), dict(clean.model.state_dict()))


@every_method
def test_later_skips_are_counted_in_silence(method):
    trainer = Trainer(method)
    trainer.factor = lambda batch, call: float("nan")
    with pytest.warns(RuntimeWarning, match="skipped"):
        trainer.step()
    trainer.run(2)
    assert trainer.optimizer.cost.skipped == 3


@every_method
def test_a_step_that_is_not_finite_may_raise_or_be_ignored(method):
    trainer = Trainer(method, nonfinite="raise")
    before = trainer.bits()
    trainer.factor = lambda batch, call: float("inf")
    with pytest.raises(FloatingPointError, match="inf or nan"):
        trainer.step()
    assert_same_bits(trainer.bits(), before)
    ignoring = Trainer(method, nonfinite="ignore")
    ignoring.factor = trainer.factor
    ignoring.step()
    assert ignoring.optimizer.cost.skipped == 0
    assert not all(p.isfinite().all() for p in ignoring.model.parameters())


@everywhere
def test_an_exception_in_any_pass_leaves_no_trace(method, base, groups):
    for broken in spoiled_calls(method):
        trainer = Trainer(method, base, groups).run(1)

        def break_down(batch, call, broken=broken):
            if call == broken:
                raise KeyboardInterrupt

        before = trainer.bits()
        trainer.on_call = break_down
        calls = len(trainer.calls)
        try:
            trainer.step()
        except KeyboardInterrupt:
            assert_same_bits(trainer.bits(), before)
        else:
            assert len(trainer.calls) <= broken, (calls, broken)


@everywhere
def test_parameters_with_a_gradient_in_only_one_pass_come_back(method, base, groups):
    """As with stochastic depth or a mixture of experts: a pass may miss a parameter."""
    for missing in ({0}, {1}, {2, 3}):
        trainer = Trainer(method, base, groups, lr=0.0)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.on_call = lambda batch, call, missing=missing, t=trainer: t.model[
            4
        ].weight.requires_grad_(call not in missing)
        trainer.run(3)
        trainer.model[4].weight.requires_grad_(True)
        assert_same_bits({n: p.detach() for n, p in trainer.model.named_parameters()}, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@everywhere
def test_a_step_of_length_zero_never_moves_a_bit(method, base, groups, dtype):
    trainer = Trainer(method, base, groups, dtype=dtype, rho=0.5, lr=0.0)
    before = {
        name: p.detach().clone().view(torch.uint8) for name, p in trainer.model.named_parameters()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        trainer.run(5)
    after = {name: p.detach().view(torch.uint8) for name, p in trainer.model.named_parameters()}
    assert_same_bits(after, before)


@every_looking_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_perturbation_too_small_to_represent_is_warned_about_once(method, dtype):
    tiny = {torch.bfloat16: 1e-5, torch.float32: 1e-10}[dtype]
    trainer = Trainer(method, dtype=dtype, rho=tiny, build=_with_tiny_radius(method, tiny))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.run(10)
    said = [str(w.message) for w in caught if "too small" in str(w.message)]
    assert len(said) == 1
    assert str(dtype).removeprefix("torch.") in said[0]


def _with_tiny_radius(method: str, rho: float):
    row = flatmin.methods.TABLE[method]

    def build(base, **options):
        optimizer = row.build(base, rho, total_steps=10, **options)
        if row.adaptive:  # so that the first step looks
            optimizer.policy = flatmin.policy.Always()
        return optimizer

    return build


@every_method_somewhere
def test_parameter_storage_is_never_swapped(method, base, groups):
    trainer = Trainer(method, base, groups)
    storage = {name: p.data_ptr() for name, p in trainer.model.named_parameters()}
    seen = []
    trainer.on_call = lambda batch, call: seen.append(
        {name: p.data_ptr() for name, p in trainer.model.named_parameters()}
    )
    trainer.run(3)
    assert all(now == storage for now in seen)
    assert {name: p.data_ptr() for name, p in trainer.model.named_parameters()} == storage


@every_method_somewhere
def test_gradients_taken_are_those_announced_and_counted(method, base, groups):
    trainer = Trainer(method, base, groups)
    calls, primary = 0, 0
    # The share of a late method is that of the whole training.
    steps = TOTAL if "start" in trainer.method.hyperparameters else 10
    for _ in range(steps):
        trainer.step()
        calls += len(trainer.calls)
        primary += trainer.calls.count("primary")
    cost, row = trainer.optimizer.cost, trainer.method
    forwards = cost.perturbed if row.per_sample else 0  # ESAM's look at the losses alone
    assert cost.gradients + forwards == calls
    assert cost.auxiliary == calls - primary
    assert cost.steps == steps
    announced = trainer.optimizer.gradients_per_step(fraction=0.25)
    if row.adaptive:
        looks = 1 + trainer.optimizer.direction.auxiliary_passes
        assert cost.gradients == cost.steps + looks * cost.perturbed
    elif method != "ss-sam":
        assert cost.ratio == pytest.approx(announced)
    else:
        assert announced == 1.5
    assert cost.primary_samples == 24 * steps


@pytest.mark.parametrize(
    "method, passes",
    [("agnostic-sam", 2.5), ("agnostic-sam-previous", 2.0), ("look-sam", 1.2), ("sgd", 1.0)],
)
def test_the_cost_that_the_table_of_methods_states(method, passes):
    assert Trainer(method).run(10).optimizer.cost.ratio == pytest.approx(passes)


@pytest.mark.parametrize("method", ["look-sam", "look-agnostic-sam", "look-friendly-sam"])
def test_a_skipped_pass_never_runs(method):
    trainer = Trainer(method)
    counts = []
    for _ in range(10):
        trainer.step()
        counts.append(len(trainer.calls))
    look = counts[0]
    assert look > 1
    assert counts == [look, 1, 1, 1, 1] * 2


@everywhere
def test_a_zero_gradient_moves_nothing_that_the_base_would_not(method, base, groups):
    trainer = Trainer(method, base, groups)
    trainer.factor = lambda batch, call: 0.0
    trainer.run(3)
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert trainer.optimizer.cost.steps == 3
    assert trainer.optimizer.cost.skipped == 0


@everywhere
def test_radius_zero_is_the_base_optimizer_bit_for_bit(method, base, groups):
    trainer = Trainer(method, base, groups, rho=0.0)
    alone = Trainer("sgd", base, groups)
    for _ in range(4):
        torch.manual_seed(1000 + alone.steps)
        alone.base.zero_grad()
        alone.calls.clear()
        alone.closure("primary")
        alone.base.step()
        alone.steps += 1
    trainer.run(4)
    assert_same_bits(dict(trainer.model.state_dict()), dict(alone.model.state_dict()))


@every_method_somewhere
def test_a_loss_of_exactly_zero_is_a_loss(method, base, groups):
    trainer = Trainer(method, base, groups)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    def shifted(kind, chosen=None):
        loss = torch.nn.functional.cross_entropy(
            trainer.model(trainer.batch(kind)[0]), trainer.batch(kind)[1]
        )
        loss = loss - loss.detach()
        if trainer.method.per_sample:
            return loss.expand(24 if chosen is None else len(chosen))
        loss.backward()
        return loss

    trainer.closure = shifted
    assert trainer.step() == 0.0
    assert trainer.optimizer.cost.steps == 1
    moved = [n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])]
    assert moved


@every_method_somewhere
def test_the_closure_contract_is_that_of_torch(method, base, groups):
    """A closure that clears gradients itself and leaves old ones about makes no difference."""
    plain, fussy = Trainer(method, base, groups), Trainer(method, base, groups)

    def clear(batch, call):
        fussy.optimizer.zero_grad(set_to_none=False)
        for p in fussy.model.parameters():
            if p.grad is not None:
                p.grad.zero_()

    fussy.on_call = clear
    for _ in range(3):
        for p in fussy.model.parameters():
            p.grad = torch.ones_like(p)
        fussy.step()
        plain.step()
    assert_same_bits(fussy.bits(), plain.bits())

"""Bad input to the library: one clear error, naming the value and the remedy, without a trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import FrozenInstanceError, fields, is_dataclass
from functools import partial
from math import inf, nan
from typing import Any

import pytest
import torch
from tables import ALONE, LOOKING, METHODS, Trainer, assert_same_bits, each_over_one
from torch import Tensor, nn

import flatmin
from flatmin import descent, direction, geometry, methods, policy, selection

every_base = pytest.mark.parametrize("base", ALONE)


def each_method_over_a_base(methods: list[str]):
    return pytest.mark.parametrize("method, base", each_over_one(methods, ALONE))


def sgd(**options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1, **options)


def says(error: pytest.ExceptionInfo[BaseException], *words: str) -> bool:
    """Is it one sentence of a sensible length that holds these words?"""
    message = str(error.value)
    return all(word in message for word in words) and 20 < len(message) < 300


# --- the radius


@pytest.mark.parametrize("rho", [-0.1, -1e-9, nan, inf])
@pytest.mark.parametrize("name", LOOKING)
def test_a_radius_out_of_range_is_refused_by_every_method(name: str, rho: float):
    with pytest.raises(ValueError, match="rho") as error:
        methods.TABLE[name].build(sgd(), rho, total_steps=10)
    assert says(error, repr(rho), "at least 0")


@pytest.mark.parametrize("rho", ["0.05", None, [0.1]])
def test_a_radius_that_is_no_number_is_refused(rho: Any):
    with pytest.raises((TypeError, ValueError)) as error:
        flatmin.SAM(sgd(), rho=rho)
    assert says(error, "rho", repr(rho))


@pytest.mark.parametrize("rho", [-0.1, nan, inf])
def test_a_radius_out_of_range_in_a_group_is_refused(rho: float):
    layers = nn.Linear(3, 2), nn.Linear(2, 2)
    groups = [{"params": layers[0].parameters()}, {"params": layers[1].parameters(), "rho": rho}]
    with pytest.raises(ValueError, match="rho") as error:
        flatmin.SAM(torch.optim.SGD(groups, lr=0.1))
    assert says(error, repr(rho))


def test_a_late_group_with_a_radius_out_of_range_is_not_added():
    optimizer = flatmin.SAM(sgd())
    with pytest.raises(ValueError, match="rho") as error:
        optimizer.add_param_group({"params": nn.Linear(2, 2).parameters(), "rho": -1.0})
    assert says(error, "-1.0")
    assert len(optimizer.param_groups) == 1


def test_a_base_made_sharpness_aware_again_does_not_keep_the_old_radius_in_silence():
    """As when the cell of a notebook runs a second time: refused, or the new radius."""
    base = sgd()
    flatmin.SAM(base, rho=0.05)
    with suppress(ValueError):
        assert flatmin.SAM(base, rho=0.5).param_groups[0]["rho"] == 0.5


# --- the base optimizer


@pytest.mark.parametrize(
    "base, error, words",
    [
        (torch.optim.SGD, TypeError, ["the class SGD", "SGD(model.parameters()"]),
        (None, TypeError, ["None", "torch.optim"]),
        (nn.Linear(3, 2), TypeError, ["Linear", "torch.optim"]),
        (list(nn.Linear(3, 2).parameters()), TypeError, ["list", "torch.optim"]),
        ("sgd", TypeError, ["str", "torch.optim"]),
        (flatmin.SAM(sgd()), ValueError, ["already sharpness-aware", "optimizer.base"]),
        (
            torch.optim.LBFGS(nn.Linear(3, 2).parameters()),
            ValueError,
            ["LBFGS", "SGD, Adam, AdamW"],
        ),
        (
            torch.optim.SparseAdam(list(nn.Embedding(3, 2, sparse=True).parameters())),
            ValueError,
            ["SparseAdam", "use Adam"],
        ),
    ],
    ids=["class", "None", "model", "parameters", "name", "sharpness-aware", "LBFGS", "SparseAdam"],
)
def test_a_base_that_cannot_work_is_refused(base: Any, error: type[Exception], words: list[str]):
    with pytest.raises(error) as raised:
        flatmin.SharpnessAware(base)
    assert says(raised, *words)


# --- the other arguments


@pytest.mark.parametrize("model", [nn.Linear, "resnet", [], torch.relu])
def test_a_model_that_is_no_module_is_refused(model: Any):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module") as error:
        flatmin.SAM(sgd(), model=model)
    assert says(error, type(model).__name__)


@pytest.mark.parametrize("nonfinite", ["drop", None, True])
def test_an_unknown_answer_to_what_is_not_finite_is_refused(nonfinite: Any):
    with pytest.raises(ValueError, match="nonfinite") as error:
        flatmin.SAM(sgd(), nonfinite=nonfinite)
    assert says(error, repr(nonfinite), "'skip'", "'raise'", "'ignore'")


@pytest.mark.parametrize("max_norm", [0.0, -1.0, nan])
def test_a_norm_to_clip_to_that_is_out_of_range_is_refused(max_norm: float):
    with pytest.raises(ValueError, match="max_norm") as error:
        flatmin.SAM(sgd(), max_norm=max_norm)
    assert says(error, repr(max_norm))


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_option_is_refused(name: str):
    options: Any = {"stochastic": True}
    with pytest.raises(TypeError, match="stochastic"):
        methods.TABLE[name].build(sgd(), total_steps=10, **options)


def test_an_unknown_method_offers_the_nearest():
    with pytest.raises(ValueError, match="agnostik-sam") as error:
        methods.find("agnostik-sam")
    assert says(error, "agnostic-sam", "did you mean")


@pytest.mark.parametrize("name", METHODS)
def test_a_slip_of_the_pen_finds_every_method(name: str):
    with pytest.raises(ValueError, match="unknown method") as error:
        methods.find("sgdd" if name == "sgd" else name[:-1] + "n")
    assert name in str(error.value)


def test_a_method_unlike_any_other_lists_them_all():
    with pytest.raises(ValueError, match="'0'") as error:
        methods.find("0")
    assert all(name in str(error.value) for name in METHODS)


# --- the hyperparameters of the parts

SHARES = (-0.1, nan, inf)
SIZES = (-1.0, nan, inf)
COUNTS = (0, -3, 2.5, True)

OUT_OF_RANGE: dict[tuple[Any, str], tuple[Any, ...]] = {
    (direction.Friendly, "sigma"): (nan, inf),
    (direction.Friendly, "lmbda"): (*SHARES, 1.0),
    (direction.Friendly, "variant"): ("code", None),
    (direction.Suppressed, "theta"): (*SHARES, 0.0, 1.01),
    (direction.Agnostic, "rho1"): SIZES,
    (direction.Agnostic, "rho2"): SIZES,
    (direction.Agnostic, "beta"): (*SHARES, 1.0),
    (direction.Agnostic, "ratio"): SIZES,
    (direction.Agnostic, "auxiliary"): ("next", True),
    (direction.PreviousAgnostic, "rho1"): SIZES,
    (direction.PreviousAgnostic, "rho2"): SIZES,
    (direction.PreviousAgnostic, "beta"): (*SHARES, 1.0),
    (direction.PreviousAgnostic, "ratio"): SIZES,
    (direction.NoiseComponent, "projection"): ("cosine", None),
    (direction.Momentum, "sign"): (0, 2, nan),
    (direction.Random, "eta"): SIZES,
    (direction.Random, "beta"): (*SHARES, 1.0),
    (geometry.Adaptive, "eta"): SIZES,
    (geometry.Fisher, "eta"): SIZES,
    (geometry.RandomSubset, "beta"): (*SHARES, 0.0, 1.01),
    (policy.EveryK, "k"): COUNTS,
    (policy.Bernoulli, "p"): (*SHARES, 1.01),
    (policy.LargeGradient, "total_steps"): COUNTS,
    (policy.LargeGradient, "lambda1"): (nan,),
    (policy.LargeGradient, "lambda2"): (nan,),
    (policy.LargeGradient, "delta"): (*SHARES, 1.0),
    (policy.Late, "total_steps"): COUNTS,
    (policy.Late, "start"): (*SHARES, 1.01),
    (policy.Early, "total_steps"): COUNTS,
    (policy.Early, "end"): (*SHARES, 1.01),
    (descent.Mixed, "share"): SIZES,
    (descent.Reuse, "alpha"): SIZES,
    (descent.SurrogateGap, "alpha"): SIZES,
    (descent.Lookbehind, "k"): COUNTS,
    (descent.Lookbehind, "alpha"): (*SHARES, 0.0, 1.01),
    (selection.LossRise, "gamma"): (*SHARES, 0.0, 1.01),
}
NEED_STEPS = (policy.LargeGradient, policy.Late, policy.Early)
REQUIRED = {part: {"total_steps": 10} for part in NEED_STEPS}
OF_ANY_VALUE = {
    (direction.Friendly, "on_skipped"),
    (direction.Suppressed, "on_skipped"),
    (direction.Agnostic, "on_skipped"),
    (direction.Momentum, "own"),
    (direction.Random, "seed"),
    (geometry.Only, "chosen"),
    (geometry.RandomSubset, "seed"),
    (policy.Bernoulli, "seed"),
    (policy.Both, "first"),
    (policy.Both, "second"),
}


def test_the_table_of_hyperparameters_is_whole():
    parts = {
        part
        for folder in (direction, geometry, policy, descent, selection)
        for part in vars(folder).values()
        if is_dataclass(part) and part is not geometry.Product
    }
    assert {(part, field.name) for part in parts for field in fields(part)} == {
        *OUT_OF_RANGE,
        *OF_ANY_VALUE,
    }


def test_a_part_is_a_value():
    """It is equal to another one of the same hyperparameters, says them, and stays as it is."""
    folders = direction, geometry, policy, descent, selection
    classes = [each for f in folders for each in vars(f).values() if isinstance(each, type)]
    parts = [each for each in classes if each.__base__ is not object]  # each room's base is none
    assert len(parts) > 25
    for part in parts:
        if part in (geometry.Product, geometry.Only, policy.Both):  # made of others, of tensors
            continue
        made, again = (part(**REQUIRED.get(part, {})) for _ in range(2))
        assert made == again, part
        assert hash(made) == hash(again), part
        names = {each.__name__: each for each in parts}
        assert eval(repr(made), names) == made
        with pytest.raises(FrozenInstanceError):
            made.anything = 1


@pytest.mark.parametrize(
    "part, name, value",
    [(part, name, value) for (part, name), values in OUT_OF_RANGE.items() for value in values],
)
def test_a_hyperparameter_out_of_range_is_refused(part: Any, name: str, value: Any):
    with pytest.raises(ValueError, match=name) as error:
        part(**{**REQUIRED.get(part, {}), name: value})
    assert says(error, repr(value))


@pytest.mark.parametrize(
    "build, name, value",
    [
        (flatmin.ASAM, "eta", -1.0),
        (flatmin.FisherSAM, "eta", -1.0),
        (flatmin.FriendlySAM, "lmbda", 1.0),
        (flatmin.FriendlyASAM, "eta", -1.0),
        (flatmin.AgnosticSAM, "rho1", -1.0),
        (flatmin.AgnosticSAM, "auxiliary", "none"),
        (flatmin.AgnosticASAM, "rho2", nan),
        (flatmin.AlignASAM, "eta", nan),
        (flatmin.VASSO, "theta", 0.0),
        (flatmin.LookSAM, "k", 0),
        (flatmin.LookSAM, "alpha", -1.0),
        (flatmin.SSSAM, "p", 1.5),
        (partial(flatmin.AESAM, total_steps=5), "delta", 1.0),
        (flatmin.AESAM, "total_steps", 0),
        (flatmin.AELookSAM, "total_steps", -1),
        (partial(flatmin.AELookSAM, total_steps=5), "alpha", -1.0),
        (flatmin.GSAM, "alpha", -1.0),
        (flatmin.ESAM, "beta", 0.0),
        (flatmin.ESAM, "gamma", 2.0),
        (flatmin.LookbehindSAM, "k", 0),
        (flatmin.LookbehindSAM, "alpha", 0.0),
    ],
)
def test_a_named_method_refuses_what_its_parts_refuse(build: Any, name: str, value: Any):
    base = sgd()
    with pytest.raises(ValueError, match=name) as error:
        build(base, **{name: value})
    assert says(error, repr(value))
    assert base.param_groups[0].keys() == sgd().param_groups[0].keys()


# --- the closures: every error during a step leaves weights, statistics and state as they were


def refused(trainer: Trainer, error: type[BaseException], take_step: Callable[[], Any]) -> str:
    """What the step says; nothing has moved when it says so."""
    before = trainer.bits()
    with pytest.raises(error) as raised:
        take_step()
    assert_same_bits(trainer.bits(), before)
    assert len(str(raised.value)) < 300
    return str(raised.value)


@every_base
@pytest.mark.parametrize("value", [torch.ones(()), torch.ones(4), 0.5, "loss", [len]])
@pytest.mark.parametrize("name", ["closure", "aux_closure"])
def test_a_closure_that_cannot_be_called_is_refused(name: str, value: Any, base: str):
    trainer = Trainer("agnostic-sam", base).run(1)
    closures = [*trainer.closures()]
    closures[name == "aux_closure"] = value
    message = refused(trainer, TypeError, lambda: trainer.optimizer.step(*closures))
    assert message.startswith(f"{name} must be a function")
    assert type(value).__name__.lower() in message
    assert "step(lambda: loss_on(batch))" in message


@each_method_over_a_base(METHODS)
def test_a_primary_closure_that_is_missing_is_asked_for(method: str, base: str):
    trainer = Trainer(method, base).run(1)
    aux_closure = partial(trainer.closure, "auxiliary")
    message = refused(trainer, TypeError, lambda: trainer.optimizer.step(None, aux_closure))
    assert "primary closure" in message


@every_base
@pytest.mark.parametrize("method", [name for name in METHODS if methods.TABLE[name].auxiliary])
def test_an_auxiliary_closure_that_is_missing_is_asked_for(method: str, base: str):
    trainer = Trainer(method, base).run(1)
    trainer.calls.clear()
    closure, _ = trainer.closures()
    message = refused(trainer, ValueError, lambda: trainer.optimizer.step(closure))
    assert type(trainer.optimizer.direction).__name__ in message
    assert "step(closure, aux_closure)" in message
    assert "flatmin.paired" in message
    assert not trainer.calls


@every_base
@pytest.mark.parametrize("method", [name for name in METHODS if not methods.TABLE[name].auxiliary])
def test_an_auxiliary_closure_that_is_superfluous_is_refused(method: str, base: str):
    trainer = Trainer(method, base).run(1)
    trainer.calls.clear()
    closures = partial(trainer.closure, "primary"), partial(trainer.closure, "auxiliary")
    message = refused(trainer, ValueError, lambda: trainer.optimizer.step(*closures))
    assert type(trainer.optimizer.direction).__name__ in message
    assert "call step(closure)" in message
    assert not trainer.calls


def without_backward(trainer: Trainer, kind: str) -> Tensor:
    images, _ = trainer.batch(kind)
    return trainer.model(images).square().mean()


@every_base
@pytest.mark.parametrize("broken", ["primary", "auxiliary"])
def test_a_closure_that_leaves_no_gradient_is_named(broken: str, base: str):
    trainer = Trainer("agnostic-sam", base).run(1)
    closures = [
        partial(without_backward if kind == broken else Trainer.closure, trainer, kind)
        for kind in ("primary", "auxiliary")
    ]
    message = refused(trainer, RuntimeError, lambda: trainer.optimizer.step(*closures))
    assert f"the {broken} closure left no gradient" in message
    assert "loss.backward()" in message


@every_base
def test_a_closure_that_leaves_no_gradient_at_the_perturbed_weights_is_named(base: str):
    trainer = Trainer("sam", base).run(1)
    trainer.calls.clear()

    def forgetful() -> Tensor:
        if trainer.calls:
            return without_backward(trainer, "primary")
        return trainer.closure("primary")

    message = refused(trainer, RuntimeError, lambda: trainer.optimizer.step(forgetful))
    assert "the primary closure left no gradient" in message


def test_the_closure_of_another_model_leaves_no_gradient():
    trainer, other = Trainer("sam").run(1), Trainer("sam")
    message = refused(trainer, RuntimeError, lambda: trainer.optimizer.step(*other.closures()))
    assert "the model whose parameters the optimizer holds" in message


@pytest.mark.parametrize("value", [(torch.ones(()), torch.ones(4)), {"loss": 1.0}, "0.5", [0.5]])
@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_a_closure_that_returns_no_loss_is_refused(call: int, value: Any):
    trainer = Trainer("agnostic-sam").run(1)
    trainer.calls.clear()

    def answering(kind: str) -> Any:
        loss = trainer.closure(kind)
        return value if len(trainer.calls) == call + 1 else loss

    closures = partial(answering, "primary"), partial(answering, "auxiliary")
    message = refused(trainer, TypeError, lambda: trainer.optimizer.step(*closures))
    assert "must return the loss" in message
    assert type(value).__name__ in message


@pytest.mark.parametrize("value", [torch.ones(()), torch.ones(4, 2), 0.5, None])
def test_a_closure_of_esam_that_returns_no_loss_a_sample_is_refused(value: Any):
    trainer = Trainer("esam").run(1)
    message = refused(trainer, TypeError, lambda: trainer.optimizer.step(lambda chosen: value))
    assert "one loss a sample" in message
    assert 'reduction="none"' in message


@every_base
@pytest.mark.parametrize("broken", [0, 1, 2, 3])
def test_the_end_of_an_iterator_inside_a_closure_is_the_users_own(broken: int, base: str):
    """`step(lambda: loss_on(next(batches)))`: StopIteration must not pass for a finished step."""
    trainer = Trainer("agnostic-sam", base).run(1)
    trainer.on_call = lambda batch, call: next(iter([])) if call == broken else None
    trainer.calls.clear()
    refused(trainer, StopIteration, lambda: trainer.optimizer.step(*trainer.closures()))


# --- the gradients


class Bag(nn.Module):
    """Word vectors, averaged and told apart."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 4, sparse=sparse)
        self.out = nn.Linear(4, 2)

    def loss(self) -> Tensor:
        loss = self.out(self.words(torch.tensor([1, 5, 7])).mean(0)).square().sum()
        loss.backward()
        return loss


@pytest.mark.parametrize("method", ["sam", "friendly-asam", "sgd"])
def test_a_sparse_gradient_is_refused(method: str):
    bag = Bag(sparse=True)
    base = torch.optim.SGD(bag.parameters(), lr=0.1)
    optimizer = methods.TABLE[method].build(base, total_steps=5)
    before = {name: x.clone() for name, x in bag.state_dict().items()}
    with pytest.raises(TypeError, match="sparse") as error:
        optimizer.step(bag.loss)
    assert says(error, "(20, 4)", "sparse=False")
    assert_same_bits(dict(bag.state_dict()), before)
    assert not optimizer.state
    assert optimizer.cost == flatmin.Cost()


def test_the_remedy_for_a_sparse_gradient_works():
    bag = Bag(sparse=False)
    optimizer = flatmin.SAM(torch.optim.SGD(bag.parameters(), lr=0.1))
    optimizer.step(bag.loss)
    assert optimizer.cost.gradients == 2


# --- a radius that goes wrong later


@every_base
@pytest.mark.parametrize("rho", [-0.1, nan, inf])
@pytest.mark.parametrize("group", [0, 1])
def test_a_schedule_that_leaves_the_range_is_refused(group: int, rho: float, base: str):
    trainer = Trainer("sam", base, "two groups").run(1)
    trainer.calls.clear()
    trainer.optimizer.param_groups[group]["rho"] = rho
    message = refused(trainer, ValueError, lambda: trainer.optimizer.step(*trainer.closures()))
    assert "rho" in message
    assert repr(rho) in message
    assert not trainer.calls
    trainer.optimizer.param_groups[group]["rho"] = 0.1
    trainer.step()
    assert trainer.optimizer.cost.steps == 2


# --- a step without a closure


BUFFERS = {
    "agnostic-sam": {"agnostic_mean"},
    "agnostic-sam-previous": {"agnostic_mean"},
    "align-sam": set[str](),
    "friendly-sam": {"friendly_mean"},
    "look-friendly-sam": {"friendly_mean", "reuse_across"},
    "look-sam": {"reuse_across"},
    "sam": set[str](),
    "vasso": {"suppressed_mean"},
}


@each_method_over_a_base(METHODS)
@pytest.mark.parametrize("value", [None, 1.0, nan])
def test_a_step_without_a_closure_is_refused(value: float | None, method: str, base: str):
    trainer = Trainer(method, base).run(1)
    for p in trainer.model.parameters():
        p.grad = None if value is None else torch.full_like(p, value)
    message = refused(trainer, TypeError, trainer.optimizer.step)
    assert "step(closure)" in message


@every_base
@pytest.mark.parametrize("method", BUFFERS)
def test_zero_gradients_let_a_checkpoint_loader_set_up_the_state(method: str, base: str):
    trainer = Trainer(method, base)
    before = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    for p in trainer.model.parameters():
        p.grad = torch.zeros_like(p)
    assert trainer.optimizer.step() is None
    assert_same_bits(dict(trainer.model.state_dict()), before)
    for p in trainer.model.parameters():
        assert trainer.optimizer.state[p].keys() >= BUFFERS[method]
        for name in BUFFERS[method]:
            assert torch.equal(trainer.optimizer.state[p][name], torch.zeros_like(p))
    assert trainer.optimizer.cost == flatmin.Cost()


@pytest.mark.parametrize("method", BUFFERS)
def test_the_first_real_step_does_not_take_a_state_so_set_up_for_a_memory(method: str):
    """VASSO's mean starts at the first gradient, and not at the zero that was set up."""
    plain = lambda base, **options: methods.TABLE[method].build(base, total_steps=12, **options)
    fresh, prepared = (Trainer(method, build=plain, lr=0.0) for _ in range(2))
    for trainer in (fresh, prepared):
        for group in trainer.optimizer.param_groups:
            group.update(momentum=0.0, weight_decay=0.0)
    for p in prepared.model.parameters():
        p.grad = torch.zeros_like(p)
    prepared.optimizer.step()
    for trainer in (fresh, prepared):
        trainer.optimizer.param_groups[0]["lr"] = 0.05
    assert_same_bits(prepared.run(3).bits(), fresh.run(3).bits())


# --- directions that need no gradient at w

BEGINNING = [
    direction.Momentum(),
    direction.Random(),
    direction.Previous(),
    direction.PreviousAgnostic(),
]


@pytest.mark.parametrize("chosen", BEGINNING, ids=repr)
@pytest.mark.parametrize(
    "part, remedy",
    [
        ({"policy": policy.LargeGradient(10)}, "policy.EveryK()"),
        ({"policy": policy.Both(policy.Late(9), policy.LargeGradient(9))}, "policy.EveryK()"),
        ({"descent": descent.Reuse()}, "descent.Mixed()"),
        ({"descent": descent.SurrogateGap()}, "descent.Mixed()"),
        ({"descent": descent.Lookbehind()}, "descent.Mixed()"),
        ({"selection": selection.LossRise()}, "selection.WholeBatch()"),
        ({"geometry": geometry.Fisher()}, "direction.Ascent()"),
        ({"geometry": geometry.Adaptive() * geometry.Fisher()}, "direction.Ascent()"),
    ],
    ids=str,
)
def test_what_needs_the_gradient_at_w_is_refused_with_a_direction_that_has_none(
    chosen: Any, part: dict[str, Any], remedy: str
):
    with pytest.raises(ValueError, match=type(chosen).__name__) as error:
        flatmin.SharpnessAware(sgd(), direction=chosen, **part)
    assert says(error, type(chosen).__name__, remedy)
    flatmin.SharpnessAware(sgd(), **part)  # with SAM's direction it works


@pytest.mark.parametrize("chosen", BEGINNING, ids=repr)
def test_what_pays_for_the_gradient_may_go_with_what_asks_for_it(chosen: Any):
    parts = {"descent": descent.Mixed(0.5), "policy": policy.LargeGradient(10)}
    flatmin.SharpnessAware(sgd(), direction=chosen, **parts)


def test_noise_with_a_length_of_its_own_takes_no_metric():
    with pytest.raises(ValueError, match="Random") as error:
        flatmin.SharpnessAware(sgd(), direction=direction.Random(), geometry=geometry.Adaptive())
    assert says(error, "leave out geometry=Adaptive")


def test_a_base_without_momentum_is_refused_where_none_is_to_be_kept():
    alone = direction.Momentum(own=False)
    flatmin.SharpnessAware(torch.optim.AdamW(nn.Linear(3, 2).parameters()), direction=alone)
    optimizer = flatmin.SharpnessAware(sgd(momentum=0.9), direction=alone)
    with pytest.raises(ValueError, match="momentum"):
        optimizer.add_param_group({"params": nn.Linear(3, 2).parameters(), "momentum": 0.0})
    assert len(optimizer.param_groups) == 1
    for base in (sgd(), torch.optim.Adagrad(nn.Linear(3, 2).parameters())):
        with pytest.raises(ValueError, match="momentum") as error:
            flatmin.SharpnessAware(base, direction=alone)
        assert says(error, "own=False", "momentum=0.9", "Momentum(own=True)")


@pytest.mark.parametrize("start", [-0.1, 1.5, nan])
def test_a_share_of_the_training_lies_between_0_and_1(start: float):
    for build in (flatmin.LateSAM, flatmin.LateAgnosticSAM):
        with pytest.raises(ValueError, match="start") as error:
            build(sgd(), total_steps=10, start=start)
        assert says(error, "[0, 1]", repr(start))
    with pytest.raises(ValueError, match="end"):
        policy.Early(10, start)


def test_memory_of_other_gradients_cannot_move_on_skipped_steps():
    with pytest.raises(ValueError, match="on_skipped") as error:
        direction.Agnostic(on_skipped=True)
    assert says(error, 'auxiliary="previous"', "leave on_skipped out")


def test_two_policies_that_keep_one_number_are_refused():
    with pytest.raises(ValueError, match="gradient_mean"):
        policy.Both(policy.LargeGradient(10), policy.LargeGradient(20))
    with pytest.raises(TypeError, match="second must be a Policy"):
        policy.Both(policy.Always(), 5)  # type: ignore[arg-type]


def test_loops_that_have_the_gradient_refuse_a_direction_that_saves_it():
    from flatmin.meta import Perturbation

    for chosen in BEGINNING:
        with pytest.raises(ValueError, match=type(chosen).__name__) as error:
            Perturbation(0.1, chosen)
        assert says(error, "direction.Ascent()")

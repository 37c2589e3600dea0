"""What passes for right elsewhere, or fails far from its cause: one line that says what to type."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tables import BEGIN_PERTURBED, IMAGES, LABELS, METHODS, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import flatmin
from flatmin import methods
from flatmin.engine.space import Space
from flatmin.engine.vec import Term, Vector
from flatmin.geometry import Adaptive, Only, norm_parameters


def linear(**options: Any) -> tuple[nn.Linear, flatmin.SharpnessAware]:
    torch.manual_seed(0)
    model = nn.Linear(32, 10)
    return model, flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1), **options)


def loss_of(model: nn.Module) -> Tensor:
    loss = cross_entropy(model(IMAGES[:8]), LABELS[:8])
    loss.backward()
    return loss


# --- what comes from other libraries


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda m: flatmin.SAM(m.parameters(), torch.optim.SGD, lr=0.1), "SGD(model.parameters()"),
        (lambda m: flatmin.SAM(m.parameters(), lr=0.1), "lr is the base optimizer's"),
        (lambda m: flatmin.SAM(sgd(m), lr=0.1), "torch.optim.SGD(model.parameters(), lr=...)"),
        (lambda m: flatmin.SAM(sgd(m), adaptive=True), "flatmin.ASAM(base"),
        (lambda m: flatmin.SAM(sgd(m), m), "model=model"),
        (lambda m: flatmin.SAM(sgd(m), max_nrom=1.0), "did you mean max_norm"),
        (lambda m: flatmin.SAM(m.parameters()), "torch.optim.SGD"),
        (lambda m: flatmin.SAM(sgd(m)).first_step(), "optimizer.step(closure)"),
        (lambda m: flatmin.SAM(sgd(m)).second_step(), "optimizer.passes()"),
        (lambda m: flatmin.SAM(sgd(m)).base_optimizer, "it is called base"),
    ],
)
def test_the_first_line_of_others_shows_the_right_call(call: Any, said: str):
    with pytest.raises((TypeError, AttributeError)) as error:
        call(nn.Linear(2, 2))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_the_sample_closure_of_esam_is_explained():
    model = nn.Linear(32, 10)
    optimizer = flatmin.ESAM(sgd(model))
    with pytest.raises(TypeError) as error:
        optimizer.step(lambda: loss_of(model))
    assert "reduction=" in " ".join([str(error.value), *getattr(error.value, "__notes__", [])])


@pytest.mark.parametrize(
    "part, given",
    [
        ("direction", "ascent"),
        ("geometry", Adaptive),
        ("policy", 5),
        ("descent", flatmin.direction.Ascent()),
        ("selection", None.__class__),
    ],
)
def test_a_part_that_is_none_is_refused(part: str, given: Any):
    with pytest.raises(TypeError, match=f"{part} must be a {part.capitalize()}, such as flatmin"):
        flatmin.SharpnessAware(sgd(nn.Linear(2, 2)), **{part: given})


# --- the model, the loss, the radius


def test_a_model_without_the_parameters_is_refused():
    with pytest.raises(ValueError, match="none of the parameters"):
        flatmin.SAM(sgd(nn.Linear(2, 2)), model=nn.Linear(2, 2))


def test_lazy_parameters_are_refused_until_they_have_a_shape():
    model = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="run it once on a batch"):
        flatmin.SAM(sgd(model))
    model(torch.ones(1, 2))
    flatmin.SAM(sgd(model))


def test_a_radius_is_set_for_all_groups():
    _, optimizer = linear()
    optimizer.rho = 0.2
    assert [group["rho"] for group in optimizer.param_groups] == [0.2]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": 0.7})
    with pytest.raises(ValueError, match=r"different radii, \[0\.2, 0\.7\]"):
        _ = optimizer.rho


def test_a_loss_from_outside_the_closure_is_refused():
    """On a linear network its gradient is the same anywhere: silently the base optimizer."""
    model, optimizer = linear()
    before = copy.deepcopy(model.state_dict())
    loss = model(IMAGES[:8]).mean()

    def closure() -> Tensor:
        loss.backward(retain_graph=True)
        return loss

    with pytest.raises(RuntimeError, match="the same loss twice"):
        optimizer.step(closure)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("kind", ["second time", "inplace"])
def test_a_graph_from_outside_the_closure_is_explained(kind: str):
    model = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 8), nn.Linear(8, 10))
    optimizer = flatmin.SAM(sgd(model))
    features = model[:2](IMAGES[:8])

    def closure() -> Tensor:
        loss = cross_entropy(model[2](features), LABELS[:8])
        loss.backward(retain_graph=kind == "inplace")
        return loss

    with pytest.raises(RuntimeError, match=kind) as error:
        optimizer.step(closure)
    assert "inside it, from the inputs on" in " ".join(
        [str(error.value), *getattr(error.value, "__notes__", [])]
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64, float, int])
def test_a_loss_may_be_any_number(kind: Any):
    model, optimizer = linear()
    loss = optimizer.step(lambda: kind(loss_of(model).item()))
    assert isinstance(loss, Tensor)


def test_a_base_that_differentiates_the_gradient_is_named():
    class Hessian(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            p = self.param_groups[0]["params"][0]
            torch.autograd.grad(p.grad.sum(), p)

    model = nn.Linear(32, 10)
    optimizer = flatmin.SAM(Hessian(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="Hessian differentiates the gradient"):
        optimizer.step(lambda: loss_of(model))


def test_a_scripted_model_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="the module that was scripted"):
        flatmin.SAM(sgd(scripted), model=scripted)


# --- steps that are skipped in a row


@pytest.mark.parametrize("method", METHODS)
def test_too_many_skips_in_a_row_are_an_error(method: str):
    trainer = Trainer(method, max_skips=3)
    trainer.factor = lambda batch, call: float("nan")
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.warns(RuntimeWarning, match="skipped") as caught:
        trainer.step()
    assert caught[0].filename.endswith("tables.py")  # the line that calls step, not ours
    trainer.factor = lambda batch, call: 1.0
    trainer.step()  # a step that succeeds breaks the row
    trainer.factor = lambda batch, call: float("nan")
    trainer.run(2)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        trainer.step()
    assert all(torch.equal(x, before[n]) for n, x in trainer.model.state_dict().items())
    trainer.step()  # and begins anew


def test_skips_may_be_without_end():
    trainer = Trainer("sam", max_skips=None)
    trainer.factor = lambda batch, call: float("nan")
    with pytest.warns(RuntimeWarning, match="skipped"):
        trainer.run(25)
    assert trainer.optimizer.cost.skipped == 25
    with pytest.raises(ValueError, match="max_skips"):
        Trainer("sam", max_skips=0)


# --- which pass is this?


@pytest.mark.parametrize("method", METHODS)
def test_a_closure_knows_which_pass_it_is_in(method: str):
    trainer = Trainer(method)
    seen = []
    trainer.on_call = lambda batch, call: seen.append(trainer.optimizer.looking)
    trainer.step()
    assert [pass_.batch for pass_ in seen] == trainer.calls
    assert [pass_.first for pass_ in seen] == [
        name not in trainer.calls[:i] for i, name in enumerate(trainer.calls)
    ]
    assert seen[0].perturbed is (method in BEGIN_PERTURBED)
    assert trainer.optimizer.looking is None
    trainer.on_call = lambda batch, call: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.step()
    assert trainer.optimizer.looking is None


# --- hooks and schedulers with passes()


def test_passes_run_step_hooks_and_count_for_schedulers():
    model, optimizer = linear()
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with optimizer.passes() as passes:
        for turn in passes:
            assert called == ["before"]
            turn.done(loss_of(model))
    assert called == ["before", "after"]
    schedule.step()  # a warning would be an error


# --- some parameters only


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 12), nn.LayerNorm(12), nn.Linear(12, 10)).double()


@pytest.mark.parametrize("chosen", ["parameters", "names"])
@pytest.mark.parametrize("metric", ["euclidean", "adaptive"])
def test_only_some_parameters_are_perturbed(chosen: str, metric: str):
    model = normed()
    only = Only(norm_parameters(model)) if chosen == "parameters" else Only(
        lambda name, p: name.startswith("1.")
    )  # fmt: skip
    geometry = only if metric == "euclidean" else only * Adaptive()
    optimizer = flatmin.SharpnessAware(
        sgd(model), 0.5, geometry=geometry, model=model, measure_radius=True
    )
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = IMAGES[:12].double(), LABELS[:12]
    g = dict(
        zip(
            start,
            torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters())),
            strict=True,
        )
    )
    there: dict[str, Tensor] = {}

    def closure() -> Tensor:
        there.update({name: p.detach().clone() for name, p in model.named_parameters()})
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    T = {n: 1.0 if metric == "euclidean" else start[n].abs() + 0.01 for n in ("1.weight", "1.bias")}
    length = torch.sqrt(sum(((T[n] * g[n]) ** 2).sum() for n in T))
    for name, w in start.items():
        eps = 0.5 * T[name] ** 2 * g[name] / length if name in T else torch.zeros_like(w)
        assert torch.allclose(there[name], w + eps, rtol=0, atol=1e-10), name
    clone, twin = copy.deepcopy((model, optimizer))
    for m, o in ((model, optimizer), (clone, twin)):
        m[2].requires_grad_(False)
        o.zero_grad()  # a copy of a parameter has no gradient

        def again(m: nn.Module = m) -> Tensor:
            loss = cross_entropy(m(x), y)
            loss.backward()
            return loss

        o.step(again)
    for a, b in zip(model.parameters(), clone.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-14)


def test_only_what_is_there_can_be_chosen():
    model, other = normed(), normed()
    with pytest.raises(ValueError, match="chooses none of the parameters"):
        flatmin.SharpnessAware(sgd(model), geometry=Only(other.parameters()))
    with pytest.raises(ValueError, match="pass model= too"):
        flatmin.SharpnessAware(sgd(model), geometry=Only(lambda name, p: True) * Adaptive())
    with pytest.raises(TypeError, match=r"leave out the names"):
        Only(model.named_parameters())
    with pytest.raises(TypeError, match=r"write Only\(\[p\]\)"):
        Only(model[0].weight)


# --- parameters on two devices


@pytest.mark.parametrize("method", ["sam", "asam", "friendly-sam", "gsam", "look-sam", "align-sam"])
def test_scalars_travel_to_the_device_of_each_block(method: str, monkeypatch: Any):
    """The second device is torch's `meta`, to which numbers go but from which none come back."""
    monkeypatch.setattr("flatmin.engine.space.LARGE", 40)
    monkeypatch.setattr(Space, "dot", lambda self, a, b: torch.ones(()))
    shapes = (("cpu", 8), ("cpu", 4), ("meta", 8), ("meta", 4))
    params = [nn.Parameter(torch.ones(8, n, device=device)) for device, n in shapes]
    base = torch.optim.SGD(params, lr=0.1, foreach=False)
    optimizer = methods.TABLE[method].build(base, total_steps=5, nonfinite="ignore")

    def closure() -> Tensor:
        for p in params:
            p.grad = torch.full_like(p, 2.0)
        return torch.ones(())

    for _ in range(2):
        optimizer.step(*[closure] * (1 + methods.TABLE[method].auxiliary))
    assert [p.device.type for p in params] == ["cpu", "cpu", "meta", "meta"]
    assert not torch.equal(params[0], torch.ones(8, 8))


def test_norms_go_over_all_devices():
    space = Space([[torch.ones(3, device="meta"), torch.ones(4)]])
    grads = Vector(Term([torch.ones(3, device="meta"), torch.ones(4)]))
    norm = space.norm(grads)
    assert isinstance(norm, Tensor)
    assert norm.device.type == "meta"

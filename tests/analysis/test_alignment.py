"""Cosines of two batches' gradients along training, and Theorem 2, against explicit matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flatmin
from flatmin import analysis

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """With what a second look could move: running statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


def draw(n: int) -> Batch:
    return torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))


def loss_on(model: nn.Module, batch: Batch) -> Tensor:
    value = F.cross_entropy(model(batch[0]), batch[1])
    value.backward()
    return value


METHODS = {
    "agnostic": lambda b, m: flatmin.AgnosticSAM(b, rho=0.1, model=m),
    "align": lambda b, m: flatmin.AlignASAM(b, rho=0.3, model=m),
    "sam": lambda b, m: flatmin.SAM(b, rho=0.1, model=m),
    "previous": lambda b, m: flatmin.AgnosticSAM(b, rho=0.1, auxiliary="previous", model=m),
    "often": lambda b, m: flatmin.SharpnessAware(
        b, 0.1, direction=flatmin.direction.Agnostic(), policy=flatmin.policy.EveryK(2), model=m
    ),
    "ends perturbed": lambda b, m: flatmin.MSAM(b, rho=0.1, model=m),
    "sgd": lambda b, m: b,
}


def trained(name: str, *, watched: bool, dropout: bool, steps: int = 4) -> tuple[Any, Any, Any]:
    """A short training, its monitor, and the weights, random numbers and batches of each step."""
    torch.manual_seed(0)
    model = Net().double()
    model.drop.p = 0.3 if dropout else 0.0
    base = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    optimizer = METHODS[name](base, model)
    monitor = analysis.AlignmentMonitor(model, 1, optimizer=optimizer) if watched else None
    seen: list[Any] = []
    for _ in range(steps):
        primary, auxiliary = draw(16), draw(4)
        before = [p.detach().clone() for p in model.parameters()]

        def closure(batch: Batch = primary) -> Tensor:
            optimizer.zero_grad()
            return loss_on(model, batch)

        def aux_closure(batch: Batch = auxiliary) -> Tensor:
            return loss_on(model, batch)

        if monitor is not None:
            closures = monitor.wrap(closure, aux_closure)
        else:
            takes = bool(getattr(getattr(optimizer, "direction", None), "auxiliary_passes", 0))
            closures = closure, aux_closure if takes else None
        optimizer.step(*(c for c in closures if c is not None))
        grads = [p.grad.clone() for p in model.parameters()]
        seen.append((before, [p.detach().clone() for p in model.parameters()], grads))
        seen[-1] += (primary, auxiliary, torch.get_rng_state())
    return model, monitor, seen


def expected(model: Net, at: list[Tensor], primary: Batch, auxiliary: Batch, T: bool) -> float:
    """The cosine by its definition, at the weights `at`."""
    params = list(model.parameters())

    def gradient(batch: Batch, away: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            for p, w, e in zip(params, at, away, strict=True):
                p.copy_(w + e)
        return list(torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), params))

    home = [torch.zeros_like(w) for w in at]
    towards = gradient(auxiliary, home)
    metric = [w.abs() + 0.01 if T else torch.ones_like(w) for w in at]
    length = sum(float((t * g).square().sum()) for t, g in zip(metric, towards, strict=True)) ** 0.5
    rho = 0.3 if T else 0.1
    eps = [rho * t**2 * g / length for t, g in zip(metric, towards, strict=True)]
    a = torch.cat([g.flatten() for g in gradient(primary, home)])
    b = torch.cat([g.flatten() for g in gradient(auxiliary, eps)])
    return float(F.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("name", [m for m in METHODS if m not in ("sgd", "ends perturbed")])
def test_cosines_are_their_definition_before_and_after(name: str):
    model, monitor, seen = trained(name, watched=True, dropout=False)
    found = monitor.alignment
    assert found.steps == (0, 1, 2, 3)
    for i, (before, after, _, primary, auxiliary, _) in enumerate(seen):
        adaptive = name == "align"
        assert found.before[i] == pytest.approx(
            expected(model, before, primary, auxiliary, adaptive), abs=1e-10
        )
        assert found.after[i] == pytest.approx(
            expected(model, after, primary, auxiliary, adaptive), abs=1e-10
        )
    assert np.allclose(found.change, (found.after - found.before) / found.after)


@pytest.mark.parametrize("name", METHODS)
def test_a_monitor_leaves_training_bit_for_bit(name: str):
    """Weights, gradients, running statistics and the random numbers of dropout."""
    watched, monitor, seen = trained(name, watched=True, dropout=True)
    alone, _, others = trained(name, watched=False, dropout=True)
    for ours, theirs in zip(seen, others, strict=True):
        for a, b in zip([*ours[1], *ours[2]], [*theirs[1], *theirs[2]], strict=True):
            assert torch.equal(a, b)
        assert torch.equal(ours[5], theirs[5])
    for a, b in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert np.isfinite(monitor.alignment.difference).all()


def test_what_a_step_asks_for_anyway_is_not_asked_for_again():
    """Agnostic: three gradients after the update; SAM: two of the auxiliary batch more."""
    for name, more in (("agnostic", (1, 2)), ("sam", (1, 4))):
        model = Net().double()
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = METHODS[name](base, model)
        monitor = analysis.AlignmentMonitor(model, every=2, optimizer=optimizer)
        calls, again = [], []
        for _ in range(4):
            primary, auxiliary = draw(8), draw(4)

            def closure(batch: Batch = primary, told: Any = calls) -> Tensor:
                told.append(len(batch[0]))
                return loss_on(model, batch)

            def aux_closure(batch: Batch = auxiliary, told: Any = calls) -> Tensor:
                return closure(batch, told)

            beside = (lambda: closure(primary, again)), (lambda: closure(auxiliary, again))
            optimizer.step(*monitor.wrap(closure, aux_closure, again=beside))
        assert (again.count(8), again.count(4)) == (2 * more[0], 2 * more[1])
        assert calls.count(8) == optimizer.cost.gradients - optimizer.cost.auxiliary
        assert monitor.alignment.steps == (0, 2)


def test_an_optimizer_that_is_not_named_is_the_one_that_steps():
    model = Net().double()
    optimizer = METHODS["agnostic"](torch.optim.SGD(model.parameters(), lr=0.1), model)
    stranger = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    monitor = analysis.AlignmentMonitor(model, every=1)
    for _ in range(2):
        primary, auxiliary = draw(8), draw(4)
        closures = monitor.wrap(lambda: loss_on(model, primary), lambda: loss_on(model, auxiliary))
        stranger.step()
        optimizer.step(*closures)
    assert monitor.alignment.steps == (0, 1)
    again = analysis.AlignmentMonitor(model, optimizer=optimizer)
    again.load_state_dict(monitor.state_dict())
    assert np.array_equal(again.alignment.after, monitor.alignment.after)
    assert str(monitor.alignment).startswith("cosine ")
    monitor.close()
    optimizer.step(lambda: loss_on(model, primary), lambda: loss_on(model, auxiliary))
    assert monitor.step == 2


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("scale", [1.0, 0.001])
@pytest.mark.parametrize("seed", range(3))
def test_theorem_2_against_explicit_matrices(seed: int, scale: float):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    B, A, rho1, rho2 = draw(16), draw(4), 0.1 * scale, 0.05 * scale
    found = analysis.alignment_theorem(model, loss, B, A, rho1, rho2)
    shapes = [(n, p.shape) for n, p in model.named_parameters()]
    w = torch.cat([p.detach().flatten() for p in model.parameters()])

    def at(v: Tensor, batch: Batch) -> Tensor:
        pieces = v.split([s.numel() for _, s in shapes])
        named = {n: x.view(s) for (n, s), x in zip(shapes, pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, (batch[0],)), batch[1])

    grad = torch.func.grad(at)
    hess = torch.autograd.functional.hessian
    a, g = grad(w, B), grad(w, A)
    there = w + rho2 * g / g.norm()
    b = grad(there, A)
    HB, HA = hess(lambda v: at(v, B), w), hess(lambda v: at(v, A), there)
    product = a @ b
    eta1, eta2 = rho1 / a.norm(), rho2 / b.norm()
    values = {
        "product": product,
        "eta1": eta1,
        "eta2": eta2,
        "eta_v": rho2 / g.norm(),
        "most1": product.abs() / (12 * (b @ HB @ a).abs()),
        "most2": product.abs() / (6 * torch.stack([b @ HB @ b, b @ HA @ a]).abs().max()),
        "left": grad(w + eta1 * a - eta2 * b, B) @ b,
        "expanded": product + 2 * eta1 * (b @ HB @ a) - eta2 * (b @ HB @ b + b @ HA @ a),
    }
    for name, value in values.items():
        assert getattr(found, name) == pytest.approx(float(value), rel=1e-9), name
    assert torch.equal(w, torch.cat([p.detach().flatten() for p in model.parameters()]))
    if found.small_enough:
        assert found.holds
    assert found.small_enough or scale == 1.0
    assert found.gradients <= 8
    assert torch.allclose(analysis.Hessian(model, loss, B).gradient(), a, rtol=1e-12)


def test_bad_questions_are_one_line():
    model = Net()
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        analysis.AlignmentMonitor(lambda x: x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="every"):
        analysis.AlignmentMonitor(model, every=0)
    with pytest.raises(TypeError, match=r"torch\.optim"):
        analysis.AlignmentMonitor(model, optimizer=model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="rho2"):
        analysis.alignment_theorem(model, loss, draw(4), draw(4), rho2=0.0)
    monitor = analysis.AlignmentMonitor(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    closure, _ = monitor.wrap(lambda: torch.zeros(()), lambda: torch.zeros(()))
    with pytest.raises(ValueError, match="left no gradient"):
        optimizer.step(closure)

"""Sharpness, against losses whose highest place in a ball is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from curvatures import CASES, loss
from torch import Tensor, nn
from torch.nn import functional as F

from flatmin import analysis
from flatmin.geometry import Adaptive, Euclidean, Fisher, Only, RandomSubset

RADII = (0.05, 0.2, 0.6)
N = 6


class Bowl(nn.Module):
    """`½ (w + c)ᵀ A (w + c)`, the sample adding to `c`; two tensors of different shape."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(2, 2, generator=source, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(2, generator=source, dtype=torch.float64))
        Q = torch.randn(N, N, generator=source, dtype=torch.float64)
        self.register_buffer("A", Q @ Q.T)

    def forward(self, c: Tensor) -> Tensor:
        w = torch.cat([self.a.flatten(), self.b]) + c
        return ((w @ self.A) * w).sum(1) / 2


def bowl_loss(model: nn.Module, c: Tensor) -> Tensor:
    return model(c).mean()


CENTRES = 0.3 * torch.randn(8, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def known(model: Bowl, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, gradient and curvature."""
    w = torch.cat([model.a.detach().flatten(), model.b.detach()])
    return w, model.A @ (w + centres.mean(0)), model.A


def metric(name: str, w: Tensor, g: Tensor) -> Tensor:
    return {
        "euclidean": torch.ones(N, dtype=torch.float64),
        "adaptive": w.abs() + 0.01,
        "fisher": (1 + g**2) ** -0.5,
        "only": torch.tensor([0, 0, 0, 0, 1, 1], dtype=torch.float64),
        "product": (w.abs() + 0.01) * (1 + g**2) ** -0.5,
    }[name]


GEOMETRIES = {
    "euclidean": Euclidean(),
    "adaptive": Adaptive(),
    "fisher": Fisher(),
    "only": Only(lambda name, p: name == "b"),
    "product": Adaptive() * Fisher(),
}


def worst(g: Tensor, A: Tensor, T: Tensor, rho: float) -> float:
    """The maximum of `gᵀTu + ½ uᵀTATu` over `‖u‖ ≤ rho`, by its secular equation."""
    values, V = torch.linalg.eigh(T[:, None] * A * T)
    c = V.T @ (T * g)
    low, high = float(values.max()), float(values.max()) + float(c.norm()) / rho + 1.0
    for _ in range(200):
        shift = (low + high) / 2
        if float((c / (shift - values)).norm()) > rho:
            low = shift
        else:
            high = shift
    u = c / (high - values)
    return float(c @ u + (values * u**2).sum() / 2)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_one_ascent_step_and_the_worst_place(name: str):
    model = Bowl()
    w, g, A = known(model, CENTRES)
    T = metric(name, w, g)
    once = analysis.sharpness(model, bowl_loss, CENTRES, RADII, geometry=GEOMETRIES[name])
    most = analysis.sharpness(
        model, bowl_loss, CENTRES, RADII, "projected", geometry=GEOMETRIES[name], steps=60
    )
    assert once.loss == pytest.approx(float(bowl_loss(model, CENTRES).detach()))
    for i, rho in enumerate(RADII):
        eps = rho * T**2 * g / (T * g).norm()
        assert once.rise[i] == pytest.approx(float(g @ eps + eps @ A @ eps / 2))
        assert once.distance[i] == pytest.approx(float(eps.norm()))
        assert most.rise[i] == pytest.approx(worst(g, A, T, rho), rel=1e-4)
        assert most.rise[i] >= once.rise[i]
    assert once.gradients == 2.0
    assert once.error == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", ["euclidean", "adaptive", "only"])
def test_the_average_has_its_standard_error(name: str):
    """Of a quadratic it is half of rho² times the trace, in the metric."""
    model = Bowl()
    w, g, A = known(model, CENTRES)
    T = metric(name, w, g)
    hits = []
    for seed in range(30):
        found = analysis.sharpness(
            model,
            bowl_loss,
            CENTRES,
            0.2,
            "average",
            geometry=GEOMETRIES[name],
            draws=60,
            seed=seed,
        )
        expected = 0.2**2 / 2 * float((T**2 * A.diagonal()).sum())
        hits.append(abs(found.rise[0] - expected) <= 2 * found.error[0])
    assert 0.85 <= sum(hits) / len(hits) < 1.0


def test_m_sharpness_is_the_mean_over_groups_of_m():
    model = Bowl()
    found = analysis.sharpness(model, bowl_loss, CENTRES, 0.2, m=3)
    groups = CENTRES.split([2, 3, 3])
    alone = [analysis.sharpness(model, bowl_loss, c, 0.2).rise[0] for c in groups]
    mean = sum(len(c) / 8 * x for c, x in zip(groups, alone, strict=True))
    assert found.rise[0] == pytest.approx(mean)
    assert found.loss == pytest.approx(float(bowl_loss(model, CENTRES).detach()))
    assert found.error[0] > 0
    # each group finds its own worst place
    assert found.rise[0] > analysis.sharpness(model, bowl_loss, CENTRES, 0.2).rise[0]


def test_adaptive_sharpness_does_not_see_rescaled_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    batch = torch.randn(8, 4), torch.randint(3, (8,))
    scaled = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    with torch.no_grad():
        scaled[0].weight.copy_(4 * model[0].weight)
        scaled[2].weight.copy_(model[2].weight / 4)

    def rises(geometry: Any, method: Any) -> list[tuple[float, ...]]:
        return [
            analysis.sharpness(
                net, loss, batch, (0.1, 0.5), method, geometry=geometry, dtype=torch.float64
            ).rise
            for net in (model, scaled)
        ]

    for method in ("ascent", "projected", "average"):
        first, second = rises(Adaptive(eta=0.0), method)
        assert first == pytest.approx(second, rel=1e-9)
        first, second = rises(Euclidean(), method)
        assert first != pytest.approx(second, rel=1e-2)


def test_random_subsets_go_as_far_as_the_optimizer_would():
    model = Bowl()
    geometry = RandomSubset(beta=0.5, seed=3)
    found = analysis.sharpness(model, bowl_loss, CENTRES, 0.1, geometry=geometry)
    assert found.distance[0] == pytest.approx(0.1 / 0.5)


@pytest.mark.parametrize("method", ["ascent", "projected", "average"])
def test_nothing_is_left_changed(method: Any):
    case = CASES["convolutions, BatchNorm"]
    model, batches = case.model(torch.float32).train(), case.batches(torch.float32)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    state = torch.get_rng_state()
    found = analysis.sharpness(model, loss, batches, 0.5, method, steps=4, draws=3, m=4)
    assert found.rise[0] != 0
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training

    def broken(net: nn.Module, batch: Any) -> Tensor:
        value = loss(net, batch)
        if not torch.equal(net[0].weight, before["0.weight"]):
            raise RuntimeError("broken")
        return value

    with pytest.raises(RuntimeError, match="broken"):
        analysis.sharpness(model, broken, batches, 0.5, method)
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key])


def test_a_loss_that_overflows_is_a_rise_without_end():
    model = nn.Linear(2, 1).double()

    def steep(net: nn.Module, x: Tensor) -> Tensor:
        return torch.exp(net(x).square()).mean()

    x = torch.ones(4, 2, dtype=torch.float64)
    found = analysis.sharpness(model, steep, x, (0.1, 1e3))
    assert 0 < found.rise[0] < 100
    assert found.rise[1] == float("inf")


def test_bad_questions_are_one_line():
    batch = torch.randn(4, 2), torch.randint(2, (4,))
    for options, says in (
        ({"rho": 0.0}, "rho must lie in"),
        ({"rho": []}, "rho holds no radius"),
        ({"method": "worst"}, "method must be one of"),
        ({"m": 0}, "m must be a whole number"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"method": "average", "draws": 1}, "draws must lie in"),
    ):
        with pytest.raises(ValueError, match=says):
            analysis.sharpness(
                nn.Linear(2, 2), lambda n, b: F.cross_entropy(n(b[0]), b[1]), batch, **options
            )

"""Gradient noise, its distribution and components, against gradients taken one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

import flatmin
from flatmin import analysis
from flatmin.policy import LargeGradient

Batch = tuple[Tensor, Tensor]


def network(norm: bool = False) -> nn.Module:
    middle = [nn.BatchNorm1d(5)] if norm else []
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, 3)).double()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def draw(n: int) -> Batch:
    return torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))


def gradient(model: nn.Module, batch: Batch) -> Tensor:
    grads = torch.autograd.grad(loss(model, batch), list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


def pieces(data: Batch, size: int) -> list[Batch]:
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_noise_is_the_spread_over_a_partition(mode: Any):
    model, data = network(norm=True), draw(29)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    found = analysis.gradient_noise(model, loss, data, batch=4, mode=mode)
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name])
    assert model.training
    model.train(mode == "train")
    each = torch.stack([gradient(model, part) for part in pieces(data, 4)[:7]])
    full = each.mean(0)
    assert np.allclose(found.squared_norms, each.square().sum(1), rtol=1e-12)
    assert found.full == pytest.approx(float(full.square().sum()), rel=1e-12)
    assert found.variance == pytest.approx(float((each - full).square().sum(1).mean()), rel=1e-10)
    assert (found.batch, found.samples, found.left_out) == (4, 28, 1)
    if mode == "eval":
        whole = gradient(model, (data[0][:28], data[1][:28]))
        assert found.full == pytest.approx(float(whole.square().sum()), rel=1e-10)


def test_batches_as_they_are_and_some_of_them():
    model, data = network(), draw(18)
    cut = analysis.gradient_noise(model, loss, data, batch=4)
    given = analysis.gradient_noise(model, loss, pieces(data, 4))
    assert np.array_equal(cut.squared_norms, given.squared_norms)
    assert given.left_out == 2
    some = analysis.gradient_noise(model, loss, data, batch=4, most=3)
    assert np.array_equal(some.squared_norms, cut.squared_norms[:3])
    with pytest.raises(ValueError, match="pass batch="):
        analysis.gradient_noise(model, loss, [draw(3), draw(4)])
    with pytest.raises(ValueError, match="no batch of 8 samples"):
        analysis.gradient_noise(model, loss, draw(5), batch=8)
    with pytest.raises(ValueError, match="from 3 batches on"):
        analysis.gradient_noise(model, loss, draw(8), batch=4).normality()


def test_the_variance_of_a_sample_whatever_the_batch():
    """Over partitions drawn at random its mean is that of single samples."""
    model, data = network(), draw(24)
    single = analysis.gradient_noise(model, loss, data, batch=1).variance * 24 / 23
    found = []
    for _ in range(60):
        order = torch.randperm(24)
        parted = data[0][order], data[1][order]
        found.append(analysis.gradient_noise(model, loss, parted, batch=6).per_sample)
    error = np.std(found) / 60**0.5
    assert abs(np.mean(found) - single * 23 / 24 * 24 / 23) < 4 * error
    noise = analysis.gradient_noise(model, loss, data, batch=6)
    assert analysis.bounds.variances(noise) == (noise.per_sample, noise.per_sample / 6)
    assert math.isnan(analysis.gradient_noise(model, loss, data, batch=24).per_sample)


def test_distributions_are_scipys():
    norms = np.random.default_rng(0).normal(5.0, 2.0, 400)
    found = analysis.GradientNoise(norms, 1.0, 1.0, 4, 1600)
    test = found.normality()
    assert (test.statistic, test.p) == tuple(stats.shapiro(norms))
    assert test.p > 0.01
    plot = found.quantiles()
    assert np.array_equal(plot.sample, np.sort(norms))
    assert (plot.slope, plot.intercept) == (
        pytest.approx(2.0, rel=0.1),
        pytest.approx(5.0, rel=0.1),
    )
    assert plot.normal[0] == pytest.approx(stats.norm.ppf(1 - 0.5 ** (1 / 400)))
    counts = found.histogram(10)
    assert counts.counts.sum() == 400
    assert len(counts.edges) == 11
    skewed = analysis.GradientNoise(norms**2, 1.0, 1.0, 4, 1600).normality()
    assert skewed.p < 1e-6 < skewed.skewness
    assert "W 0.9" in str(found)


def test_the_policys_threshold_is_the_one_it_steps_by():
    torch.manual_seed(0)
    model, norms, perturbed = network(), [], []
    policy = LargeGradient(total_steps=12)
    optimizer = flatmin.SharpnessAware(
        torch.optim.SGD(model.parameters(), lr=0.5), rho=0.1, policy=policy
    )
    for _ in range(12):
        batch = draw(4)
        norms.append(float(gradient(model, batch).square().sum()))

        def closure(batch: Batch = batch) -> Tensor:
            value = loss(model, batch)
            value.backward()
            return value

        before = optimizer.cost.perturbed
        optimizer.step(closure)
        perturbed.append(bool(optimizer.cost.perturbed - before))
    found = analysis.policy_trace(norms, policy)
    assert found.perturbed.tolist() == perturbed
    assert 0 < sum(perturbed) < 12
    state = optimizer.param_groups[0]["flatmin"]
    assert found.mean[-1] == pytest.approx(state["gradient_mean"], rel=1e-9)
    assert found.deviation[-1] ** 2 == pytest.approx(state["gradient_variance"], rel=1e-9)
    assert found.threshold[0] == pytest.approx(found.mean[0] + found.deviation[0])


def cos(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))


def test_components_are_their_definitions():
    model, data = network(), draw(40)
    parts = pieces(data, 8)
    primary, other = parts[0], parts[3]
    k4 = data[0][:32], data[1][:32]
    m = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    found = analysis.components(
        model, loss, primary, data, mean=m, sigma=0.5, other=other, larger={"4 x": k4}, chunk=7
    )
    g, G = gradient(model, primary), gradient(model, data)
    directions = {
        "SAM": g,
        "SAM-full": cos(g, G) * G,
        "SAM-noise": g - cos(g, G) * G,
        "SAM-noise, orthogonal": g - (g @ G) / (G @ G) * G,
        "F-SAM": g - 0.5 * m,
        "SAM-db": gradient(model, other),
        "4 x": gradient(model, k4),
    }
    assert list(found.along) == list(directions)
    for name, d in directions.items():
        assert found.along[name] == pytest.approx(cos(d, G), abs=1e-9)
        assert found.across[name] == pytest.approx(cos(d, g), abs=1e-9)
    assert abs(found.along["SAM-noise, orthogonal"]) < 1e-12 < abs(found.along["SAM-noise"])
    assert found.error == pytest.approx(float((m - G).norm()))
    assert (found.batch_mean, found.mean_full) == (
        pytest.approx(cos(g, m)),
        pytest.approx(cos(m, G)),
    )
    assert "SAM-db" in str(found)
    with pytest.raises(ValueError, match="running mean"):
        analysis.components(model, loss, primary, data, mean=m[:3])


def test_the_running_mean_is_that_of_f_sam_along_training():
    """The mean of the optimizer's own memory, and full gradients at the weights before updates."""
    torch.manual_seed(0)
    model, data = network(), draw(32)
    base = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer = flatmin.FriendlySAM(base, rho=0.1)
    monitor = analysis.ComponentMonitor(model, loss, data, every=2, optimizer=optimizer)
    expected: list[Tensor] = []
    for part in pieces(data, 8):
        expected.append(gradient(model, data))

        def closure(batch: Batch = part) -> Tensor:
            value = loss(model, batch)
            value.backward()
            return value

        optimizer.step(monitor.wrap(closure))
    kept = [optimizer.state[p]["friendly_mean"].flatten() for p in model.parameters()]
    assert torch.allclose(monitor.mean, torch.cat(kept), rtol=1e-12)
    assert monitor.steps == [0, 2]
    assert [c.full for c in monitor.found] == [
        pytest.approx(float(expected[i].norm()), rel=1e-10) for i in (0, 2)
    ]
    # after the first step m = (1 - λ) g
    assert monitor.found[0].mean == pytest.approx(0.1 * monitor.found[0].batch)
    assert monitor.found[0].batch_mean == pytest.approx(1.0)

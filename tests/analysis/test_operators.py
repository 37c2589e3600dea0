"""Products with the Hessian and its kin, against dense matrices; models are left as they were."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from curvatures import (
    CASES,
    Batch,
    dense_hessian,
    distance,
    error,
    jacobian,
    loss,
    mean_loss,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatmin import analysis
from flatmin.analysis import second

EXACT = 1e-10


@pytest.fixture(autouse=True)
def _attention_has_spoken() -> Iterator[None]:
    """What is said once in a process is tested where it is meant, and is no warning elsewhere."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "attention is computed by torch's math kernel")
        yield


def dense(model: nn.Module, batches: list[Batch], params: list[Tensor]) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return dense_hessian(mean_loss(model, batches), params)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_the_hessian_is_the_dense_one(name: str, mode: Any):
    case = CASES[name]
    model, batches = case.model(), case.batches()
    expected = dense(model.train(mode == "train"), batches, list(model.parameters()))
    model.eval()
    H = analysis.Hessian(model, loss, batches, mode=mode, chunk=3)
    assert error(H, expected) < EXACT
    assert H.kept == 1.0


@pytest.mark.parametrize("name", CASES)
def test_graphs_built_anew_give_the_same(name: str):
    case = CASES[name]
    model, batches = case.model(), case.batches()
    v = torch.randn(analysis.Parameters(model).count, dtype=torch.float64)
    kept = analysis.Hessian(model, loss, batches)
    anew = analysis.Hessian(model, loss, batches, memory=0)
    assert distance(anew @ v, kept @ v) < EXACT
    assert anew.kept == 0.0


def test_graphs_are_kept_as_far_as_memory_goes():
    case = CASES["convolutions, BatchNorm"]
    model, batches = case.model(), case.batches()
    whole = analysis.Hessian(model, loss, batches, chunk=1)
    v = torch.randn(whole.shape[0], dtype=torch.float64)
    whole @ v
    room = 4.5 * (whole.bytes_per_sample + 8 * len(v))
    some = analysis.Hessian(model, loss, batches, chunk=1, memory=int(room))
    for _ in range(2):
        assert distance(some @ v, whole @ v) < EXACT
    assert some.kept == 4 / 11


@pytest.mark.parametrize("name", CASES)
def test_double_precision_on_request_leaves_a_float32_model_alone(name: str):
    case = CASES[name]
    model = case.model(torch.float32)
    batches = case.batches(torch.float32)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    H = analysis.Hessian(model, loss, batches, dtype=torch.float64)
    model(batches[0][0])
    found = H @ torch.eye(H.shape[0], dtype=torch.float64)[:, :3]
    for key, x in model.state_dict().items():
        assert x.dtype == before[key].dtype
        assert torch.equal(x, before[key])
    wide = [(x.double() if x.is_floating_point() else x, y) for x, y in batches]
    model.double()
    assert distance(found, dense(model, wide, list(model.parameters()))[:, :3]) < EXACT


SUBSETS = {
    "names": ["0.weight", "4.bias"],
    "a pattern": "0.*",
    "a rule": lambda name, p: p.ndim == 1,
}


@pytest.mark.parametrize("name", SUBSETS)
def test_a_subset_is_a_block_of_the_whole(name: str):
    case = CASES["LayerNorm, GroupNorm"]
    model, batches = case.model(), case.batches()
    H = analysis.Hessian(model, loss, batches, SUBSETS[name])
    chosen = [dict(model.named_parameters())[n] for n in H.parameters.names]
    assert 0 < len(chosen) < len(list(model.parameters()))
    assert error(H, dense(model, batches, chosen)) < EXACT
    by_tensors = analysis.Hessian(model, loss, batches, chosen)
    assert by_tensors.parameters.names == H.parameters.names


def test_frozen_parameters_that_are_named_count():
    case = CASES["LayerNorm, GroupNorm"]
    model, batches = case.model(), case.batches()
    expected = dense(model, batches, list(model[0].parameters()))
    model.requires_grad_(False)
    H = analysis.Hessian(model, loss, batches, "0.*")
    assert error(H, expected) < EXACT
    assert not any(p.requires_grad for p in model.parameters())


def softmax_curvature(z: Tensor) -> Tensor:
    p = z.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


@pytest.mark.parametrize("name", CASES)
def test_gauss_newton_and_fisher_are_those_of_the_jacobian(name: str):
    case = CASES[name]
    model, batches = case.model(), case.batches()
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    with sdpa_kernel(SDPBackend.MATH):
        z = model(x)
        J = jacobian(z, list(model.parameters()))
    z = z.detach()
    n = len(y)
    gauss_newton = torch.einsum("nap,nab,nbq->pq", J, softmax_curvature(z), J) / n
    G = analysis.GaussNewton(model, loss, batches, chunk=3)
    assert error(G, gauss_newton) < EXACT
    gradients = torch.einsum("nap,na->np", J, z.softmax(1) - F.one_hot(y, z.shape[1]))
    fisher = gradients.T @ gradients / n
    for memory in ("1 GiB", 0):
        E = analysis.EmpiricalFisher(model, loss, batches, chunk=3, memory=memory)
        assert error(E, fisher) < EXACT


def test_gauss_newton_knows_outputs_of_any_structure():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"first": self.a(x), "others": [self.b(x).tanh(), "text"]}

    def both(model: nn.Module, batch: Tensor) -> Tensor:
        out = model(batch)
        return (out["first"].square().mean(1) + out["others"][0].square().mean(1)).mean()

    model, x = Two().double(), torch.randn(5, 3, dtype=torch.float64)
    params = list(model.parameters())
    outputs = torch.cat([model.a(x) / 2**0.5, model.b(x).tanh() / 2], 1)
    J = jacobian(outputs, params).flatten(0, 1)
    G = analysis.GaussNewton(model, both, x)
    assert error(G, 2 * J.T @ J / 5) < EXACT


@pytest.mark.parametrize("which", [analysis.Hessian, analysis.GaussNewton])
def test_it_is_a_scipy_operator(which: Any):
    case = CASES["LayerNorm, GroupNorm"]
    model, batches = case.model(), case.batches()
    H = which(model, loss, batches)
    full = (H @ torch.eye(H.shape[0], dtype=torch.float64)).numpy()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((H.shape[0], 2))
    assert np.allclose(H @ X[:, 0], full @ X[:, 0])
    assert np.allclose(H @ X, full @ X)
    assert np.allclose(H.T @ X, full.T @ X)
    assert np.allclose((H + H).matvec(X[:, 0]), 2 * full @ X[:, 0])
    narrow = H @ torch.tensor(X[:, 0], dtype=torch.float32)
    assert narrow.dtype == torch.float32


def test_attention_by_math_is_said_once_and_is_the_dense_hessian():
    case = CASES["attention"]
    model, batches = case.model(), case.batches()
    second._SAID.clear()
    with pytest.warns(UserWarning, match="math kernel"):
        analysis.Hessian(model, loss, batches, "inner.*") @ torch.ones(42)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        analysis.Hessian(model, loss, batches, "inner.*") @ torch.ones(42)


def test_differences_of_gradients_only_where_asked_and_with_their_error():
    case = CASES["LayerNorm, GroupNorm"]
    model, batches = case.model(), case.batches()
    before = [p.clone() for p in model.parameters()]
    exact = analysis.Hessian(model, loss, batches)
    near = analysis.Hessian(model, loss, batches, differences=True)
    v = torch.randn(exact.shape[0], dtype=torch.float64)
    off = float((near @ v - exact @ v).norm() / (exact @ v).norm())
    assert 0 < off < 1e-6
    assert near.error is not None
    assert off / 30 < near.error < 1e-5
    assert exact.error is None
    for p, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, was)


def test_differences_of_a_network_with_kinks_say_that_they_mean_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    with torch.no_grad():
        model[0].bias.zero_()
    batch = torch.zeros(4, 8), torch.randint(3, (4,))  # every unit stands on its kink
    H = analysis.Hessian(model, loss, batch, differences=True)
    with pytest.warns(UserWarning, match="differences of gradients are off by about"):
        H @ torch.randn(H.shape[0])


# Nothing is left changed.


class Moving(nn.Module):
    """A buffer that every pass moves, as codebooks and queues do, and one put there anew.

    And frozen weights that follow the others, as teachers do, unseen by counts of versions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))
        self.teacher = nn.Linear(6, 3, bias=False).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.teacher.weight.data.lerp_(self.linear.weight.detach(), 0.1)
        z = self.norm(self.linear(x)) + 0.1 * self.teacher(x)
        self.count += 1
        self.last = z.detach().mean(0)
        return z


def everything(model: nn.Module) -> dict[str, Any]:
    """All that is to stay as it was; tensors by identity too."""
    found: dict[str, Any] = {}
    for name, p in model.named_parameters():
        found[f"p {name}"] = (p, p.detach().clone(), p.requires_grad, p.grad)
        found[f"g {name}"] = None if p.grad is None else p.grad.clone()
    for name, b in model.named_buffers():
        found[f"b {name}"] = (b, b.clone(), b._version)
    for name, m in model.named_modules():
        found[f"m {name}"] = (m.training, "forward" in vars(m), dict(m._forward_hooks))
        found[f"t {name}"] = getattr(m, "track_running_stats", None)
    numbers = np.random.get_state()  # noqa: NPY002 (the stream whose state is at stake)
    found["random"] = (torch.get_rng_state().clone(), random.getstate(), numbers)
    return found


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert a is b or torch.equal(a, b)
    elif isinstance(a, (tuple, list)):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


def assert_untouched(before: dict[str, Any], model: nn.Module) -> None:
    after = everything(model)
    assert_same(before, after)
    for name, x in before.items():
        if name[0] in "pb" and isinstance(x, tuple):
            assert x[0] is after[name][0], name


def prepared(training: bool) -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    model = Moving().train(training)
    batches = [(torch.randn(n, 6), torch.randint(3, (n,))) for n in (5, 3)]
    loss(model, batches[0]).backward()
    model.linear.bias.requires_grad_(False)
    model.linear.weight.grad = None
    model.norm.eval()
    return model, batches


USES = {
    "Hessian": lambda *a, **k: analysis.Hessian(*a, **k) @ torch.ones(24),
    "differences": lambda *a, **k: analysis.Hessian(*a, differences=True, **k) @ torch.ones(24),
    "GaussNewton": lambda *a, **k: analysis.GaussNewton(*a, **k) @ torch.ones(24),
    "double": lambda *a, **k: analysis.Hessian(*a, dtype=torch.float64, **k) @ torch.ones(24),
    "value": lambda *a, **k: analysis.Objective(*a, **k).value_and_gradient(),
}


@pytest.mark.filterwarnings("ignore:differences of gradients are off")
@pytest.mark.parametrize("mode", [None, "eval", "train"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("use", USES)
def test_nothing_is_left_changed(use: str, training: bool, mode: Any):
    model, batches = prepared(training)
    loader = torch.utils.data.DataLoader(
        [(x[i], y[i]) for x, y in batches for i in range(len(y))], batch_size=4, shuffle=True
    )
    before = everything(model)
    USES[use](model, loss, loader, mode=mode)
    assert_untouched(before, model)


@pytest.mark.filterwarnings("ignore:differences of gradients are off")
@pytest.mark.parametrize("after", [0, 3, 4])
@pytest.mark.parametrize("use", USES)
def test_nothing_is_left_changed_by_an_exception(use: str, after: int):
    model, batches = prepared(training=True)
    calls = [0]

    def broken(model: nn.Module, batch: Batch) -> Tensor:
        calls[0] += 1
        random.random()
        random.seed(1)
        np.random.random()  # noqa: NPY002 (as the losses of some do)
        value = loss(model, batch)
        value.backward(retain_graph=True) if calls[0] > after else None
        raise RuntimeError("broken") if calls[0] > after else ValueError("drew")

    before = everything(model)
    with pytest.raises((RuntimeError, ValueError)):
        USES[use](model, broken, batches, mode="train")
    assert_untouched(before, model)


def test_weights_that_moved_are_noticed_and_those_that_came_back_are_not():
    case = CASES["LayerNorm, GroupNorm"]
    model, batches = case.model(), case.batches()
    H = analysis.Hessian(model, loss, batches)
    v = torch.ones(H.shape[0], dtype=torch.float64)
    first = H @ v
    home = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[0].weight.copy_(home)
    assert torch.equal(H @ v, first)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(ValueError, match="the weights have changed"):
        H @ v


def test_moving_weights_come_back_bit_for_bit():
    case = CASES["convolutions, BatchNorm"]
    model, batches = case.model(torch.float32), case.batches(torch.float32)
    objective = analysis.Objective(model, loss, batches)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    v = torch.randn(objective.parameters.count)
    direct = case.model(torch.float32)
    with torch.no_grad():
        for p, x in zip(direct.parameters(), objective.parameters.unflatten(v), strict=True):
            p.add_(x)

    def look_around() -> None:
        with objective.moving() as move:
            move(3 * v)
            move(v)
            assert objective.value() == analysis.Objective(direct, loss, batches).value()
            raise KeyError

    with pytest.raises(KeyError):
        look_around()
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what it imports
def test_curvlinops_agrees_on_resnet20_in_float32():
    curvlinops = pytest.importorskip("curvlinops")
    from flatmin.training import models

    torch.manual_seed(0)
    model = models.build("resnet20", channels=3, size=32, classes=10).eval()
    batches = [(torch.randn(n, 3, 32, 32), torch.randint(10, (n,))) for n in (6, 3)]
    params = list(model.parameters())
    theirs = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), params, batches, check_deterministic=False
    )
    ours = analysis.Hessian(model, loss, batches)
    v = torch.randn(ours.shape[0])
    assert distance(ours @ v, theirs @ v) < 1e-5

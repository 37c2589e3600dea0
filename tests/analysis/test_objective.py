"""Data in any form, parameters by any name, and what is wrong with a model, a loss or data."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from flatmin import analysis
from flatmin.analysis.batches import batches_of, chunks_of

X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3
Pair = namedtuple("Pair", ["x", "y"])


def network(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), *last)


def loss(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


class Batches(Dataset):
    """A data set of batches, without `__iter__`, and without an end of its own."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return X[5 * i : 5 * i + 5], Y[5 * i : 5 * i + 5]


DATA = {
    "one tuple": lambda: (X, Y),
    "one list, as a loader yields it": lambda: [X, Y],
    "a named tuple": lambda: Pair(X, Y),
    "a list": lambda: [(X[:7], Y[:7]), (X[7:], Y[7:])],
    "a list of lists": lambda: [[X[:7], Y[:7]], [X[7:], Y[7:]]],
    "a loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    "a generator": lambda: ((X[i : i + 3], Y[i : i + 3]) for i in range(0, 10, 3)),
    "a data set of batches": Batches,
}


@pytest.mark.parametrize("name", DATA)
def test_data_in_any_form_is_the_same_loss(name: str):
    """Uneven batches and chunks count by their size."""
    model = network()
    expected = float(loss(model, (X, Y)).detach())
    for chunk in (3, 128, None):
        found = analysis.Objective(model, loss, DATA[name](), chunk=chunk)
        assert found.value() == pytest.approx(expected, rel=1e-6)
        assert found.samples == 10


def test_batches_of_any_structure_are_cut():
    batch = {"x": (X, [Y, {"z": X}]), "names": [str(i) for i in range(10)]}
    chunks = chunks_of(batches_of(batch), 4)
    assert [c.size for c in chunks] == [3, 3, 4]
    assert sum(c.weight for c in chunks) == pytest.approx(1)
    assert torch.equal(torch.cat([c.batch["x"][1][1]["z"] for c in chunks]), X)
    assert chunks[1].batch["names"] == ["3", "4", "5"]
    assert len(batches_of([X, X])) == 2
    assert len(batches_of(X)) == 1


def test_parameters_by_any_name():
    model = network()
    everything = [n for n, _ in model.named_parameters()]
    for subset, names in (
        (None, everything),
        ("2.weight", ["2.weight"]),
        (["2.*", "0.bias"], ["0.bias", "2.weight", "2.bias"]),
        (lambda name, p: p.ndim > 1, ["0.weight", "2.weight"]),
        (model[2].parameters(), ["2.weight", "2.bias"]),
        ([model[0].bias, model[0].bias], ["0.bias"]),
    ):
        assert analysis.Parameters(model, subset).names == names
    weights = analysis.Parameters(model)
    v = torch.randn(weights.count)
    assert torch.equal(weights.flatten(weights.unflatten(v)), v)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert analysis.Parameters(tied).count == 9 + 3 + 3


def test_gradients_are_those_of_backward():
    model = network()
    value, gradient = analysis.Objective(model, loss, (X, Y), chunk=4).value_and_gradient()
    whole = loss(model, (X, Y))
    whole.backward()
    assert value == pytest.approx(float(whole.detach()))
    assert torch.allclose(
        gradient.float(), torch.cat([p.grad.flatten() for p in model.parameters()])
    )


@pytest.mark.parametrize("missing", [False, True])
def test_it_is_imported_when_first_asked_for(missing: bool):
    hidden = "sys.modules['scipy'] = None; " if missing else ""
    script = (
        f"import sys; {hidden}import flatmin; loaded = set(sys.modules); "
        "assert not loaded & {'flatmin.analysis', 'scipy.sparse'}; "
        "print(flatmin.analysis.Hessian.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if missing:
        says = "ImportError: flatmin.analysis needs scipy: pip install 'flatmin[studies]'"
        assert run.stderr.strip().splitlines()[-1] == says
    else:
        assert run.stdout.strip() == "Hessian"


class NoSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


def used_up() -> Any:
    batches = iter([(X, Y)])
    next(batches)
    return batches


def penalised(model: nn.Module, batch: Any) -> Tensor:
    return loss(model, batch) + model[0].weight.square().sum()


def backward_inside(model: nn.Module, batch: Any) -> Tensor:
    value = loss(model, batch)
    value.backward(retain_graph=True)
    return value


def product(build: Any = network, loss: Any = loss, data: Any = (X, Y), **options: Any) -> Any:
    H = analysis.Hessian(build(), loss, data, **options)
    return H @ torch.ones(H.shape[0])


def gauss_newton(loss: Any) -> Any:
    G = analysis.GaussNewton(network(), loss, (X, Y))
    return G @ torch.ones(G.shape[0])


BAD = {
    "random layers in training mode": (
        lambda: product(lambda: network(nn.Dropout(0.3)).train()),
        ValueError,
        r"the loss draws random numbers: 3 is a Dropout in training mode; call model.eval\(\)",
    ),
    "a random function": (
        lambda: product(loss=lambda m, b: loss(m, (F.dropout(b[0]), b[1]))),
        ValueError,
        "the loss draws random numbers: a layer in training mode, or the loss itself",
    ),
    "a loss that is not a number": (
        lambda: product(data=(X * float("nan"), Y)),
        ValueError,
        "the loss is nan at these weights",
    ),
    "a second derivative that is not finite": (
        lambda: product(loss=lambda m, b: (0 * m(b[0])).abs().sqrt().mean() + loss(m, b)),
        ValueError,
        "the second derivatives by 0.weight are not finite",
    ),
    "a custom function": (
        lambda: product(loss=lambda m, b: NoSecond.apply(m(b[0])).mean()),
        ValueError,
        "no second derivative: torch has none of NoSecond",
    ),
    "an operation of torch": (
        lambda: product(
            loss=lambda m, b: torch.ops.aten._cdist_forward(
                m(b[0]), m(b[0]).detach() + 1, 2.0, 1
            ).mean()
        ),
        ValueError,
        r"no second derivative: torch has none of _cdist_backward",
    ),
    "more losses than one": (
        lambda: product(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")),
        TypeError,
        r"a tensor of one number, got a tensor of shape \(8,\)",
    ),
    "a number": (
        lambda: product(loss=lambda m, b: loss(m, b).item()),
        TypeError,
        "got a float",
    ),
    "a constant": (
        lambda: product(loss=lambda m, b: loss(m, b).detach()),
        ValueError,
        "does not depend on the chosen parameters",
    ),
    "backward inside": (
        lambda: product(loss=backward_inside, data=(X[:1], Y[:1])),
        ValueError,
        r"has called backward\(\)",
    ),
    "an exhausted generator": (
        lambda: product(data=used_up()),
        ValueError,
        "data holds no batch: this iterator is exhausted",
    ),
    "an empty list": (lambda: product(data=[]), ValueError, "data holds no batch: it is empty"),
    "an empty batch": (lambda: product(data=(X[:0], Y[:0])), ValueError, "a batch of no samples"),
    "no data": (lambda: product(data=7), TypeError, "data must be a batch, .* got a int"),
    "single samples": (
        lambda: product(data=TensorDataset(X, Y)),
        ValueError,
        "goes into a DataLoader first",
    ),
    "uneven parts": (lambda: product(data=(X, Y[:5])), ValueError, r"got lengths \[5, 10\]"),
    "an empty subset": (lambda: product(parameters=[]), ValueError, "no parameter is chosen"),
    "a rule that admits none": (
        lambda: product(parameters=lambda name, p: False),
        ValueError,
        "no parameter is chosen",
    ),
    "a frozen model": (
        lambda: product(lambda: network().requires_grad_(False)),
        ValueError,
        "the model has none that requires a gradient",
    ),
    "an unknown name": (
        lambda: product(parameters=["0.wieght"]),
        ValueError,
        "no parameter named '0.wieght'; did you mean '0.weight'",
    ),
    "a stranger's parameter": (
        lambda: product(parameters=[nn.Parameter(torch.ones(2))]),
        ValueError,
        "is no parameter of the model",
    ),
    "no memory": (lambda: product(memory="lots"), ValueError, "memory must be a number of bytes"),
    "no chunk": (lambda: product(chunk=0), ValueError, "chunk must be a whole number"),
    "no mode": (lambda: product(mode="test"), ValueError, "mode must be one of 'eval', 'train'"),
    "no model": (lambda: product(lambda: loss), TypeError, "model must be a torch.nn.Module"),
    "no loss": (lambda: product(loss=1.0), TypeError, "loss must be a function"),
    "a vector of another length": (
        lambda: analysis.Hessian(network(), loss, (X, Y)) @ torch.ones(3),
        ValueError,
        r"has the shape \(43,\), got \(3,\)",
    ),
    "a penalty beside the outputs": (
        lambda: gauss_newton(penalised),
        ValueError,
        "leave penalties on weights out",
    ),
    "two calls of the model": (
        lambda: gauss_newton(lambda m, b: loss(m, b) + loss(m, b)),
        ValueError,
        "calls it 2 times",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_clear_line(name: str):
    ask, kind, says = BAD[name]
    with pytest.raises(kind, match=says) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_random_layers_are_no_matter_in_evaluation_mode():
    model = network(nn.Dropout(0.3)).train()
    H = analysis.Hessian(model, loss, (X, Y), mode="eval")
    plain = analysis.Hessian(network(), loss, (X, Y))
    assert torch.equal(H @ torch.ones(43), plain @ torch.ones(43))
    assert model.training


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_sum_is_warned_about_and_a_mean_is_not(reduction: str):
    def of_kind(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y, reduction=reduction)

    if reduction == "mean":
        product(loss=of_kind)
        return
    with pytest.warns(UserWarning, match="is the sum of those of its halves"):
        product(loss=of_kind)


def test_a_linear_loss_has_no_curvature():
    model = nn.Linear(4, 3)
    found = product(lambda: model, loss=lambda m, b: m(b[0]).mean())
    assert not found.any()


def test_fishers_of_batch_statistics_are_refused():
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    E = analysis.EmpiricalFisher(build(), loss, (X, Y))
    with pytest.raises(ValueError, match=r"batch statistics \(1\) does not have: pass mode='eval'"):
        E @ torch.ones(E.shape[0])
    assert (analysis.EmpiricalFisher(build(), loss, (X, Y), mode="eval") @ torch.ones(21)).any()

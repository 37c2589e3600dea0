"""Eigenvalues, densities and traces of operators whose spectrum is known."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from curvatures import CASES, loss
from scipy import sparse
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from flatmin import analysis
from flatmin.analysis import lanczos, second
from flatmin.analysis.spectrum import _leave_one_out

SIZE = 150


def planted(values: list[float], bulk: float = 0.1, seed: int = 0, size: int = SIZE) -> Any:
    """A dense matrix with these eigenvalues, and others that are normal with deviation `bulk`."""
    rng = np.random.default_rng(seed)
    spectrum = np.concatenate([values, bulk * rng.standard_normal(size - len(values))])
    Q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return (Q * spectrum) @ Q.T


def top(A: Any, k: int, which: str) -> Any:
    values = np.linalg.eigvalsh(A)
    return np.sort(values[lanczos.ordered(values, which)[:k]])[::-1]


SPECTRA = {
    "outliers": [50.0, 30.0, 20.0, 10.0, 6.0],
    "both signs": [9.0, -8.0, 7.0, -6.0, 5.0],
    "four copies": [110.0, 110.0, 110.0, 110.0, 88.0, 69.0],
    "copies below the top": [50.0, 20.0, 20.0, 20.0, 5.0, 4.0],
    "copies of both signs": [7.0, -7.0, 7.0, -7.0, 3.0],
    "more copies than asked for": [5.0] * 8,
    "close": [10.0, 9.9, 9.8, 9.7, 9.6, 9.5],
}


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("name", SPECTRA)
def test_planted_spectra_copies_included(name: str, which: Any):
    A = planted(SPECTRA[name])
    found = analysis.eigenvalues(A, k=5, which=which, tol=1e-3, most=250)
    expected = top(A, 5, which)
    assert found.converged
    assert np.abs(found.values - expected).max() <= 1e-3 * np.abs(expected).max()
    V = found.vectors.numpy()
    true = np.linalg.norm(A @ V - V * found.values, axis=0)
    assert np.allclose(true, found.residuals, rtol=0.01, atol=1e-8)
    # an eigenvalue lies within the residual of each
    assert np.all(np.abs(found.values - expected) <= found.residuals + 1e-9)
    assert np.abs(V.T @ V - np.eye(5)).max() < 1e-10


def test_copies_are_missed_by_no_start():
    A = planted([110.0, 110.0, 88.0, 69.0], size=200)
    for seed in range(30):
        found = analysis.eigenvalues(A, k=3, seed=seed)
        assert np.allclose(found.values, [110, 110, 88], rtol=1e-4), seed
        assert found.copies_excluded


def test_outliers_cost_few_products():
    """Three more than the search without a second start."""
    A = sparse.diags_array(np.r_[50.0, 40.0, 30.0, 22.0, 15.0, np.full(20_000, 0.1)])
    found = analysis.eigenvalues(A, k=5)
    assert found.converged
    assert found.copies_excluded
    assert found.products <= 12


def test_scipy_operators_and_tensors_are_taken():
    A = planted(SPECTRA["outliers"], size=60)
    expected = top(A, 2, "LM")
    operators = (
        LinearOperator(A.shape, matvec=lambda v: A @ v, dtype=np.float64),
        LinearOperator(A.shape, matvec=lambda v: (A @ v).astype(np.float32), dtype=np.float32),
        sparse.csr_array(A),
        torch.tensor(A),
    )
    for operator in operators:
        assert np.allclose(analysis.eigenvalues(operator, 2).values, expected, rtol=1e-3)


def test_the_largest_eigenvalues_of_a_network():
    case = CASES["LayerNorm, GroupNorm"]
    model, batches = case.model(), case.batches()
    H = analysis.Hessian(model, loss, batches)
    full = (H @ torch.eye(H.shape[0], dtype=torch.float64)).numpy()
    found = analysis.eigenvalues(H, k=4, tol=1e-8, most=100)
    assert np.allclose(found.values, top(full, 4, "LM"), rtol=1e-8)
    spectrum = analysis.spectrum(H, 60)
    assert abs(spectrum.trace.value - np.trace(full)) <= 4 * spectrum.trace.error + 1e-9
    assert np.allclose(spectrum.top(2)[0], top(full, 2, "LM"), rtol=1e-3)
    assert abs(analysis.trace(H, 200).value - np.trace(full)) < 1e-9


def test_a_whole_space_ends_the_search():
    for A, expected in (
        (np.zeros((6, 6)), [0.0, 0.0]),
        (np.eye(6), [1.0, 1.0]),
        (np.diag([0.0, 0.0, 0.0, 1.0, 2.0]), [2.0, 1.0]),
    ):
        found = analysis.eigenvalues(A, k=2)
        assert np.allclose(found.values, expected)
        assert found.converged
    assert np.allclose(analysis.eigenvalues(np.diag([3.0, -4.0]), k=2).values, [3, -4])
    assert np.allclose(analysis.eigenvalues(np.array([[2.0]]), k=1).values, [2])


def test_what_has_not_converged_says_by_how_much():
    A = planted([], bulk=1.0)
    with pytest.warns(
        UserWarning, match=r"not converged after 12 products: \d of 5 .* worst is at"
    ):
        found = analysis.eigenvalues(A, k=5, most=12)
    assert not found.converged
    assert found.products == 12
    V = found.vectors.numpy()
    assert np.allclose(np.linalg.norm(A @ V - V * found.values, axis=0), found.residuals)
    assert "open after 12 products" in str(found)


class Interrupting:
    """A matrix whose products are interrupted after some."""

    def __init__(self, A: Any, after: int) -> None:
        self.A, self.left = A, after

    def __call__(self, v: Any) -> Any:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.A @ v

    def operator(self) -> LinearOperator:
        return LinearOperator(self.A.shape, matvec=self, dtype=np.float64)


def test_interrupted_they_return_what_is_known():
    A = planted(SPECTRA["outliers"])
    with pytest.warns(UserWarning, match="interrupted after 6 products"):
        found = analysis.eigenvalues(Interrupting(A, 6).operator(), k=5, tol=1e-9)
    assert found.interrupted
    assert found.products == 6
    assert np.isclose(found.values[0], 50, rtol=1e-2)
    spectrum = analysis.spectrum(Interrupting(A, 12).operator())
    assert spectrum.interrupted
    assert abs(spectrum.trace.value - np.trace(A)) < 4 * spectrum.trace.error
    for after in (9, 20):
        estimate = analysis.trace(Interrupting(A, after).operator())
        assert estimate.interrupted
        assert abs(estimate.value - np.trace(A)) < 5 * estimate.error
    for ask in (analysis.eigenvalues, analysis.spectrum, analysis.trace):
        with pytest.raises(KeyboardInterrupt):
            ask(Interrupting(A, 0).operator())


def test_a_loss_that_draws_random_numbers_is_noticed():
    """From a generator of its own, which no state tells."""
    source = torch.Generator().manual_seed(0)

    def noisy(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch + 0.1 * torch.randn(batch.shape, generator=source)) ** 2).mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    H = analysis.Hessian(model, noisy, torch.randn(20, 5), memory=0)
    second._SAID.clear()
    with pytest.warns(UserWarning, match="not those of one symmetric matrix"):
        found = analysis.eigenvalues(H, k=1, tol=0.2)
    assert found.asymmetry > lanczos.ASYMMETRY


def test_an_operator_in_float32_is_not_taken_for_a_random_one():
    case = CASES["convolutions, BatchNorm"]
    H = analysis.Hessian(case.model(torch.float32), loss, case.batches(torch.float32))
    found = analysis.eigenvalues(H, k=5)
    assert found.asymmetry == 0.0
    assert found.converged


# Traces and densities.

REPEATS = 40
TRACES = {
    "outliers": np.r_[
        40.0, 30.0, 20.0, 10.0, 0.01 + 0.02 * np.random.default_rng(1).normal(size=496)
    ],
    "copies": np.r_[[110.0] * 4, 88.0, 69.0, 0.1 * np.random.default_rng(2).normal(size=494)],
    "bulk": 1.0 + np.random.default_rng(3).normal(size=500),
    "decay": 10.0 / np.arange(1, 501) ** 1.2,
}
# a random start has no preferred directions, so a diagonal matrix is as good as any


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("ask", ["trace", "spectrum"])
def test_error_bars_cover(name: str, ask: str):
    """Of the repetitions, two thirds within one standard error, nearly all within two."""
    A, truth = sparse.diags_array(TRACES[name]), TRACES[name].sum()
    if ask == "trace":
        found = [analysis.trace(A, 24, seed=s) for s in range(REPEATS)]
    else:
        found = [analysis.spectrum(A, 40, seed=s).trace for s in range(REPEATS)]
    z = np.array([(e.value - truth) / e.error for e in found])
    assert 0.5 <= np.mean(np.abs(z) < 1) <= 0.88
    assert np.mean(np.abs(z) < 2) >= 0.8  # XTrace, where eigenvalues decay: nine of ten
    assert np.mean(np.abs(z) < 4) >= 0.97
    assert (
        abs(np.mean([e.value for e in found]) - truth)
        < 4 * np.std(z) * found[0].error / REPEATS**0.5
    )


def test_xtrace_is_its_definition():
    """Each vector is left out once, and estimates the rest of what the others span."""
    torch.manual_seed(0)
    n, m = 30, 6
    A = torch.randn(n, n, dtype=torch.float64)
    A = A + A.T
    omega = torch.randn(n, m, dtype=torch.float64)
    expected = []
    for i in range(m):
        others = [j for j in range(m) if j != i]
        Q, _ = torch.linalg.qr(A @ omega[:, others])
        rest = omega[:, i] - Q @ (Q.T @ omega[:, i])
        rest = rest * ((n - m + 1) ** 0.5 / rest.norm())
        expected.append((Q.T @ A @ Q).trace() + rest @ A @ rest)
    Y = A @ omega
    Q, R = torch.linalg.qr(Y)
    found = _leave_one_out(
        Q.T @ A @ Q, R, Q.T @ omega, (omega * Y).sum(0), omega.square().sum(0), n
    )
    assert torch.allclose(found, torch.stack(expected))


def test_a_trace_of_low_rank_is_exact():
    estimate = analysis.trace(sparse.diags_array(np.r_[3.0, 2.0, -1.0, np.zeros(200)]), 20)
    assert abs(estimate.value - 4.0) < 1e-10
    assert estimate.error < 1e-10


def test_the_density_is_that_of_the_eigenvalues():
    values = TRACES["outliers"]
    found = analysis.density(sparse.diags_array(values), 60, points=4000, width=0.5)
    step = found.at[1] - found.at[0]
    assert abs(found.values.sum() * step - 1) < 1e-4
    bells = np.exp(-(((found.at[:, None] - values) / 0.5) ** 2) / 2) / (0.5 * (2 * np.pi) ** 0.5)
    assert np.abs(found.values - bells.mean(1)).max() < 0.01 * bells.mean(1).max()
    # an outlier stands for one eigenvalue of five hundred
    assert found.values[np.argmin(np.abs(found.at - 40))] == pytest.approx(
        1 / 500 / (0.5 * (2 * np.pi) ** 0.5), rel=1e-3
    )


def test_converged_values_count_as_one_eigenvalue_each():
    """Plain quadrature gives them random weights: a trace several times as far off."""
    values = TRACES["copies"]
    A = sparse.diags_array(values)
    ours, plain = [], []
    for seed in range(20):
        found = analysis.spectrum(A, 40, seed=seed)
        ours.append(found.trace.value - values.sum())
        basis = lanczos.Basis(lanczos.Products(A), 40, seed)
        basis.start()
        while not basis.exhausted:
            basis.extend(len(basis) - 1)
        nodes, S, _ = basis.ritz()
        plain.append(len(values) * (S[0] ** 2) @ nodes - values.sum())
        assert np.allclose(np.sort(found.nodes[found.converged])[-3:], 110, rtol=1e-3)
    assert np.std(ours) < 0.1 * np.std(plain)


def test_the_share_of_negative_eigenvalues_is_told_only_where_it_is_known():
    rng = np.random.default_rng(0)
    apart = np.r_[1 + rng.random(700), -1 - rng.random(300)]
    low, high = analysis.spectrum(sparse.diags_array(apart), 60).negative()
    assert low <= 0.3 <= high
    assert high - low < 0.1
    around = np.r_[100.0, 80.0, 0.01 * rng.standard_normal(998)]
    found = analysis.spectrum(sparse.diags_array(around), 8)
    low, high = found.negative()
    assert low <= np.mean(around < 0) <= high
    assert high - low > 0.1
    assert "negative eigenvalues: not known" in str(found)


# What can go wrong.


def test_bad_questions_are_one_line():
    A = np.eye(4)
    for ask, says in (
        (lambda: analysis.eigenvalues(A, k=5), "k=5 eigenvalues of an operator on 4 parameters"),
        (lambda: analysis.eigenvalues(A, k=0), "k must be a whole number"),
        (lambda: analysis.eigenvalues(A, which="BE"), "which must be one of 'LM', 'LA', 'SA'"),
        (lambda: analysis.eigenvalues(A, tol=0.0), "tol must lie in"),
        (lambda: analysis.eigenvalues(np.ones((2, 3))), "square matrix"),
        (lambda: analysis.spectrum(A, 1), "products must lie in"),
        (lambda: analysis.trace(A, 3), "products must lie in"),
        (lambda: analysis.spectrum(A).density(width=0.0), "width must lie in"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            ask()
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="an operator is one of"):
        analysis.eigenvalues("H")


def test_an_operator_that_is_not_symmetric_is_noticed():
    A = np.triu(np.random.default_rng(0).standard_normal((50, 50)))
    second._SAID.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        analysis.eigenvalues(A, k=1, most=20)
    assert any("not those of one symmetric matrix" in str(w.message) for w in said)

"""Bounds against their formulas by hand, and estimators of their constants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatmin.analysis import bounds

RESNET20: dict[str, Any] = {"norm": 42.33, "count": 272_474, "samples": 50_000}
"""The norm is the one at which the main text's form gives what is said; training left 44.6."""


@pytest.mark.parametrize(("form", "times"), [("proof", 4.3), ("appendix", 34), ("main", 51_145)])
def test_theorem_1_for_resnet20(form: Any, times: float):
    """How many times the loss's own bound; all but the sharp loss scales with that."""
    found = bounds.generalization(0.2, rho=0.05, form=form, **RESNET20)
    assert round(found.value - 0.2, 1 if form == "proof" else 0) == times
    doubled = bounds.generalization(0.2, rho=0.05, form=form, most=2.0, **RESNET20)
    assert doubled.value - 0.2 == pytest.approx(2 * (found.value - 0.2))


def test_theorem_1_by_hand():
    k, N, w, rho, delta, L = 3, 100, 2.0, 0.5, 0.1, 4.0
    sigma = rho / (math.sqrt(k) + math.sqrt(math.log(N)))
    root = math.sqrt(
        1
        + k * math.log(1 + w**2 / (k * sigma**2))
        + 2 * math.log(math.pi**2 / (6 * delta))
        + 4 * math.log(1 + k + 4 * N)
    )
    found = bounds.generalization(1.5, w, k, N, rho, delta, L)
    assert found.terms == {
        "sharp loss": 1.5,
        "complexity": pytest.approx(L / (2 * math.sqrt(N)) * root),
        "tail": pytest.approx(2 * L / math.sqrt(N)),
    }
    wide = 1 + math.sqrt(math.log(N) / k)
    last = 2 * math.sqrt(math.log((N + k) / delta))
    appendix = math.sqrt(k * math.log(1 + w**2 / rho**2 * wide**2))
    main = k * math.log(1 + w**2 / rho * wide)
    for form, size in (("appendix", appendix), ("main", main)):
        value = bounds.generalization(1.5, w, k, N, rho, delta, L, form=form).value  # pyright: ignore[reportArgumentType]
        assert value == pytest.approx(1.5 + 4 * L / math.sqrt(N) * (size + last))


def test_rates_by_hand():
    """Numbers small enough to be checked without a machine."""
    # 32·2·3/(10·4) + (1 + ½ + 5·4·½)·8/(2·10·4)
    assert bounds.mixed_rate(3.0, 2.0, 8.0, 2, 100, 0.5).value == pytest.approx(4.8 + 1.15)
    # 3/(10·0.25·(1 - 0.25 - 0.1))
    assert bounds.full_batch_rate(3.0, 2.0, 0.25, 0.1, 10, 0.5).value == pytest.approx(
        3 / (10 * 0.25 * 0.65)
    )
    # 2·3/(0.5·10); (2·2·4·0.5 + 0.04·8·0.5)/10; 0.04·4·log(100)/10
    found = bounds.friendly_rate(3.0, 2.0, 4.0, 100, 0.5, 0.2)
    assert list(found.terms.values()) == pytest.approx([1.2, 0.816, 0.016 * math.log(100)])
    # 4√(2·3·(5 + 1))/10; 6·4·(7·0.04 + 7·0.01 - 8·0.02)
    found = bounds.align_rate(3.0, 2.0, 5.0, 1.0, 100, 0.2, 0.1)
    assert list(found.terms.values()) == pytest.approx([2.4, 4.56])
    # 2·36^¼/100^¼; 2·(√(6·0.19) + 0.1)
    found = bounds.align_least_norm(3.0, 2.0, 5.0, 1.0, 100, 0.2, 0.1)
    assert list(found.terms.values()) == pytest.approx(
        [2 * 36**0.25 / 100**0.25, 2 * (math.sqrt(1.14) + 0.1)]
    )
    assert float(found) == pytest.approx(found.value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bounds.mixed_rate(1.0, 1.0, 1.0, 1, 10, 1.5), "share"),
        (lambda: bounds.full_batch_rate(1.0, 2.0, 0.6, 0.1, 10, 0.5), "lr"),
        (lambda: bounds.full_batch_rate(1.0, 2.0, 0.1, 0.3, 10, 0.5), "rho"),
        (lambda: bounds.friendly_rate(1.0, 2.0, 1.0, 4, 1.5, 0.1), "says nothing of such a rate"),
        (lambda: bounds.align_least_norm(1.0, 1.0, 1.0, 1.0, 4, 0.1, 0.2), "at least rho2"),
        (lambda: bounds.generalization(0.0, 1.0, 10, 10, delta=0.0), "delta"),
        (lambda: bounds.smoothness_between([]), "two different places"),
    ],
)
def test_conditions_are_asked_for(call: Any, says: str):
    with pytest.raises(ValueError, match=says):
        call()


def test_smoothness_of_a_bowl_is_its_largest_curvature():
    torch.manual_seed(0)
    A = torch.diag(torch.tensor([1.0, -7.0, 3.0], dtype=torch.float64))

    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def loss(model: Any, batch: Tensor) -> Tensor:
        return (model.w @ A @ model.w / 2 * torch.ones_like(batch)).mean()

    beta = bounds.smoothness(Bowl(), loss, torch.ones(4, 1))
    assert beta == pytest.approx(7.0, rel=1e-6)
    walk = torch.randn(5, 3, dtype=torch.float64)
    between = bounds.smoothness_between([(w, A @ w) for w in walk])
    assert 3.0 < between <= 7.0 + 1e-9

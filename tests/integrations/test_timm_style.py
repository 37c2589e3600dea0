"""The loop in timm's shape takes the steps of the plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

METHODS = ["sam", "agnostic-sam", "ae-agnostic-sam-previous", "look-sam"]


def deviation(a: nn.Module, b: nn.Module) -> float:
    x, y = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (a, b))
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize("method", METHODS)
def test_it_ends_with_the_weights_of_the_plain_loop(method: str, example: Any):
    timm = example("timm_style_digits")
    plain = example("plain").train(method, 2)
    trained, _ = timm.train(timm.arguments(["--method", method, "--epochs", "2"]))
    # timm's schedules are closed forms, torch's recursions: they differ in the last digit.
    assert deviation(trained, plain) < 1e-6


@pytest.mark.parametrize("method", ["sam", "look-sam", "gsam"])
def test_three_lines_make_the_weights_of_the_plain_loop(method: str, example: Any):
    timm = example("timm_in_three_lines")
    trained = timm.train(timm.arguments(["--method", method, "--epochs", "2"]))
    assert deviation(trained, example("plain").train(method, 2)) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_equal_the_large_batch(
    method: str, example: Any, monkeypatch: pytest.MonkeyPatch
):
    def without_batchnorm() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))

    timm = example("timm_style_digits")
    monkeypatch.setattr(timm, "network", without_batchnorm)
    told = ["--method", method, "--epochs", "2", "--clip-grad", "0.5"]
    whole, _ = timm.train(timm.arguments([*told, "--batch-size", "64"]))
    pieces, _ = timm.train(timm.arguments([*told, "--batch-size", "32", "--grad-accum-steps", "2"]))
    assert 0 < deviation(pieces, whole) < 1e-5
    free, _ = timm.train(timm.arguments(told[:4]))
    assert deviation(free, whole) > 1e-3


def test_the_averaged_weights_follow_the_unperturbed_ones(example: Any):
    timm = example("timm_style_digits")
    arguments = timm.arguments(["--method", "agnostic-sam", "--epochs", "2", "--amp"])
    trained, averaged = timm.train(arguments)
    assert 0 < deviation(averaged.module, trained) < 0.5
    assert int(averaged.n_averaged) == 2 * (1437 // 64)

"""Two processes, each with its own part of the data, see what one sees of it all."""

from __future__ import annotations

import json
from typing import Any

import analysis_processes
import pytest
import torch
from torchrun import launched, read

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch was built without gloo",
)


@pytest.fixture(scope="module")
def both(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    folder = launched(request, "analysis_processes.py", 2)
    return [json.loads(path.read_text()) for path in read(folder, ["0.json", "1.json"])]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        return analysis_processes.found()
    finally:
        torch.use_deterministic_algorithms(before)


EXACT = ("Hessian", "GaussNewton", "EmpiricalFisher", "samples", "eigenvalues", "value", "gradient")


@pytest.mark.parametrize(
    "name",
    [*EXACT, "replicas", "noise", "alignment", "sharded value", "sharded gradient"],
)
def test_two_processes_see_what_one_sees(name: str, one: Any, both: Any):
    expected = torch.tensor(one[name], dtype=torch.float64)
    for rank in both:
        found = torch.tensor(rank[name], dtype=torch.float64)
        assert float((found - expected).abs().max()) <= 1e-10 * float(expected.abs().max())
    assert both[0][name] == both[1][name]


def test_fsdp2_is_refused_with_the_reason_and_has_differences(one: Any, both: Any):
    expected = torch.tensor(one["sharded product"])
    for rank in both:
        assert rank["refused"].startswith("FSDP2 brings parameters and gradients together outside")
        off = (torch.tensor(rank["sharded product"]) - expected).norm() / expected.norm()
        assert 0 < float(off) < 1e-6
        assert rank["sharded value again"] == rank["sharded value"]


def test_a_replica_trains_on(both: Any):
    assert all(rank["trains"] for rank in both)


def test_processes_share_the_points_of_a_surface(one: Any, both: Any):
    for rank in both:
        assert rank["shared"] == one["shared"]  # bit for bit
        # of a whole grid one point is looked at: three calls tell sum from mean, four see batches
        assert rank["evaluated again"] == 3 + 4
        assert rank["other data"].startswith("the processes do not have the same data, and so")
        assert "holds a grid with other coordinates" in rank["other grid"]
    assert both[0]["failed"].startswith("another process could not evaluate its points")
    assert both[1]["failed"] == "of rank 1"
    assert both[0]["replicas again"] == both[0]["replicas"]

"""A compiled model in the closure: the same steps, and a handful of graphs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tables import METHODS, TOTAL, Trainer
from torch import _dynamo

STEPS = 10

COMPILERS = ["c++", "g++", "clang++", "cl"]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, COMPILERS)), reason="inductor needs a C++ compiler, here is none"
)


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    _dynamo.reset()
    _dynamo.utils.counters.clear()
    yield
    _dynamo.reset()


def graphs() -> int:
    """How many graphs were compiled since the test began; fails where a graph was broken."""
    assert not _dynamo.utils.counters["graph_break"]
    return _dynamo.utils.counters["stats"]["unique_graphs"]


def compiled(trainer: Trainer, backend: str) -> Trainer:
    """Its closures call the compiled model; the optimizer knows the model, if any, as it is."""
    trainer.model = torch.compile(trainer.model, backend=backend)
    return trainer


def trained(trainer: Trainer) -> dict[str, Any]:
    """All that a run has made, under the names of the model that is not compiled."""
    return {k.removeprefix("_orig_mod."): x for k, x in trainer.run(STEPS).bits().items()}


def assert_same(found: dict[str, Any], expected: dict[str, Any], **limits: float) -> None:
    assert found.keys() == expected.keys()
    for name, x in found.items():
        torch.testing.assert_close(x, expected[name], msg=name, **{"rtol": 0, "atol": 0, **limits})


@pytest.mark.parametrize(
    "method, know_model", [*((name, True) for name in METHODS), ("sam", False), ("esam", False)]
)
def test_steps_are_the_same_and_graphs_few(method: str, know_model: bool):
    plain = trained(Trainer(method, know_model=know_model))
    found = trained(compiled(Trainer(method, know_model=know_model), "aot_eager"))
    assert_same(found, plain)
    # One with running statistics and one without; and one more for batches of another size, and
    # again without gradients for a method that chooses samples.
    assert 1 <= graphs() <= 4


@pytest.mark.parametrize("method", ["sam", "agnostic-sam"])
def test_the_optimizer_may_know_the_model_as_compiled(method: str):
    plain = Trainer(method)
    expected = trained(plain)
    model: list[Any] = []

    def build(base: torch.optim.Optimizer, **options: Any) -> Any:
        model.append(torch.compile(options["model"], backend="aot_eager"))
        return plain.method.build(base, 0.1, total_steps=TOTAL, model=model[0])

    known = Trainer(method, build=build)
    known.model = model[0]
    assert_same(trained(known), expected)
    assert known.optimizer.cost == plain.optimizer.cost
    assert known.optimizer.cost.samples > 0
    assert graphs() <= 4


def test_a_compiled_step_runs_as_it_is_and_compiles_the_model_in_it():
    expected = trained(Trainer("sam"))
    trainer = Trainer("sam")
    step = torch.compile(trainer.step, backend="aot_eager")
    for _ in range(STEPS):
        step()
    assert_same(trainer.bits(), expected)
    assert _dynamo.utils.counters["stats"]["unique_graphs"] >= 1


@needs_compiler
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # torch's own, as it loads
@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles")  # torch 2.6's own
def test_inductor_takes_the_same_way():
    plain = trained(Trainer("sam"))
    with torch._inductor.config.patch(fallback_random=True):  # else its dropout is another one
        found = trained(compiled(Trainer("sam"), "inductor"))
    assert graphs() <= 4
    assert_same(found, plain, rtol=1e-3, atol=1e-4)  # kernels that round in another order

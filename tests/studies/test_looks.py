"""What is looked at beside a training: it changes nothing, survives a stop, and is shown."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from flatmin import analysis
from flatmin.studies.plan.analyses import AnalysisOptions, asked
from flatmin.studies.plan.recipe import Recipe
from flatmin.studies.report import export, html, section
from flatmin.studies.report.runs import Record
from flatmin.studies.run.looks import CellAnalysis, between
from flatmin.studies.run.trainer import Trainer
from flatmin.studies.run.worker import work
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.store import Store
from flatmin.training import ImageData, InputError, Run, Training, load, train

EVERYTHING = AnalysisOptions(
    eigenvalues=2,
    images=64,
    gradient_noise="each epoch",
    gradient_norms=5,
    at=(0.5, 1.0),
    alignment=2,
    components=3,
    at_loss=2.2,
).pairs


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits", limit=200)


def training(method: str, **changed: Any) -> Training:
    usual = Training("digits", "mlp", method, epochs=2, batch=32, limit=200, rho=0.1)
    return replace(usual, **changed)


class Stopped(Exception):
    pass


def looked_at(method: str, data: ImageData, **options: Any) -> tuple[Run, Any]:
    """A run with everything looked at, and the one who learned."""
    kept: list[Any] = []

    def look(learner: Any, run_data: Any) -> CellAnalysis:
        kept.append((learner, run_data))
        return CellAnalysis(learner, run_data)

    return train(training(method, analysis=EVERYTHING), data, observer=look, **options), kept[0]


@pytest.mark.parametrize("method", ["sgd", "sam", "ae-agnostic-sam", "esam", "msam"])
def test_a_training_that_is_looked_at_is_the_same(method: str, digits: ImageData):
    alone = train(training(method, rho=None), digits)
    kept: list[Any] = []
    run = training(method, rho=None, analysis=EVERYTHING)
    if method in ("esam", "msam"):  # no batch gradient at the weights to take a mean of
        with pytest.raises(InputError, match="asks for no gradient of a batch"):
            train(run, digits, observer=CellAnalysis)
        run = replace(run, analysis=tuple(p for p in EVERYTHING if p[0] != "components"))
    seen = train(run, digits, observer=lambda *a: kept.append(CellAnalysis(*a)) or kept[0])
    curves = [
        [(e.loss, e.train_accuracy, e.accuracy, e.passes) for e in r.epochs] for r in (alone, seen)
    ]
    assert curves[0] == curves[1]
    assert alone.cost == seen.cost
    assert set(asked(run.analysis).measures) <= set(seen.analysed)
    assert all(torch.tensor(values).isfinite().all() for values in seen.analysed.values())
    assert len(seen.analysed["full-gradient"]) == len(seen.analysed["cosine-before"]) == 2
    assert len(seen.analysed["gradient-norms@0.5"]) == 5


def test_measures_are_those_of_the_final_model(digits: ImageData):
    run, (learner, run_data) = looked_at("sam", digits)

    def loss(model: Any, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    data = [(b.inputs, b.targets) for b in run_data.plain_batches(2, 32)]
    noise = analysis.gradient_noise(learner.model, loss, data, mode="train")
    assert run.analysed["gradient-variance"][-1] == pytest.approx(noise.variance, rel=1e-6)
    assert run.analysed["full-gradient"][-1] == pytest.approx(noise.full, rel=1e-6)
    some = [(b.inputs, b.targets) for b in run_data.plain_batches(1, 64)]
    found = analysis.eigenvalues(analysis.Hessian(learner.model, loss, some, mode="eval"), 2)
    assert run.analysed["eigenvalue-1"] == [pytest.approx(float(found.values[0]), rel=1e-4)]
    ratio = float(found.values[0] / found.values[1])
    assert run.analysed["ratio-2"] == [pytest.approx(ratio, rel=1e-3)]


def test_what_is_compared_at_equal_loss_lies_between_two_epochs(digits: ImageData):
    options = AnalysisOptions(eigenvalues=1, surface=3, images=64, at_loss=1.0)
    run = training("sgd", analysis=options.pairs, epochs=12)
    seen = train(run, digits, observer=CellAnalysis).analysed
    ends = [train(replace(run, epochs=12), digits, observer=Each).analysed]
    losses, values = ends[0]["losses"], ends[0]["values"]
    after = next(i for i, loss in enumerate(losses) if loss <= 1.0)
    assert 0 < after < 11
    sides = [(losses[i], {"x": values[i]}) for i in (after - 1, after)]
    assert seen["eigenvalue-1-at-loss"] == [pytest.approx(between(1.0, *sides)["x"], rel=1e-3)]
    assert min(values[after - 1 : after + 1]) <= seen["eigenvalue-1-at-loss"][0]
    assert seen["surface-rise-at-loss"][0] > 0
    never = AnalysisOptions(eigenvalues=1, images=64, at_loss=1e-9).pairs
    last = train(training("sgd", analysis=never), digits, observer=CellAnalysis).analysed
    assert last["eigenvalue-1-at-loss"] == [pytest.approx(float("nan"), nan_ok=True)]


class Each(CellAnalysis):
    """Measures at every epoch, at whatever loss."""

    def ended(self, epoch: int) -> None:
        self._add("losses", self._plain_loss())
        self._add("values", float(self._eigenvalues(1).values[0]))


def test_theorem_2_holds_where_its_steps_are_small(digits: ImageData):
    options = AnalysisOptions(theorem=4).pairs

    def shares(**changed: Any) -> list[float]:
        run = training("agnostic-sam", analysis=options, **changed)
        seen = train(run, digits, observer=CellAnalysis).analysed
        return [seen[name][-1] for name in ("theorem-conditions", "theorem-broken")]

    usual, small = shares(rho=0.1), shares(rho=1e-4)
    assert usual[0] < small[0]
    assert small == [pytest.approx(100, abs=15), 0]
    for method in ("sam", "agnostic-sam-previous"):
        with pytest.raises(InputError, match="none of those that Theorem 2 speaks of"):
            train(training(method, analysis=options), digits, observer=CellAnalysis)


def test_a_run_that_was_stopped_goes_on_looking(tmp_path: Path, digits: ImageData):
    whole, _ = looked_at("sam", digits)

    def stop(number: int, _: Any) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        looked_at("sam", digits, watch=stop, checkpoints=tmp_path)
    resumed, _ = looked_at("sam", digits, checkpoints=tmp_path)
    assert resumed.analysed == whole.analysed


def test_what_is_not_asked_for_leaves_the_key_and_costs_nothing():
    plain = training("sam")
    assert replace(plain, analysis=()).key == plain.key
    assert training("sam", analysis=EVERYTHING).key != plain.key
    with pytest.raises(InputError, match="`flatmin run` does it"):
        train(training("sam", analysis=EVERYTHING))


@pytest.mark.parametrize("name", ["ae-sam/figure-3", "agnostic-sam/figure-1", "align-sam/table-10"])
def test_a_recipe_runs_and_its_report_shows_what_was_seen(name: str, tmp_path: Path):
    plan = Recipe.find(name).at("smoke")
    store = Store.open(StudyLocation.new(tmp_path), {"recipe": name})
    work(store, plan, Trainer())
    assert not store.failures
    shown = section.of_record(Record.of(store, plan))
    page = html.report([shown])
    csv = export.table_of_runs([Record.of(store, plan)])
    assert set(plan.recipe.measures) <= set(csv.splitlines()[0].split(","))
    measured = [
        cell.ours for group in shown.table.groups for e in group.entries for cell in e.cells
    ]
    assert sum(bool(re.search(r"\d", text)) for text in measured) >= len(plan.recipe.measures)
    curves = {figure.curve for figure in shown.figures}
    if name == "ae-sam/figure-3":
        assert sum(drawing.svg.count("<circle") for drawing in shown.drawings) == 3 * 10
        assert page.count("Normal quantile plot") == 3
    if name == "agnostic-sam/figure-1":
        assert {"analysis:cosine-before", "analysis:cosine-change"} <= curves
    if name == "align-sam/table-10":
        assert "λ₁ / λ₅" in page

"""Which runs a comparison consists of: an equal budget, seeds apart, nothing twice."""

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
from comparisons import comparison, row

from flatmin.studies.plan.comparison import TUNING_FACTORS, Comparison
from flatmin.studies.plan.tuning import Progress
from flatmin.studies.store.row import Row
from flatmin.training import InputError, Training

TUNED = {"methods": ("sgd", "sam", "asam", "agnostic-sam"), "tune": "rho", "tuning_seeds": 3}


def finish(asked: Comparison, accuracy: dict[float, float]) -> dict[str, Row]:
    """The rows of all tuning runs, with the accuracy that their radius has."""
    runs = [training for method in asked.methods for training in asked.tuning(method)]
    return {t.key: row(t, accuracy.get(t.rho or 0.0, 10.0)) for t in runs}


def test_without_tuning_the_plan_is_every_method_with_every_seed():
    plan = list(comparison(methods=("sgd", "sam"), seeds=3).plan({}, frozenset()))
    assert [(t.method, t.rho, t.seed) for t in plan] == [
        ("sgd", None, 0),
        ("sam", 0.05, 0),
        ("sgd", None, 1),
        ("sam", 0.05, 1),
        ("sgd", None, 2),
        ("sam", 0.05, 2),
    ]
    assert {t.holdout for t in plan} == {0.0}


def test_every_method_with_a_radius_gets_the_same_budget():
    asked = comparison(**TUNED)
    runs = Counter(t.method for m in asked.methods for t in asked.tuning(m))
    assert runs == {name: 3 * len(TUNING_FACTORS) for name in ("sam", "asam", "agnostic-sam")}
    assert asked.total == 3 * 3 * len(TUNING_FACTORS) + 4 * asked.seeds


def test_the_grid_is_centred_on_each_methods_own_radius():
    asked = comparison(**TUNED)
    assert asked.grid("sam") == (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
    assert asked.grid("asam") == (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    assert asked.grid("sgd") == ()
    assert comparison(**TUNED, rho=(0.3, 0.1)).grid("asam") == (0.3, 0.1)


def test_tuning_never_sees_an_evaluation_seed_and_holds_images_out():
    asked = comparison(**TUNED, seeds=50)
    tuning = [t for m in asked.methods for t in asked.tuning(m)]
    assert {t.seed for t in tuning} == {-1, -2, -3}
    assert {t.holdout for t in tuning} == {0.1}
    rows = finish(asked, {})
    evaluation = [t for m in asked.methods for t in asked.evaluation(m, rows)]
    assert {t.seed for t in evaluation} == set(range(50))
    assert {t.holdout for t in evaluation} == {0.0}


def test_the_radius_is_the_one_with_the_best_mean_of_complete_tuning_runs():
    asked = comparison(methods=("sam",), tune="rho", tuning_seeds=2, rho=(0.1, 0.2, 0.4))
    by_run = {(0.1, -1): 50, (0.1, -2): 52, (0.2, -1): 40, (0.2, -2): 61, (0.4, -1): 99}
    rows = {
        t.key: row(t, by_run[t.rho, t.seed])
        for t in asked.tuning("sam")
        if t.rho and (t.rho, t.seed) in by_run
    }
    assert asked.judged("sam", rows) == {0.1: 51.0, 0.2: 50.5}  # one run of 0.4 is missing
    assert asked.radius("sam", rows) == 0.1


def test_of_equal_radii_the_smallest_is_chosen():
    asked = comparison(methods=("sam",), tune="rho", rho=(0.4, 0.1, 0.2))
    assert asked.radius("sam", finish(asked, {0.1: 50.0, 0.2: 50.0, 0.4: 50.0})) == 0.1
    # As many images met, in another order: their sums differ in the last digit.
    met = {0.1: (28, 44, 28), 0.2: (25, 40, 34), 0.4: (31, 40, 29)}
    asked = comparison(methods=("sam",), tune="rho", tuning_seeds=3, rho=(0.1, 0.2, 0.4))
    rows = {
        t.key: row(t, 100 * met[t.rho][-t.seed - 1] / 144) for t in asked.tuning("sam") if t.rho
    }
    assert asked.radius("sam", rows) == 0.1


def test_a_method_is_evaluated_once_its_tuning_is_complete_and_no_earlier():
    asked = comparison(methods=("sgd", "sam"), tune="rho", tuning_seeds=1, seeds=1)
    first = list(asked.plan({}, frozenset()))
    assert [t.method for t in first if not t.holdout] == ["sgd"]  # it has nothing to tune
    rows = finish(asked, {0.2: 90.0})
    later = [t for t in asked.plan(rows, frozenset()) if not t.holdout]
    assert [(t.method, t.rho) for t in later] == [("sgd", None), ("sam", 0.2)]
    assert len(list(asked.plan(rows, frozenset()))) == asked.total


def test_a_tuning_run_that_is_given_up_does_not_hold_up_the_rest():
    asked = comparison(methods=("sam",), tune="rho", tuning_seeds=1, seeds=1)
    rows = finish(asked, {0.8: 95.0, 0.4: 90.0})
    lost = next(t for t in asked.tuning("sam") if t.rho == 0.8)
    del rows[lost.key]
    assert not [t for t in asked.plan(rows, frozenset()) if not t.holdout]
    later = [t for t in asked.plan(rows, frozenset([lost.key])) if not t.holdout]
    assert [t.rho for t in later] == [0.4]


def test_a_row_that_tuning_no_longer_asks_for_is_not_counted():
    asked = comparison(methods=("sam",), tune="rho", tuning_seeds=1, seeds=3, rho=(0.1, 0.2))
    rows = finish(asked, {0.1: 90.0, 0.2: 80.0})
    first = asked.tuning("sam")[0]
    lost = rows.pop(first.key)
    given_up = frozenset([first.key])
    rows |= {t.key: row(t, 70.0) for t in asked.evaluation("sam", rows)}
    assert asked.progress(rows, given_up) == Progress(done=4, failed=1, left=0)
    assert asked.progress(rows, frozenset()) == Progress(
        done=4, failed=0, left=1
    )  # it is tried again
    rows[first.key] = lost
    assert asked.progress(rows, frozenset()) == Progress(done=2, failed=0, left=3)
    assert asked.total == 5


def test_a_radius_that_is_given_twice_is_tried_once():
    asked = comparison(methods=("sam",), tune="rho", tuning_seeds=1, rho=(0.1, 0.1, 0.2))
    assert asked == comparison(methods=("sam",), tune="rho", tuning_seeds=1, rho=(0.1, 0.2))
    assert asked.total == 2 + 2


@pytest.mark.parametrize(
    "given, kept",
    [("0.4", "0.4"), ("0.60", "0.6"), ("0.0", "0"), ("0.9999999", "0.9999999")],
)
def test_noise_is_the_share_that_was_given(given: str, kept: str):
    assert comparison(noise=given).noise == kept


def test_one_given_radius_is_every_methods():
    asked = comparison(methods=("sgd", "sam", "asam"), rho=(0.3,))
    assert [asked.radius(m, {}) for m in asked.methods] == [None, 0.3, 0.3]


def test_a_key_changes_with_everything_that_determines_a_run():
    training = Training("digits", "mlp", "agnostic-sam", schedule="step", milestones=(0.5,))
    others: dict[str, Any] = {
        "data": "mnist",
        "model": "cnn",
        "method": "asam",
        "rho": 0.1,
        "seed": 1,
        "epochs": 21,
        "batch": 65,
        "lr": 0.2,
        "momentum": 0.8,
        "weight_decay": 0.0,
        "noise": "0.1",
        "limit": 100,
        "fraction": 0.5,
        "augment": True,
        "holdout": 0.1,
        "options": (("beta", 0.5),),
        "base_options": (("dampening", 0.1),),
        "loss": "torch.nn.functional:mse_loss",
        "metric": "min:torch.nn.functional:mse_loss",
        "base": "adam",
        "schedule": "cosine",
        "milestones": (0.6,),
        "gamma": 0.2,
        "warmup": 1.0,
        "label_smoothing": 0.1,
        "cutout": 2,
        "max_norm": 1.0,
        "precision": "bfloat16",
        "width": 0.5,
        "pretrained": "hub",
        "size": 16,
        "examine": ("cifar10-c:gaussian-noise:3",),
        "observe": ("gradient-norms",),
        "rho_schedule": "cosine",
        "analysis": (("eigenvalues", 5),),
        "auxiliary": "containing",
    }
    assert set(others) == {field.name for field in fields(Training)}
    changes = [{name: value} for name, value in others.items() if name != "schedule"]
    changes[-1]["fraction"] = 1.0  # with which alone a batch contains another
    changes.append({"schedule": "cosine", "milestones": ()})
    keys = {training.key, *(replace(training, **change).key for change in changes)}
    assert len(keys) == len(others) + 1
    assert replace(training).key == training.key


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("methods", (), "--methods is empty"),
        ("methods", ("sam", "sam"), "names a method twice"),
        ("methods", ("sgd", "smm"), "unknown method 'smm': did you mean sam"),
        ("model", "resnet19", "unknown model 'resnet19': did you mean"),
        ("rho_schedule", "cosinus", "unknown radius schedule 'cosinus': did you mean cosine"),
        ("noise", "1.2", r"noise 1.2 is outside \[0, 1\)"),
        ("epochs", 0, "--epochs 0 is out of range"),
        ("batch", -1, "--batch -1 is out of range"),
        ("seeds", 0, "--seeds 0 is out of range"),
        ("tuning_seeds", 0, "--tuning-seeds 0 is out of range"),
        ("limit", 0, "--limit 0 is out of range"),
        ("lr", 0.0, "--lr 0.0 is out of range"),
        ("lr", float("inf"), "--lr inf is out of range"),
        ("momentum", 1.0, "--momentum 1.0 is out of range"),
        ("weight_decay", -1.0, "--weight-decay -1.0 is out of range"),
        ("fraction", 0.0, "--fraction 0.0 is out of range"),
        ("rho", (-0.1,), "--rho -0.1 is out of range"),
        ("rho", (0.1, 0.2), "--rho gives several radii: give one, or add --tune rho"),
        ("tune", "beta", "--tune .*beta.* is nothing to tune"),
        ("lr", (0.1, 0.2), "--lr gives several learning rates: give one, or add --tune lr"),
        ("options", {"gsam": {}}, "unknown method of an option 'gsam'"),
        ("colour", "red", "colour 'red'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(field: str, value: object, said: str):
    with pytest.raises(InputError, match=said) as caught:
        comparison(**{field: value})
    assert "\n" not in str(caught.value)


def test_the_same_noise_is_the_same_comparison_however_it_is_written():
    assert comparison(noise="0.60") == comparison(noise=".6")

"""Recipes: complete, known to the rest of flatmin, true to the papers, strict about mistakes."""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from comparisons import row
from torch.utils.flop_counter import FlopCounterMode

from flatmin import analysis, methods
from flatmin.studies.plan import estimate, listing
from flatmin.studies.plan import recipe as recipes
from flatmin.studies.plan.analyses import asked
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.measures import value
from flatmin.studies.plan.recipe import Recipe
from flatmin.studies.plan.tuning import Progress
from flatmin.studies.run.trainer import observer_of, require
from flatmin.training import InputError, Training, load, models, train

NAMES = recipes.names()
PAPERS = Path(__file__).parents[3] / "shared" / "papers"
BACKBONE = "runs/beyond/backbone-small"
AT_HAND = {"digits", "mnist", "cifar10", "cifar100", "flowers17", "omniglot"}
SHOWN = {
    "agnostic-sam": (10, 4),
    "align-sam": (10, 4),
    "friendly-sam": (6, 4),
    "ae-sam": (4, 15),
}

GOOD: dict[str, Any] = {
    "paper": "beyond",
    "shows": "Table 1",
    "title": "a table",
    "fields": {"data": "digits", "model": "mlp", "epochs": 2},
    "methods": {"SGD": {"method": "sgd"}, "SAM": {"method": "sam", "rho": 0.1}},
    "grid": {"noise": ["0.2", "0.4"]},
    "seeds": 2,
    "printed": [{"noise": "0.2", "method": "SAM", "mean": 90.0, "sd": 0.5}],
    "scales": {"full": {}, "smoke": {"says": "less", "fields": {"epochs": 1}, "seeds": 1}},
}


found = functools.cache(Recipe.find)


def written(folder: Path, **changed: Any) -> Path:
    """A recipe in a file: `GOOD` with some keys changed, or left out where the change is None."""
    content = {key: value for key, value in {**GOOD, **changed}.items() if value is not None}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return path


def plan(folder: Path, scale: str = "full", **changed: Any) -> ScaledRecipe:
    return Recipe.load(written(folder, **changed)).at(scale)


def usual(asked: ScaledRecipe, method: str, **position: str) -> Training:
    """The run, seed 0, of `method` at a position."""
    setting = next(s for s in asked.settings if s.position == position)
    return setting.tuned_methods[method].usual


# What is shipped


@pytest.mark.parametrize("paper", SHOWN)
def test_every_table_and_figure_of_the_papers_has_a_recipe(paper: str):
    tables, figures = SHOWN[paper]
    wanted = {f"{paper}/table-{n}" for n in range(1, tables + 1)}
    wanted |= {f"{paper}/figure-{n}" for n in range(1, figures + 1)}
    further = {"friendly-sam": {"figure-2c"}, "agnostic-sam": {"theorem-2"}}
    wanted |= {f"{paper}/{name}" for name in further.get(paper, ())}
    assert {name for name in NAMES if name.startswith(f"{paper}/")} == wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_at_every_scale_and_keeps_to_it(name: str):
    recipe = found(name)
    assert recipe.name == name
    assert recipe.paper == name.split("/")[0]
    assert recipe.paper in recipes.papers()
    assert set(recipe.scales) == {"full", "small", "smoke"}
    small, smoke = recipe.at("small"), recipe.at("smoke")
    assert small.estimate.hours <= 1.5
    assert smoke.estimate.hours <= 1 / 60
    assert smoke.says
    assert small.says or small.runs == recipe.at("full").runs
    assert {run.data for run in small.runs} <= AT_HAND
    assert {run.data for run in smoke.runs} <= {"digits"}
    assert {run.pretrained for run in small.runs} <= {None, BACKBONE}
    assert not [run for run in smoke.runs if run.pretrained]
    assert all(plan.total for plan in (small, smoke)) or "meta" in recipe.needs


@pytest.mark.parametrize("name", [n for n in NAMES if (PAPERS / f"{n.split('/')[0]}.md").exists()])
def test_the_printed_numbers_stand_in_the_paper_near_their_table(name: str):
    paper, shown = name.split("/")
    lines = (PAPERS / f"{paper}.md").read_text(encoding="utf-8").splitlines()
    caption = re.compile(rf"{shown.replace('-', ' ')}[.:]|{found(name).shows}\b", re.IGNORECASE)
    at = [number for number, line in enumerate(lines) if caption.search(line)]
    near = {number for line in at for number in range(line - 40, line + 45)}
    text = "\n".join(lines[number] for number in sorted(near) if 0 <= number < len(lines))
    there = set(re.findall(r"\d+(?:\.\d+)?", text))
    source = (recipes.folder() / f"{name}.yaml").read_text(encoding="utf-8")
    printed = re.findall(r"(?:mean|sd): -?([\d.]+)", source)
    assert [number for number in printed if number not in there] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_a_database(name: str):
    recipe = found(name)
    kept = Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert kept == recipe
    assert kept.at("smoke").runs == recipe.at("smoke").runs


def test_weights_to_start_from_are_asked_for_before_anything_is_trained():
    plan = found("agnostic-sam/table-4").at("small")
    with pytest.raises(InputError, match=r"backbone-small: give .* --keep weights"):
        require(plan.runs)


def test_the_evidence_fits_into_a_session():
    evidence = (
        "agnostic-sam/table-5",
        "ae-sam/table-1",
        "friendly-sam/figure-3",
        "beyond/agnostic-for-free",
        "beyond/agnostic-for-free-digits",
        "beyond/human-noise",
    )
    assert all(found(name).at("small").estimate.hours < 1 for name in evidence)


def test_a_spread_is_never_larger_than_its_mean_and_a_share_never_above_all():
    for name in NAMES:
        recipe = found(name)
        for number in recipe.printed:
            assert number.sd is None or number.sd <= abs(number.mean)
            if not number.measure or number.measure in ("share", "top-5"):
                assert "analysis" in recipe.needs or 0 <= number.mean <= 100


def test_the_listing_tells_what_each_scale_takes():
    """At once: from an index, which says what the recipes say."""
    listed = {entry.name: entry for entry in listing.summaries()}
    assert list(listed) == NAMES
    again = "write it anew: python -m flatmin.studies.plan.listing"
    assert listed == {name: listing.summary(found(name)) for name in NAMES}, again
    entry = listed["agnostic-sam/table-5"]
    assert entry.estimates["full"][0] == 2 * 4 * 7 * 3
    assert entry.estimates["full"][1] > 100 * entry.estimates["small"][1]
    assert NAMES.index("ae-sam/table-2") > NAMES.index("ae-sam/figure-15")
    assert NAMES.index("ae-sam/figure-10") > NAMES.index("ae-sam/figure-9")


def test_a_recipe_that_the_index_does_not_know_is_read(monkeypatch: pytest.MonkeyPatch):
    name = "agnostic-sam/table-5"
    monkeypatch.setattr(listing.shipped, "names", lambda: [name])
    known = listing.summaries()
    monkeypatch.setattr(listing, "_digest", lambda name: "of another file")
    assert listing.summaries() == known


@pytest.mark.parametrize("name", NAMES)
def test_a_smoke_run_trains(name: str):
    data = load("digits", limit=200)
    recipe = found(name)
    for run in recipe.at("smoke").runs[-1:]:  # none where another part trains
        if "surfaces" in recipe.needs and not hasattr(analysis, "surface"):
            run = replace(run, analysis=())
        run = replace(run, epochs=1, limit=200, batch=64)
        done = train(run, data, observer=observer_of(run))
        assert set(done.examined) == set(run.examine)
        assert set(done.observed) == set(run.observe)
        assert set(asked(run.analysis).measures) <= set(done.analysed)


def test_a_recipe_is_found_by_name_and_by_path():
    by_name = Recipe.find("agnostic-sam/table-5")
    assert Recipe.find(str(recipes.folder() / "agnostic-sam" / "table-5.yaml")) == by_name
    with pytest.raises(InputError, match=r"unknown recipe 'agnostic-sam/table-55': did you mean"):
        Recipe.find("agnostic-sam/table-55")


@pytest.mark.parametrize("path", ["recipe.yaml", "../mine/recipe.yaml", "sub/../recipe.yaml"])
def test_a_recipe_is_named_after_its_folder_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
):
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    written(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert Recipe.find(path).name == "mine/recipe"


def test_a_path_at_which_there_can_be_nothing_is_an_unknown_recipe():
    with pytest.raises(InputError, match="unknown recipe"):
        Recipe.find(300 * "a")


def test_what_is_not_built_yet_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch):
    Recipe.find("agnostic-sam/table-5").require()
    monkeypatch.setattr(recipes.importlib.util, "find_spec", lambda name: None)
    for name, part in (("agnostic-sam/table-6", "meta"), ("ae-sam/figure-1", "analysis")):
        with pytest.raises(
            InputError, match=f"{name} needs the part '{part}' of flatmin"
        ) as caught:
            found(name).require()
        assert "\n" not in str(caught.value)
    assert not Recipe.find("agnostic-sam/table-6").at("full").runs


# What a plan is


def test_table_5_has_the_settings_that_the_paper_prints():
    full = Recipe.find("agnostic-sam/table-5").at("full")
    sam = usual(full, "SAM", data="CIFAR-10", noise="40%")
    assert (sam.model, sam.noise, sam.epochs, sam.batch, sam.lr) == (
        "resnet32",
        "0.4",
        200,
        512,
        0.1,
    )
    assert (sam.rho, sam.fraction * sam.batch, sam.cutout, sam.augment) == (0.1, 128, 16, True)
    assert usual(full, "ASAM", data="CIFAR-100", noise="60%").rho == 1.0
    at80 = {m: usual(full, m, data="CIFAR-10", noise="80%").rho for m in full.methods}
    assert at80 == {
        "SGD": None,
        "SGD, 400 epochs": None,
        "SAM": 0.05,
        "FSAM": 0.05,
        "Agnostic-SAM": 0.05,
        "ASAM": 0.5,
        "Agnostic-ASAM": 0.5,
    }
    number = full.printed({"data": "CIFAR-10", "noise": "80%"}, "Agnostic-SAM")
    assert number is not None
    assert (number.mean, number.sd) == (70.02, 0.403)


def test_the_paper_does_not_stand_beside_other_data():
    table, imagenet = Recipe.find("agnostic-sam/table-5"), Recipe.find("friendly-sam/table-4")
    assert table.at("small").printed({"data": "CIFAR-10", "noise": "40%"}, "SAM")
    assert not table.at("smoke").printed({"data": "digits", "noise": "20%"}, "SAM")
    assert imagenet.at("full").printed({}, "SAM")
    assert not imagenet.at("small").printed({}, "SAM")  # CIFAR-100


def test_a_radius_is_a_multiple_where_the_paper_says_so():
    full = Recipe.find("agnostic-sam/table-2").at("full")
    rho = {
        (data, method): usual(full, method, data=data, model="Densenet121").rho
        for data in ("CIFAR-10", "CIFAR-100")
        for method in ("SAM", "ASAM")
    }
    assert rho == {
        ("CIFAR-10", "SAM"): 0.05,
        ("CIFAR-10", "ASAM"): 0.5,
        ("CIFAR-100", "SAM"): 0.1,
        ("CIFAR-100", "ASAM"): 1.0,
    }


def test_without_tuning_a_plan_is_every_setting_with_every_seed_seed_by_seed(tmp_path: Path):
    runs = list(plan(tmp_path).plan({}, frozenset()))
    assert [(run.noise, run.method, run.rho, run.seed) for run in runs] == [
        (noise, method, rho, seed)
        for seed in (0, 1)
        for noise in ("0.2", "0.4")
        for method, rho in (("sgd", None), ("sam", 0.1))
    ]
    assert plan(tmp_path).total == len(runs)


def test_a_scale_changes_what_it_says_and_nothing_else(tmp_path: Path):
    asked = plan(
        tmp_path,
        "smoke",
        scales={
            "full": {},
            "smoke": {
                "grid": {"noise": {"0.4": {"batch": 32}, "none": {"noise": "0"}}},
                "methods": {"SAM": {"rho": 0.2}, "ASAM": {"method": "asam"}},
                "seeds": 1,
            },
        },
    )
    got = [(run.noise, run.batch, run.method, run.rho) for run in asked.plan({}, frozenset())]
    assert got == [
        ("0.4", 32, "sam", 0.2),
        ("0.4", 32, "asam", None),
        ("0", 64, "sam", 0.2),
        ("0", 64, "asam", None),
    ]


def test_exceptions_hold_where_they_say_and_the_last_wins(tmp_path: Path):
    asked = plan(
        tmp_path,
        exceptions=[
            {"set": {"lr": 0.2}},
            {"at": {"noise": "0.4"}, "methods": ["SAM"], "set": {"rho": 0.05, "lr": 0.3}},
        ],
    )
    got = {(run.noise, run.method): (run.lr, run.rho) for run in asked.runs}
    assert got == {
        ("0.2", "sgd"): (0.2, None),
        ("0.2", "sam"): (0.2, 0.1),
        ("0.4", "sgd"): (0.2, None),
        ("0.4", "sam"): (0.3, 0.05),
    }


def test_labels_may_be_numbers_wherever_they_stand(tmp_path: Path):
    asked = plan(
        tmp_path,
        "smoke",
        grid={"noise": {0.2: {"noise": 0.2}, 0.4: {"noise": 0.4}}, "batch": [16, 32]},
        exceptions=[{"at": {"noise": 0.4, "batch": [32]}, "set": {"lr": 0.3}}],
        printed=[{"at": {"noise": 0.4, "batch": 32}, "method": "SAM", "mean": 1}],
        scales={
            "full": {},
            "smoke": {"grid": {"noise": {0.4: {"epochs": 1}}, "batch": [32]}, "seeds": 1},
        },
    )
    assert {(run.noise, run.batch, run.epochs, run.lr) for run in asked.runs} == {
        ("0.4", 32, 1, 0.3)
    }
    assert asked.printed({"noise": "0.4", "batch": "32"}, "SAM")


def test_options_add_up_over_the_layers(tmp_path: Path):
    asked = plan(
        tmp_path,
        methods={"AE": {"method": "ae-sam", "options": {"delta": 0.8}}},
        grid={"end": {"low": {"options": {"lambda1": -2.0}}}},
        printed=None,
    )
    assert asked.runs[0].options == (("delta", 0.8), ("lambda1", -2.0))


def test_a_run_without_a_radius_is_the_same_at_every_radius(tmp_path: Path):
    asked = plan(
        tmp_path, methods={"SGD": {"method": "sgd"}}, grid={"rho": [0.1, 0.2]}, printed=None
    )
    assert len(asked.settings) == 2
    assert asked.total == GOOD["seeds"]


def test_a_number_is_the_same_run_however_it_is_written(tmp_path: Path):
    fields = {**GOOD["fields"], "lr": 1, "weight_decay": 0}
    written_out = {**GOOD["fields"], "lr": 1.0, "weight_decay": "0.0"}
    noise = {"grid": {"noise": [0.2, 0.4]}}
    first = plan(tmp_path, fields=fields).runs
    second = plan(tmp_path, fields=written_out, **noise).runs
    assert [run.key for run in first] == [run.key for run in second]


def test_tuning_comes_first_with_an_equal_budget_and_decides_the_radius():
    smoke = Recipe.find("beyond/agnostic-for-free-digits").at("smoke")
    first = list(smoke.plan({}, frozenset()))
    tuning = [run for run in first if run.holdout]
    assert first[: len(tuning)] == tuning
    assert {run.method for run in first[len(tuning) :]} == {"sgd"}  # it has nothing to tune
    per_epochs = Counter((run.method, run.epochs) for run in tuning)
    assert set(per_epochs.values()) == {2}

    rows = {run.key: row(run, 50.0 + (run.rho or 0)) for run in tuning}  # the larger, the better
    later = [run for run in smoke.plan(rows, frozenset()) if not run.holdout]
    for run in later:
        default = methods.find(run.method).rho
        assert run.rho == (2 * default if default else None)
    assert len(tuning) + len(later) == smoke.total


def test_a_method_that_tuning_may_split_in_two_is_counted_as_two(tmp_path: Path):
    """What both are where nothing is tuned is the same run."""
    low, high = (
        {"method": "agnostic-sam", "rho": 0.1, "tune": {"beta": betas}}
        for betas in ([0.1, 0.2], [0.8, 0.9])
    )
    methods = {"low": low, "high": high}
    asked = plan(tmp_path, methods=methods, grid=None, printed=None, tune={"rho": [0.1]})
    assert asked.total == asked.estimate.runs == 4 + 2 * 2
    rows = {run.key: row(run, 50.0) for run in asked.plan({}, frozenset())}
    assert asked.progress(rows, frozenset()) == Progress(done=4, failed=0, left=4)
    rows |= {run.key: row(run, 50.0) for run in asked.plan(rows, frozenset())}
    assert asked.progress(rows, frozenset()) == Progress(done=8, failed=0, left=0)


def test_methods_that_tuning_makes_one_are_counted_once(tmp_path: Path):
    methods = {f"SAM {rho}": {"method": "sam", "rho": rho} for rho in (0.1, 0.2)}
    tune = {"rho": [0.1, 0.4, 0.4]}
    asked = plan(tmp_path, methods=methods, grid=None, printed=None, tune=tune)
    assert asked.total == 2 + 2
    rows = {run.key: row(run, 50.0) for run in asked.plan({}, frozenset())}
    rows |= {run.key: row(run, 50.0) for run in asked.plan(rows, frozenset())}
    assert asked.progress(rows, frozenset()) == Progress(done=4, failed=0, left=0)


def test_a_share_of_noise_keeps_every_digit(tmp_path: Path):
    asked = plan(tmp_path, grid={"noise": [0.4, 0.1234567, 0]}, printed=None)
    assert {run.noise for run in asked.runs} == {"0.4", "0.1234567", "0"}


@pytest.mark.parametrize("name", ["beyond/agnostic-for-free", "beyond/price"])
def test_equal_gradients_are_equal(name: str):
    for setting in found(name).at("full").settings:
        if setting.position["budget"] == "equal gradients":
            spent = [estimate.samples_of(each.usual) for each in setting.tuned_methods.values()]
            assert max(spent) / min(spent) < 1.01


def test_a_budget_gives_every_method_the_epochs_that_it_can_pay(tmp_path: Path):
    fields = {**GOOD["fields"], "epochs": 10, "budget": 3}
    methods = {**GOOD["methods"], "Late": {"method": "late-sam", "options": {"start": 0.8}}}
    full = plan(tmp_path, fields=fields, methods=methods)
    assert {run.method: run.epochs for run in full.runs} == {"sgd": 30, "sam": 15, "late-sam": 25}


def test_one_candidate_is_no_choice(tmp_path: Path):
    tuned = {"method": "look-sam", "tune": {"alpha": [0.1, 0.3]}}
    methods = {**GOOD["methods"], "LookSAM": tuned}
    asked = plan(tmp_path, methods=methods, tune={"factors": [1.0], "seeds": 2})
    assert Counter(run.method for run in asked.runs if run.holdout) == {"look-sam": 2 * 2 * 2}


def test_a_scale_may_show_other_measures(tmp_path: Path):
    smoke = {"also": ["top-5"], "measure": "loss", "fields": {"examine": ["top-5"]}}
    scales = {"full": {}, "smoke": smoke}
    assert plan(tmp_path, "smoke", scales=scales).measures == ("loss", "top-5")
    assert plan(tmp_path, scales=scales, also=["share"]).measures == ("accuracy", "share")
    with pytest.raises(InputError, match="unknown measure 'top-5'"):
        plan(tmp_path, scales={"full": {}, "smoke": {"also": ["top-5"]}})


def test_tuning_covers_further_hyperparameters_of_a_method():
    full = Recipe.find("ae-sam/table-1").at("full")
    tuned_methods = full.settings[0].tuned_methods
    assert len(tuned_methods["SAM"].candidates) == 6
    looked = tuned_methods["AE-LookSAM"].candidates
    assert len(looked) == 24
    assert {dict(run.options)["alpha"] for run in looked} == {0.1, 0.3, 0.6, 0.9}
    assert not tuned_methods["ERM"].candidates


def test_measures_are_read_off_a_row(tmp_path: Path):
    run = next(run for run in plan(tmp_path).runs if run.method == "sam")
    done = row(run, 80.0).model_copy(
        update={"examined": {"top-5": 99.0}, "observed": {"losses": [3.0, 1.0]}}
    )
    assert value(done, "accuracy") == 80.0
    assert value(done, "loss") == 1.0 / run.epochs
    assert value(done, "share") == 100.0
    assert value(done, "ratio") == 2.0
    assert value(done, "minutes") == pytest.approx(run.epochs * 0.5 / 60)
    assert value(done, "top-5") == 99.0
    assert value(done, "observed:losses") == 1.0
    assert value(done, "observed:radii") is None


# What it costs


def test_every_network_but_that_of_meta_learning_is_in_the_table_and_built():
    assert set(estimate.NETWORKS) - set(models.MODELS) == {"conv4"}
    used = {run.model for name in NAMES for run in found(name).at("full").runs}
    assert used <= set(estimate.NETWORKS)


@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "cnn", "cnn-2m", "resnet8", "resnet20", "resnet32", "resnet18", "resnet34"),
        *("vgg16-bn", "wrn-16-4", "resnet18-imagenet", "vit-s16", "efficientnet-b2"),
    ],
)
def test_the_table_of_networks_counts_right(name: str):
    counted, side = estimate.NETWORKS[name]
    with torch.device("meta"):
        network = models.build(name, channels=3, size=side, classes=10).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, side, side))
    assert counter.get_total_flops() / 2e6 == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize(
    "method, gradients",
    [
        ("sgd", 1),
        ("sam", 2),
        ("agnostic-sam", 2.5),
        ("agnostic-sam-previous", 2),
        ("look-sam", 1.2),
    ],
)
def test_the_gradients_of_a_method_are_known_in_advance(method: str, gradients: float):
    run = Training("digits", "mlp", method)
    assert estimate.gradients_a_step(run) == pytest.approx(gradients)
    assert estimate.samples_of(replace(run, epochs=3)) == pytest.approx(3 * 1437 * gradients)


def test_what_the_final_model_is_examined_on_is_counted_once_for_each_image():
    def seconds(*examine: str) -> float:
        return estimate.seconds_of(replace(run, examine=examine))

    run = Training("cifar10", "cnn-2m", "sgd", epochs=1, limit=3)
    alone = seconds()  # in which the test images are looked at once
    for names, images in (
        (("top-5",), 10_000),
        (("cifar10-c:fog:3",), 10_000),
        (("cifar10-c", "cifar10-c:top-5"), 75 * 10_000),
        (("imagenet-r", "top-5", "some/folder"), 40_000),
    ):
        assert seconds(*names) - alone == pytest.approx(images / 10_000 * alone, rel=1e-3)


def test_more_workers_than_runs_save_no_hours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    here = {
        (runs, workers): estimate.CostEstimate(runs, 0.0, 3.0).hours_here(workers)
        for runs in (1, 3, 20)
        for workers in (1, 2, 16)
    }
    assert here == {
        (1, 1): 6.0,
        (1, 2): 6.0,
        (1, 16): 6.0,
        (3, 1): 6.0,
        (3, 2): 3.0,
        (3, 16): 2.0,
        (20, 1): 6.0,
        (20, 2): 3.0,
        (20, 16): 0.75,
    }


def test_the_share_of_perturbed_steps_is_expected_as_the_paper_reports_it():
    ae, look = (
        estimate.gradients_a_step(Training("digits", "mlp", m)) for m in ("ae-sam", "ae-look-sam")
    )
    assert ae - 1 == pytest.approx(0.5, abs=0.03)
    assert look - 1 == pytest.approx(0.2, abs=0.04)


# What is refused


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"sedes": 3}, "unknown key 'sedes': did you mean seeds"),
        (
            {"fields": {**GOOD["fields"], "epoch": 3}},
            "full: unknown field 'epoch': did you mean epochs?",
        ),
        (
            {"fields": {**GOOD["fields"], "epochs": "many"}},
            "full: epochs 'many': input should be a valid",
        ),
        ({"fields": {**GOOD["fields"], "epochs": 0}}, "full: epochs 0 is out of range"),
        (
            {"fields": {"model": "mlp"}},
            "full: there is no data: give it under fields, methods or grid",
        ),
        (
            {"fields": {**GOOD["fields"], "data": "digit"}},
            "full: unknown data set 'digit': did you mean",
        ),
        (
            {"fields": {**GOOD["fields"], "model": "resnet19"}},
            "full: unknown model 'resnet19': did you",
        ),
        ({"methods": {"SAM": {"method": "smm"}}}, "full: unknown method 'smm': did you mean"),
        ({"methods": {"SAM": {"method": "sam", "options": {"beta": 1}}}}, "beta"),
        ({"methods": {}}, "methods: dictionary should have at least 1 item"),
        ({"seeds": 10**9}, "full: this takes up to 4,000,000,000 runs, more than 1,000,000: give"),
        (
            {"tune": {"rho": [0.1, 0.2], "seeds": 10**9}},
            "full: this takes up to 8,000,000,008 runs, more than 1,000,000: give",
        ),
        (
            {"grid": {"noise": []}},
            "full: grid: the axis 'noise' has no values: give it one, or remove it",
        ),
        ({"grid": {"noise": ["1.5"]}}, "full: noise 1.5 is outside [0, 1)"),
        ({"seeds": 0}, "seeds: input should be greater than or equal to 1, found 0"),
        ({"measure": "accurcy"}, "unknown measure 'accurcy': did you mean"),
        ({"needs": ["magic"]}, "needs.0: input should be 'analysis', 'meta' or 'surfaces'"),
        (
            {"needs": ["analysis"], "fields": {**GOOD["fields"], "analysis": {"eigenvaluse": 5}}},
            "full: analysis: unknown key 'eigenvaluse': did you mean eigenvalues?",
        ),
        (
            {"needs": ["analysis"], "fields": {**GOOD["fields"], "analysis": {"at": [1.5]}}},
            "full: analysis: at.0: input should be less than or equal to 1, found 1.5",
        ),
        (
            {"needs": ["analysis"], "fields": {**GOOD["fields"], "analysis": {"surface": 4}}},
            "full: analysis: surface 4: an odd number from 3 on",
        ),
        (
            {"needs": ["analysis"], "measure": "analysis:eigenvalue-1"},
            "unknown measure 'analysis:eigenvalue-1'",
        ),
        (
            {"fields": {**GOOD["fields"], "analysis": {"eigenvalues": 5}}},
            "full: analysis is not among needs: write `needs: [analysis]`",
        ),
        ({"tune": {"rho": [0.1], "factors": [1]}}, "tune: takes either rho or factors"),
        (
            {"exceptions": [{"at": {"model": "x"}, "set": {}}]},
            "full: exceptions: unknown axis 'model'",
        ),
        (
            {"exceptions": [{"at": {"noise": "1"}, "set": {}}]},
            "full: exceptions: unknown noise '1'",
        ),
        (
            {"exceptions": [{"methods": ["SMA"], "set": {}}]},
            "exceptions: unknown method 'SMA': did you",
        ),
        (
            {"exceptions": [{"where": {}, "set": {}}]},
            "exceptions.0: unknown key 'where': choose one of",
        ),
        (
            {"printed": [{"noise": "0.3", "method": "SAM", "mean": 1}]},
            "unknown noise '0.3': did you mean",
        ),
        (
            {"printed": [{"noise": "0.2", "method": "SAN", "mean": 1}]},
            "unknown method 'SAN': did you mean",
        ),
        ({"printed": [{"method": "SAM", "mean": 1}]}, "no noise: give one of 0.2, 0.4"),
        (
            {"printed": [{"nois": "0.2", "method": "SAM", "mean": 1}]},
            "unknown axis 'nois': did you mean noise?",
        ),
        ({"printed": 2 * GOOD["printed"]}, "the second number at that position: remove one"),
        ({"scales": {"smoke": {}}}, "scales: there is no full: add `full: {}`"),
        ({"scales": {"full": {}, "tiny": {}}}, "scales.tiny"),
        (
            {"scales": {"full": {}, "small": {"grid": {"noise": ["0.3"]}}}},
            "small: unknown noise '0.3'",
        ),
        (
            {"scales": {"full": {}, "small": {"grid": {"nose": ["0.2"]}}}},
            "small: unknown axis 'nose': did",
        ),
        (
            {"scales": {"full": {}, "small": {"methods": ["SAMM"]}}},
            "small: unknown method 'SAMM': did",
        ),
        (
            {"scales": {"full": {}, "small": {"seed": 1}}},
            "scales.small: unknown key 'seed': did you mean",
        ),
        ({"title": None}, "title: field required"),
        ({"name": "/table-1"}, "name '/table-1' is no folder below runs/: give one such as"),
        ({"name": "../table-1"}, "name '../table-1' is no folder below runs/"),
        ({"name": "mine//table-1"}, "name 'mine//table-1' is no folder below runs/"),
        ({"fields": {**GOOD["fields"], "data": 400 * "a"}}, 400 * "a"),
        (
            {"fields": {**GOOD["fields"], "examine": ["foo:top-5"]}},
            "unknown examination 'foo:top-5': did you mean top-5?",
        ),
        (
            {"fields": {**GOOD["fields"], "rho_schedule": {"end": 0.5}}},
            "rho_schedule: there is no kind: give one, such as {kind: cosine}",
        ),
        (
            {"fields": {**GOOD["fields"], "rho_schedule": {"kind": "cosine", "last": 0.5}}},
            "rho_schedule: unknown key 'last': choose one of end, kind",
        ),
        ({"fields": {**GOOD["fields"], "budget": 0}}, "budget 0: give the gradients a step"),
        ({"grid": {"noise": ["[x"]}}, "full: the label '[x' is no value (line 2: did not find"),
        (
            {"printed": [{"noise": "0.2", "method": "SAM", "mean": float("nan")}]},
            "printed.0.mean: input should be a finite number, found nan",
        ),
        (
            {"printed": [{"at": 5, "method": "SAM", "mean": 1}]},
            "printed.0.at: input should be a valid dictionary, found 5",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_remedy(
    tmp_path: Path, changed: dict[str, Any], said: str
):
    with pytest.raises(InputError) as caught:
        plan(tmp_path, **changed)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{tmp_path / 'recipe.yaml'}: ")
    assert said in line


@pytest.mark.parametrize(
    "text, said",
    [
        ("paper: [", "line 2: did not find"),
        ("seeds: 1\nseeds: 2\n", "line 2: the key 'seeds' stands there twice: remove one"),
        ("- a\n", "is not a mapping of keys to values"),
        ("", "is not a mapping of keys to values"),
        ("a: 1\nseeds: 2024-99-99\n", "line 2: '2024-99-99' is no timestamp: if it is a text"),
        ("seeds: 0b_\n", "line 1: '0b_' is no int"),
        ("seeds: !!int abc\n", "line 1: 'abc' is no int"),
        ("seeds: !!bool maybe\n", "line 1: 'maybe' is no bool"),
        ("é: 1\nseeds: '\x01'\n", "line 2: control characters are not allowed"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        Recipe.load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scale_that_a_recipe_does_not_have_is_refused():
    with pytest.raises(InputError, match=r"unknown scale 'smal': did you mean small"):
        Recipe.find("agnostic-sam/table-5").at("smal")

"""Rows of other runs are taken over where they are what would come out here, and only there."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flatmin.cli import main
from flatmin.studies.plan import serialization
from flatmin.studies.plan.recipe import Recipe
from flatmin.studies.run.reuse import take_over
from flatmin.studies.run.trainer import Trainer
from flatmin.studies.run.worker import work
from flatmin.studies.store import provenance
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.store import Store
from flatmin.training.errors import InputError

FIRST: dict[str, Any] = {
    "paper": "mine",
    "shows": "Figure 1",
    "title": "One",
    "fields": {"data": "digits", "model": "mlp", "epochs": 1, "batch": 64, "lr": 0.1, "limit": 300},
    "methods": {"SGD": {"method": "sgd"}, "SAM": {"method": "sam"}},
    "grid": {"noise": {"none": {"noise": "0"}}},
    "tune": {"factors": [1.0, 2.0], "seeds": 1},
    "seeds": 2,
    "printed": [],
    "scales": {"full": {}},
}

SECOND = {
    **FIRST,
    "shows": "Figure 2",
    "methods": {"base": {"method": "sgd"}, "SAM": {"method": "sam"}, "MSAM": {"method": "msam"}},
}
"""Shares six of its ten runs with the first."""


def written(name: str, content: dict[str, Any]) -> Path:
    path = Path("mine", f"{name}.yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def run(name: str, *more: str) -> int:
    return main(["run", f"mine/{name}.yaml", "--out", name, "--workers", "1", *more])


def rows(folder: str) -> dict[str, Any]:
    return {row["key"]: row for row in json.loads(Path(folder, "results.json").read_text())["runs"]}


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The finished run of the first recipe, in `first` in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = written("first", FIRST)
    written("second", SECOND)
    plan = Recipe.find(str(path)).at("full")
    store = Store.open(
        StudyLocation.new(Path("first")),
        serialization.identity(plan),
        serialization.described(plan),
    )
    work(store, plan, Trainer())
    assert len(store.rows) == 6
    return store


def second(folder: str = "second") -> tuple[Store, Any]:
    plan = Recipe.find("mine/second.yaml").at("full")
    return Store.open(Path(folder), serialization.identity(plan)), plan


def test_shared_rows_are_taken_over_with_what_tuning_has_chosen(
    first: Store, capsys: pytest.CaptureFixture[str]
):
    assert run("second", "--reuse", "first") == 0
    said = capsys.readouterr().err
    assert "flatmin: --reuse first: 6 runs are taken over\n" in said
    assert "10 runs, about" in said
    assert "for what is left with 1 worker here" in said
    assert "6 of 10 runs are there already" in said
    found = rows("second")
    assert len(found) == 10
    assert {key: found[key] for key in first.rows} == {
        key: json.loads(row.model_dump_json()) for key, row in first.rows.items()
    }
    assert run("second", "--reuse", "first") == 0  # and again
    assert "--reuse first: 0 runs are taken over\n" in capsys.readouterr().err
    assert rows("second") == found


def test_what_is_taken_over_is_what_would_have_come_out(first: Store):
    store, plan = second()
    work(store, plan, Trainer())
    for key, row in first.rows.items():
        here = store.rows[key]
        assert (row.accuracy, row.cost, row.images) == (here.accuracy, here.cost, here.images)
        assert row.curves.loss == here.curves.loss


def test_a_folder_of_runs_gives_what_each_has(first: Store):
    Path("all").mkdir()
    Path("first").rename("all/first")
    Path("all", "old").mkdir()
    Path("all", "old", "results.json").write_text("{}")
    told: list[str] = []
    assert take_over(*second(), "all", tell=told.append) == 6
    assert told == ["left out: all/old has no database, which says what code made its rows"]
    with pytest.raises(InputError, match="all/old has no database"):
        take_over(*second("third"), "all/old")


def trials(folder: str) -> int:
    with sqlite3.connect(Path(folder, "study.db")) as connection:
        return connection.execute("SELECT COUNT(*) FROM trials").fetchone()[0]


def test_what_is_there_is_not_taken_again(first: Store):
    store, plan = second("first-again")
    told: list[str] = []
    for expected in (6, 0):
        assert take_over(store, plan, ".", tell=told.append) == expected  # itself among them
        assert trials("first-again") == 6
    assert not told


def test_of_several_runs_one_that_has_the_same_images_is_enough(first: Store):
    Path("all").mkdir()
    for name in ("a", "c"):  # before and behind the good one
        other = Store.open(Path("all", name), first.identity)
        for row in first.rows.values():
            other.add(row.model_copy(update={"images": "0" * 12}))
    Path("first").rename("all/b")
    told: list[str] = []
    assert take_over(*second(), "all", tell=told.append) == 6
    assert not told


def test_the_time_is_that_of_what_has_no_row(first: Store):
    plan = Recipe.find("mine/first.yaml").at("full")
    assert plan.left({}) == plan.estimate
    assert plan.estimate.runs == 6
    some = dict(list(first.rows.items())[:4])
    assert plan.left(some).runs == 2
    assert 0 < plan.left(some).hours < plan.estimate.hours
    assert plan.left(first.rows).runs == 0


@pytest.mark.parametrize(
    "change, reason",
    (
        (lambda row: {"images": "0" * 12}, "made from other images of digits"),
        (
            lambda row: {"versions": {**row.versions, "torch": "1.0"}},
            f"made by torch 1.0, this is {torch.__version__}",
        ),
        (
            lambda row: {"versions": {**row.versions, "flatmin": "0.0"}},
            f"made by flatmin 0.0, this is {provenance.versions()['flatmin']}",
        ),
    ),
)
def test_what_may_have_become_something_else_is_trained_again(
    change: Any, reason: str, first: Store
):
    for key, row in list(first.rows.items()):
        first.rows[key] = row.model_copy(update=change(row))
    other = Store.open(Path("other"), first.identity)
    for row in first.rows.values():
        other.add(row)
    store, plan = second()
    told: list[str] = []
    assert take_over(store, plan, "other", tell=told.append) == 0
    # SGD's, and those by which tuning chooses: what it would ask for then is not known
    assert told == [f"4 runs are trained again: {reason}"]
    assert not store.rows


def test_what_has_a_users_own_network_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("mine_alone.py").write_text(
        "from torch import nn\n\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    own = {"fields": {**FIRST["fields"], "model": "mine_alone:net"}}
    stores: list[tuple[Store, Any]] = []
    for name in ("one", "two"):
        plan = Recipe.find(str(written(name, {**FIRST, **own, "shows": name}))).at("full")
        stores.append((Store.open(Path(name), serialization.identity(plan)), plan))
    (one, plan), (two, _) = stores
    work(one, plan, Trainer())
    assert len(one.rows) == 6
    told: list[str] = []
    assert take_over(two, plan, "one", tell=told.append) == 0
    assert told == ["4 runs are trained again: what is not flatmin's own may have changed since"]


def test_rows_of_other_code_are_refused(
    first: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(provenance, "digest", lambda: "f" * 16)
    assert run("second", "--reuse", "first") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "flatmin: --reuse first: the rows of first are made by flatmin at commit"
    )
    assert "--allow-mixed" in said
    assert take_over(*second("third"), "first", allow_mixed=True) == 6


@pytest.mark.parametrize(
    "flags, line",
    (
        (("--reuse", "nowhere"), "--reuse nowhere: there is no folder nowhere"),
        (("--reuse", "mine"), "--reuse mine: no run in mine"),
        (("--reuse", "first", "--keep", "weights"), "--reuse takes rows, and no weights"),
    ),
)
def test_what_cannot_be_taken_from_is_one_line(
    flags: tuple[str, ...], line: str, first: Store, capsys: pytest.CaptureFixture[str]
):
    assert run("second", *flags) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"flatmin: {line}")
    assert not Path("second", "results.json").exists()

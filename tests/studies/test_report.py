"""`flatmin report`: what stands in its tables, and how its page behaves in a browser."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browsing
import comparisons
import pytest
import yaml
from browsing import drawn, tab_to
from comparisons import comparison, outcome
from looking import only_readable

from flatmin import methods
from flatmin.cli import main
from flatmin.studies.plan import recipe as recipes
from flatmin.studies.plan import serialization
from flatmin.studies.plan.grid import ScaledRecipe
from flatmin.studies.plan.recipe import Recipe
from flatmin.studies.report import colours, export, html, paper, runs, section, terminal
from flatmin.studies.report.runs import Record
from flatmin.studies.report.section import Section
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.owner import ProcessIdentity
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import Store
from flatmin.training import Training

RECIPE: dict[str, Any] = {
    "paper": "agnostic-sam",
    "shows": "Table 0",
    "title": "Accuracy of nothing in particular",
    "also": ["observed:wrong-label-accuracy", "share"],
    "fields": {
        "data": "digits",
        "model": "mlp",
        "epochs": 4,
        "batch": 64,
        "observe": ["wrong-label-accuracy"],
    },
    "methods": {
        "SGD": {"method": "sgd"},
        "SAM": {"method": "sam", "rho": 0.1},
        "Ours | theirs": {"method": "agnostic-sam"},
    },
    "grid": {"noise": {"40%": {"noise": "0.4"}, "80%": {"noise": "0.8"}}},
    "seeds": 3,
    "printed": [
        {"noise": "40%", "method": "SGD", "mean": 84.83, "sd": 0.085},
        {"noise": "40%", "method": "SAM", "mean": 88.19, "sd": 1.06},
        {"noise": "40%", "method": "Ours | theirs", "mean": 90.2},
        {"noise": "80%", "method": "SGD", "mean": 54.47},
        {"noise": "80%", "method": "SAM", "mean": 50.0},
        {"noise": "40%", "method": "SAM", "measure": "share", "mean": 100.0},
    ],
    "scales": {"full": {}, "smoke": {"says": "fewer epochs", "fields": {"epochs": 2}}},
}

FOUND = {
    ("SGD", "0.4"): [70.0, 71.0, 72.0],
    ("SAM", "0.4"): [79.0, 81.0, 83.0],
    ("Ours | theirs", "0.4"): [79.0, 82.0, 82.0],
    ("SGD", "0.8"): [30.0, 31.0, 32.0],
    ("SAM", "0.8"): [39.0, 41.0, 43.0],
    ("Ours | theirs", "0.8"): [20.0, 21.0, 22.0],
}
"""By label and noise; SAM leads SGD by 9, 10, 11 and Ours by 0, -1, 1."""


def recipe(folder: Path, **changed: Any) -> Recipe:
    path = folder / "mine" / "table-0.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**RECIPE, **changed}, sort_keys=False))
    return Recipe.load(path)


def observed(training: Training) -> dict[str, list[float | None]]:
    return {
        name: [10.0 * epoch for epoch in range(1, training.epochs + 1)]
        if name.endswith("label-accuracy")
        else [float(step % 7) for step in range(1000)]
        for name in training.observe
    }


def row(training: Training, accuracy: float, trouble: str | None = None) -> Row:
    examined = dict.fromkeys(training.examine, accuracy / 2)
    made = comparisons.row(training, accuracy, trouble)
    return made.model_copy(update={"observed": observed(training), "examined": examined})


def rows(plan: ScaledRecipe, judge: Callable[[str, Training], float | None]) -> dict[str, Row]:
    """All runs of a plan but those that `judge`, by label, gives no accuracy."""
    made: dict[str, Row] = {}
    for find in (lambda each: each.tuning, lambda each: each.evaluation(made)):
        for setting in plan.settings:
            for label, tuned in setting.tuned_methods.items():
                for training in find(tuned):
                    accuracy = judge(label, training)
                    if accuracy is not None:
                        made[training.key] = row(training, accuracy)
    return made


def found(label: str, training: Training) -> float:
    return FOUND[label, training.noise][training.seed]


def made_section(folder: Path, scale: str = "full", **changed: Any) -> Section:
    plan = recipe(folder, **changed).at(scale)
    return section.of_record(Record("here", plan, rows(plan, found)))


def cells(made: Section, group: int, title: str) -> dict[str, tuple[str, str]]:
    """Ours and the paper's by the title of the column."""
    entry = next(each for each in made.table.groups[group].entries if each.title == title)
    names = [column.title for column in made.table.columns[1:]]
    return {name: (cell.ours, cell.paper) for name, cell in zip(names, entry.cells, strict=True)}


# The table ------------------------------------------------------------------------------------


def test_what_is_of_the_test_set_says_so_where_another_comes_first(tmp_path: Path):
    fields = {**RECIPE["fields"], "examine": ["top-5"]}
    grid = {"noise": {"40%": RECIPE["grid"]["noise"]["40%"]}}
    made = made_section(tmp_path, measure="top-5", fields=fields, grid=grid, printed=[])
    assert "highest mean accuracy (top-5)" in f"{made.verdict}"
    difference = next(figure for figure in made.figures if figure.kind == "difference")
    assert difference.unit.startswith("points of top-5;")
    titles = [column.title for column in made.table.columns]
    assert titles[1] == "top-5"
    assert "Test accuracy at equal cost" in titles
    assert "At equal cost" not in titles


def test_ours_stands_beside_the_papers(tmp_path: Path):
    made = made_section(tmp_path)
    assert [group.labels for group in made.table.groups] == [("40%",), ("80%",)]
    assert made.table.same == (
        "Runs 3",
        "Memorised 40.0 (% of the wrong)",
        "Fit 50.0 (% of labels)",
    )
    assert cells(made, 0, "SAM") == {
        "Test accuracy": ("81.0 ± 2.0", "88.19 ± 1.06"),
        "Ours − paper": ("−7.2", ""),
        "Difference to SGD": ("+10.0 [6.2, 13.8]", "+3.4"),
        "Difference to SAM": ("", ""),
        # the made-up curves rise in a line and SAM pays double: half-way up
        "At equal cost": ("40.5 ± 1.0", ""),
        "ρ": ("0.1", ""),
        "Gradients": ("2.00", ""),
        "Passes": ("8.0", ""),
        "%SAM": ("100.0", "100"),
        "‖ε‖": ("0.100", ""),
    }
    ours = cells(made, 0, "Ours | theirs")
    assert ours["Difference to SAM"] == ("0.0 [−3.6, 3.6]", "+2.0")
    assert ours["Gradients"] == ("2.50", "")
    sgd = cells(made, 0, "SGD")
    assert (sgd["ρ"], sgd["‖ε‖"]) == (("–", ""), ("–", ""))
    assert sgd["Difference to SGD"] == ("", "")
    assert cells(made, 1, "Ours | theirs")["Test accuracy"] == ("21.0 ± 1.0", "")
    ranks = [[entry.rank for entry in group.entries] for group in made.table.groups]
    assert ranks == [["", "best", "level"], ["", "best", ""]]


def test_a_scale_that_says_nothing_names_no_method(tmp_path: Path):
    silent = {"says": "fewer epochs", "fields": {"epochs": 2}, "smoke_only": "nothing overfits"}
    made = made_section(tmp_path, "smoke", scales={"full": {}, "smoke": silent})
    assert str(made.verdict) == (
        "It runs; its numbers say nothing about methods. Nothing overfits."
    )
    assert not any(entry.rank for group in made.table.groups for entry in group.entries)


def test_at_a_smaller_scale_values_are_not_compared(tmp_path: Path):
    made = made_section(tmp_path, "smoke")
    sam = cells(made, 0, "SAM")
    assert "Ours − paper" not in sam
    assert sam["Test accuracy"][1] == "88.19 ± 1.06"
    assert sam["Difference to SGD"][1] == "+3.4"
    assert made.remarks[0] == "Smaller than full scale: fewer epochs."
    assert "orders and differences, not values" in made.remarks[1]
    assert made.data["settings"][0]["lines"][1]["paper"] is None
    assert made.data["settings"][0]["lines"][1]["difference"]["paper"] == pytest.approx(3.36)


def test_the_papers_order_is_looked_for(tmp_path: Path):
    plan = recipe(tmp_path).at("full")
    blocks = paper.blocks(plan, rows(plan, found))
    # 40 %: SAM and Ours over SGD are told, Ours over SAM is not; 80 %: SGD over SAM is reversed
    assert paper.order(blocks) == paper.Order(same=2, reversed=1, untold=1)
    said = str(paper.verdict(blocks))
    assert said == (
        "SAM wins 1 of 2 settings. In 1 the seeds do not tell the leader from others. "
        "Pairs of methods in the paper's order: 2 of 4; reversed: 1; not told apart: 1."
    )


def test_a_mixed_verdict_counts_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """On the terminal too. With 80 % noise SAM has one run, or none that learned."""
    plan = recipe(tmp_path).at("full")
    some = rows(
        plan,
        lambda label, t: None if (label, t.noise) == ("SAM", "0.8") and t.seed else found(label, t),
    )
    few = str(paper.verdict(paper.blocks(plan, some)))
    assert few.startswith(
        "No winner in either setting. In 1 the seeds do not tell the leader from others; in 1 "
        "there are too few runs to tell. Most often ahead is SAM, in 1."
    )
    every = {
        key: row.model_copy(update={"trouble": "diverged: no"})
        if (row.method, row.training["noise"]) == ("sam", "0.8")
        else row
        for key, row in rows(plan, found).items()
    }
    said = paper.verdict(paper.blocks(plan, every))
    assert said.headline == "SGD wins 1 of 2 settings"
    assert said.detail.startswith(
        "In 1 the seeds do not tell the leader from others; in 1 runs are left out that did not"
    )
    store = SimpleNamespace(rows=every, failures={})
    terminal.print_recipe(plan, store, Path("report.html"))  # pyright: ignore[reportArgumentType]
    assert "SGD wins 1 of 2 settings. In 1" in capsys.readouterr().out


def test_single_runs_tell_nothing(tmp_path: Path):
    made = made_section(tmp_path, seeds=1)
    assert made.verdict is not None
    assert made.verdict.headline == (
        "Too few runs to tell: SAM has the highest accuracy in 2 of 2 settings"
    )
    assert made.verdict.detail.endswith("order: 0 of 4; reversed: 0; not told apart: 4.")
    assert {entry.rank for group in made.table.groups for entry in group.entries} == {""}


def test_a_measure_that_is_no_accuracy_ranks_nothing(tmp_path: Path):
    made = made_section(tmp_path, measure="share", also=["accuracy"], printed=[])
    assert made.verdict is None
    assert {entry.rank for group in made.table.groups for entry in group.entries} == {""}
    assert cells(made, 0, "SAM")["%SAM"] == ("100 ± 0", "")
    assert "difference" not in [figure.kind for figure in made.figures]


def test_settings_of_a_single_method_are_compared(tmp_path: Path):
    methods = {"SAM": {"method": "sam", "rho": 0.1}}
    made = made_section(tmp_path, methods=methods, printed=[])
    assert made.alone
    assert str(made.verdict) == "SAM reaches 41.0 to 81.0 %. Highest at 40%."
    assert "Difference to SAM" not in cells(made, 0, "SAM")


def test_what_is_missing_is_told(tmp_path: Path):
    plan = recipe(tmp_path).at("full")
    some = rows(plan, lambda label, t: None if label == "SAM" and t.seed else found(label, t))
    made = section.of_record(Record("here", plan, some, running=2))
    assert made.remarks[0] == "Not finished: 14 of 18 runs, 2 at work. The numbers will change."
    assert cells(made, 0, "SAM")["Runs"] == ("1 of 3", "")


def test_a_run_is_finished_when_nothing_is_left(tmp_path: Path):
    """One that failed is told as missing; one that tuning has turned down does not count."""
    other = comparison(methods=("sam",), rho=(0.2,)).evaluation("sam", {})[0]
    accuracies = {"sgd": [70.0, 71.0], "sam": [80.0, None]}
    found = outcome(
        tmp_path,
        accuracies,
        held_out={"sam": {0.1: 90.0, 0.2: 80.0}},
        failures={("sam", 1): "RuntimeError: no"},
        tune="rho",
        rho=(0.1, 0.2),
        tuning_seeds=1,
    )
    found.store.add(comparisons.row(other, 60.0))
    made = section.of_record(Record.of(found.store, found.comparison))
    assert (made.done, made.total) == (5, 6)
    assert not [remark for remark in made.remarks if remark.startswith("Not finished")]
    found.store.retry()
    made = section.of_record(Record.of(found.store, found.comparison))
    assert made.remarks[0] == "Not finished: 5 of 6 runs, nobody at work. The numbers will change."


def test_troubles_and_failures_are_told(tmp_path: Path):
    plan = recipe(tmp_path).at("full")
    store = Store.open(
        StudyLocation.new(tmp_path / "run"),
        serialization.identity(plan),
        serialization.described(plan),
    )
    for tuned in plan.tuned_methods:
        first, second, third = tuned.evaluation({})
        store.add(row(first, 50.0, "diverged: the loss is not finite"))
        store.add(row(second, 50.0))
        claim = store.claim(third, ProcessIdentity.here())
        assert claim is not None
        claim.fail("RuntimeError: <odd>", "")
    [record] = runs.records([str(tmp_path / "run")])
    made = section.of_record(record)
    assert "40%, SGD: seed 0: diverged: the loss is not finite; left out." in made.remarks
    assert "Missing: SAM ρ 0.1 seed 2: RuntimeError: <odd>." in made.remarks
    assert made.table.groups[0].entries[0].troubles == (
        "seed 0: diverged: the loss is not finite; left out",
    )
    page = html.report([made])
    assert "<odd>" not in page
    assert "&lt;odd&gt;" in page


def test_what_tuning_chose_is_told(tmp_path: Path):
    methods = {
        "SGD": {"method": "sgd"},
        "LookSAM": {"method": "look-sam", "tune": {"alpha": [0.3, 0.7]}},
    }
    made = recipe(tmp_path, methods=methods, printed=[], tune={"rho": [0.1, 0.2, 0.4]})
    plan = made.at("full")

    def judge(label: str, training: Training) -> float:
        options = dict(training.options)
        return 50.0 + (training.rho or 0.0) + (options.get("alpha") == 0.3) + training.seed

    done = section.of_record(Record("here", plan, rows(plan, judge)))
    assert done.tuned
    assert cells(done, 0, "LookSAM")["ρ"] == ("0.4*, alpha 0.3", "")
    assert any(
        "at the edge" in remark and "LookSAM (0.4; 40%)" in remark for remark in done.remarks
    )
    tuning = done.data["settings"][0]["lines"][1]["tuning"]
    assert tuning == {"rho": [0.1, 0.2, 0.4], "accuracy": [50.1, 50.2, 50.4], "chosen": 0.4}


def test_the_frontier_is_what_nothing_cheaper_surpasses(tmp_path: Path):
    """At 40 % Ours costs more than SAM for the same mean; at 80 % it is told to be worse, too."""
    made = made_section(tmp_path, figures=["frontier"])
    few, many = made.data["settings"]
    assert few["costs"] == {0: 1.0, 1: 2.0, 2: 2.5}
    assert few["frontier"] == [0, 1]
    assert few["dominated"] == []
    assert many["frontier"] == [0, 1]
    assert many["dominated"] == [2]  # it costs more than both, and is worse
    assert [figure.kind for figure in made.figures].count("frontier") == 1
    said = "80%, the frontier, by gradients a step: SGD (1) and SAM (2)"
    assert any(said in remark for remark in made.remarks)
    assert "frontier" not in made_section(tmp_path).data["settings"][0]


def test_colours_belong_to_methods(tmp_path: Path):
    """On every page; no two methods look alike, nor two labels of one method."""
    assert colours.STYLES.keys() <= methods.TABLE.keys()
    looks = [colours.style(name) for name in methods.TABLE]
    assert len(set(looks)) == len(looks), "give the newest method a line in colours.STYLES"
    assert {style.color for style in looks} <= set(range(colours.COLOURS))
    both = made_section(tmp_path)
    radii = {"SAM": {"method": "sam", "rho": 0.1}, "SAM, 2ρ": {"method": "sam", "rho": 0.2}}
    plan = recipe(tmp_path, methods=radii, printed=[]).at("full")
    made = section.of_record(Record("here", plan, rows(plan, lambda label, training: 50.0)))
    assert made.styles["SAM"] == both.styles["SAM"] == colours.style("sam").as_data()
    assert made.styles["SAM, 2ρ"]["color"] == made.styles["SAM"]["color"]
    assert made.styles["SAM, 2ρ"]["dash"] != made.styles["SAM"]["dash"]
    many = colours.styles({f"{at}": "my-own-method" for at in range(9)})
    assert len(set(many.values())) == 9


def test_curves_over_steps_are_thinned_by_means(tmp_path: Path):
    methods = {"SGD": {"method": "sgd"}}
    changed = {"measure": "observed:losses", "also": [], "printed": [], "methods": methods}
    made = made_section(tmp_path, **changed, fields={**RECIPE["fields"], "observe": ["losses"]})
    curve = made.data["settings"][0]["lines"][0]["curves"]["observed:losses"]
    steps = [float(step % 7) for step in range(1000)]
    assert len(curve["mean"]) == len(curve["x"]) == 143
    assert curve["mean"][1] == sum(steps[7:14]) / 7
    assert curve["x"][0] == 3.5 * 4 / 1000  # the middle of the first seven of 1,000, in epochs
    assert set(curve["sd"]) == {0.0}  # all seeds are the same here


# Where runs are -------------------------------------------------------------------------------


def test_folders_are_searched_for_runs(tmp_path: Path):
    first, second = tmp_path / "runs" / "b" / "table-2", tmp_path / "runs" / "b" / "table-10"
    for folder, data in ((second, [80.0, 81.0]), (first, [70.0, 71.0])):
        folder.mkdir(parents=True)
        outcome(folder, {"sgd": data})
        (folder / "checkpoints").mkdir()
    records = runs.records([str(tmp_path / "runs")])
    assert [Path(record.where) for record in records] == [first, second]
    assert runs.records([str(first), str(first / "study.db")])[0].rows == records[0].rows
    assert len(runs.records([str(first), str(tmp_path / "runs")])) == 2


def test_an_exported_file_stands_for_its_database(tmp_path: Path):
    done = outcome(tmp_path, {"sgd": [70.0, 71.0], "sam": [80.0, 82.0]})
    done.store.export()
    [before] = runs.records([str(tmp_path)])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results.json").rename(tmp_path / "elsewhere" / "results.json")
    [after] = runs.records([str(tmp_path / "elsewhere")])
    assert after.plan == before.plan
    assert section.of_record(after).table == section.of_record(before).table


def test_where_a_database_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    outcome(folder, {"sgd": [70.0, 71.0]}).store.export()
    only_readable(folder, monkeypatch)
    [copied] = runs.records([str(folder)])
    assert (copied.where, len(copied.rows)) == (str(folder), 2)


def test_a_damaged_database_beside_good_results_is_read_from_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """And a run of several that cannot be read at all does not stop the report of the others."""
    folder = tmp_path / "runs" / "good"
    outcome(folder, {"sgd": [70.0, 71.0]}).store.export()
    [before] = runs.records([str(folder)])
    whole = (folder / "study.db").read_bytes()
    for damage in (b"[]", whole[:5000], whole[:3000] + bytes(9000) + whole[12000:]):
        (folder / "study.db").write_bytes(damage)
        [record] = runs.records([str(folder)])
        assert record.rows == before.rows
        assert "no whole study of flatmin" in record.note
    bad = tmp_path / "runs" / "bad"
    bad.mkdir()
    (bad / "study.db").write_text("[]")
    assert main(["report", str(tmp_path / "runs"), "--markdown"]) == 1
    said = capsys.readouterr()
    left_out, from_results = said.err.splitlines()
    assert left_out.startswith(f"flatmin: left out: {bad / 'study.db'} is no whole study")
    assert from_results.startswith(f"flatmin: {folder}: Read from results.json, since")
    assert "- Read from results.json, since" in said.out
    assert main(["report", str(bad)]) == 2
    capsys.readouterr()
    assert main(["report", str(tmp_path / "nowhere"), str(folder), "--markdown"]) == 1
    assert f"left out: there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 2


def test_a_folder_may_have_a_number_that_is_no_decimal(tmp_path: Path):
    outcome(tmp_path / "a-²", {"sgd": [70.0]})
    [record] = runs.records([str(tmp_path)])
    assert record.where == str(tmp_path / "a-²")


def _empty(folder: Path) -> Path:
    asked = comparison()
    Store.open(StudyLocation.new(folder / "new"), {}, asked.description)
    return folder / "new"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "gone", "there is no folder"),
        (lambda folder: folder / (300 * "a"), "there is no folder"),
        (lambda folder: folder, "no run in"),
        (_empty, "has finished yet: `flatmin status`"),
    ],
)
def test_a_place_without_results_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], said: str
):
    assert main(["report", str(make(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_file_of_somebody_else_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "results.json").write_text('{"runs": [{"accuracy": 100}]}')
    assert main(["report", str(tmp_path)]) == 2
    assert "results.json is no file that `flatmin run`" in capsys.readouterr().err


def test_where_nothing_can_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    outcome(tmp_path, {"sgd": [70.0]})
    for out in (tmp_path / "study.db" / "report.html", tmp_path):
        before = set(tmp_path.iterdir())
        assert main(["report", str(tmp_path), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("flatmin: cannot write ")
        assert len(error.splitlines()) == 1
        assert set(tmp_path.iterdir()) == before


def test_one_format_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path), "--markdown", "--csv"]) == 2
    assert "one of --markdown and --csv" in capsys.readouterr().err


def test_two_reports_at_once_do_no_harm(tmp_path: Path):
    outcome(tmp_path, {"sgd": [70.0, 71.0]})
    [record] = runs.records([str(tmp_path)])
    out = tmp_path / "out.html"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: main(["report", record.where, "--out", str(out)]), range(2)))
    text = out.read_text()
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


# Other formats --------------------------------------------------------------------------------


def test_the_tables_as_markdown(tmp_path: Path):
    text = export.markdown([made_section(tmp_path)])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6
    assert lines[0].startswith("| noise | Method | Test accuracy (%, mean ± sd) | Ours − paper |")
    assert lines[3].startswith("| 40% | **SAM** | **81.0 ± 2.0** (88.19 ± 1.06) | −7.2 |")
    assert "\nThe same for all: Runs 3; Memorised 40.0 (% of the wrong); Fit 50.0" in text
    assert "Ours \\| theirs" in lines[4]
    columns = {line.replace("\\|", "").count("|") for line in lines}
    assert len(columns) == 1
    assert "**SAM wins 1 of 2 settings.**" in text
    assert "`flatmin run mine/table-0 --scale full`, 18 of 18 runs" in text


def test_the_runs_as_csv(tmp_path: Path):
    plan = recipe(tmp_path).at("full")
    made = rows(plan, found)
    text = export.table_of_runs([Record("here", plan, made)])
    assert text.count("\r\n") == text.count("\n") == 19
    lines = list(csv.DictReader(io.StringIO(text)))
    for line, expected in zip(lines, made.values(), strict=True):
        assert line["key"] == expected.key
        assert float(line["accuracy"]) == expected.accuracy
        assert float(line["observed:wrong-label-accuracy"]) == 40.0
        assert json.loads(line["observe"]) == ["wrong-label-accuracy"]
        assert {field.name for field in fields(Training)} <= line.keys()
    first = lines[0]
    assert (first["study"], first["setting"], first["label"]) == (
        "mine/table-0 full",
        "noise: 40%",
        "SGD",
    )
    training = asdict(plan.runs[0])
    assert (first["lr"], first["noise"], first["rho"]) == (
        str(training["lr"]),
        training["noise"],
        "",
    )


def test_the_command_writes_what_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    outcome(tmp_path, {"sgd": [70.0, 71.0], "sam": [80.0, 82.0]})
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert main(["report", str(tmp_path), "--csv"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 4
    assert main(["report", str(tmp_path), "--markdown", "--out", str(tmp_path / "r.md")]) == 0
    assert "| SAM | 81.0 ± 1.4 |" in (tmp_path / "r.md").read_text()


def test_a_recipe_that_is_run_leaves_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny = {**RECIPE["fields"], "epochs": 1, "limit": 200}
    recipe(tmp_path, fields=tiny, seeds=1, methods={"SGD": {"method": "sgd"}}, printed=[])
    out = tmp_path / "run"
    asked = ["run", str(tmp_path / "mine" / "table-0.yaml"), "--out", str(out), "--workers", "1"]
    assert main(asked) == 0
    assert capsys.readouterr().out.rstrip().endswith(str(out / "report.html"))
    assert "SGD reaches" in (out / "report.html").read_text()
    [record] = runs.records([str(out)])
    assert section.of_record(record).command == f"flatmin run {asked[1]} --scale full"
    (out / "study.db").unlink()
    [exported] = runs.records([str(out)])
    assert section.of_record(exported).command == f"flatmin run {asked[1]} --scale full"


# In a browser ---------------------------------------------------------------------------------


def made_up(label: str, training: Training) -> float:
    """Some accuracy for any run: the later the method's name, the better."""
    return 20.0 + len(label) + 3 * training.seed + (training.rho or 0.0)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several runs on one page: tables and figures, partial ones, a comparison."""
    folder = tmp_path_factory.mktemp("several")
    shipped = [
        ("agnostic-sam/table-5", "small"),
        ("friendly-sam/figure-3", "small"),
        ("ae-sam/figure-12", "smoke"),
        ("beyond/agnostic-for-free-digits", "smoke"),
    ]
    plans = [Recipe.find(name).at(scale) for name, scale in shipped]
    plans.insert(0, recipe(folder).at("full"))
    records = [
        Record(plan.recipe.name, plan, rows(plan, made_up if number else found))
        for number, plan in enumerate(plans)
    ]
    (folder / "compared").mkdir()
    outcome(folder / "compared", {"sgd": [70.0, 71.0], "sam": [80.0, 82.0]})
    records += runs.records([str(folder / "compared")])
    path = folder / "report.html"
    path.write_text(html.report([section.of_record(record) for record in records]))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browsing.chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def visible(browser: Any, selector: str) -> int:
    return sum(each.is_displayed() for each in browser.find_elements("css selector", selector))


def wait_for(browser: Any, said: Callable[[], object]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 20, poll_frequency=0.1).until(lambda _: said())


def test_every_part_of_the_page_is_filled_and_draws_a_plot(browser: Any, page: Path):
    browser.get(page.as_uri())
    parts = browser.find_elements("css selector", ".section")
    assert len(parts) == 6
    for part in parts:
        assert part.find_elements("css selector", ".results tbody td")
        browser.execute_script("arguments[0].scrollIntoView()", part)
        name = part.get_attribute("id")
        wait_for(
            browser,
            lambda name=name: (
                browser.find_elements("css selector", f"#{name} .plot .point")
                or drawn(browser, ".plot", f"#{name}")
            ),
        )
    links = browser.find_elements("css selector", "nav a")
    assert len(links) == 6
    anchors = {part.get_attribute("id") for part in parts}
    assert {link.get_attribute("href").partition("#")[2] for link in links} == anchors
    assert browser.get_log("browser") == []


def test_the_page_fits_a_narrow_screen(browser: Any, page: Path):
    narrow = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    try:
        browser.get(page.as_uri())
        overflow = "return document.documentElement.scrollWidth - innerWidth"
        assert browser.execute_script(overflow) <= 0
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_keyboard_filters_papers(browser: Any, page: Path):
    browser.get(page.as_uri())
    box = tab_to(browser, "[data-filter=group] input[value=friendly-sam]")
    box.send_keys(" ")
    assert visible(browser, ".section") == visible(browser, "[data-entry]") == 5
    assert not visible(browser, "[data-group=friendly-sam]")
    assert browser.find_element("id", "filtered").text == "5 of 6 shown"
    box.send_keys(" ")
    assert visible(browser, ".section") == 6


def test_the_keyboard_filters_methods_and_settings(browser: Any, page: Path):
    browser.get(page.as_uri())
    tab_to(browser, "#filters summary").send_keys("\ue007")  # Enter
    table = "#mine-table-0-full .results"
    assert visible(browser, f"{table} tr[data-method]") == 6
    lines = "[data-curve=accuracy][data-x=epoch]"
    assert len(set(drawn(browser, lines, "#mine-table-0-full"))) == 3
    tab_to(browser, "[data-filter=method] input[value=SGD]").send_keys(" ")
    assert visible(browser, f"{table} tr[data-method]") == 4
    assert len(set(drawn(browser, lines, "#mine-table-0-full"))) == 2
    tab_to(browser, "[data-axis=noise] input[value='40%']", steps=80).send_keys(" ")
    assert visible(browser, f"{table} tr[data-method]") == 2
    select = browser.find_element("css selector", "#mine-table-0-full select")
    assert select.get_property("value") == "80%"
    assert browser.get_log("browser") == []


def test_words_find_a_recipe(browser: Any, page: Path):
    browser.get(page.as_uri())
    tab_to(browser, "#find").send_keys("figure RADIUS")
    assert visible(browser, ".section") == 1
    assert visible(browser, "#friendly-sam-figure-3-small") == 1


def test_the_keyboard_chooses_the_setting_that_is_drawn(browser: Any, page: Path):
    browser.get(page.as_uri())
    curves = "[data-curve=accuracy][data-x=epoch]"

    def ends() -> list[float]:
        return browser.execute_script(
            "return document.querySelector(arguments[0]).series.map(each => each.y.at(-1))",
            f"#mine-table-0-full {curves}",
        )

    assert ends() == [71.0, 81.0, 81.0]
    tab_to(browser, "#mine-table-0-full select", steps=80).send_keys("\ue015")  # down
    assert ends() == [31.0, 41.0, 21.0]


def test_on_paper_there_are_all_plots_and_no_filters(browser: Any, page: Path):
    browser.get(page.as_uri())
    browser.execute_cdp_cmd("Page.printToPDF", {})
    plots = browser.find_elements("css selector", ".plot")
    assert all(plot.find_elements("css selector", ".chart") for plot in plots)
    browsing.media(browser, "light", "print")
    try:
        assert not visible(browser, "#filters")
        assert visible(browser, ".results") == 6
    finally:
        browsing.media(browser, "light")
    assert browser.get_log("browser") == []


def test_all_recipes_fit_on_one_page(tmp_path: Path):
    plans = [Recipe.find(name).at("smoke") for name in recipes.names()]
    records = [
        Record(plan.recipe.name, plan, rows(plan, made_up))
        for plan in plans
        if "meta" not in plan.recipe.needs
    ]
    assert len(records) > 50
    text = html.report([section.of_record(record) for record in records])
    assert text.count('<section class="section part"') == len(records)
    assert len(text) < 3.2e6

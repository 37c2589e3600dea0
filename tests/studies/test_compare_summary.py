"""The verdict says who wins, and never more than the seeds can tell."""

import math
from pathlib import Path

import pytest
from comparisons import outcome

from flatmin.studies.plan.tuning import Progress
from flatmin.studies.report import section, terminal
from flatmin.studies.report.summary import of_comparison, remarks, summarise, verdict

LOW = [70.0, 72.0, 71.0, 69.0, 73.0]
HIGH = [value + gap for value, gap in zip(LOW, [9.0, 10.0, 11.0, 10.0, 10.0], strict=True)]
NEAR = [value + gap for value, gap in zip(HIGH, [-1.0, 1.0, -0.5, 0.5, -0.2], strict=True)]


def test_a_clear_winner_is_named_with_its_lead(tmp_path: Path):
    said = verdict(summarise(outcome(tmp_path, {"sgd": LOW, "sam": HIGH})))
    assert said.headline == "SAM wins: 81.0 % on average over 5 seeds"
    # the differences 9, 10, 11, 10, 10 have an interval of ± 0.9 (sd 0.7071, t 2.776445, n 5), but
    # the accuracies are shares of 400 images: 100 √((0.71·0.29 + 0.81·0.19) / (400·5)) is 1.341
    # points, of which 1.96 are ± 2.6
    assert said.detail == "It is 10.0 points [7.4, 12.6] ahead of SGD."


def test_the_first_method_may_win(tmp_path: Path):
    said = verdict(summarise(outcome(tmp_path, {"sgd": HIGH, "sam": LOW})))
    assert str(said).startswith("SGD wins: 81.0 % on average over 5 seeds. It is 10.0 points")


def test_equals_are_no_winners(tmp_path: Path):
    said = verdict(summarise(outcome(tmp_path, {"sgd": HIGH, "sam": NEAR})))
    assert said.headline == "No winner: 5 seeds do not tell any method from SGD"
    assert "SGD has the highest mean accuracy, 81.0 %" in said.detail
    assert "[−0.9, 1.0] ahead of SAM" in said.detail


def test_identical_methods_are_no_winners(tmp_path: Path):
    assert verdict(summarise(outcome(tmp_path, {"sgd": LOW, "sam": LOW}))).headline == (
        "No winner: 5 seeds do not tell any method from SGD"
    )


def test_a_leader_with_rivals_is_no_winner(tmp_path: Path):
    summary = summarise(outcome(tmp_path, {"sgd": LOW, "sam": HIGH, "agnostic-sam": NEAR}))
    assert [line.method for line in summary.rivals] == ["agnostic-sam"]
    assert [line.method for line in summary.beaten] == ["sgd"]
    said = verdict(summary)
    assert said.headline == "No single winner: 5 seeds do not tell SAM from Agnostic-SAM"
    assert "10.0 points [8.9, 11.1] ahead of SGD" in said.detail


def test_a_single_seed_tells_nothing(tmp_path: Path):
    said = verdict(summarise(outcome(tmp_path, {"sgd": [70.0], "sam": [99.0]})))
    assert said.headline.startswith("Too few runs to tell: SAM has the highest accuracy, 99.0 %")
    assert "wins" not in str(said)


def test_nothing_is_made_of_the_cost_of_single_runs(tmp_path: Path):
    found = outcome(tmp_path, {"sgd": [70.0], "sam": [70.0]})
    assert remarks(found.comparison, summarise(found)) == []


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
):
    """What does not fit is a column less; the numbers that remain are whole."""
    monkeypatch.setenv("COLUMNS", str(width))
    found = outcome(tmp_path, {"sgd": LOW, "agnostic-sam-previous": HIGH})
    terminal.print_comparison(found, summarise(found), Path("report.html"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    (row,) = [line for line in lines if line.startswith("Agnostic-SAM (previous)  ")]
    costs = ("100", "0.050", "0.50")
    for value in ("81.0 ± 1.9", "+10.0 [7.4, 12.6]", "0.05", "2.00", *costs[: 3 * (width > 80)]):
        assert value in row.split("  ") or f" {value} " in f"{row} "


def test_a_single_method_has_nobody_to_beat(tmp_path: Path):
    said = verdict(summarise(outcome(tmp_path, {"sam": HIGH})))
    assert str(said) == "SAM reaches 81.0 %. There is no other method to compare it with."


def test_the_lines_of_the_table(tmp_path: Path):
    summary = summarise(outcome(tmp_path, {"sgd": LOW, "sam": HIGH}))
    sgd, sam = summary.lines
    assert sgd.difference is None
    assert sam.difference is not None
    assert (sgd.rho, sam.rho) == (None, 0.05)
    assert (sgd.ratio, sam.ratio) == (1.0, 2.0)
    assert (sgd.mean("share"), sam.mean("share")) == (0.0, 100.0)
    assert math.isnan(sgd.mean("radius"))
    assert sam.mean("radius") == 0.05
    assert sam.mean("seconds_per_epoch") == 0.5
    assert sam.value.mean == 81.0


def test_accuracy_at_equal_cost_is_read_where_the_cheapest_ended(tmp_path: Path):
    """The made-up curves rise in a line, and SAM pays double: it stands half-way up."""
    summary = summarise(outcome(tmp_path, {"sgd": LOW, "sam": HIGH, "agnostic-sam": HIGH}))
    assert summary.common_cost == 4.0
    assert [line.at_equal_cost.mean for line in summary.lines] == pytest.approx(
        [71.0, 81.0 / 2, 81.0 / 2.5]
    )


def test_a_radius_at_the_edge_of_the_grid_is_remarked_upon(tmp_path: Path):
    held_out = {"sam": {0.1: 30.0, 0.2: 40.0, 0.4: 50.0}, "agnostic-sam": {0.1: 1, 0.2: 9, 0.4: 5}}
    found = outcome(
        tmp_path,
        {"sam": HIGH, "agnostic-sam": NEAR},
        held_out=held_out,
        tune="rho",
        rho=(0.1, 0.2, 0.4),
    )
    summary = summarise(found)
    assert [(line.rho, line.edge) for line in summary.lines] == [(0.4, True), (0.2, False)]
    said = [r for r in remarks(found.comparison, summary) if "edge" in r]
    assert len(said) == 1
    assert said[0].startswith("The chosen radius is at the edge of what was tried for SAM (0.4): a")


def test_what_went_wrong_is_not_hidden(tmp_path: Path):
    values = [*HIGH[:3], None, HIGH[4]]
    found = outcome(
        tmp_path,
        {"sgd": LOW, "sam": values},
        troubles={("sam", 1): "diverged: the loss is not finite"},
        failures={("sam", 3): "its worker died (killed by SIGKILL)"},
    )
    summary = summarise(found)
    sam = summary.lines[1]
    assert sam.value.n == 3
    assert sam.difference is not None
    assert sam.difference.n == 3  # over the shared seeds
    said = verdict(summary)
    assert said.headline == "SAM wins: 81.3 % on average over 3 seeds"
    assert said.detail.endswith(" ahead of SGD. Left out: SAM (1 of 4 runs diverged).")
    assert remarks(found.comparison, summary)[:2] == [
        "SAM: seed 1: diverged: the loss is not finite; left out.",
        "Missing: SAM, seed 3: its worker died (killed by SIGKILL).",
    ]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("diverged: the loss is not finite", "diverged"),
        ("learned nothing: accuracy at chance", "learned nothing"),
    ],
)
def test_a_method_without_sound_runs_is_not_ranked(tmp_path: Path, trouble: str, said: str):
    """Its 99 % are shown, and neither win nor have anything to do with the others."""
    troubles = {("agnostic-sam", seed): trouble for seed in range(3)}
    values = {"sgd": LOW, "sam": HIGH, "agnostic-sam": [99.0] * 5}
    summary = summarise(outcome(tmp_path, values, troubles=troubles))
    assert [line.ranked for line in summary.lines] == [True, True, False]
    assert [summary.rank(line) for line in summary.lines] == ["", "best", ""]
    assert summary.winner is summary.lines[1]
    assert summary.lines[2].value.mean == 99.0
    gap = summary.lines[2].difference
    assert gap is not None
    assert math.isnan(gap.low)
    assert str(verdict(summary)).endswith(f"Left out: Agnostic-SAM (3 of 5 runs {said}).")


def test_where_nothing_was_learned_nothing_is_ranked(tmp_path: Path):
    troubles = {(name, seed): "diverged: no" for name in ("sgd", "sam") for seed in range(5)}
    summary = summarise(outcome(tmp_path, {"sgd": LOW, "sam": HIGH}, troubles=troubles))
    assert verdict(summary).headline == "Nothing to rank"
    assert {summary.rank(line) for line in summary.lines} == {""}


def test_a_run_that_skipped_most_of_its_steps_is_left_out(tmp_path: Path):
    found = outcome(tmp_path, {"sgd": LOW, "sam": HIGH})
    rows = dict(found.store.rows)
    key = next(key for key, row in rows.items() if row.method == "sam" and row.seed == 2)
    trouble = "101 of 201 steps skipped: loss or gradient not finite"
    for skipped, failing in ((100, None), (101, "skipped most steps")):
        cost = {**rows[key].cost, "steps": 100, "skipped": skipped}
        row = rows[key].model_copy(update={"cost": cost, "trouble": trouble})
        assert row.failing == failing
        sam = of_comparison(found.comparison, {**rows, key: row}).lines[1]
        assert sam.value.n == 5 - bool(failing)
        assert sam.troubles == [f"seed 2: {trouble}{'; left out' if failing else ''}"]


def test_two_seeds_have_no_winner_and_nothing_bold(tmp_path: Path):
    summary = summarise(outcome(tmp_path, {"sgd": [10.0, 11.0], "sam": [90.0, 91.0]}))
    assert {summary.rank(line) for line in summary.lines} == {""}
    assert summary.winner is None
    assert str(verdict(summary)) == (
        "Too few runs to tell: SAM has the highest accuracy, 90.5 %. Fewer than 3 runs of a method "
        "cannot tell a better method from a lucky seed."
    )


def test_a_method_of_another_spread_is_marked(tmp_path: Path):
    wild = [20.0, 80.0, 20.0, 80.0, 50.0]
    values = {"sgd": LOW, "sam": HIGH, "agnostic-sam": NEAR, "agnostic-sam-previous": wild}
    found = outcome(tmp_path, values)
    summary = summarise(found)
    assert [line.title for line in summary.apart] == ["Agnostic-SAM (previous)"]
    [said] = [each for each in remarks(found.comparison, summary) if each.startswith("†")]
    assert said.startswith(
        "†: the spread of Agnostic-SAM (previous) differs from that of the other"
    )
    shown = section.of_summary(found.comparison, summary, [], {}, Progress(20, 0, 0))
    cells = [entry.cells[0].ours for entry in shown.table.groups[0].entries]
    assert [cell.endswith("†") for cell in cells] == [False, False, False, True]


def test_the_cheapest_of_the_leaders_is_named(tmp_path: Path):
    found = outcome(tmp_path, {"sam": NEAR, "agnostic-sam": HIGH})
    (said,) = remarks(found.comparison, summarise(found))
    assert said.startswith("The cheapest of the leaders is SAM, with 2.00 gradients a step where ")


def test_without_any_run_there_are_no_lines(tmp_path: Path):
    assert summarise(outcome(tmp_path, {"sgd": [None], "sam": [None]})).lines == ()

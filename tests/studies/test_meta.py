"""Few-shot learning from settings to a page: what resumes, what is refused, what is compared."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
from pathlib import Path

import originals
import pictures
import pytest
import torch
import torchrun
import yaml

from flatmin.cli import main
from flatmin.cli.meta import StepReport
from flatmin.meta import EpisodeSampler
from flatmin.studies.meta import page, pools, running, section, testing, training
from flatmin.studies.meta import recipes as few_shot
from flatmin.studies.meta.pools import Pools
from flatmin.studies.plan import recipe as recipes
from flatmin.studies.plan.fewshot import FewShot
from flatmin.studies.plan.recipe import Recipe
from flatmin.studies.report import export, html
from flatmin.studies.report.runs import Record
from flatmin.studies.run import processes
from flatmin.training.errors import InputError

SMALL = FewShot(
    ways=3,
    queries=2,
    tasks=4,
    steps=6,
    filters=4,
    validate_every=2,
    validation_tasks=4,
    test_tasks=8,
    rotations="none",
)


def drawn(seed: int = 0) -> Pools:
    """Tasks of noise around a pattern for each class: enough for a network to learn from."""
    torch.manual_seed(0)
    patterns = torch.randn(12, 1, 28, 28)
    y = torch.arange(12).repeat_interleave(6)
    x = patterns[y] + 0.5 * torch.randn(72, 1, 28, 28)

    def sampler(classes: range, seed: int) -> EpisodeSampler:
        kept = torch.isin(y, torch.tensor(list(classes)))
        return EpisodeSampler(x[kept], y[kept], 3, 1, 2, seed=seed)

    return Pools(
        sampler(range(6), seed), sampler(range(6, 9), 7), sampler(range(9, 12), 8), 1, 28, "drawn"
    )


def weights(learner: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in learner.parameters()])


class Killed(BaseException):
    """What ends a training at a step, wherever it is."""


def killed_at(step: int):
    def tell(wanted, now, loss, history, form):
        if now == step:
            raise Killed

    return tell


@pytest.mark.parametrize("level", ("low", "both"))
def test_a_training_that_is_killed_goes_on_bit_for_bit(level: str, tmp_path: Path):
    wanted = dataclasses.replace(SMALL, method="friendly-sam", level=level, rho=0.05)
    whole = training.train(wanted, drawn(), tmp_path / "whole", batching="loop")
    for step in (1, 3, 5):
        with pytest.raises(Killed):
            training.train(
                wanted,
                drawn(),
                tmp_path / "parts",
                batching="loop",
                tell=killed_at(step),
                checkpoint_steps=2,
            )
    parts = training.train(wanted, drawn(), tmp_path / "parts", batching="loop", checkpoint_steps=2)
    assert torch.equal(weights(whole), weights(parts))
    histories = [training.history(tmp_path / name) for name in ("whole", "parts")]
    assert [(h.step, h.accuracy, h.loss) for h in histories[0]] == [
        (h.step, h.accuracy, h.loss) for h in histories[1]
    ]
    assert [h.step for h in histories[0]] == [2, 4, 6]
    models = [training.models(wanted, drawn(), tmp_path / name) for name in ("whole", "parts")]
    for name in ("best", "last"):
        assert torch.equal(weights(models[0][name]), weights(models[1][name]))
    assert torch.equal(weights(models[0]["last"]), weights(whole))


def test_the_model_is_chosen_on_the_validation_classes(tmp_path: Path):
    wanted = dataclasses.replace(SMALL, steps=8, lr=0.05)
    training.train(wanted, drawn(), tmp_path, batching="loop")
    history = training.history(tmp_path)
    best = max(history, key=lambda row: row.accuracy)
    models = training.models(wanted, drawn(), tmp_path)
    tasks = drawn().validation.batch(0, wanted.validation_tasks)
    found = training.accuracies(models["best"], tasks, training.ProcessGroup.here("cpu"))
    assert sum(found) / len(found) == pytest.approx(best.accuracy)


def test_two_processes_share_the_tasks_of_a_training(request: pytest.FixtureRequest):
    folder = torchrun.launched(request, "torchrun_meta.py", 2)
    files = torchrun.read(folder, ["rank-0.pt", "rank-1.pt"])
    ours, theirs = (torch.load(file, weights_only=True) for file in files)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    alone = training.train(
        dataclasses.replace(SMALL, method="sam", level="both", rho=0.05),
        drawn(),
        folder / "alone",
        batching="loop",
    )
    # not of the weights: Adam makes steps of the rounding of biases whose gradient is zero
    losses = alone.evaluate(drawn().test.batch(0, 8)).losses
    assert torch.allclose(ours["losses"], losses, rtol=0, atol=1e-4)
    rows = training.history(folder / "run"), training.history(folder / "alone")
    assert [row.accuracy for row in rows[0]] == pytest.approx([row.accuracy for row in rows[1]])


def test_methods_are_paired_over_the_same_tasks(tmp_path: Path):
    tested = []
    for method, seed in (("sgd", 0), ("sgd", 1), ("agnostic-sam", 0), ("agnostic-sam", 1)):
        wanted = dataclasses.replace(SMALL, method=method, rho=0.05, seed=seed, steps=2)
        folder = tmp_path / f"{method} {seed}"
        training.train(wanted, drawn(seed), folder, batching="loop")
        tested.append(testing.measured(wanted, drawn(seed), folder))
        again = testing.measured(wanted, drawn(seed), folder)
        assert again == tested[-1]
        assert len(again.best) == len(again.last) == 8
    (table,) = testing.tables(tested)
    first, second = table.lines
    assert (first.title, second.title) == ("MAML", "MAML with Agnostic-SAM (low, ρ 0.05)")
    assert first.seeds == second.seeds == (0, 1)
    by_task = [
        [(a + b) / 2 for a, b in zip(x.best, y.best, strict=True)]
        for x, y in (tested[:2], tested[2:])
    ]
    gaps = torch.tensor([b - a for a, b in zip(*by_task, strict=True)], dtype=torch.float64)
    assert second.gap.mean == pytest.approx(float(gaps.mean()), abs=1e-9)
    half = 2.364624 * float(gaps.std()) / math.sqrt(8)  # Student's t, 7 degrees of freedom
    assert second.gap.high - second.gap.mean == pytest.approx(half, abs=1e-4)
    said = page.markdown([table], "flatmin meta test a b")
    assert "| MAML | 0, 1 |" in said
    assert "$ flatmin meta test a b" in said
    text = page.page([table], "flatmin meta test a b")
    assert "MAML with Agnostic-SAM (low, ρ 0.05)" in text


def test_a_difference_is_bold_where_tasks_and_seeds_both_tell_it():
    def tested(method: str, seed: int, *accuracies: float) -> testing.Tested:
        wanted = dataclasses.replace(SMALL, method=method, seed=seed, rho=0.05)
        return testing.Tested(wanted, accuracies, accuracies, [])

    first = [tested("sgd", seed, 50, 52, 49, 51) for seed in range(3)]
    ahead = [tested("sam", seed, 60 + seed / 9, 62, 59, 61) for seed in range(3)]
    seeds_differ = [
        tested("asam", seed, *(x + 30 * seed for x in (48, 50, 47, 49))) for seed in range(3)
    ]
    tasks_differ = [tested("align-sam", seed, 90, 20, 80, 30 + seed / 9) for seed in range(3)]
    lines = testing.tables([*first, *ahead, *seeds_differ, *tasks_differ])[0].lines
    assert [line.told_apart for line in lines] == [False, True, False, False]
    assert lines[2].gap.distinct
    assert not lines[2].gap_of_trainings.distinct
    assert lines[3].gap.distinct is False
    two = testing.tables([*first[:2], *ahead[:2]])[0].lines
    assert [line.told_apart for line in two] == [False, False]
    assert page.cells(lines[1])[4].startswith("**+10.03 [")


def test_lines_that_differ_in_a_setting_say_so():
    plain = testing.Tested(SMALL, (50.0, 60.0), (50.0, 60.0), [])
    longer = testing.Tested(dataclasses.replace(SMALL, steps=9), (60.0, 70.0), (60.0, 70.0), [])
    other = testing.Tested(dataclasses.replace(SMALL, ways=2), (60.0, 70.0), (60.0, 70.0), [])
    first, second = testing.tables([plain, longer, other])
    assert [line.title for line in first.lines] == ["MAML", "MAML, steps 9"]
    assert [line.title for line in second.lines] == ["MAML"]


# Refusals


@pytest.mark.parametrize(
    "changes, line",
    (
        (
            {"data": "omniglott"},
            "unknown data set for episodes 'omniglott': did you mean omniglot?",
        ),
        ({"split": "ravi"}, "unknown split of omniglot 'ravi'"),
        ({"method": "ae-sam"}, "has a policy of its own"),
        ({"method": "sammy"}, "unknown method 'sammy'"),
        ({"level": "above"}, "unknown level 'above'"),
        ({"ways": 0}, "ways must be a whole number of at least 1, got 0"),
        ({"shots": 1.5}, "shots must be a whole number"),
        ({"rho": -1.0}, "rho must be a number of at least 0"),
        ({"inner_lr": "fast"}, "inner_lr must be a number above 0"),
        ({"first_order": 1}, "first_order must be true or false"),
        ({"test_tasks": 1}, "an interval takes at least 2 tasks"),
    ),
)
def test_settings_that_cannot_be_are_one_line(changes: dict, line: str):
    with pytest.raises(InputError, match=line) as caught:
        FewShot(**changes).checked()
    assert "\n" not in str(caught.value)


def test_a_folder_holds_one_training(tmp_path: Path):
    training.begin(SMALL, tmp_path)
    training.begin(SMALL, tmp_path)
    with pytest.raises(InputError, match="another steps: give another folder"):
        training.begin(dataclasses.replace(SMALL, steps=7), tmp_path)
    with pytest.raises(InputError, match="is at meta-step 0 of 6: finish it"):
        training.models(SMALL, drawn(), tmp_path)
    (tmp_path / training.SETTINGS).write_text(json.dumps({"way": 5}))
    with pytest.raises(InputError, match="cannot be read"):
        training.settings(tmp_path)
    with pytest.raises(InputError, match=r"no settings.json in .*: give a folder of"):
        training.settings(tmp_path / "nothing")


META = [name for name in recipes.names() if "meta" in Recipe.find(name).needs]


def test_there_are_five_recipes_of_few_shot_learning():
    assert len(META) == 5


@pytest.mark.parametrize("name", [name for name in META if not name.startswith("beyond")])
def test_a_typo_under_meta_is_refused(name: str, tmp_path: Path):
    path = recipes.folder() / f"{name}.yaml"
    text = path.read_text()
    for before, after, line in (
        ("inner_steps:", "inner_step:", "full: meta: unknown option 'inner_step'.*inner_steps"),
        ("tasks: ", "tasks: -", "full: tasks must be a whole number"),
        ("model: conv4", "model: conv5", "unknown model for episodes 'conv5'"),
    ):
        assert before in text
        copy = tmp_path / path.name
        copy.write_text(text.replace(before, after, 1))
        with pytest.raises(InputError, match=line):
            Recipe.load(copy)


# From real files


@pytest.fixture
def omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two alphabets to train and validate on, one to test on; four drawings of each character."""
    names = [f"{a}/character0{c}" for a in ("Greek", "Korean", "Tagalog") for c in range(1, 4)]
    for part, labels in (("train", range(6)), ("test", range(6, 9))):
        at = [label for label in labels for _ in range(4)]
        shown = [pictures.encoded(pictures.picture(20 * label, (28, 28), "L")) for label in at]
        pictures.write_parquet(tmp_path / "data" / "omniglot" / f"{part}.parquet", shown, at, names)
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    pools._loaded.cache_clear()
    return tmp_path


SHORT = (
    *("--ways", "3", "--queries", "2", "--tasks", "2", "--steps", "2", "--filters", "2"),
    *("--validate-every", "1", "--validation-tasks", "2", "--test-tasks", "3"),
    *("--rotations", "none", "--batching", "loop"),
)


def test_the_commands_train_resume_and_test(omniglot: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["meta", "train", *SHORT, "--out", "a"]) == 0
    assert main(["meta", "train", *SHORT, "--method", "sam", "--rho", "0.01", "--out", "b"]) == 0
    assert main(["meta", "train", *SHORT, "--out", "a"]) == 0  # nothing is left to do
    said = capsys.readouterr().err
    assert "meta-step 2 of 2: loss" in said
    assert said.count("meta-step") == 4
    assert main(["meta", "test", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "omniglot (at-hand), 3 ways 1 shot" in out
    assert "| Sharp-MAML (low, ρ 0.01) | 0 |" in out
    page = (omniglot / "a" / "report.html").read_text()
    for number in (0, 1):  # the colours of sgd and sam, here as everywhere
        assert f'"style":{{"color":"var(--m{number})","dash":"",' in page
    assert (omniglot / "a" / "report.md").read_text() in out
    assert main(["meta", "test", "."]) == 0  # all that are in a folder
    assert capsys.readouterr().out.count("| 0 |") >= 2


@pytest.mark.parametrize(
    "flags, line",
    (
        (("--ways", "4"), "omniglot: train classes: 4 ways ask for more classes than the 3"),
        (("--queries", "5"), "omniglot: train classes: 1 shots and 5 queries take 6 samples"),
        (("--split", "vinyals"), "needs all 1623 characters"),
        (("--method", "gsam"), "has a descent of its own"),
        (("--batching", "0"), "--batching 0: give auto, loop, vmap"),
        (("--data", "cifar-fs"), "no data for cifar100"),
    ),
)
def test_what_cannot_be_trained_is_one_line(
    flags: tuple[str, ...], line: str, omniglot: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["meta", "train", *SHORT, *flags]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


RECIPE = """
name: beyond/own
paper: beyond
shows: own
title: few-shot
needs: [meta]
fields:
  data: omniglot
  lr: 0.001
  meta: {ways: 3, queries: 2, tasks: 2, steps: 2, filters: 2, rotations: none,
    validate_every: 1, validation_tasks: 2, test_tasks: 3}
methods:
  MAML: {method: sgd}
  Low: {method: sam}
tune: {rho: [0.5, 0.01], seeds: 2}
seeds: 2
scales: {full: {}, small: {}, smoke: {}}
"""


@pytest.mark.parametrize("workers", (1, 2))
def test_a_radius_is_chosen_on_the_validation_classes(
    workers: int, omniglot: Path, capsys: pytest.CaptureFixture[str]
):
    Path("own.yaml").write_text(RECIPE)
    command = ["run", "own.yaml", "--scale", "full", "--workers", str(workers), "--out", "out"]
    assert main(command) == 0
    trials = {rho: [f"low-rho-{rho}-trial-{k}" for k in (1, 2)] for rho in ("0.01", "0.5")}
    done = sorted(path.name for path in Path("out").iterdir() if path.is_dir())
    scores = {
        rho: sum(max(row.accuracy for row in training.history(Path("out") / f)) for f in folders)
        / 2
        for rho, folders in trials.items()
    }
    best = "0.5" if scores["0.5"] > scores["0.01"] else "0.01"
    evaluated = [f"low-rho-{best}-seed-{seed}" for seed in (0, 1)]
    every = ["maml-seed-0", "maml-seed-1", *evaluated, *trials["0.01"], *trials["0.5"]]
    assert done == sorted(every)
    out = capsys.readouterr().out
    tried = ", ".join(f"{rho} ({score:.1f} %)" for rho, score in scores.items())
    assert f"Low {tried}." in out
    assert f"edge of what was tried for Low ({best})" in out
    assert "`flatmin run own.yaml --scale full`, 8 of 8 runs" in out
    assert main(["report", "out", "--markdown"]) == 0
    assert capsys.readouterr().out == out.removesuffix("\n")
    assert main(["report", "out", "--csv"]) == 0
    first, *rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert [(row[first.index("label")], row[first.index("seed")]) for row in rows] == [
        ("MAML", "0"),
        ("MAML", "1"),
        ("Low", "0"),
        ("Low", "1"),
    ]
    assert (Path("out") / "report.html").stat().st_size < 1_000_000


class Dies:
    """What ends the process of a training at its first meta-step."""

    def __call__(self, wanted, now, loss, history, form):
        os._exit(3)


def test_a_cell_whose_process_dies_is_named_and_the_same_again_goes_on(omniglot: Path):
    Path("own.yaml").write_text(RECIPE)
    plan = Recipe.load(Path("own.yaml")).at("full")
    with pytest.raises(
        InputError,
        match=r"Low, trial of ρ 0.*: its process died \(exit status 3\); the same command",
    ):
        running.run(plan, Path("out"), workers=2, tell=lambda cell: Dies())
    found = running.run(plan, Path("out"), workers=2)
    assert [len(each.tested) for each in found] == [2, 2]
    assert all(each.made["threads a run"] == "1" for one in found for each in one.tested)
    shutil.rmtree(omniglot / "data")
    with pytest.raises(InputError, match="no data for omniglot"):  # said by a worker, in one line
        running.run(plan, Path("elsewhere"), workers=2)


@pytest.mark.parametrize(
    "command",
    (("run", "own.yaml", "--scale", "full", "--workers", "1"), ("meta", "train", *SHORT)),
    ids=("run", "train"),
)
def test_an_interrupt_is_one_line_and_the_same_command_goes_on(
    command: tuple[str, ...],
    omniglot: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    Path("own.yaml").write_text(RECIPE)

    def interrupted(self, wanted, step, *others):
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(StepReport, "__call__", interrupted)
        with processes.interrupts(lambda *_: pytest.fail("it would end at once")):
            assert main([*command, "--out", "out"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "flatmin: interrupted: out keeps every training up to its last checkpoint; "
        "the same command continues"
    )
    assert main([*command, "--out", "out"]) == 0


@pytest.mark.parametrize("flag", ("--storage", "--checkpoints", "--reuse"))
def test_what_few_shot_learning_does_without_is_refused(
    flag: str, omniglot: Path, capsys: pytest.CaptureFixture[str]
):
    Path("own.yaml").write_text(RECIPE)
    assert main(["run", "own.yaml", "--scale", "full", flag, "elsewhere"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"flatmin: {flag}: few-shot learning keeps its cells in folders")
    assert said.count("\n") == 1


def test_an_interrupted_test_keeps_what_is_tested(
    omniglot: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert main(["meta", "train", *SHORT, "--out", "a"]) == 0
    assert main(["meta", "train", *SHORT, "--out", "b"]) == 0
    measured, asked = training.accuracies, itertools.count()

    def interrupted(*arguments, **options):
        if next(asked) == 3:  # the second model of the second training
            signal.raise_signal(signal.SIGINT)
        return measured(*arguments, **options)

    monkeypatch.setattr(training, "accuracies", interrupted)
    capsys.readouterr()
    with processes.interrupts(lambda *_: pytest.fail("it would end at once")):
        assert main(["meta", "test", "a", "b"]) == 130
    assert capsys.readouterr().err == (
        "flatmin: interrupted: each training keeps its test once it is finished; "
        "the same command continues\n"
    )
    assert [Path(run, "test.json").exists() for run in "ab"] == [True, False]
    assert main(["meta", "test", "a", "b"]) == 0
    assert next(asked) == 6  # the first is not tested again


def made_up(gap: float, seeds: int = 3) -> Record:
    """A finished run whose second method is so many points above the first, on 40 tasks."""
    content = yaml.safe_load(RECIPE)
    content["grid"] = {"episodes": {"one shot": {}, "two shots": {"meta": {"shots": 2}}}}
    plan = Recipe.model_validate({**content, "seeds": seeds}).at("full")
    noise = torch.Generator().manual_seed(0)
    found = []
    for entry in few_shot.entries(plan):
        low = entry.label == "Low" and entry.at == "two shots"
        tested = []
        for seed in range(seeds):
            values = 50 + gap * low + torch.randn(40, generator=noise)
            rows = [training.Validation(2, 1.0, 50.0, 1.0, 3.0, 0)]
            settings = dataclasses.replace(entry.usual, seed=seed, rho=0.01)
            accuracies = tuple(round(value, 4) for value in values.tolist())
            tested.append(
                testing.Tested(settings, accuracies, accuracies, rows, {"device": "drawn"})
            )
        judged = {0.01: 51.0, 0.5: 49.0} if entry.radii else {}
        found.append(running.Finding(entry, judged, tuple(tested)))
    content = json.loads(json.dumps(running.exported(plan, "own.yaml", found)))
    assert running.restored(plan, content["episodes"]) == found
    return Record("own", plan, {}, asked="own.yaml", episodes=content["episodes"])


@pytest.mark.parametrize(
    "gap, seeds, headline, bold",
    (
        (9.0, 3, "Told from MAML over tasks and over seeds: 1 of 2", 3),
        (0.0, 3, "No method is told from MAML, over tasks and over seeds", 4),
        (9.0, 2, "Too few runs to tell any method from MAML", 0),
    ),
)
def test_the_report_says_what_is_told_from_the_first(
    gap: float, seeds: int, headline: str, bold: int
):
    told = section.of_record(made_up(gap, seeds))
    assert told.verdict.headline == headline
    if gap and seeds > 2:
        assert told.verdict.detail.startswith("Low (two shots): +8.9 [8.")
    assert told.done == told.total == 2 * (2 * seeds + 4)
    entries = [entry for group in told.table.groups for entry in group.entries]
    assert [entry.title for entry in entries] == ["MAML", "Low", "MAML", "Low"]
    assert sum(bool(entry.rank) for entry in entries) == bold
    said = export.markdown([told])
    assert "Accuracy on the validation classes by radius, two shots: Low 0.01 (51.0 %), 0.5" in said
    assert "edge of what was tried for Low (0.01; one shot) and Low (0.01; two shots)" in said
    assert ("device", "drawn") in told.settings
    page = html.report([told])
    assert "<option>two shots</option>" in page
    assert 'data-kind="tuning"' in page


def test_no_class_is_in_two_pools_and_ink_is_one(omniglot: Path):
    wanted = FewShot(ways=3, queries=2, rotations="none")
    found = Pools.load(wanted)
    shades = [
        {float(x) for x in sampler[0].support_x[:, 0, 14, 14]}
        for sampler in (found.train, found.validation, found.test)
    ]
    labels = (range(3), range(3, 6), range(6, 9))  # Greek, Korean, Tagalog
    expected = [{1 - 20 * label / 255 for label in part} for part in labels]
    for ours, theirs in zip(shades, expected, strict=True):
        assert sorted(ours) == pytest.approx(sorted(theirs), abs=0.01)
    # the tests are the same whatever the seed of the weights
    other = Pools.load(dataclasses.replace(wanted, seed=3))
    assert torch.equal(other.test[5].query_x, found.test[5].query_x)
    assert any(not torch.equal(other.train[i].query_x, found.train[i].query_x) for i in range(5))


def test_the_official_one_shot_runs_are_read(tmp_path: Path):
    content = {}
    for run in range(1, 21):
        for i in range(1, 4):
            for kind, name in (("training", "class"), ("test", "item")):
                shade = 10 * i if kind == "training" else 10 * (4 - i)
                image = pictures.encoded(pictures.picture(shade, (105, 105), "L"))
                content[f"run{run:02d}/{kind}/{name}0{i}.png"] = image
        content[f"run{run:02d}/class_labels.txt"] = "".join(
            f"run{run:02d}/test/item0{i}.png run{run:02d}/training/class0{4 - i}.png\n"
            for i in range(1, 4)
        ).encode()
    originals.written(tmp_path, {"all_runs.zip": originals.zipped(content)})
    runs = pools.one_shot_runs(tmp_path)
    assert len(runs) == 20
    for task in runs:
        assert task.support_x.shape == (3, 1, 28, 28)
        for x, y in zip(task.query_x, task.query_y, strict=True):
            assert torch.allclose(x, task.support_x[y], atol=0.01)
    del content["run07/class_labels.txt"]
    other = tmp_path / "other"
    originals.written(other, {"all_runs.zip": originals.zipped(content)})
    with pytest.raises(InputError, match=r"no run07/class_labels.txt in .*put all_runs.zip there"):
        pools.one_shot_runs(other)

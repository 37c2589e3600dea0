"""Own networks, data, losses, metrics, base optimizers and methods, compared from Python."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import picture, written
from pictures import write_parquet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from trivial import MODULE

import flatmin
from flatmin.cli import main
from flatmin.studies.comparing import ComparisonResult
from flatmin.studies.plan import identity as identities
from flatmin.studies.plan import opening
from flatmin.studies.plan.comparison import RATE_FACTORS, TUNING_FACTORS, Comparison
from flatmin.studies.report import runs as records
from flatmin.studies.report.measures import heading
from flatmin.studies.store import weights
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.row import Row
from flatmin.studies.store.store import Store
from flatmin.training import InputError, Training, own, train
from flatmin.training.data.sample_batches import SampleRun
from flatmin.training.data.samples import SampleData
from flatmin.training.processes import ProcessGroup
from flatmin.training.scores import accuracies, metric_of

X = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
Y = (X @ torch.tensor([1.0, -2.0, 3.0, 0.5]) > 0).long()
Z = X @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]])
TENSORS = ((X[:150], Y[:150]), (X[150:], Y[150:]))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def mine(base: torch.optim.Optimizer, rho: float = 0.03, **options: Any) -> flatmin.SharpnessAware:
    return flatmin.SharpnessAware(base, rho, **options)


def compared(out: Path, **changed: Any) -> ComparisonResult:
    asked: dict[str, Any] = {
        "model": lambda: net(),
        "train": TENSORS[0],
        "test": TENSORS[1],
        "methods": ["sgd", "sam"],
        "base": lambda parameters: torch.optim.AdamW(parameters, lr=0.02),
        "epochs": 2,
        "batch": 16,
        "seeds": 2,
        "progress": False,
    }
    return flatmin.compare(**(asked | changed), out=out)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ComparisonResult:
    """Two named methods, a row of the table and a function, with their weights."""
    methods = ["sgd", "sam", flatmin.methods.find("agnostic-sam"), mine]
    return compared(tmp_path_factory.mktemp("own"), methods=methods, keep=True)


# Any network, any data -----------------------------------------------------------------------


def test_the_rows_are_those_of_the_same_training_alone(found: ComparisonResult):
    assert [run.method for run in found.runs][::2] == ["sgd", "sam", "agnostic-sam", "mine"]
    assert {run.seed for run in found.runs} == {0, 1}
    titles = [line.title for line in found.summary.lines]
    assert titles == ["Base optimizer", "SAM", "Agnostic-SAM", "mine"]
    assert [line.rho for line in found.summary.lines] == [None, 0.05, 0.05, 0.03]
    assert all(row.cost["steps"] == 2 * (150 // 16) for row in found.rows)
    data = SampleData.of("tensors", *TENSORS)
    for run in found.runs[-1:]:
        alone = train(run.training, data)
        assert alone.accuracy == run.accuracy
        assert [epoch.loss for epoch in alone.epochs] == run.row.curves.loss
        assert alone.model is not None
        for kept, trained in zip(
            run.model().state_dict().values(), alone.model.state_dict().values(), strict=True
        ):
            assert torch.equal(kept, trained)


def test_weights_come_back_as_they_were_measured(found: ComparisonResult):
    for run in found.runs[:3]:
        model = flatmin.load(run)
        assert not model.training
        answers = model(X[150:]).argmax(1)
        assert 100 * int((answers == Y[150:]).sum()) / 50 == run.accuracy
    files = sorted((found.folder / "weights").iterdir())
    assert len(files) == len(found.runs)
    assert files[0].name.startswith("agnostic-sam-seed0-")
    with pytest.raises(InputError, match=r"holds the weights of 8 runs: give one of agnostic-sam"):
        flatmin.load(found.folder)


def test_weights_of_a_network_that_is_not_here_take_its_function(
    found: ComparisonResult, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(own, "_OBJECTS", {})
    run = found.runs[0]
    with pytest.raises(InputError, match="is an object of the process that began this"):
        run.model()
    assert isinstance(run.model(net), nn.Sequential)
    with pytest.raises(InputError, match="is another network than the one whose weights were kept"):
        run.model(lambda: nn.Linear(4, 2))
    # a report needs none of it
    (record,) = records.records([str(found.folder)])
    assert isinstance(record.plan, Comparison)
    assert record.progress.left == 0


def test_the_result_can_be_looked_at(found: ComparisonResult, tmp_path: Path):
    assert str(found).startswith("tensors: 150 training and 50 test samples")
    assert "mine" in found.table
    shown = found._repr_html_()
    assert shown.count("<tr>") == 1 + 4
    assert "Too few runs to tell" in shown
    assert found.best() is max(found.summary.lines, key=lambda line: line.value.mean)
    text = found.report(tmp_path / "a.html").read_text()
    assert "tensors: 150 training and 50 test samples" in text


def test_a_regression_is_ranked_by_what_is_lower(tmp_path: Path):
    result = compared(
        tmp_path,
        model=lambda: nn.Linear(4, 1),
        train=(X[:150], Z[:150]),
        test=(X[150:], Z[150:]),
        methods=["sgd", "sam", "esam"],  # which asks for the loss of each sample
        base=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
        loss=F.mse_loss,
        metric=F.mse_loss,
        direction="min",
        lr=[0.01, 0.1],
        tune="lr",
        tuning_seeds=1,
        seeds=1,
    )
    assert heading(result.outcome.comparison.measure).title == "Test mse loss"
    for line in result.summary.lines:
        judged = result.outcome.comparison.tuned(line.method).judged(result.outcome.store.rows)
        best = min(judged, key=lambda candidate: judged[candidate])
        assert line.tuned == {"lr": best.lr}
    assert result.best() is min(result.summary.lines, key=lambda line: line.value.mean)
    sgd, sam, _ = result.summary.lines
    assert sam.difference is not None
    assert sam.difference.mean == pytest.approx(sam.value.mean - sgd.value.mean)
    assert result.summary.lead(sgd, sam).mean == pytest.approx(sam.value.mean - sgd.value.mean)
    assert "lowest test mse loss" in str(result.verdict)
    (run,) = [run for run in result.runs if run.method == "sgd"]
    alone = train(run.training, SampleData.of("t", (X[:150], Z[:150]), (X[150:], Z[150:])))
    assert alone.model is not None
    assert float(F.mse_loss(alone.model(X[150:]), Z[150:]).detach()) == pytest.approx(run.accuracy)
    assert all(math.isnan(value) for value in run.row.curves.train_accuracy)


class Words(Dataset[Any]):
    """Sequences of several lengths, some words of which are hidden at random."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        words = 1 + (torch.arange(3 + row % 4) + row) % 9
        words[torch.rand(len(words)) < 0.2] = 0
        return words, row % 2


def padded(samples: list[tuple[Tensor, int]]) -> tuple[dict[str, Tensor], Tensor]:
    words = nn.utils.rnn.pad_sequence([each for each, _ in samples], batch_first=True)
    lengths = torch.tensor([len(each) for each, _ in samples])
    return {"words": words, "lengths": lengths}, torch.tensor([label for _, label in samples])


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(10, 6), nn.Linear(6, 2)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        return self.last(self.embedding(words).sum(1) / lengths.unsqueeze(1))


def test_sequences_with_a_collation(tmp_path: Path):
    result = compared(
        tmp_path,
        model=Reader,
        train=Words(),
        test=Words(),
        methods=["sgd", "agnostic-sam"],
        loader={"collate_fn": padded},
        seeds=1,
        epochs=1,
    )
    assert [row.cost["primary_samples"] for row in result.rows] == [48, 48]
    assert all(0 <= row.accuracy <= 100 for row in result.rows)


def test_batches_are_the_same_whoever_loads_them_and_after_an_interruption():
    training = Training("words", "mlp", "sgd", batch=16, seed=3)
    alone, by_others = (
        SampleRun(
            training,
            SampleData.of("words", Words(), Words(), loader={"collate_fn": padded, **loader}),
            ProcessGroup(torch.device("cpu")),
        ).primary
        for loader in ({}, {"num_workers": 1})
    )
    rounds = [list(alone.round()) for _ in range(2)]
    others = [list(by_others.round()) for _ in range(2)]
    for ours, theirs in zip(rounds, others, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.inputs["words"], other.inputs["words"])
            assert torch.equal(one.targets, other.targets)
    shapes = [[batch.inputs["words"].shape for batch in each] for each in rounds]
    assert shapes[0] != shapes[1] or not torch.equal(
        rounds[0][0].inputs["words"], rounds[1][0].inputs["words"]
    )
    alone.next()
    state = alone.state()
    expected = alone.next()
    alone.load(state)
    assert torch.equal(alone.next().inputs["words"], expected.inputs["words"])


def test_a_run_that_is_taken_up_again_ends_with_the_same_bits(tmp_path: Path):
    data = SampleData.of("words", Words(), Words(), loader={"collate_fn": padded})
    path = own.given(Reader, "Reader")
    training = Training("words", path, "agnostic-sam", batch=16, epochs=3, lr=0.1)
    whole = train(training, data)

    def stop(number: int, epoch: object) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(training, data, stop, checkpoints=tmp_path)
    again = train(training, data, checkpoints=tmp_path)
    assert again.model is not None
    assert whole.model is not None
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_padded_places_have_no_part_in_an_accuracy_and_batches_of_any_length_in_a_metric():
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x, 1 - x], 1)  # class 0 where x is 1

    targets = torch.tensor([[0, 0, 1], [1, 0, -100], [0, -100, -100]])
    inputs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    training = Training("words", "mlp", "sgd", batch=2)
    data = SampleData.of("words", (inputs, targets), (inputs, targets))
    group = ProcessGroup(torch.device("cpu"))
    examined = SampleRun(training, data, group).examined
    assert accuracies(Twice(), Twice(), examined, group) == pytest.approx([100 * 5 / 6])
    parts = [(torch.zeros(2, 3), torch.ones(2, 3), 2), (torch.zeros(1, 2), torch.zeros(1, 2), 1)]
    assert metric_of("min:torch.nn.functional:mse_loss", parts) == pytest.approx(2 / 3)


# What a user sets -----------------------------------------------------------------------------


def settled(**given: Any) -> Comparison:
    asked = {"data": "digits", "methods": ("sgd", "sam"), **given}
    return opening.settled(asked)[0]


def test_tuning_two_things_gives_every_method_the_same_budget():
    asked = settled(tune="lr,rho", tuning_seeds=1)
    assert {len(asked.tuning(name)) for name in asked.methods} == {
        len(RATE_FACTORS) * len(TUNING_FACTORS)
    }
    assert asked.rates("sam") == (0.03, 0.1, 0.3)
    rates = asked.rates("sgd")
    assert (rates[0], rates[-1]) == (0.03, 0.3)
    assert {training.rho for training in asked.tuning("sgd")} == {None}
    alone = settled(tune="lr", lr=(0.2, 0.1))
    assert alone.rates("sgd") == alone.rates("sam") == (0.1, 0.2)


def test_what_is_set_reaches_the_runs():
    asked = settled(
        base="adamw",
        base_options={"eps": 1e-6},
        options={"sam": {}},
        schedule="constant",
        warmup=1.0,
        label_smoothing=0.1,
        precision="bfloat16",
        cutout=2,
        size=12,
    )
    (training, _) = asked.evaluation("sam", {})[:2]
    assert training == Training(
        data="digits",
        model="mlp",
        method="sam",
        rho=0.05,
        epochs=30,
        batch=128,
        lr=1e-3,  # AdamW's own
        weight_decay=1e-2,
        base="adamw",
        base_options=(("eps", 1e-6),),
        schedule="constant",
        warmup=1.0,
        label_smoothing=0.1,
        precision="bfloat16",
        cutout=2,
        size=12,
    )


def test_a_default_never_stops_a_command():
    asked, _, notes = opening.settled(
        {"data": "digits", "methods": ("sgd",), "limit": 100, "tune": "rho"}
    )
    assert asked.batch == 16
    assert notes == ["--batch 16: the usual 128 is more than the 90 images to train on"]
    with pytest.raises(InputError, match="--batch 128 is more than the 100 images"):
        settled(limit=100, batch=128)


def test_folders_of_classes_and_parquet_files_are_further_test_sets(tmp_path: Path):
    def images(classes: str, shade: int) -> dict[str, bytes]:
        return {
            f"{c}/{i}.png": picture(shade + 90 * "ab".find(c) + i)
            for c in classes
            for i in range(5)
        }

    for name, classes, shade in (
        *(("birds", "ab", 10), ("shifted", "ab", 20)),
        *(("others", "ax", 0), ("lone", "b", 20)),
    ):
        written(tmp_path / name, images(classes, shade))
    pixels = list(images("ba", 10).values())
    write_parquet(tmp_path / "rows" / "test.parquet", pixels, [0] * 5 + [1] * 5, ["b", "a"])
    shifted, rows = str(tmp_path / "shifted"), str(tmp_path / "rows")
    asked: dict[str, Any] = {
        "model": "mlp",
        "train": str(tmp_path / "birds"),
        "test": None,
        "methods": ["sgd"],
        "base": "sgd",
        "seeds": 1,
        "batch": 4,
        "epochs": 8,
    }
    result = compared(tmp_path / "out", **asked, examine=[shifted, rows])
    (row,) = result.rows
    assert row.accuracy == 100  # so that the others' classes are known, by name and not by number
    assert row.examined == {shifted: 100, rows: 100}
    assert "shifted %" in result.table
    others = str(tmp_path / "others")
    with pytest.raises(InputError, match=r"others: its classes x are not among a, b; name its"):
        compared(tmp_path / "out", **asked, examine=[others])
    with pytest.raises(InputError, match=r"lone says nothing about 1 class: leave"):
        compared(tmp_path / "out", **asked, examine=[str(tmp_path / "lone")])


# Extending ------------------------------------------------------------------------------------


def test_a_folder_takes_more_and_fewer_and_refuses_what_means_something_else(tmp_path: Path):
    def kept() -> dict[str, Row]:
        return Store.join(StudyLocation(tmp_path), allow_mixed=True).rows

    small: dict[str, Any] = {"epochs": 1, "methods": ["sgd", "sam"]}
    compared(tmp_path, **small, seeds=1)
    first = kept()
    more = compared(tmp_path, epochs=1, methods=["sgd", "sam", mine], seeds=2)
    assert len(kept()) == 6
    assert {key: kept()[key] for key in first} == first  # with their times: nothing ran again
    assert len(more.rows) == 6
    fewer = compared(
        tmp_path, epochs=1, methods=[mine], seeds=1, tune="rho", rho=[0.01, 0.02], tuning_seeds=1
    )
    assert len(fewer.rows) == 3
    assert len(kept()) == 6 + 3
    assert fewer.summary.first == "mine"

    def wider() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))

    with pytest.raises(InputError, match=r"another configuration \(epochs 1 there, 2 here\)"):
        compared(tmp_path, methods=["sgd"])
    with pytest.raises(InputError, match=r"model lambda@\w+ there, wider@\w+ here"):
        compared(tmp_path, **small, model=wider)
    with pytest.raises(InputError, match=r"data tensors@\w+ there, tensors@\w+ here"):
        compared(tmp_path, **small, train=(X[:150] + 1, Y[:150]))
    with pytest.raises(InputError, match=r"base lambda@\w+ there, lambda@\w+ here"):
        compared(tmp_path, **small, base=lambda p: torch.optim.AdamW(p, lr=0.05))
    with pytest.raises(InputError, match="the weights of mine, seed 0, were not kept"):
        fewer.runs[0].model()


def test_a_learning_rate_may_be_tuned_later_and_not_be_another_one():
    def identity(**changed: Any) -> dict[str, Any]:
        given = {"data": "digits", "methods": ("sgd",), **changed}
        asked, data, _ = opening.settled(given)
        return identities.identity(asked, data)

    before = identity()
    assert identities.differing(identity(lr=0.2, batch=64), before) == ["batch", "lr"]
    assert identities.differing(identity(tune="lr", lr=(0.1, 0.4)), before) == []
    earlier = {name: before[name] for name in before if name not in ("base", "loss", "examine")}
    assert identities.differing(before, earlier) == []  # of a version that did not know them
    assert identities.differing(identity(base="adam", lr=0.1), earlier) == ["base"]


def test_keys_of_earlier_versions_stay():
    training = Training("digits", "mlp", "agnostic-sam", noise="0.4", epochs=2)
    assert training.key == "fd650858000ee4ef"
    assert replace(training, loss="torch.nn.functional:mse_loss").key != training.key


INTERRUPTED: list[bool] = []


def interrupting(outputs: Tensor, targets: Tensor) -> float:
    if INTERRUPTED and len(outputs) == 50:  # of the test set, not of the trial
        INTERRUPTED.pop()
        raise KeyboardInterrupt
    return float(F.cross_entropy(outputs, targets))


def test_an_interrupted_call_goes_on_in_the_same_process(tmp_path: Path):
    asked: dict[str, Any] = {"metric": interrupting, "direction": "min", "seeds": 1}
    INTERRUPTED.append(True)
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, **asked)
    assert len(compared(tmp_path, **asked).rows) == 2


# Several processes, by import paths -----------------------------------------------------------


def test_two_processes_take_import_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "my_birds.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    command = ["compare", "--model", "my_birds:Net", "--data", "my_birds:data", "--epochs", "1"]
    command += ["--batch", "8", "--methods", "sgd,sam", "--keep", "weights", "--out", "run"]
    command += ["--base-option", "dampening=0.1", "--option", "sam.rho=0.1"]
    assert main([*command, "--seeds", "1", "--workers", "2"]) == 0
    assert "data: 40 training and 20 test samples" in capsys.readouterr().out
    files = sorted(Path("run/weights").iterdir())
    assert len(files) == 2
    kept = weights.read(files[0])
    assert kept.facts == {"classes": 2}
    assert kept.training.base_options == (("dampening", 0.1),)
    assert (kept.training.method, kept.training.rho) == ("sam", 0.1)
    x = torch.arange(240.0).view(60, 4) % 7
    right = kept.model()(x[40:]).argmax(1) == (x.sum(1) > 12).long()[40:]
    assert 100 * int(right.sum()) / 20 == kept.accuracy
    # a network that was changed since is another one
    (tmp_path / "my_birds.py").write_text(
        MODULE.replace("nn.Linear(4, classes)", "nn.Linear(4, classes, bias=False)")
    )
    del sys.modules["my_birds"]
    assert main([*command, "--seeds", "2", "--workers", "2"]) == 2
    assert "contents of model" in capsys.readouterr().err
    sys.modules.pop("my_birds", None)


# Mistakes -------------------------------------------------------------------------------------


class Endless(Dataset[Any]):
    def __getitem__(self, row: int) -> Any:
        return X[row], Y[row]


MADE = net()


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"model": lambda: MADE}, "the model lambda is the same module each time"),
        ({"model": MADE}, "model is a Sequential that exists already"),
        ({"model": lambda: 3}, "the model lambda made a int: give a function that makes"),
        (
            {"model": lambda: nn.Linear(5, 2)},
            "the model lambda does not take a batch: RuntimeError",
        ),
        ({"model": "nowhere.at.all:Net"}, r"cannot be imported \(no module nowhere.at.all\)"),
        ({"model": "resnet20"}, "resnet20 takes square images"),
        ({"train": Endless()}, "train is a Endless without __len__: give a map-style dataset"),
        ({"train": (X, Y[:3])}, "train has tensors of 200, 3 rows"),
        ({"test": None}, "test is missing"),
        ({"loss": lambda out, y: out}, r"the loss lambda gave shape \(8, 2\): expected a scalar"),
        ({"loss": lambda out, y: out.detach().sum()}, "does not depend on the weights"),
        ({"loss": lambda o, y: o.sum(), "methods": ["esam"]}, "leave ESAM out"),
        ({"loss": F.mse_loss}, "the loss mse_loss does not take what the model gives"),
        ({"metric": lambda out, y: "good"}, "the metric lambda gives no number"),
        ({"metric": lambda out, y: math.nan}, "no run has finished: the metric lambda gave nan"),
        ({"metric": F.mse_loss, "direction": "up"}, "direction 'up'"),
        ({"methods": [lambda base: base]}, "the method lambda takes no model: write def"),
        ({"methods": [mine, mine]}, "names a method twice"),
        ({"base": lambda p: None}, "the base lambda made a NoneType"),
        (
            {"base": lambda p: torch.optim.SGD(p, 0.1), "lr": 1.0},
            "unexpected keyword argument 'lr'",
        ),
        (
            {"workers": 2},
            "data tensors is an object of this process, which 2 workers cannot import",
        ),
        ({"loader": {"shuffle": True}}, "the loader takes no shuffle"),
        ({"augment": True}, "augment is for images that flatmin loads"),
        (
            {"noise": 0.1, "train": Words(), "test": Words(), "loader": {"collate_fn": padded}},
            "noise 0.1 needs to know all labels",
        ),
        ({"examine": ["digits"]}, "examine names nothing that data of your own have"),
    ],
)
def test_a_mistake_is_one_line(changed: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(InputError, match=said) as caught:
        compared(tmp_path, **{"epochs": 1, "seeds": 1, "methods": ["sgd"], **changed})
    assert "\n" not in str(caught.value)


def test_a_metric_that_was_not_finite_comes_back_as_nan(found: ComparisonResult):
    row = found.rows[0].model_copy(update={"accuracy": math.nan})
    again = Row.model_validate({**row.model_dump(), "accuracy": None})
    assert math.isnan(again.accuracy)


RATE = 0.02


def rated(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE)


def test_a_global_that_a_function_reads_is_a_part_of_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, Any] = {"base": rated, "epochs": 1, "seeds": 1, "methods": ["sgd"]}
    [before] = compared(tmp_path / "a", **asked).rows
    monkeypatch.setattr(sys.modules[__name__], "RATE", 0.5)
    with pytest.raises(InputError, match="another configuration"):
        compared(tmp_path / "a", **asked)
    [after] = compared(tmp_path / "b", **asked).rows
    assert before.curves.loss != after.curves.loss


def test_a_network_that_counts_its_instances_is_told_by_its_code(tmp_path: Path):
    class Counted(nn.Linear):
        made = 0

        def __init__(self, sign: float = 1.0) -> None:
            super().__init__(4, 2)
            type(self).made += 1
            self.number = self.made

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Turned(Counted):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    def contents(kind: type[nn.Module], name: str) -> str:
        kind.__qualname__ = "Counted"
        asked: dict[str, Any] = {"model": kind, "epochs": 1, "seeds": 1, "methods": ["sgd"]}
        found = compared(tmp_path / name, **asked).outcome.store.identity
        return str(found["contents of model"])

    assert contents(Counted, "a") == contents(Counted, "a") != contents(Turned, "b")


def test_options_and_numbers_may_be_written_as_they_are_elsewhere(tmp_path: Path):
    options = {"AgnosticSAM": {"beta": 0.5}, "agnostic-sam": {"rho1": 0.2}}
    asked: dict[str, Any] = {"methods": ["sgd", "Agnostic-SAM"], "epochs": 1, "seeds": 1}
    found = compared(tmp_path, **asked, options=options, rho="0.1")
    plan = found.outcome.comparison
    assert plan.options == {"agnostic-sam": {"beta": 0.5, "rho1": 0.2}}
    assert plan.rho == (0.1,)
    with pytest.raises(InputError, match="unknown method of an option 'look-sam'"):
        compared(tmp_path, **asked, options={"LookSAM": {"k": 2}})


def test_where_all_is_right_there_is_an_error_too(tmp_path: Path):
    x = torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 6 * x[:, 0].sign()
    y = (x[:, 0] > 0).long()
    found = compared(
        tmp_path,
        model=lambda: nn.Linear(2, 2),
        train=(x[:80], y[:80]),
        test=(x[80:], y[80:]),
        epochs=8,
        seeds=3,
    )
    assert {row.accuracy for row in found.rows} == {100.0}
    assert {row.tested for row in found.rows} == {40}
    first, second = found.summary.lines
    lead = found.summary.lead(second, first)
    assert lead.low < -1 < 1 < lead.high
    deep = tmp_path / "a" / "b" / "page.html"
    assert found.report(deep) == deep
    assert deep.is_file()


def test_what_is_set_is_said_where_a_base_does_not_take_it(tmp_path: Path):
    with pytest.raises(InputError, match=r"unexpected keyword .*it was given lr, as set here"):
        compared(tmp_path, lr=0.1)


@pytest.mark.parametrize("part", ["train", "test"])
def test_tensors_without_rows_are_refused(tmp_path: Path, part: str):
    with pytest.raises(InputError, match=f"^{part} is empty: give at least one sample$"):
        compared(tmp_path, **{part: (X[:0], Y[:0])})


def test_an_import_path_is_one_that_finds_the_thing():
    def by(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda x: factor * x

    assert own.path_of(F.mse_loss) == "torch.nn.functional:mse_loss"
    assert own.path_of(by) is None

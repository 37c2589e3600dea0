"""Two processes train as one does, from replicas or from shards, and are taken up like one."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from flatmin.training import Training, train

PLAIN = Training(
    data="digits",
    model="mlp",
    method="sam",
    epochs=2,
    batch=64,
    limit=300,
    noise="0.3",
    width=0.25,
    weight_decay=0.0,
    observe=("losses", "radii"),
)
GRADIENTS = ("losses", "radii", "gradient-norms", "cosine-perturbed", "wrong-label-accuracy")
SCENARIOS: dict[str, tuple[str, Training]] = {
    "replicas": ("ddp", replace(PLAIN, observe=GRADIENTS)),
    "shards": ("fsdp2", PLAIN),
    "replicas, auxiliary": ("ddp", replace(PLAIN, method="agnostic-sam", augment=True, cutout=2)),
    "shards, auxiliary": ("fsdp2", replace(PLAIN, method="agnostic-sam", base="adamw", lr=0.01)),
    "replicas, adaptive": ("ddp", replace(PLAIN, method="ae-sam", base="adam", lr=0.01)),
    "shards, adaptive": ("fsdp2", replace(PLAIN, method="ae-sam", max_norm=1.0)),
    "shards of a transformer": (
        "fsdp2",
        replace(PLAIN, model="vit-s16", width=0.2, size=16, epochs=1, base="adamw", lr=1e-3),
    ),
    "odd batch": ("ddp", replace(PLAIN, batch=61)),
    "odd auxiliary batch": ("ddp", replace(PLAIN, method="agnostic-sam", batch=60)),
    "normalised": ("ddp", replace(PLAIN, model="cnn", width=0.25)),
    "shards, normalised": ("fsdp2", replace(PLAIN, model="cnn", width=0.25)),
}
RESUMED = ("replicas", "replicas, auxiliary", "shards", "shards, auxiliary")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where torchrun has left what it found: one launch for all scenarios."""
    folder = tmp_path_factory.mktemp("ranks")
    lines = []
    for name, (parallel, training) in SCENARIOS.items():
        line = {"parallel": parallel, "training": asdict(training)}
        line["out"] = str(folder / f"{name}.json")
        if name in RESUMED:
            line["checkpoints"] = str(folder / name)
        lines.append(line)
    script = Path(__file__).parents[1] / "torchrun_training.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launch, "--nproc-per-node=2", str(script), json.dumps(lines), str(folder / "left.json")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:3000]
    return folder


def found(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


EQUAL = [name for name in SCENARIOS if "odd" not in name and "normalised" not in name]


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_do_what_one_does(folder: Path, name: str):
    ours, training = found(folder, name)["found"], SCENARIOS[name][1]
    one = train(training)
    for key, values in one.observed.items():
        assert ours["observed"][key] == pytest.approx(values, rel=2e-6, abs=1e-9), key
    for epoch, theirs in zip(ours["epochs"], one.epochs, strict=True):
        assert epoch["loss"] == pytest.approx(theirs.loss, rel=1e-5)
        assert epoch["train_accuracy"] == pytest.approx(theirs.train_accuracy, abs=0.5)
        assert epoch["accuracy"] == pytest.approx(theirs.accuracy, abs=0.5)
        assert epoch["passes"] == theirs.passes
    assert ours["cost"] | {"distance": 0} == asdict(one.cost) | {"distance": 0}
    assert ours["processes"] == 2


@pytest.mark.parametrize("name", EQUAL)
def test_all_ranks_find_the_same(folder: Path, name: str):
    assert found(folder, name)["same"]["ranks"]


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_on_two_processes_goes_on_bit_for_bit(folder: Path, name: str):
    assert found(folder, name)["same"]["again"]


@pytest.mark.parametrize("name", RESUMED)
def test_one_process_takes_up_what_two_have_left(folder: Path, name: str):
    (folder / name / "epoch-000002.pt").unlink(missing_ok=True)
    alone = train(SCENARIOS[name][1], checkpoints=folder / name)
    theirs = found(folder, name)["found"]["epochs"]
    assert alone.epochs[0].loss == theirs[0]["loss"]  # from the checkpoint
    assert alone.epochs[1].loss == pytest.approx(theirs[1]["loss"], rel=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have names to read on Linux alone")
def test_no_thread_of_the_group_outlives_it(folder: Path):
    """One that frees its last tensor while Python shuts down would abort the process."""
    assert json.loads((folder / "left.json").read_text()) == []


def test_running_statistics_are_those_of_all_ranks(folder: Path):
    """Batch normalization sees half of a batch on each rank: near one process, not equal to it."""
    result = found(folder, "normalised")
    one = train(SCENARIOS["normalised"][1])
    assert result["same"]["ranks"]
    assert result["found"]["epochs"][0]["loss"] == pytest.approx(one.epochs[0].loss, rel=0.1)
    shards = found(folder, "shards, normalised")
    assert shards["same"]["ranks"]
    for epoch, theirs in zip(shards["found"]["epochs"], result["found"]["epochs"], strict=True):
        assert epoch["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.parametrize("name, size", [("odd batch", 61), ("odd auxiliary batch", 15)])
def test_a_batch_that_cannot_be_shared_is_refused_on_all_ranks(folder: Path, name: str, size: int):
    result = found(folder, name)
    assert f"a batch of {size} cannot be shared by 2 processes" in result["found"]
    assert result["same"]["ranks"]

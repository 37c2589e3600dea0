"""A run that is killed at any moment goes on, bit for bit; damage is named and passed over."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from flatmin.training import (
    Epoch,
    ImageData,
    InputError,
    Training,
    checkpoints,
    load,
    models,
    train,
)
from flatmin.training.checkpoints import Checkpoints

SHORT = Training(
    data="digits",
    model="mlp",
    method="sam",
    epochs=3,
    batch=64,
    noise="0.3",
    limit=300,
    observe=("gradient-norms", "cosine-previous", "wrong-label-accuracy"),
)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits", limit=300)


class Stop(Exception):
    """Raised by a watcher in the place of a power cut."""


def timeless(run: object) -> str:
    """Everything that a run has found but the time it took, as text: nan equals itself there."""
    values = asdict(run)  # type: ignore[call-overload]
    for epoch in values["epochs"]:
        del epoch["seconds"]
    return repr(values)


def interrupted(training: Training, data: ImageData, where: Path | str, after: int) -> None:
    def watch(number: int, epoch: Epoch) -> None:
        if number == after:
            raise Stop

    with pytest.raises(Stop):
        train(training, data, watch, checkpoints=where)


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "agnostic-sam", "fraction": 0.3},
        {"method": "agnostic-sam", "base": "adamw", "lr": 0.01, "observe": ()},
        {"method": "ae-look-sam", "base": "nesterov"},
        {"method": "friendly-sam", "schedule": "step", "milestones": (0.3, 0.8), "warmup": 0.7},
        {"method": "esam", "observe": ("radii",), "schedule": "constant", "base": "adam"},
        {"method": "ss-sam", "seed": 3, "label_smoothing": 0.1, "max_norm": 1.0},
        {"method": "vasso", "model": "cnn", "augment": True, "cutout": 2, "precision": "bfloat16"},
        {"method": "lookbehind-sam", "holdout": 0.1, "observe": ("losses",)},
        {
            "method": "sam-db",
            "auxiliary": "containing",
            "fraction": 2.0,
            "rho_schedule": "proportional:0.5",
        },
    ],
    ids=lambda changed: " ".join(map(str, changed.values())),
)
@pytest.mark.parametrize("after", [1, 2])
def test_a_run_goes_on_bit_for_bit(
    digits: ImageData, tmp_path: Path, changed: dict[str, object], after: int
):
    training = replace(SHORT, **changed)
    interrupted(training, digits, tmp_path, after)
    heard: list[int] = []
    again = train(training, digits, lambda number, _: heard.append(number), checkpoints=tmp_path)
    assert heard == list(range(after + 1, 4))
    assert timeless(again) == timeless(train(training, digits))


def test_random_layers_go_on_where_they_were(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def with_dropout(channels: int, size: int, classes: int, width: float) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(size**2, classes)
        )

    monkeypatch.setattr(models, "MODELS", {"mlp": models.Network(with_dropout)})
    interrupted(SHORT, digits, tmp_path, 1)
    again = train(SHORT, digits, checkpoints=tmp_path)
    assert timeless(again) == timeless(train(SHORT, digits))
    assert timeless(again) != timeless(train(replace(SHORT, seed=1), digits))


CHILD = """
import json, sys, torch
from dataclasses import asdict
from flatmin.training import Training, train
torch.set_num_threads(1)
training = Training.of(json.loads(sys.argv[1]))
run = train(training, checkpoints=sys.argv[2])
curve = [asdict(epoch) | {"seconds": 0} for epoch in run.epochs]
print(json.dumps([curve, asdict(run.cost), run.observed["losses"]]))
"""


def test_a_process_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path: Path):
    training = replace(SHORT, method="agnostic-sam", epochs=20, observe=("losses",))
    command = [sys.executable, "-c", CHILD, json.dumps(asdict(training)), str(tmp_path)]
    draw = random.Random(0)
    kills = 0
    folder = checkpoints.location(tmp_path)
    while kills < 2:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        before = folder.names()
        while child.poll() is None and folder.names() == before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.03))
        child.kill()
        if child.wait() != -signal.SIGKILL:
            break
        kills += 1
    assert kills == 2
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    run = train(training)
    curve = [asdict(epoch) | {"seconds": 0} for epoch in run.epochs]
    expected = [curve, asdict(run.cost), run.observed["losses"]]
    assert json.loads(done.stdout) == json.loads(json.dumps(expected))


@pytest.mark.parametrize("scheme", ["path", "file", "memory"])
def test_the_last_two_are_kept_wherever_the_folder_is(
    digits: ImageData, tmp_path: Path, scheme: str
):
    where = {
        "path": str(tmp_path / "a" / "b"),
        "file": f"file://{tmp_path}/c",
        "memory": f"memory://{tmp_path.name}/d",
    }[scheme]
    run = train(SHORT, digits, checkpoints=where)
    assert sorted(checkpoints.location(where).names()) == ["epoch-000002.pt", "epoch-000003.pt"]
    assert timeless(train(SHORT, digits, checkpoints=where)) == timeless(run)
    checkpoints.remove(where)
    assert checkpoints.location(where).names() == []
    checkpoints.remove(where)  # once more does no harm


def test_nothing_but_checkpoints_is_removed(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    Checkpoints(tmp_path, "k").save(1, {})
    (tmp_path / ".epoch-000002.pt.123").write_bytes(b"left behind by a process that was killed")
    checkpoints.remove(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_damaged_later_ones_do_not_push_out_the_new_one(tmp_path: Path):
    for epoch in (5, 6):
        (tmp_path / f"epoch-{epoch:06d}.pt").write_bytes(b"?")
    saved = Checkpoints(tmp_path, "k")
    for epoch in (1, 2, 3):
        saved.save(epoch, {"epoch": epoch})
    with pytest.warns(RuntimeWarning, match=r"epoch-00000[56].pt is damaged"):
        assert saved.newest() == (3, {"epoch": 3})
    left = sorted(int(file.stem.removeprefix("epoch-")) for file in tmp_path.iterdir())
    assert left == [2, 3, 5, 6]


def test_unfinished_files_go_when_nobody_has_written_to_them_for_long(tmp_path: Path):
    old, young, other = ".epoch-000001.pt.12", ".epoch-000002.pt.34", ".epoch-000001.pt.txt"
    for name in (old, young, other):
        (tmp_path / name).write_bytes(b"half")
    before = time.time() - checkpoints.ABANDONED_SECONDS
    for name, changed in ((old, before - 60), (young, before + 60), (other, before - 60)):
        os.utime(tmp_path / name, (changed, changed))
    Checkpoints(tmp_path, "k").save(3, {})
    assert {file.name for file in tmp_path.iterdir()} == {young, other, "epoch-000003.pt"}


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def closed(self: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(InputError, match=r"in .* cannot be read \(Permission denied\): make"):
        Checkpoints(tmp_path, "k").newest()


def test_a_key_that_has_changed_on_the_disk_is_damage(tmp_path: Path):
    Checkpoints(tmp_path, "9f3c").save(1, {})
    file = tmp_path / "epoch-000001.pt"
    file.write_bytes(file.read_bytes().replace(b" 9f3c ", b" 9f3b ", 1))
    with pytest.warns(RuntimeWarning, match="its checksum does not fit"):
        assert Checkpoints(tmp_path, "9f3c").newest() is None


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage, words",
    [
        (cut, "its checksum does not fit"),
        (flipped, "its checksum does not fit"),
        (lambda content: b"", "it does not start as one"),
    ],
    ids=["truncated", "one bit", "empty"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    digits: ImageData, tmp_path: Path, damage, words: str
):
    interrupted(SHORT, digits, tmp_path, 2)
    newest = tmp_path / "epoch-000002.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    heard: list[int] = []
    with pytest.warns(RuntimeWarning, match=rf"epoch-000002.pt is damaged \({words}\)"):
        run = train(SHORT, digits, lambda number, _: heard.append(number), checkpoints=tmp_path)
    assert heard == [2, 3]
    assert timeless(run) == timeless(train(SHORT, digits))


def test_where_all_are_damaged_the_run_starts_anew(digits: ImageData, tmp_path: Path):
    interrupted(SHORT, digits, tmp_path, 1)
    (tmp_path / "epoch-000001.pt").write_bytes(b"?")
    with pytest.warns(RuntimeWarning, match="damaged"):
        run = train(SHORT, digits, checkpoints=tmp_path)
    assert timeless(run) == timeless(train(SHORT, digits))


def test_the_checkpoint_of_another_run_is_refused(digits: ImageData, tmp_path: Path):
    interrupted(SHORT, digits, tmp_path, 1)
    with pytest.raises(InputError, match=r"epoch-000001.pt belongs to another run"):
        train(replace(SHORT, lr=0.05), digits, checkpoints=tmp_path)
    with pytest.raises(InputError, match="other images"):
        train(SHORT, load("digits", limit=299), checkpoints=tmp_path)


def test_a_full_disk_is_one_line_and_the_earlier_checkpoints_stay(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 4:  # a file and its folder, twice
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError) as refusal:
        train(SHORT, digits, checkpoints=tmp_path)
    message = str(refusal.value)
    assert "\n" not in message
    assert "no checkpoint of epoch 3" in message
    assert "No space left on device" in message
    assert sorted(f.name for f in tmp_path.iterdir()) == ["epoch-000001.pt", "epoch-000002.pt"]
    monkeypatch.setattr(os, "fsync", real)
    again = train(SHORT, digits, checkpoints=tmp_path)
    assert timeless(again) == timeless(train(SHORT, digits))


def test_a_folder_that_cannot_be_one_is_one_line(digits: ImageData, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no checkpoint of epoch 1 could be written"):
        train(SHORT, digits, checkpoints=tmp_path / "file" / "below")


def test_an_unknown_kind_of_place_is_one_line(digits: ImageData):
    with pytest.raises(InputError, match="nowhere://a cannot be opened: Protocol not known"):
        train(SHORT, digits, checkpoints="nowhere://a")


def test_nothing_in_a_checkpoint_can_run(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    Checkpoints(tmp_path / "c", "k").save(1, {"a": Trap()})
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        Checkpoints(tmp_path / "c", "k").newest()
    assert not (tmp_path / "sprung").exists()

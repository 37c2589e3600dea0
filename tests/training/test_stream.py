"""Sets larger than memory: the same numbers as in memory, decoded when they are wanted."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import originals
import pyarrow.parquet as pq
import pytest
import torch
from originals import picture, written
from pictures import encoded, write_parquet
from torch import Tensor
from torch.nn import functional as F

from flatmin.training import ImageData, InputError, Training, load, train
from flatmin.training.data import parquet
from flatmin.training.data.augmentation import Augmentation, Images, moments
from flatmin.training.data.batches import ImageSet
from flatmin.training.data.memory import most_bytes, readable
from flatmin.training.data.stream import Ahead, Streamed, pieces, spaced
from flatmin.training.processes import ProcessGroup
from flatmin.training.scores import accuracies


@pytest.fixture
def insects(tmp_path: Path) -> Path:
    """Two classes of 20 images of 40x40 pixels each, no two alike."""
    source = torch.Generator().manual_seed(0)
    for label, name in enumerate(("ants", "bees")):
        (tmp_path / name).mkdir()
        for number in range(20):
            noise = torch.randint(0, 128, (40, 40, 3), generator=source).byte() + 100 * label
            image = encoded(originals.Image.fromarray(noise.numpy()))
            (tmp_path / name / f"{number}.png").write_bytes(image)
    return tmp_path


@pytest.fixture
def little_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Too little for any set; returns the cache."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FLATMIN_MEMORY", "1K")
    monkeypatch.setenv("FLATMIN_CACHE", str(cache))
    return cache


def both(
    name: str, monkeypatch: pytest.MonkeyPatch, **given: object
) -> tuple[ImageData, ImageData]:
    """The set in memory, and streamed."""
    held = load(name, **given)
    monkeypatch.setenv("FLATMIN_MEMORY", "1K")
    streamed = load(name, **given)
    assert isinstance(held.train_images, Tensor)
    assert isinstance(streamed.train_images, Streamed)
    return held, streamed


def test_streamed_images_are_those_in_memory(insects: Path, monkeypatch: pytest.MonkeyPatch):
    held, streamed = both(str(insects), monkeypatch)
    rows = torch.tensor([7, 0, 31, 7])
    assert streamed.train_images.shape == held.train_images.shape
    assert torch.equal(streamed.train_images.read(rows), held.train_images[rows])
    assert torch.equal(
        streamed.train_images[rows].read(torch.tensor([2])), held.train_images[31:32]
    )
    assert torch.equal(torch.cat(list(pieces(streamed.test_images, 3))), held.test_images)
    assert streamed.fingerprint() == held.fingerprint()
    for ours, theirs in zip(
        moments(streamed.train_images), moments(held.train_images), strict=True
    ):
        assert torch.equal(ours, theirs)


AUGMENTATIONS = [
    (Augmentation(), 0),
    (Augmentation(padding=5, flip=True, cutout=7), 0),
    (Augmentation(flip=True, zoom=True, cutout=9), 8),
    (Augmentation(), 8),
]


@pytest.mark.parametrize("augmentation, margin", AUGMENTATIONS)
def test_batches_are_those_in_memory_bit_for_bit(
    insects: Path, monkeypatch: pytest.MonkeyPatch, augmentation: Augmentation, margin: int
):
    data = both(str(insects), monkeypatch)
    in_memory, streamed = (
        Images(each.train_images, *moments(each.train_images), augmentation, margin)
        for each in data
    )
    rows = torch.arange(20).flip(0)
    for part in (slice(None), slice(3, 9)):
        ours = streamed.draw(rows, torch.Generator().manual_seed(4), part)
        streamed.expect(rows[part])
        ahead = streamed.draw(rows, torch.Generator().manual_seed(4), part)
        theirs = in_memory.draw(rows, torch.Generator().manual_seed(4), part)
        assert torch.equal(ours, theirs)
        assert torch.equal(ahead, theirs)
    assert torch.equal(streamed.plain(rows), in_memory.plain(rows))


@pytest.mark.parametrize("size", [None, 16, 48, 96])
def test_a_run_on_a_streamed_set_is_the_run_in_memory(
    insects: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
):
    training = Training(
        data=str(insects),
        model="cnn",
        method="agnostic-sam",
        epochs=2,
        batch=8,
        width=0.125,
        size=size,
        augment=True,
        cutout=6,
        holdout=0.2,
        examine=(str(insects),),
    )
    in_memory = train(training)
    monkeypatch.setenv("FLATMIN_MEMORY", "1K")
    streamed = train(training)
    assert [replace(epoch, seconds=0) for epoch in streamed.epochs] == [
        replace(epoch, seconds=0) for epoch in in_memory.epochs
    ]
    assert streamed.examined == in_memory.examined


def test_test_images_are_decoded_while_the_ones_before_are_evaluated():
    seen: list[tuple[str, list[int]]] = []

    def decoded(rows: Tensor) -> Tensor:
        seen.append((threading.current_thread().name, rows.tolist()))
        return rows.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).byte()

    pixels = Streamed(decoded, torch.arange(1200), 3, 4)
    labels = torch.arange(1200).remainder(256)
    images = ImageSet(pixels, labels, torch.zeros(3), torch.ones(3), size=4)

    def scores(x: Tensor) -> Tensor:
        return F.one_hot(x[:, 0, 0, 0].long(), 256)

    assert accuracies(scores, torch.nn.Identity(), images, ProcessGroup.here("cpu")) == [100]
    assert sorted(row for _, rows in seen for row in rows) == list(range(1200))
    assert {rows[0] for who, rows in seen if who != "MainThread"} == {500, 1000}


def test_at_most_a_few_batches_are_decoded_ahead():
    most, now, lock = 0, 0, threading.Lock()
    gate = threading.Event()

    def decoded(rows: Tensor) -> Tensor:
        nonlocal most, now
        gate.wait(10)
        with lock:
            now += 1
            most = max(most, now)
        made = rows.view(-1, 1, 1, 1).expand(-1, 3, 4, 4).byte()
        with lock:
            now -= 1
        return made

    ahead = Ahead(Streamed(decoded, torch.arange(100), 3, 4), depth=2)
    batches = torch.arange(100).view(10, 10)
    for rows in batches[:6]:
        ahead.expect(rows)
    assert len(ahead._waiting) == 2
    gate.set()
    for rows in batches:
        assert torch.equal(ahead.read(rows)[:, 0, 0, 0], rows.byte())
    assert not ahead._waiting
    assert most <= 2


def test_what_goes_wrong_in_the_background_is_told_where_the_images_are_wanted(
    insects: Path, little_memory: Path
):
    data = load(str(insects))
    for file in insects.rglob("*.png"):
        file.write_bytes(b"no image")
    ahead = Ahead(data.train_images)
    ahead.expect(torch.arange(3))
    with pytest.raises(InputError, match=r"ants/\d+\.png cannot be decoded"):
        ahead.read(torch.arange(3))


def test_a_file_that_has_gone_is_one_clear_line(insects: Path, little_memory: Path):
    data = load(str(insects))
    for file in insects.rglob("*.png"):
        file.unlink()
    with pytest.raises(InputError, match="cannot be decoded: remove or replace it"):
        data.train_images.read(torch.arange(3))


def large(folder: Path) -> Path:
    """A set in several Parquet files."""
    columns = ("image", "label")
    for file in range(3):
        shades = [
            encoded(originals.Image.new("RGB", (32, 32), (9 * file + i, 0, 0))) for i in range(9)
        ]
        path = folder / "cifar10" / f"train-0000{file}-of-00003.parquet"
        write_parquet(path, shades, [i % 2 for i in range(9)], ["cat", "dog"], columns)
    write_parquet(folder / "cifar10" / "test.parquet", shades, [0, 1, 0] * 3, ["cat", "dog"])
    return folder


def test_parquet_files_larger_than_memory_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLATMIN_CACHE", str(tmp_path / "cache"))
    held, streamed = both("cifar10", monkeypatch, root=large(tmp_path))
    assert streamed.train_images.read(torch.tensor([26, 3]))[:, 0, 0, 0].tolist() == [26, 3]
    assert streamed.fingerprint() == held.fingerprint()
    assert streamed.classes == held.classes == ("cat", "dog")
    copies = sorted((tmp_path / "cache").rglob("*.arrow"))
    assert len(copies) == 2  # train and test
    times = [copy.stat().st_mtime_ns for copy in copies]
    assert load("cifar10", tmp_path).fingerprint() == held.fingerprint()
    assert [copy.stat().st_mtime_ns for copy in copies] == times  # made once


def test_a_changed_parquet_file_is_copied_anew(tmp_path: Path, little_memory: Path):
    large(tmp_path)
    before = load("cifar10", tmp_path).fingerprint()
    path = tmp_path / "cifar10" / "test.parquet"
    write_parquet(path, [picture(200)] * 9, [0, 1, 1] * 3, ["cat", "dog"])
    assert load("cifar10", tmp_path).fingerprint() != before


def test_a_full_disk_leaves_no_half_copy(
    tmp_path: Path, little_memory: Path, monkeypatch: pytest.MonkeyPatch
):
    large(tmp_path)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(
        InputError, match=r"No space left on device\): make room, or set FLATMIN_CACHE"
    ):
        load("cifar10", tmp_path)
    monkeypatch.undo()
    assert not [path for path in little_memory.rglob("*") if path.is_file()]


def test_a_broken_file_among_several_is_named_and_leaves_no_half_copy(
    tmp_path: Path, little_memory: Path
):
    broken = large(tmp_path) / "cifar10" / "train-00001-of-00003.parquet"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet cannot be read"):
        load("cifar10", tmp_path)
    assert not [path for path in little_memory.rglob("*") if path.is_file()]


def test_labels_alone_are_read_without_their_images(tmp_path: Path):
    large(tmp_path)
    found = parquet.read_labels(tmp_path / "cifar10", ["label"])["label"]
    assert found.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0] * 3
    assert len(pq.read_table(tmp_path / "cifar10" / "test.parquet")) == 9


def test_photographs_are_streamed_with_their_margin(tmp_path: Path, little_memory: Path):
    written(tmp_path / "imagenet", originals.imagenet_folders())
    data = load("imagenet", tmp_path, size=112)
    assert isinstance(data.train_images, Streamed)
    assert (data.size, data.margin) == (112, 16)
    assert data.train_images.read(torch.tensor([3])).shape == (1, 3, 128, 128)


@pytest.mark.parametrize(
    "given, count",
    [("1024", 1024), ("8G", 8 * 2**30), ("1.5m", 1536 * 1024), ("2kb", 2048)],
)
def test_memory_is_given_in_bytes(given: str, count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLATMIN_MEMORY", given)
    assert most_bytes() == count


def test_memory_that_is_no_number_is_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLATMIN_MEMORY", "a lot")
    with pytest.raises(InputError, match="FLATMIN_MEMORY=a lot is no number of bytes"):
        load("digits")


def test_memory_not_given_is_a_part_of_what_there_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FLATMIN_MEMORY", raising=False)
    assert 2**26 < most_bytes() < 2**45


@pytest.mark.parametrize(
    "count, text",
    [(5, "5 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (2**21, "2 MiB"), (2**31, "2 GiB")],
)
def test_bytes_are_told_in_units(count: int, text: str):
    assert readable(count) == text


def test_spaced_images_reach_from_one_end_to_the_other():
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    assert spaced(pixels, 4).flatten().tolist() == [0, 2, 5, 7]
    assert spaced(pixels, 10) is pixels

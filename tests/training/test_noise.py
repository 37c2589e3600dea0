"""Wrong labels: how many, which, and from whom."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flatmin.training import ImageData, InputError, load
from flatmin.training.data import noise, parquet


@pytest.mark.parametrize("share", [0.0, 0.1, 0.333, 0.6, 0.99])
@pytest.mark.parametrize("count", [1, 10, 1437])
def test_symmetric_noise_makes_exactly_its_share_wrong(share: float, count: int):
    labels = torch.arange(count) % 10
    noisy = noise.symmetric(labels, share, 10, seed=3)
    assert int((noisy != labels).sum()) == round(share * count)
    assert noisy.min() >= 0
    assert noisy.max() < 10


def test_symmetric_noise_moves_to_every_other_class_equally_often():
    labels = torch.full((90_000,), 4)
    counts = torch.bincount(noise.symmetric(labels, 0.9999, 10, seed=0), minlength=10)
    assert counts[4] == 9
    moved = torch.cat([counts[:4], counts[5:]])
    assert ((moved - 10_000).abs() < 5 * 100).all()  # five standard deviations


def test_symmetric_noise_depends_on_its_seed_alone():
    labels = torch.arange(100) % 10
    torch.manual_seed(1)
    first = noise.symmetric(labels, 0.5, 10, seed=0)
    torch.manual_seed(2)
    assert torch.equal(noise.symmetric(labels, 0.5, 10, seed=0), first)
    assert not torch.equal(noise.symmetric(labels, 0.5, 10, seed=1), first)
    assert torch.equal(labels, torch.arange(100) % 10)  # what was given is not touched


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0", noise.Symmetric(0.0)),
        ("0.6", noise.Symmetric(0.6)),
        ("human:worse_label", noise.Human("worse_label")),
        ("human:random_label3", noise.Human("random_label3")),
    ],
)
def test_noise_is_read_from_text(text: str, expected: noise.Noise):
    assert noise.parse(text) == expected


@pytest.mark.parametrize(
    "text, said",
    [
        ("1", r"outside \[0, 1\)"),
        ("-0.1", r"outside \[0, 1\)"),
        ("nan", r"outside \[0, 1\)"),
        ("some", "neither a share nor human labels"),
        ("human:worst_label", "did you mean worse_label"),
    ],
)
def test_other_noise_is_refused(text: str, said: str):
    with pytest.raises(InputError, match=said):
        noise.parse(text)


def cifar(labels: list[int]) -> ImageData:
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    answers = torch.tensor(labels)
    rows = torch.arange(len(labels))
    return ImageData("cifar10", ("a", "b", "c"), images, answers, images, answers, rows)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    (tmp_path / "cifar10n").mkdir()
    columns = {"clean_label": [0, 1, 2, 0], "worse_label": [0, 2, 2, 1]}
    pq.write_table(pa.table(columns), tmp_path / "cifar10n" / "train.parquet")
    return tmp_path


def test_human_labels_follow_the_rows_of_the_images(answers: Path):
    assert noise.human(cifar([0, 1, 2, 0]), "worse_label", answers).tolist() == [0, 2, 2, 1]
    some = cifar([2, 0])
    some.train_rows.copy_(torch.tensor([2, 3]))
    assert noise.Human("worse_label", answers).labels(some, seed=7).tolist() == [2, 1]


def test_human_labels_that_belong_to_other_images_are_refused(answers: Path):
    with pytest.raises(InputError, match="do not match cifar10's"):
        noise.human(cifar([0, 1, 2, 1]), "worse_label", answers)
    with pytest.raises(InputError, match="do not match cifar10's"):
        noise.human(cifar([0, 1, 2, 0, 0]), "worse_label", answers)


def test_human_labels_are_for_cifar10_alone():
    with pytest.raises(InputError, match="belong to cifar10, not to digits"):
        noise.parse("human:worse_label").labels(load("digits"), 0)


@pytest.mark.skipif(
    not os.environ.get("FLATMIN_DATA"), reason="FLATMIN_DATA names no folder of real images"
)
def test_the_worse_labels_of_people_are_two_fifths_wrong():
    data = load("cifar10", limit=2000)
    wrong = noise.parse("human:worse_label").labels(data, 0) != data.train_labels
    assert 0.36 < float(wrong.float().mean()) < 0.44  # 40.21 % of all


@pytest.mark.skipif(
    not os.environ.get("FLATMIN_DATA"), reason="FLATMIN_DATA names no folder of real images"
)
def test_human_labels_are_as_wrong_as_published():
    """All 50,000, next to the clean labels of the images themselves, row by row."""
    folder = Path(os.environ["FLATMIN_DATA"])
    images = parquet.read_labels(folder / "cifar10", ["label"])["label"]
    answers = parquet.read_labels(folder / "cifar10n", ("clean_label", *noise.HUMAN_COLUMNS))
    assert torch.equal(answers["clean_label"], images)
    published = dict(zip(noise.HUMAN_COLUMNS, (40.21, 9.01, 17.23, 18.12, 17.64), strict=True))
    for column, share in published.items():
        assert abs(100 * float((answers[column] != images).float().mean()) - share) < 0.006

"""Final models measured on other sets than their own test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from originals import picture, tar, written

from flatmin.training import ImageData, InputError, Training, load, train
from flatmin.training.data.batches import RunData
from flatmin.training.data.wnids import WNIDS
from flatmin.training.evaluation import find
from flatmin.training.processes import ProcessGroup

SHORT = Training(
    data="imagenet", model="cnn", method="sgd", epochs=1, batch=20, width=0.125, size=16
)


@pytest.fixture
def shades() -> ImageData:
    """What passes for ImageNet: ten classes of 4 images, told by their red."""
    labels = torch.arange(40) % 10
    pixels = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    pixels[:, 0] = (25 * labels).byte().view(-1, 1, 1)
    pixels[:, 2] = 255 - pixels[:, 0]
    return ImageData("imagenet", WNIDS[:10], pixels, labels, pixels, labels, torch.arange(40))


@pytest.fixture
def renditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the classes 3 and 8."""
    files = {f"imagenet-r/{WNIDS[k]}/{i}.png": picture(25 * k + i) for k in (3, 8) for i in (0, 1)}
    written(tmp_path / "imagenet-r", {"imagenet-r.tar": tar(files)})
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path))


@pytest.mark.usefixtures("renditions")
def test_of_a_set_with_some_of_the_classes_only_those_can_be_answered(shades: ImageData):
    ours = RunData(SHORT, shades, ProcessGroup(torch.device("cpu")))
    (asked,) = find(["imagenet-r"], shades, ours)
    assert asked.among is not None
    assert asked.among.tolist() == [3, 8]
    scores = asked.of(lambda images: images @ torch.eye(10))
    assert torch.equal(scores(torch.arange(10.0).view(1, 10)), torch.tensor([[3.0, 8.0]]))
    (images,) = asked.sets()
    assert images.plain(torch.arange(4)).targets.tolist() == [0, 0, 1, 1]


@pytest.mark.usefixtures("renditions")
def test_a_model_that_knows_its_classes_knows_them_in_renditions(shades: ImageData):
    training = replace(SHORT, epochs=60, lr=0.05, examine=("imagenet-r",))
    run = train(training, shades)
    assert run.accuracy > 60
    assert run.examined["imagenet-r"] == 100


@pytest.mark.usefixtures("renditions")
def test_other_classes_are_refused(shades: ImageData):
    fewer = replace(shades, classes=WNIDS[:8] + WNIDS[20:22])
    with pytest.raises(InputError, match="cannot be examined on imagenet-r: its classes"):
        train(replace(SHORT, examine=("imagenet-r",)), fewer)


@pytest.mark.usefixtures("renditions")
def test_five_guesses_among_two_classes_are_refused_before_training(shades: ImageData):
    with pytest.raises(InputError, match="imagenet-r:top-5 says nothing about 2 classes"):
        train(replace(SHORT, examine=("top-5", "imagenet-r:top-5")), shades)


def test_corrupted_imagenet_is_read_by_kind_and_severity(tmp_path: Path):
    image = picture(40, (224, 224))
    for wnid in WNIDS:
        written(
            tmp_path / "imagenet-c" / "blur" / "zoom_blur" / "2" / wnid,
            {"1.JPEG": image, "2.JPEG": image},
        )
    data = load("imagenet-c:zoom-blur:2", tmp_path, size=8)
    assert data.classes == WNIDS
    assert data.test_images.shape == (2000, 3, 8, 8)
    assert data.test_labels.tolist() == [label for label in range(1000) for _ in range(2)]
    assert len(data.train_labels) == 0
    with pytest.raises(InputError, match=r"no zoom_blur/3 in .*imagenet-c: unpack the archives"):
        load("imagenet-c:zoom-blur:3", tmp_path)
    (tmp_path / "imagenet-c" / "blur" / "zoom_blur" / "2" / WNIDS[4] / "1.JPEG").unlink()
    with pytest.raises(InputError, match="holds 1 images: expected at least 2"):
        load("imagenet-c:zoom-blur:2", tmp_path, size=8)


def test_corrupted_imagenet_has_no_margin_of_its_own(tmp_path: Path):
    """Its images are cut out already: the middle of theirs would be another view."""
    for wnid in WNIDS:
        files = {"1.JPEG": picture(1, (9, 9)), "2.JPEG": picture(1, (9, 9))}
        written(tmp_path / "imagenet-c" / "zoom_blur" / "2" / wnid, files)
    data = load("imagenet-c:zoom-blur:2", tmp_path, size=96)
    assert (data.size, data.margin) == (96, 0)

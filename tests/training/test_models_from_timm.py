"""timm's networks by name; timm brings torchvision and is not here: a stand-in answers for it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatmin.training import InputError, Training, load, models, train
from flatmin.training.data import batches
from flatmin.training.models import from_timm


class Net(nn.Module):
    """As timm's: patches of 4 pixels, BatchNorm, dropout, a classifier that is no linear layer."""

    def __init__(self, in_chans: int, num_classes: int, img_size: int | None = None) -> None:
        super().__init__()
        self.img_size = img_size
        self.stem = nn.Conv2d(in_chans, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(8, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 4:
            raise AssertionError("Input height (30) should be divisible by patch size (4)\n…")
        return self.classifier(self.drop(self.norm(self.stem(x)))).mean((2, 3))


class Pair(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The four functions that we call, by timm 1.0's signatures."""
    known = {"tiny": Net, "tiny_fixed": Net, "tiny_pair": Pair}
    found = ModuleType("timm")
    found.asked = []

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        assert not pretrained
        found.asked.append((name, options))
        return known[name](**options)

    def get_pretrained_cfg(name: str) -> Any:
        return SimpleNamespace(
            hf_hub_id=f"timm/{name}.in1k",
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
            classifier="classifier",
            fixed_input_size=name == "tiny_fixed",
        )

    found.create_model, found.get_pretrained_cfg = create_model, get_pretrained_cfg
    found.is_model, found.list_models = known.__contains__, lambda: sorted(known)
    monkeypatch.setitem(sys.modules, "timm", found)
    from_timm.published.cache_clear()
    yield found
    from_timm.published.cache_clear()


def test_a_network_is_made_for_the_images(timm: Any):
    model = models.build("timm:tiny", channels=1, size=8, classes=5)
    assert timm.asked == [("tiny", {"in_chans": 1, "num_classes": 5})]
    assert model(torch.randn(3, 1, 8, 8)).shape == (3, 5)
    assert model.training


def test_one_of_a_fixed_size_is_told_the_size(timm: Any):
    assert models.build("timm:tiny_fixed", channels=3, size=16, classes=10).img_size == 16


def test_looking_whether_it_fits_leaves_no_trace(timm: Any):
    torch.manual_seed(0)
    alone = Net(3, 10)
    drawn = torch.rand(())
    torch.manual_seed(0)
    model = models.build("timm:tiny", channels=3, size=8, classes=10)
    assert torch.equal(torch.rand(()), drawn)
    for name, value in alone.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_training_names_one(timm: Any):
    training = Training(data="digits", model="timm:tiny", method="sam", epochs=1, limit=64)
    run = train(training, load("digits", limit=64))
    assert run.cost.steps == 1
    assert timm.asked == [("tiny", {"in_chans": 1, "num_classes": 10})]


def test_weights_come_from_a_file_and_the_classifier_starts_anew(timm: Any, tmp_path: Path):
    torch.save(Net(3, 7).state_dict(), tmp_path / "tiny.pt")
    saved = torch.load(tmp_path / "tiny.pt")
    model = models.build(
        "timm:tiny", channels=3, size=8, classes=10, pretrained=str(tmp_path / "tiny.pt")
    )
    assert torch.equal(model.stem.weight, saved["stem.weight"])
    assert model.classifier.weight.shape[0] == 10


def test_published_weights_see_the_colours_they_were_trained_with(timm: Any):
    data = SimpleNamespace(channels=3, train_images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    training = SimpleNamespace(model="timm:tiny", pretrained="hub")
    mean, std = batches._moments(training, data)
    assert torch.equal(mean, 255 * torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    assert torch.equal(std, 255 * torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64))
    assert models.find("timm:tiny").hub == "timm/tiny.in1k"


@pytest.mark.parametrize(
    "name, size, width, message",
    [
        ("timm:tinny", 8, 1.0, "timm has no model 'tinny': did you mean timm:tiny"),
        ("timm:xyz", 8, 1.0, r"timm has no model 'xyz': timm.list_models\(\) lists them"),
        ("timm:tiny", 8, 2.0, "so leave width at 1"),
        ("timm:tiny", 30, 1.0, r"images of 3x30x30 .*patch size .4..: choose another size"),
        ("timm:tiny_pair", 8, 1.0, r"it answers tuple, expected \(2, 10\)"),
        ("timm:", 8, 1.0, "unknown model 'timm:': did you mean timm:resnet26"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, size: int, width: float, message: str, timm: Any):
    with pytest.raises(InputError, match=message) as refused:
        models.build(name, channels=3, size=size, classes=10, width=width)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'timm'"), RuntimeError("operator nms\nis not")]
)
def test_without_timm_one_line_says_how_to_get_it(error: Exception, monkeypatch: Any):
    class Absent:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "timm":
                raise error

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    from_timm.published.cache_clear()
    # It is read where it need not be built.
    training = Training(data="digits", model="timm:resnet26", method="sam")
    with pytest.raises(InputError, match=r"timm:resnet26 needs timm.*pip install timm") as refused:
        train(training, load("digits", limit=64))
    assert "\n" not in str(refused.value)
    from_timm.published.cache_clear()

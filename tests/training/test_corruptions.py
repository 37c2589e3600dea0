"""The corruptions of CIFAR-10-C, on real images where they are at hand, else on made-up ones."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flatmin.training import ImageData, InputError, Training, load, train
from flatmin.training.data import corruptions
from flatmin.training.data.corruptions import SEVERITIES, STANDARD, TABLE, corrupt

GROWING = [
    kind
    for kind in TABLE
    # these take another direction, not a longer way, or trade one parameter for another
    if kind not in ("glass-blur", "elastic-transform", "frost", "spatter", "saturate")
]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """200 images: of CIFAR-10, or smooth ones with as much contrast."""
    if os.environ.get("FLATMIN_DATA"):
        return load("cifar10", limit=10).test_images[::50]
    source = torch.Generator().manual_seed(0)
    coarse = torch.rand(200, 3, 7, 7, generator=source)
    return (255 * F.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)).byte()


def distance(images: Tensor, others: Tensor) -> float:
    return float((images.float() - others.float()).square().mean().sqrt())


def test_there_are_fifteen_corruptions_and_four_more():
    assert len(STANDARD) == 15
    assert len(TABLE) == 19
    assert set(TABLE) - set(STANDARD) == {"speckle-noise", "gaussian-blur", "spatter", "saturate"}
    assert all(len(parameters) == len(SEVERITIES) for _, parameters in TABLE.values())
    assert len(corruptions.ALL) == 75


@pytest.mark.parametrize("kind", TABLE)
def test_a_corruption_changes_images_the_same_way_each_time(kind: str, images: Tensor):
    before = images.clone()
    torch.manual_seed(1)
    made = [corrupt(images, kind, severity) for severity in SEVERITIES]
    torch.manual_seed(2)
    assert torch.equal(corrupt(images, kind, 3), made[2])
    assert torch.equal(images, before)
    for each in made:
        assert (each.shape, each.dtype) == (images.shape, torch.uint8)
        assert 0.5 < distance(each, images) < 80  # grey levels


@pytest.mark.parametrize("kind", GROWING)
def test_severity_is_distance(kind: str, images: Tensor):
    far = [distance(corrupt(images, kind, severity), images) for severity in SEVERITIES]
    # two severities of motion blur differ in its length alone, beyond what is seen
    assert all(later > 0.98 * sooner for sooner, later in itertools.pairwise(far))
    assert far[-1] > 1.3 * far[0]


def test_the_four_noises_have_their_published_strength():
    grey = torch.full((300, 3, 32, 32), 128, dtype=torch.uint8)
    level = 128 / 255
    expected = {
        "gaussian-noise": 0.08,
        "shot-noise": (level / 100) ** 0.5,
        "speckle-noise": 0.12 * level,
    }
    for kind, spread in expected.items():
        values = corrupt(grey, kind, 3).float() / 255
        assert abs(float(values.std()) - spread) < 0.01 * spread + 0.0015
        assert abs(float(values.mean()) - level) < 0.003  # cut, not rounded: half a grey level
    hit = corrupt(grey, "impulse-noise", 5)
    assert abs(float((hit == 0).float().mean()) - 0.035) < 0.002
    assert abs(float((hit == 255).float().mean()) - 0.035) < 0.002
    assert ((hit == 0) | (hit == 255) | (hit == 128)).all()


def test_blurs_keep_the_mean_and_lose_the_contrast(images: Tensor):
    for kind in ("defocus-blur", "gaussian-blur", "motion-blur", "zoom-blur"):
        made = corrupt(images, kind, 5).float()
        assert abs(float(made.mean() - images.float().mean())) < 3
        assert made.std((2, 3)).mean() < images.float().std((2, 3)).mean()


def test_zooms_are_as_many_as_the_authors_code_makes():
    ends = (1.06, 1.11, 1.16, 1.21, 1.26)
    _, parameters = TABLE["zoom-blur"]
    assert parameters == [(len(np.arange(1, end, 0.01)),) for end in ends]


def test_a_gaussian_blur_is_one():
    from scipy.ndimage import gaussian_filter

    source = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 32, 32, generator=source)
    ours = corruptions.gaussian_blur(x, source, 0.8)
    theirs = gaussian_filter(x.double().numpy(), (0, 0, 0.8, 0.8), mode="nearest")
    torch.testing.assert_close(ours.double(), torch.from_numpy(theirs), atol=1e-6, rtol=0)


def test_a_trail_goes_to_one_side_along_its_angle():
    point = torch.zeros(3, 1, 21, 21)
    point[:, :, 10, 10] = 1
    right, down, slanted = corruptions._trail(point, 6, 2.0, torch.tensor([0.0, 90.0, 45.0]))
    # each pixel takes from what lies ahead of it, so that a point trails behind
    assert right[0, 10, :10].sum() > 0.5
    assert right[0, 10, 11:].sum() == 0
    assert (right[0, [*range(10), *range(11, 21)]] == 0).all()
    assert torch.equal(down[0], right[0].T)
    assert (slanted[0] * (1 - torch.eye(21)) == 0).all()
    weights = torch.exp(-(torch.arange(13.0) ** 2) / 8)
    torch.testing.assert_close(right[0, 10, 10] * weights.sum(), torch.tensor(1.0))


def test_brightness_and_saturation_are_those_of_the_colour_wheel(images: Tensor):
    import colorsys

    source = torch.Generator()
    pixels = images[0].flatten(1).T[::16].double() / 255
    x = pixels.T.reshape(1, 3, 8, 8).float()
    brighter = corruptions.brightness(x, source, 0.2)[0].flatten(1).T
    vivid = corruptions.saturate(x, source, 2.0, 0.1)[0].flatten(1).T
    for pixel, bright, strong in zip(pixels.tolist(), brighter, vivid, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        for ours, theirs in (
            (bright, colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.2))),
            (strong, colorsys.hsv_to_rgb(hue, min(1.0, 2 * saturation + 0.1), value)),
        ):
            torch.testing.assert_close(ours, torch.tensor(theirs), atol=1e-5, rtol=0)


def test_fog_and_frost_differ_from_image_to_image(images: Tensor):
    black = torch.zeros_like(images[:20])
    for kind in ("fog", "frost", "snow"):
        made = corrupt(black + (100 if kind == "fog" else 0), kind, 4).float()
        assert float((made[:10] - made[10:]).square().mean().sqrt()) > 5


def test_fractal_noise_reaches_from_0_to_1():
    heights = corruptions._plasma(50, 32, 2.0, torch.Generator().manual_seed(0))
    assert heights.shape == (50, 1, 32, 32)
    assert torch.equal(heights.amin((1, 2, 3)), torch.zeros(50))
    assert torch.equal(heights.amax((1, 2, 3)), torch.ones(50))
    # smoother than noise without any order
    near = (heights[..., 1:] - heights[..., :-1]).abs().mean()
    far = (heights[..., 8:] - heights[..., :-8]).abs().mean()
    assert near < 0.6 * far


def test_a_corruption_takes_milliseconds_an_image(images: Tensor):
    start = time.process_time()
    for kind in TABLE:
        corrupt(images, kind, 5)
    # 10 CPU seconds for 10,000 images of all kinds at one severity; this bound is twenty times that
    assert time.process_time() - start < 20e-3 * len(images)


@pytest.mark.parametrize(
    "name, said",
    [
        ("cifar10-c:fgo:3", "unknown corruption 'fgo': did you mean fog"),
        ("cifar10-c:fog:6", "severity 6 of fog is not one of 1 to 5"),
        ("cifar10-c:fog", "lacks a severity: give, say, cifar10-c:fog:3"),
        ("cifar100-c:fog:3", "a model of cifar10 cannot be examined on cifar100-c"),
        ("digits-c", "cannot be examined on digits-c: there are cifar10-c"),
        ("mnist", "mnist is not at hand and FLATMIN_DATA is not set"),
    ],
)
def test_an_examination_that_there_is_not_is_one_line(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("FLATMIN_DATA", raising=False)
    with pytest.raises(InputError, match=said):
        train(replace(SHORT, examine=(name,)), coloured())


def test_grey_images_have_no_such_corruptions():
    with pytest.raises(InputError, match="fog is for coloured images, got 1 channels"):
        corrupt(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "fog", 3)


SHORT = Training(data="cifar10", model="cnn", method="sgd", epochs=1, batch=20, width=0.125)


def coloured(test: Tensor | None = None) -> ImageData:
    """What passes for CIFAR-10: six classes, told by their brightness."""
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 6
    noise = torch.randint(0, 40, (60, 3, 32, 32), generator=source)
    pixels = (noise + 35 * labels.view(-1, 1, 1, 1)).byte()
    names = tuple("abcdef")
    return ImageData("cifar10", names, pixels, labels, pixels, labels, torch.arange(60))


def test_a_model_is_examined_on_corrupted_images():
    data = coloured()
    names = ("cifar10-c:brightness:5", "cifar10-c:brightness:5:top-5", "cifar10-c:contrast:1")
    run = train(replace(SHORT, epochs=15, lr=0.05, examine=names), data)
    brighter, among_five, paler = (run.examined[name] for name in names)
    assert run.accuracy > 90
    assert brighter < 60  # this model knows the classes by their brightness
    assert among_five > brighter
    made = replace(data, test_images=corrupt(data.test_images, "contrast", 1))
    assert train(replace(SHORT, epochs=15, lr=0.05), made).accuracy == paler


def test_what_looks_at_the_same_images_looks_at_them_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corruptions, "ALL", (("fog", 1), ("contrast", 5)))
    names = ("cifar10-c:top-5", "top-5", "cifar10-c", "cifar10-c:fog:1")
    alone = {name: train(replace(SHORT, examine=(name,)), coloured()).examined for name in names}
    made: list[tuple[str, int]] = []

    def corrupted(images: Tensor, kind: str, severity: int) -> Tensor:
        made.append((kind, severity))
        return corrupt(images, kind, severity)

    monkeypatch.setattr(corruptions, "corrupt", corrupted)
    run = train(replace(SHORT, examine=names), coloured())
    assert made == [("fog", 1), ("contrast", 5), ("fog", 1)]
    assert list(run.examined) == list(names)
    assert run.examined == {name: alone[name][name] for name in names}
    assert run.examined["cifar10-c:top-5"] > run.examined["cifar10-c"]


def test_the_whole_set_is_the_mean_over_kinds_and_severities(monkeypatch: pytest.MonkeyPatch):
    chosen = (("fog", 1), ("contrast", 5), ("shot-noise", 2))
    monkeypatch.setattr(corruptions, "ALL", chosen)
    names = tuple(f"cifar10-c:{kind}:{severity}" for kind, severity in chosen)
    run = train(replace(SHORT, examine=("cifar10-c", *names)), coloured())
    assert run.examined["cifar10-c"] == pytest.approx(sum(run.examined[name] for name in names) / 3)

"""Batches of images against the plainest loops over single ones."""

import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.nn import functional as F

from flatmin.training import InputError
from flatmin.training.data.augmentation import Augmentation, Images, _crops, moments


def pictures(count: int, channels: int, size: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, channels, size, size), generator=source).to(torch.uint8)


def images(
    pixels: torch.Tensor, augmentation: Augmentation | None = None
) -> tuple[Images, torch.Tensor, torch.Tensor]:
    mean, std = moments(pixels)
    return Images(pixels, mean, std, augmentation), mean, std


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", [0, 3])
def test_plain_batches_are_the_normalised_images(channels: int, padding: int):
    pixels = pictures(6, channels, 9)
    made, mean, std = images(pixels, Augmentation(padding=padding, flip=True))
    rows = torch.tensor([4, 0, 4])
    expected = (pixels[rows] - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    torch.testing.assert_close(made.plain(rows).double(), expected)
    assert made.plain(rows).dtype == torch.float32


def test_moments_are_those_of_each_channel():
    pixels = pictures(20, 3, 7)
    mean, std = moments(pixels)
    values = pixels.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, values.mean(1))
    torch.testing.assert_close(std, values.std(1, unbiased=False))


def test_a_channel_without_spread_is_only_shifted():
    made, mean, std = images(torch.full((2, 1, 4, 4), 9, dtype=torch.uint8))
    assert (float(mean), float(std)) == (9.0, 1.0)
    assert (made.plain(torch.arange(2)) == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_and_flip_is_one_of_those_that_a_loop_would_make(channels: int):
    pixels = pictures(5, channels, 8)
    augmentation = Augmentation(padding=2, flip=True)
    made, mean, std = images(pixels, augmentation)
    rows = torch.arange(5).repeat(40)
    drawn = made.draw(rows, torch.Generator().manual_seed(0)).double()
    restored = (drawn * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).round().long()
    padded = F.pad(pixels, (2, 2, 2, 2)).long()
    seen: set[tuple[int, int, bool]] = set()
    for row, result in zip(rows.tolist(), restored, strict=True):
        found = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.equal(
                padded[row, :, top : top + 8, left : left + 8].flip(2)
                if mirrored
                else padded[row, :, top : top + 8, left : left + 8],
                result,
            )
        ]
        assert len(found) == 1
        seen.update(found)
    # 200 draws of 50 possibilities: each is missed with probability 0.018
    assert len(seen) > 40
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))


def test_without_flip_no_image_is_mirrored():
    pixels = pictures(1, 3, 8)
    made, *_ = images(pixels, Augmentation(padding=1))
    drawn = made.draw(torch.zeros(50, dtype=torch.long), torch.Generator().manual_seed(0))
    middle = made.plain(torch.tensor([0]))[0, :, 2:6, 2:6]
    shifts = [(top, left) for top in range(3) for left in range(3)]
    for one in drawn:
        places = [one[:, 1 + t : 5 + t, 1 + left : 5 + left] for t, left in shifts]
        assert any(torch.equal(place, middle) for place in places)


def test_cutout_sets_one_square_to_the_mean_colour():
    pixels = pictures(1, 3, 12)
    made, *_ = images(pixels, Augmentation(cutout=4))
    plain = made.plain(torch.tensor([0]))[0]
    drawn = made.draw(torch.zeros(60, dtype=torch.long), torch.Generator().manual_seed(0))
    areas: set[int] = set()
    for one in drawn:
        hole = (one != plain).any(0)
        down, across = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        height, width = len(down), len(across)
        assert int(hole.sum()) == height * width  # a rectangle without gaps
        assert down[-1] - down[0] == height - 1
        assert across[-1] - across[0] == width - 1
        assert (one[:, hole] == 0).all()
        assert max(height, width) <= 4
        areas.add(height * width)
    assert 16 in areas  # whole inside the image
    assert min(areas) < 16  # cut by the border: the centre may lie anywhere


def test_a_cutout_larger_than_the_image_leaves_nothing():
    made, *_ = images(pictures(3, 3, 6), Augmentation(cutout=20))
    assert (made.draw(torch.arange(3), torch.Generator().manual_seed(0)) == 0).all()


def test_zoomed_crops_have_the_usual_shares_and_ratios():
    boxes = _crops(5000, 256, torch.Generator().manual_seed(0))
    top, left, height, width = boxes.unbind(1)
    assert (boxes == boxes.round()).all()
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + height).max() <= 256
    assert (left + width).max() <= 256
    share, ratio = height * width / 256**2, width / height
    assert 0.075 < share.min() < 0.1
    assert share.max() > 0.9
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    # as wide as high on average, on a logarithmic scale
    assert abs(float(ratio.log().mean())) < 0.02
    assert abs(float((top + height / 2).mean()) - 128) < 2
    assert abs(float((left + width / 2).mean()) - 128) < 2


@pytest.mark.parametrize("channels, margin", [(1, 0), (3, 5)])
def test_a_zoomed_image_is_its_crop_resampled(channels: int, margin: int):
    pixels = pictures(6, channels, 16 + margin)
    mean, std = moments(pixels)
    made = Images(pixels, mean, std, Augmentation(flip=True, zoom=True), margin)
    rows = torch.tensor([5, 2, 2, 0])
    drawn = made.draw(rows, torch.Generator().manual_seed(3)).double()
    assert drawn.shape == (4, channels, 16, 16)
    choice = made._chosen(4, torch.Generator().manual_seed(3))
    assert choice.mirrored.any()
    assert not choice.mirrored.all()
    for row, box, mirrored, result in zip(rows, choice.boxes, choice.mirrored, drawn, strict=True):
        top, left, height, width = box.tolist()
        line = (torch.arange(16).double() + 0.5) / 16
        down, across = top + line * height - 0.5, left + line * width - 0.5
        places = torch.meshgrid(down, across.flip(0) if mirrored else across, indexing="ij")
        for channel in range(channels):
            values = map_coordinates(
                pixels[row, channel].double().numpy(),
                torch.stack(places).numpy(),
                order=1,
                mode="nearest",
            )
            expected = (torch.from_numpy(values) - mean[channel]) / std[channel]
            torch.testing.assert_close(result[channel], expected, atol=1e-4, rtol=0)


def test_of_images_with_a_margin_the_middle_is_seen():
    pixels = pictures(3, 3, 20)
    mean, std = moments(pixels)
    rows = torch.arange(3)
    inner = Images(pixels[:, :, 3:17, 3:17].contiguous(), mean, std).plain(rows)
    for augmentation in (Augmentation(), Augmentation(padding=2, flip=True)):
        assert torch.equal(Images(pixels, mean, std, augmentation, 6).plain(rows), inner)
    zoomed = Images(pixels, mean, std, Augmentation(zoom=True), 6).plain(rows)
    torch.testing.assert_close(zoomed, inner, atol=1e-4, rtol=0)


def test_a_part_of_a_batch_is_what_it_is_in_the_whole():
    for augmentation in (Augmentation.standard(16), Augmentation(zoom=True, flip=True, cutout=5)):
        made, *_ = images(pictures(8, 3, 16), augmentation)
        whole = made.draw(torch.arange(8), torch.Generator().manual_seed(1))
        part = made.draw(torch.arange(8), torch.Generator().manual_seed(1), slice(2, 5))
        assert torch.equal(part, whole[2:5])


def test_draws_follow_their_generator_alone():
    made, *_ = images(pictures(8, 3, 16), Augmentation.standard(16))
    rows = torch.arange(8)
    first = made.draw(rows, torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    assert torch.equal(made.draw(rows, torch.Generator().manual_seed(1)), first)
    assert not torch.equal(made.draw(rows, torch.Generator().manual_seed(2)), first)


def test_other_images_leave_the_draws_as_they_are():
    source = torch.Generator().manual_seed(1)
    made, *_ = images(pictures(8, 3, 16), Augmentation.standard(16))
    made.draw(torch.arange(8), source)
    then = source.get_state()
    source = torch.Generator().manual_seed(1)
    made.draw(torch.arange(8).flip(0), source)
    assert torch.equal(source.get_state(), then)


def test_the_usual_crop_pads_cifar_by_four():
    assert Augmentation.standard(32) == Augmentation(padding=4, flip=True)


def test_photographs_with_a_margin_are_zoomed():
    assert Augmentation.standard(224, margin=32) == Augmentation(flip=True, zoom=True)


@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (2, 3, 8, 6)])
def test_other_shapes_are_refused(shape: tuple[int, ...]):
    pixels = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(InputError, match="expected 1 to 4 channels, square"):
        Images(pixels, torch.zeros(shape[1]), torch.ones(shape[1]))

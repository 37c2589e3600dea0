"""The corruptions of CIFAR-10-C: 15 and 4 more, each at five severities.

    corrupt(images, "fog", 3)

They follow the authors' make_cifar_c.py in kind and in parameters, for images of 32x32 pixels, as
whole-batch code with random numbers of its own: the images are not those published, but drawn in
the same way. What that code takes from elsewhere is remade: the motion blur of "motion-blur" and
"snow" (ImageMagick's), the relief of "spatter"'s water (OpenCV's), and the textures of "frost",
which are photographs of ice there and fractal noise here.

Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations, ICLR 2019, arXiv:1903.12261.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flatmin.training.data.decoding import processors
from flatmin.training.data.stream import Pixels, pieces
from flatmin.training.errors import InputError, unknown
from flatmin.training.seeds import generator

SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(images: Pixels, kind: str, severity: int) -> Tensor:
    """The images with a corruption of that `kind`, the same ones each time.

    Args:
        images: uint8 (n, 3, size, size), at least one; the parameters are meant for a size of 32.
        kind: one of `TABLE`.
        severity: from 1 to 5.

    Raises InputError for another kind or severity, and for images that are not coloured.
    """
    _check(kind, severity)
    if images.shape[1] != 3:
        raise InputError(f"{kind} is for coloured images, got {images.shape[1]} channels")
    change, parameters = TABLE[kind]
    source = generator(severity, f"corruption {kind}")
    made = [
        # as published, numbers are cut, not rounded
        (255 * change(piece / 255, source, *parameters[severity - 1]) + 1e-3).clamp(0, 255).byte()
        for piece in pieces(images, 500)
    ]
    return torch.cat(made)


def parse(name: str) -> tuple[str, int]:
    """Kind and severity in `<set>:<kind>:<severity>`, checked."""
    _, _, rest = name.partition(":")
    kind, _, severity = rest.partition(":")
    if not severity.isdecimal():
        raise InputError(f"{name} lacks a severity: give, say, {name.partition(':')[0]}:fog:3")
    _check(kind, int(severity))
    return kind, int(severity)


def _check(kind: str, severity: int) -> None:
    if kind not in TABLE:
        raise unknown("corruption", kind, TABLE)
    if severity not in SEVERITIES:
        raise InputError(f"severity {severity} of {kind} is not one of 1 to 5")


def gaussian_noise(x: Tensor, source: torch.Generator, scale: float) -> Tensor:
    """Normal noise of that standard deviation added."""
    return x + scale * _normal(x.shape, source)


def shot_noise(x: Tensor, source: torch.Generator, photons: float) -> Tensor:
    """As if white were that many photons."""
    return torch.poisson(x * photons, source) / photons


def impulse_noise(x: Tensor, source: torch.Generator, share: float) -> Tensor:
    """That share of all values becomes 0 or 1, evenly."""
    chance = torch.rand(x.shape, generator=source)
    return torch.where(chance < share, (chance < share / 2).float(), x)


def speckle_noise(x: Tensor, source: torch.Generator, scale: float) -> Tensor:
    """Normal noise of that standard deviation times the image added."""
    return x + x * scale * _normal(x.shape, source)


def defocus_blur(x: Tensor, source: torch.Generator, radius: float, alias: float) -> Tensor:
    """Each point becomes a disk of that radius, its edge blurred by `alias`."""
    line = torch.arange(-3.0, 4.0)
    disk = (line.square() + line.square().unsqueeze(1) <= radius**2).float().view(1, 1, 7, 7)
    edge = _bell(alias, 1)
    kernel = F.conv2d(F.pad(disk / disk.sum(), (1,) * 4), torch.outer(edge, edge).view(1, 1, 3, 3))
    return F.conv2d(F.pad(x, (3,) * 4, "reflect"), kernel.expand(3, 1, 7, 7), groups=3)


def gaussian_blur(x: Tensor, source: torch.Generator, sigma: float) -> Tensor:
    """A Gaussian blur of that standard deviation in pixels."""
    return _blurred(x, sigma)


def glass_blur(x: Tensor, source: torch.Generator, sigma: float, rounds: int) -> Tensor:
    """Blurred, pixels taken from a neighbour to the upper left in some rounds, and blurred again.

    The paper swaps neighbours; the authors' code, followed here, copies one onto the other.
    """
    x = _blurred(x, sigma)
    count, _, size, _ = x.shape
    line = torch.arange(size)
    for _ in range(rounds):
        up, left = torch.randint(-1, 1, (2, count, size, size), generator=source)
        inside = (line > 1).unsqueeze(1) & (line > 1)
        down, across = line.unsqueeze(1) + up * inside, line + left * inside
        index = (down * size + across).flatten(1).unsqueeze(1).expand(-1, 3, -1)
        x = x.flatten(2).gather(2, index).view_as(x)
    return _blurred(x, sigma)


def motion_blur(x: Tensor, source: torch.Generator, radius: int, sigma: float) -> Tensor:
    """A trail to one side, at an angle from -45 to 45 degrees."""
    return _trail(x, radius, sigma, _between(-45, 45, len(x), source))


def zoom_blur(x: Tensor, source: torch.Generator, steps: int) -> Tensor:
    """The mean of zooms from 1 on, in steps of 0.01."""
    zooms = [_zoomed(x, 1 + step / 100) for step in range(steps)]
    return torch.stack([x, *zooms]).mean(0)


def snow(
    x: Tensor,
    source: torch.Generator,
    mean: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    kept: float,
) -> Tensor:
    """Flakes with trails, over an image that is paler."""
    layer = _zoomed(mean + scale * _normal((len(x), 1, *x.shape[2:]), source), zoom)
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0, 1)
    layer = _trail(layer, radius, sigma, _between(-135, -45, len(x), source))
    paler = kept * x + (1 - kept) * torch.maximum(x, 1.5 * _grey(x) + 0.5)
    return paler + layer + layer.flip(2, 3)


def frost(x: Tensor, source: torch.Generator, kept: float, share: float) -> Tensor:
    """Ice crystals over the image: ridges of fractal noise, pale blue."""
    height = _plasma(len(x), x.shape[2], 1.6, source)
    ridges = 1 - (2 * height - 1).abs()
    ice = (0.35 + 0.65 * ridges.square()) * torch.tensor([0.85, 0.93, 1.0]).view(3, 1, 1)
    return kept * x + share * ice


def fog(x: Tensor, source: torch.Generator, amount: float, decay: float) -> Tensor:
    """Fractal noise added, the brightest point kept as bright as it is."""
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * _plasma(len(x), x.shape[2], decay, source)) * most / (most + amount)


def brightness(x: Tensor, source: torch.Generator, amount: float) -> Tensor:
    """That much added to the value of each colour, hue and saturation kept."""
    value = x.amax(1, keepdim=True)
    more = (value + amount).clamp_max(1)
    return torch.where(value > 0, x * more / value, more)


def saturate(x: Tensor, source: torch.Generator, factor: float, amount: float) -> Tensor:
    """The saturation times `factor` plus `amount`, hue and value kept; grey counts as red."""
    value = x.amax(1, keepdim=True)
    saturation = torch.where(value > 0, 1 - x.amin(1, keepdim=True) / value, 0.0)
    red = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1)
    hue = torch.where(saturation > 0, (1 - x / value) / saturation, red)
    return value * (1 - hue.nan_to_num() * (saturation * factor + amount).clamp(0, 1))


def contrast(x: Tensor, source: torch.Generator, factor: float) -> Tensor:
    """The distance from each channel's mean times that factor."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def elastic_transform(
    x: Tensor, source: torch.Generator, alpha: float, sigma: float, affine: float
) -> Tensor:
    """Three corners moved by up to `affine`, then every pixel along smooth random fields.

    All three in shares of the size.
    """
    count, _, size, _ = x.shape
    middle, third = size // 2, size // 3
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * third + middle
    moved = corners + affine * size * (2 * torch.rand(count, 3, 2, generator=source) - 1)
    ones = torch.ones(count, 3, 1)
    there, here = torch.cat([moved, ones], 2), corners.expand(count, 3, 2)
    back = cast("Tensor", cast("Any", torch.linalg).solve(there, here))
    line = torch.arange(size, dtype=torch.float32)
    here = torch.stack([*torch.meshgrid(line, line, indexing="xy"), torch.ones(size, size)], 2)
    x = _at(x, (here.view(1, -1, 3) @ back).view(count, size, size, 2), align=True)
    fields = 2 * torch.rand(count, 2, size, size, generator=source) - 1
    fields = alpha * size * _blurred(fields, sigma * size, truncate=3, mode="symmetric")
    return _at(x, here[..., :2] + fields.permute(0, 2, 3, 1), align=False)


def pixelate(x: Tensor, source: torch.Generator, factor: float) -> Tensor:
    """Made smaller by that factor and large again."""
    size = x.shape[2]
    there, back = _box(size, int(size * factor)), _box(int(size * factor), size)
    return back @ (there @ x @ there.T) @ back.T


def jpeg_compression(x: Tensor, source: torch.Generator, quality: int) -> Tensor:
    """Through JPEG and back."""
    pixels = (255 * x).round().byte().permute(0, 2, 3, 1).numpy()
    with ThreadPoolExecutor(processors()) as pool:
        made = np.stack(list(pool.map(partial(_through_jpeg, quality=quality), pixels)))
    return torch.from_numpy(made).permute(0, 3, 1, 2) / 255


def spatter(
    x: Tensor,
    source: torch.Generator,
    mean: float,
    scale: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: int,
) -> Tensor:
    """Drops of water, their lower right edges lit, or of mud."""
    layer = _blurred(mean + scale * _normal((len(x), 1, *x.shape[2:]), source), sigma)
    wet = layer > threshold
    if mud:
        cover = _blurred(wet.float(), strength)
        cover = torch.where(cover < 0.8, 0.0, cover)
        return x * (1 - cover) + cover * torch.tensor([63.0, 42.0, 20.0]).view(3, 1, 1) / 255
    relief = torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]]).view(1, 1, 3, 3)
    smooth = _blurred(torch.where(wet, layer, 0.0), 1.0)
    lit = F.conv2d(F.pad(smooth, (1,) * 4, "replicate"), relief).clamp_min(0) * wet
    lit = strength * lit / lit.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
    return x + lit * torch.tensor([175.0, 238.0, 238.0]).view(3, 1, 1) / 255


Corruption = Callable[..., Tensor]

TABLE: Mapping[str, tuple[Corruption, Sequence[tuple[Any, ...]]]] = {
    "gaussian-noise": (gaussian_noise, [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)]),
    "shot-noise": (shot_noise, [(500,), (250,), (100,), (75,), (50,)]),
    "impulse-noise": (impulse_noise, [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)]),
    "defocus-blur": (defocus_blur, [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]),
    "glass-blur": (glass_blur, [(0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)]),
    "motion-blur": (motion_blur, [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)]),
    # the authors' np.arange(1, 1.06, 0.01) holds 1.06, by its rounding, and the next one 1.11
    "zoom-blur": (zoom_blur, [(7,), (12,), (16,), (21,), (26,)]),
    "snow": (
        snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
    ),
    "frost": (frost, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)]),
    "fog": (fog, [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]),
    "brightness": (brightness, [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)]),
    "contrast": (contrast, [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)]),
    "elastic-transform": (
        elastic_transform,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    ),
    "pixelate": (pixelate, [(0.95,), (0.9,), (0.85,), (0.75,), (0.65,)]),
    "jpeg-compression": (jpeg_compression, [(80,), (65,), (58,), (50,), (40,)]),
    "speckle-noise": (speckle_noise, [(0.06,), (0.1,), (0.12,), (0.16,), (0.2,)]),
    "gaussian-blur": (gaussian_blur, [(0.4,), (0.6,), (0.7,), (0.8,), (1,)]),
    "spatter": (
        spatter,
        [
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ],
    ),
    "saturate": (saturate, [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)]),
}
"""By name: the function and the rest of its arguments at each severity."""

STANDARD = tuple(TABLE)[:15]
"""Those over which CIFAR-10-C and ImageNet-C take the mean; the other four are extra."""

ALL = tuple((kind, severity) for kind in STANDARD for severity in SEVERITIES)
"""All 75 kinds and severities of that mean."""


def _normal(shape: Sequence[int], source: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=source)


def _between(least: float, most: float, count: int, source: torch.Generator) -> Tensor:
    return least + (most - least) * torch.rand(count, generator=source)


def _grey(x: Tensor) -> Tensor:
    return (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def _bell(sigma: float, radius: int) -> Tensor:
    """A Gaussian at -radius .. radius, of sum 1."""
    line = torch.arange(-radius, radius + 1, dtype=torch.float32)
    values = torch.exp(-(line**2) / (2 * sigma**2))
    return values / values.sum()


def _blurred(x: Tensor, sigma: float, truncate: float = 4, mode: str = "replicate") -> Tensor:
    """A Gaussian blur; the border goes on as its last pixels, or mirrored ("symmetric")."""
    radius = int(truncate * sigma + 0.5)
    if not radius:
        return x
    size, channels = x.shape[2], x.shape[1]
    line = torch.arange(-radius, size + radius)
    line = line.clamp(0, size - 1) if mode == "replicate" else _mirrored(line, size)
    bell = _bell(sigma, radius).expand(channels, 1, 1, -1)
    x = F.conv2d(x[:, :, line], bell.transpose(2, 3), groups=channels)
    return F.conv2d(x[..., line], bell, groups=channels)


def _mirrored(line: Tensor, size: int) -> Tensor:
    """Positions outside 0 .. size - 1 mirrored at the outer edges of the first and last pixel."""
    line = line % (2 * size)
    return torch.where(line < size, line, 2 * size - 1 - line)


def _trail(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """ImageMagick's motion blur: half a Gaussian, 2 radius + 1 steps long, along a line.

    Steps that weigh less than 1/2000 are left out.
    """
    channels, size = x.shape[1:3]
    weights = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(2 * radius + 1)]
    angles, line = (degrees * math.pi / 180).unsqueeze(1), torch.arange(size)
    total = torch.zeros_like(x)
    for step, weight in enumerate(weight / sum(weights) for weight in weights):
        if weight < 1 / 2000:
            break
        rows = (line + (step * angles.sin() - 0.5).ceil().long()).clamp(0, size - 1)
        columns = (line + (step * angles.cos() - 0.5).ceil().long()).clamp(0, size - 1)
        index = (rows.unsqueeze(2) * size + columns.unsqueeze(1)).flatten(1).unsqueeze(1)
        total += weight * x.flatten(2).gather(2, index.expand(-1, channels, -1)).view_as(x)
    return total


def _zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle, enlarged by that factor to the size of the whole."""
    size = x.shape[2]
    inner = math.ceil(size / factor - 1e-9)
    start = (size - inner) // 2
    x = x[..., start : start + inner, start : start + inner]
    side = round(inner * factor)
    x = F.interpolate(x, (side, side), mode="bilinear", align_corners=True)
    start = (side - size) // 2
    return x[..., start : start + size, start : start + size]


def _plasma(count: int, size: int, decay: float, source: torch.Generator) -> Tensor:
    """Height maps in [0, 1] by the diamond-square algorithm: float (n, 1, size, size)."""
    side = 2 ** math.ceil(math.log2(size))
    heights = torch.zeros(count, side, side)
    step, wobble = side, 100.0

    def mean(total: Tensor) -> Tensor:
        return total / 4 + wobble**2 * (2 * torch.rand(total.shape, generator=source) - 1)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = mean(total + total.roll(-1, 2))
        middles, corners = heights[:, half::step, half::step], heights[:, ::step, ::step]
        neighbours = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        heights[:, ::step, half::step] = mean(neighbours)
        above = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        heights[:, half::step, ::step] = mean(above)
        step, wobble = half, wobble / decay
    heights = heights - heights.amin((1, 2), keepdim=True)
    heights = heights / heights.amax((1, 2), keepdim=True)
    return heights[:, :size, :size].unsqueeze(1)


def _at(x: Tensor, places: Tensor, *, align: bool) -> Tensor:
    """Values between pixels, at (n, size, size, 2), across and down; mirrored beyond the border."""
    size = x.shape[2]
    unit = places * 2 / (size - 1) - 1 if align else (places + 0.5) * 2 / size - 1
    return F.grid_sample(x, unit, padding_mode="reflection", align_corners=align)


@cache
def _box(size: int, other: int) -> Tensor:
    """Pillow's box filter as a matrix (other, size)."""
    identity = Image.fromarray(np.eye(size, dtype=np.float32))
    return torch.from_numpy(np.array(identity.resize((size, other), Image.Resampling.BOX)))


def _through_jpeg(pixels: Any, quality: int) -> Any:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.array(Image.open(stream))

"""Networks for images, by name: `build("resnet20", channels=3, size=32, classes=10)`.

`small` is where to start reading; the other modules are a family of networks each. A further
network is one builder and one row of `MODELS`. Parameter counts are those of the papers. Names
that end in `-imagenet` have the stem for large images, the others the one for CIFAR's.
`timm:NAME` is timm's network of that name, where timm is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from flatmin.training import own
from flatmin.training.errors import InputError, unknown
from flatmin.training.models import (
    adapter,
    dense,
    efficient,
    from_timm,
    pretraining,
    pyramid,
    residual,
    small,
    transformer,
    wide,
)

Builder = Callable[[int, int, int, float], nn.Module]
"""From (channels, size, classes, width): (n, channels, size, size) in, (n, classes) out."""


Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of red, green and blue, from 0 to 1."""

IMAGENET: Colours = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES: Colours = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Network:
    """A row of `MODELS`.

    Fields:
        build: makes it.
        smallest: the smallest image side, in pixels, that it takes.
        multiple: the side must be a multiple of this.
        hub: the repository of pretrained weights at the Hugging Face hub; None if there is none.
        colours: by which images were normalised when those weights were trained.
    """

    build: Builder
    smallest: int = 8
    multiple: int = 1
    hub: str | None = None
    colours: Colours = IMAGENET


def build(
    name: str,
    *,
    channels: int,
    size: int,
    classes: int,
    width: float = 1.0,
    pretrained: str | None = None,
) -> nn.Module:
    """The network called `name` for square images; its weights come from torch's global generator.

    Args:
        name: a name in `MODELS`, one of timm's after "timm:", or that of a user's own, which is
            given those of `channels`, `size` and `classes` that it cannot do without.
        channels: of the images.
        size: their side, in pixels.
        classes: their number.
        width: multiplies the channels (or units) of every layer.
        pretrained: "hub", or a file of weights; see `flatmin.training.models.pretraining`. The
            last layer starts anew where the classes differ.

    Raises InputError for an unknown name, for images that do not fit, and for weights that are
    missing or do not fit.
    """
    if own.is_own(name):
        facts = {"channels": channels, "size": size, "classes": classes}
        return brought(name, facts, width, pretrained)
    network = find(name)
    if size < network.smallest:
        raise InputError(
            f"{name} needs images of at least {network.smallest}x{network.smallest} pixels, these "
            f"have {size}x{size}: choose another --model, for example mlp, or a larger size"
        )
    if size % network.multiple:
        raise InputError(
            f"{name} needs images with sides that are a multiple of {network.multiple} pixels, "
            f"these have {size}x{size}: choose another size"
        )
    model = network.build(channels, size, classes, width)
    if pretrained is not None:
        pretraining.load(model, pretrained, name, network.hub)
    return model


def brought(
    name: str, facts: Mapping[str, int], width: float = 1.0, pretrained: str | None = None
) -> nn.Module:
    """A user's own network; of `facts` (channels, size, classes) it gets what it cannot do without.

    Raises InputError where it is not here, or cannot be made so.
    """
    if width != 1.0:
        raise InputError(f"width {width:g} is for the networks of flatmin: leave it at 1")
    model = own.network(name, own.find(name), **facts)
    if pretrained is not None:
        pretraining.load(model, pretrained, own.title(name), None)
    return model


def require(name: str) -> None:
    """Raise InputError where there is no network called `name`; a user's own is not looked for."""
    if not own.is_own(name):
        find(name)


def find(name: str) -> Network:
    """The network called `name`; InputError if there is none. timm's are looked up when built."""
    if name in MODELS:
        return MODELS[name]
    theirs = name.removeprefix(from_timm.PREFIX)
    if theirs in ("", name):
        raise unknown("model", name, [*MODELS, *([] if theirs else ["timm:resnet26"])])
    facts = from_timm.published(theirs)
    mean, std = facts.get("mean"), facts.get("std")
    return Network(
        partial(from_timm.build, theirs),
        smallest=1,
        hub=facts.get("hf_hub_id"),
        colours=(mean, std) if mean and std else IMAGENET,
    )


MODELS: Mapping[str, Network] = {
    "mlp": Network(small.mlp, 1),
    "cnn": Network(small.cnn, 4),
    "cnn-2m": Network(small.cnn_2m),
    "resnet8": Network(residual.resnet8),
    "resnet20": Network(residual.resnet20),
    "resnet32": Network(residual.resnet32),
    "resnet18": Network(residual.resnet18),
    "resnet34": Network(residual.resnet34),
    "resnet50": Network(residual.resnet50),
    "resnet18-imagenet": Network(residual.resnet18_imagenet, 32, hub="timm/resnet18.tv_in1k"),
    "resnet34-imagenet": Network(residual.resnet34_imagenet, 32, hub="timm/resnet34.tv_in1k"),
    "resnet50-imagenet": Network(residual.resnet50_imagenet, 32, hub="timm/resnet50.tv_in1k"),
    "vgg16-bn": Network(small.vgg16_bn, 32),
    "wrn-16-4": Network(wide.wrn_16_4),
    "wrn-28-10": Network(wide.wrn_28_10),
    "pyramidnet110-48": Network(pyramid.pyramidnet110_48),
    "pyramidnet110-270": Network(pyramid.pyramidnet110_270),
    "densenet121": Network(dense.densenet121),
    "densenet121-imagenet": Network(dense.densenet121_imagenet, 32, hub="timm/densenet121.ra_in1k"),
    "vit-s16": Network(
        transformer.vit_s16, 16, 16, "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", HALVES
    ),
    "deit-s": Network(transformer.vit_s16, 16, 16, hub="timm/deit_small_patch16_224.fb_in1k"),
    "vit-adapter-s": Network(
        adapter.vit_adapter_s, 32, 32, "timm/vit_small_patch16_224.augreg_in21k", HALVES
    ),
    "efficientnet-b2": Network(efficient.b2, 32, hub="timm/efficientnet_b2.ra_in1k"),
    "efficientnet-b3": Network(efficient.b3, 32, hub="timm/efficientnet_b3.ra2_in1k"),
    "efficientnet-b4": Network(efficient.b4, 32, hub="timm/efficientnet_b4.ra2_in1k"),
}
"""Every network of our own, by the name that the command line and the recipes know."""

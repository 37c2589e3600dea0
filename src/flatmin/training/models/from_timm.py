"""Networks of timm (PyTorch Image Models), by its names: `timm:resnet26`.

timm brings torchvision along, so it is asked for only where such a network is built.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from flatmin.training.errors import InputError

PREFIX = "timm:"


def build(name: str, channels: int, size: int, classes: int, width: float) -> nn.Module:
    """Timm's `name`, made for square images of `size` pixels.

    Raises InputError where timm is not there or does not know the name, where the images do not
    fit, and for a `width` other than 1.
    """
    timm = _timm(name)
    _check_known(timm, name)
    if width != 1.0:
        raise InputError(
            f"width {width:g} is for the networks that have no prefix: {PREFIX}{name} has a width "
            "of its own, so leave width at 1"
        )
    asked: dict[str, Any] = {"in_chans": channels, "num_classes": classes}
    if _facts(timm, name).get("fixed_input_size"):
        asked["img_size"] = size
    with _one_line(name, channels, size):
        model = cast(nn.Module, timm.create_model(name, pretrained=False, **asked))
        answer = _answer(model, torch.zeros(2, channels, size, size))
    last = _facts(timm, name).get("classifier") or ()
    # as `flatmin.training.models.pretraining` asks for it
    cast(Any, model).fresh = tuple(f"{x}." for x in ([last] if isinstance(last, str) else last))
    if not isinstance(answer, Tensor) or answer.shape != (2, classes):
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise InputError(
            f"{PREFIX}{name} is no classifier that we can train: for two images of {classes} "
            f"classes it answers {found}, expected {(2, classes)}"
        )
    return model


@cache
def published(name: str) -> dict[str, Any]:
    """What timm says of its weights: `hf_hub_id`, `mean`, `std`; nothing where it is absent."""
    try:
        timm = _timm(name)
    except InputError:
        return {}
    return _facts(timm, name)


def _timm(name: str) -> Any:
    try:
        timm = importlib.import_module("timm")
    except Exception as error:  # torchvision beside another build of torch: any of a dozen errors
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({_line(error)})"
        raise InputError(
            f"{PREFIX}{name} needs timm, which cannot be imported here{reason}: pip install timm, "
            "in an environment whose torch and torchvision belong together"
        ) from None
    return timm


def _check_known(timm: Any, name: str) -> None:
    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, cast("list[str]", timm.list_models()), n=3, cutoff=0.5)
    offer = " or ".join(f"{PREFIX}{other}" for other in near)
    raise InputError(
        f"timm has no model {name!r}: "
        + (f"did you mean {offer}?" if near else "timm.list_models() lists them")
    )


def _facts(timm: Any, name: str) -> dict[str, Any]:
    facts = timm.get_pretrained_cfg(name)
    return {} if facts is None else dict(cast("dict[str, Any]", facts.__dict__))


def _answer(model: nn.Module, images: Tensor) -> object:
    """What the model says, without a trace: no gradient, no statistics, no random numbers."""
    model.eval()
    try:
        with torch.no_grad():
            return model(images)
    finally:
        model.train()


@contextmanager
def _one_line(name: str, channels: int, size: int) -> Generator[None]:
    """Timm and its models raise what they like where images do not fit."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"{PREFIX}{name} does not take images of {channels}x{size}x{size} ({_line(error)}): "
            "choose another size, or another model"
        ) from None


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


__all__ = ["PREFIX", "build", "published"]

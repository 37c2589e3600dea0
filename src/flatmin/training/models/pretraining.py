"""Weights to start from, out of a file or from the Hugging Face hub.

    train(Training(..., model="vit-s16", pretrained="hub", size=224))
    train(Training(..., model="efficientnet-b2", pretrained="weights/b2.safetensors", size=260))

A file is one of safetensors (`.safetensors`), or what `torch.save` made of a state dict (`.pt`,
`.pth`), possibly below the key "model" or "state_dict"; or the folder of a run that kept the
weights of one training (`flatmin run … --keep weights`). Networks made for ImageNet call their
modules as timm does, and so take its files; the others take those of their own `state_dict()`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatmin.training.errors import InputError


def load(model: nn.Module, source: str, name: str, hub: str | None) -> None:
    """Give `model` the weights in `source`: "hub", or a file.

    The last layer keeps its own, random weights where those have other classes; a transformer's
    positions are interpolated where the images have another size.

    Args:
        model: as `flatmin.training.models.build` makes it.
        source: "hub" or the path of a file.
        name: of the model, for messages.
        hub: the repository of its weights.

    Raises InputError where they cannot be had, or do not fit.
    """
    path = _fetched(name, hub) if source == "hub" else Path(source)
    weights = read(path)
    own = model.state_dict()
    anew = (f"{_last(model)}.", *getattr(model, "fresh", ()))
    taken: dict[str, Tensor] = {}
    for key, tensor in own.items():
        found = weights.get(key)
        if found is not None and key == "pos_embed":
            found = _positions(found, tensor.shape[1])
        if found is not None and found.shape == tensor.shape:
            taken[key] = found
        elif not key.startswith(anew) and not key.endswith("num_batches_tracked"):
            what = "has none" if found is None else f"has one of shape {tuple(found.shape)}"
            raise InputError(
                f"{path} does not fit {name}: its {key} has the shape {tuple(tensor.shape)}, the "
                f"file {what}; give a file of weights for this model, image size and width"
            )
    model.load_state_dict(taken, strict=False)


def _fetched(name: str, hub: str | None) -> Path:
    if hub is None:
        raise InputError(f"there are no weights for {name} at the hub: give a file of weights")
    remedy = f"fetch model.safetensors from huggingface.co/{hub} and give its path as pretrained"
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f"weights from the hub need huggingface_hub: pip install huggingface_hub, or {remedy}"
        ) from None
    try:
        return Path(cast("Any", huggingface_hub).hf_hub_download(hub, "model.safetensors"))
    except Exception as error:  # whatever its version raises where there is no way to the hub
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"no weights for {name} from the hub ({reason}): {remedy}") from None


def read(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file. Raises InputError, in one line, where there is none."""
    path = located(path)
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            return cast("Any", safetensors.torch).load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise InputError(f"{path} needs safetensors: pip install safetensors") from None
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} holds no weights that can be read: {reason}") from None
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(found, dict) and key in found:
            found = cast("dict[str, Any]", found)[key]
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no state dict: save one with torch.save")
    return cast("dict[str, Tensor]", found)


def located(path: Path) -> Path:
    """The file of weights at `path`, a file or the folder of a run. Raises InputError for none."""
    if path.is_dir():
        return _kept(path)
    if not path.is_file():
        raise InputError(
            f'no weights at {path}: give a .safetensors or .pt file, "hub", or the folder of a run '
            f"that has kept its own (flatmin run … --keep weights)"
        )
    return path


def _kept(folder: Path) -> Path:
    """The one file of weights in the folder of a run."""
    found = sorted((folder / "weights").glob("*.pt"))
    if len(found) != 1:
        what = f"{len(found)} files of weights" if found else "no weights"
        raise InputError(
            f"{folder} is a folder with {what}: give one of the files, or the folder of a run that "
            f"has kept those of one training with --keep weights"
        )
    return found[0]


def _last(model: nn.Module) -> str:
    """The name of the layer that tells the classes."""
    parts = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    linear = [name for name, part in parts if isinstance(part, nn.Linear)]
    return "head" if "head" in linear else (linear or [""])[-1]


def _positions(found: Tensor, count: int) -> Tensor:
    """Position embeddings (1, 1 + n^2, dim) for another number of patches."""
    side, wanted = round((found.shape[1] - 1) ** 0.5), round((count - 1) ** 0.5)
    if side == wanted:
        return found
    grid = found[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
    grid = F.interpolate(grid, (wanted, wanted), mode="bicubic", antialias=True)
    return torch.cat([found[:, :1], grid.flatten(2).transpose(1, 2)], 1)

"""The networks: their sizes are those of the literature, every image that fits fits, all learn."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.training import InputError, models


def on_paper(name: str, size: int = 32, classes: int = 10, width: float = 1.0) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return models.build(name, channels=3, size=size, classes=classes, width=width)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name, size, classes, millions",
    [
        ("resnet8", 32, 10, 0.08),
        ("resnet20", 32, 10, 0.27),
        ("resnet32", 32, 10, 0.47),
        ("resnet18", 32, 10, 11.17),
        ("resnet34", 32, 10, 21.28),
        ("resnet50", 32, 10, 23.52),
        ("resnet18-imagenet", 224, 1000, 11.69),
        ("resnet34-imagenet", 224, 1000, 21.80),
        ("resnet50-imagenet", 224, 1000, 25.56),
        ("vgg16-bn", 32, 10, 14.72),
        ("wrn-16-4", 32, 10, 2.75),
        ("wrn-28-10", 32, 10, 36.48),
        ("pyramidnet110-48", 32, 10, 1.77),
        ("pyramidnet110-270", 32, 10, 28.49),
        ("densenet121", 32, 10, 6.96),
        ("densenet121-imagenet", 224, 1000, 7.98),
        ("vit-s16", 224, 1000, 22.05),
        ("deit-s", 224, 1000, 22.05),
        ("efficientnet-b2", 260, 1000, 9.11),
        ("efficientnet-b3", 300, 1000, 12.23),
        ("efficientnet-b4", 380, 1000, 19.34),
        ("vit-adapter-s", 224, 1000, 26.46),  # 22.05 of ViT-S/16, and what stands beside it
        ("cnn-2m", 32, 10, 1.99),
    ],
)
def test_a_network_has_as_many_parameters_as_published(
    name: str, size: int, classes: int, millions: float
):
    assert round(parameters(on_paper(name, size, classes)) / 1e6, 2) == millions


@pytest.mark.parametrize(
    "name, layers",
    [
        ("resnet8", 8),
        ("resnet20", 20),
        ("resnet32", 32),
        ("resnet18", 18),
        ("resnet34", 34),
        ("vgg16-bn", 14),  # two of its three linear layers are left out for CIFAR
        ("wrn-16-4", 14),  # its names count shortcuts, of which there are two more
        ("wrn-28-10", 26),
        ("pyramidnet110-270", 110),
    ],
)
def test_a_network_has_as_many_layers_as_its_name_says(name: str, layers: int):
    weights = [p for p in on_paper(name).parameters() if p.dim() > 1 and p.shape[2:] != (1, 1)]
    assert len(weights) == layers  # shortcuts are not counted


def test_the_mlp_has_two_hidden_layers_of_256():
    model = models.build("mlp", channels=1, size=8, classes=10)
    shapes = [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
    assert shapes == [(256, 64), (256, 256), (10, 256)]


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("channels, steps", [(1, 0), (3, 5)])
def test_every_size_from_the_smallest_on_fits(name: str, channels: int, steps: int):
    network = models.MODELS[name]
    size = network.smallest + steps * network.multiple
    with torch.device("meta"):
        model = models.build(name, channels=channels, size=size, classes=7)
        scores = model(torch.empty(2, channels, size, size))
    assert scores.shape == (2, 7)
    assert scores.requires_grad


@pytest.mark.parametrize("name", models.MODELS)
def test_width_multiplies_the_channels(name: str):
    size = 16 if models.MODELS[name].multiple == 16 else 32
    whole, half = (parameters(on_paper(name, size, width=width)) for width in (1.0, 0.5))
    assert 0.2 < half / whole < 0.6


ONE_OF_A_KIND = [
    name
    for name in models.MODELS
    if not name.endswith(("-270", "-28-10", "-b3", "-b4", "resnet32", "resnet34", "deit-s"))
]


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_a_narrow_network_learns_four_images_by_heart(name: str):
    """Each part has its share in the gradient, and a few steps along it lower the loss."""
    torch.manual_seed(0)
    size = 16 if models.MODELS[name].smallest <= 16 else 64
    model = models.build(name, channels=3, size=size, classes=4, width=0.125)
    x, y = torch.randn(4, 3, size, size), torch.arange(4)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses: list[float] = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "name, size, coarse",
    [
        ("resnet18", 32, 4),
        ("resnet18-imagenet", 224, 7),
        ("wrn-16-4", 32, 8),
        ("pyramidnet110-48", 32, 8),
        ("densenet121", 32, 4),
        ("densenet121-imagenet", 224, 7),
        ("efficientnet-b2", 256, 8),
    ],
)
def test_the_last_features_are_as_coarse_as_published(name: str, size: int, coarse: int):
    model = on_paper(name, size)
    seen: list[tuple[int, ...]] = []
    pool = next(part for part in model.modules() if isinstance(part, nn.AdaptiveAvgPool2d))
    pool.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    with torch.device("meta"):
        model(torch.empty(1, 3, size, size))
    assert seen == [(coarse, coarse)]


@pytest.mark.parametrize(
    "name", [n for n, network in models.MODELS.items() if network.smallest > 2]
)
def test_too_small_an_image_is_refused(name: str):
    with pytest.raises(InputError, match=rf"{name} needs images of at least .* 2x2.* --model"):
        models.build(name, channels=1, size=2, classes=2)


def test_a_transformer_needs_whole_patches():
    with pytest.raises(InputError, match="multiple of 16 pixels, these have 28x28"):
        models.build("vit-s16", channels=1, size=28, classes=10)


def test_an_unknown_model_is_refused_with_the_nearest_names():
    with pytest.raises(InputError, match=r"unknown model 'resnet21': did you mean .*resnet20"):
        models.build("resnet21", channels=3, size=32, classes=10)


def test_the_patches_of_a_transformer_are_told_apart_by_place_alone():
    """Attention by hand, for one head: softmax(q k / 8) v."""
    from flatmin.training.models.transformer import Attention

    attention = Attention(64, heads=1)
    x = torch.randn(2, 5, 64)
    q, k, v = attention.qkv(x).split(64, dim=2)
    expected = attention.proj(torch.softmax(q @ k.mT / 8, -1) @ v)
    torch.testing.assert_close(attention(x), expected)


def test_deformable_attention_without_offsets_reads_the_place_itself():
    from flatmin.training.models.adapter import Look, centres

    look = Look(8, heads=2, levels=1)
    nn.init.zeros_(look.offsets.bias)
    queries, features = torch.randn(3, 12, 8), torch.randn(3, 12, 8)
    expected = look.out(look.value(look.feature_norm(features)))
    places = centres([(3, 4)], queries)
    torch.testing.assert_close(look(queries, places, features, [(3, 4)]), expected)


def test_deformable_attention_reads_where_its_offsets_point():
    """One pixel to the right at the first of two levels, the place itself at the second."""
    from flatmin.training.models.adapter import Look, centres

    look = Look(4, heads=1, levels=2, points=1)
    nn.init.zeros_(look.weights.weight)
    nn.init.zeros_(look.weights.bias)
    with torch.no_grad():
        look.offsets.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    features = torch.randn(1, 12, 4)
    values = look.value(look.feature_norm(features)).view(2, 2, 3, 4)
    shifted = F.pad(values[0], (0, 0, 0, 1))[:, 1:]  # nothing lies beyond the edge
    expected = look.out((shifted + values[1]).view(1, 6, 4) / 2)
    places = centres([(2, 3)], features)
    found = look(torch.randn(1, 6, 4), places, features, [(2, 3), (2, 3)])
    torch.testing.assert_close(found, expected)


def test_an_adapter_begins_as_the_transformer_beside_it(tmp_path: Path):
    """Its injections start at zero, so the tokens are those of the plain transformer."""
    plain = models.build("vit-s16", channels=3, size=32, classes=5, width=0.2)
    torch.save(plain.state_dict(), tmp_path / "w.pt")
    model = small("vit-adapter-s", pretrained=str(tmp_path / "w.pt"))
    nn.init.zeros_(model.adapter.norm.weight)  # silences the features that are added at the end
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), plain(x))


# Pretrained weights.


def small(name: str = "vit-s16", size: int = 32, classes: int = 5, **options: str) -> nn.Module:
    return models.build(name, channels=3, size=size, classes=classes, width=0.2, **options)


@pytest.mark.parametrize("form", ["safetensors", "pt", "below a key"])
@pytest.mark.parametrize("name", ["vit-s16", "resnet18-imagenet"])
def test_weights_come_from_a_file(tmp_path: Path, name: str, form: str):
    source = small(name)
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(source.state_dict(), file)
    else:
        state = source.state_dict()
        torch.save(state if form == "pt" else {"model": state, "epoch": 3}, file)
    same = small(name, pretrained=str(file))
    for key, tensor in source.state_dict().items():
        assert torch.equal(same.state_dict()[key], tensor)


def test_weights_come_from_the_folder_of_a_run(tmp_path: Path):
    source, kept = small(), tmp_path / "weights"
    with pytest.raises(InputError, match="a folder with no weights"):
        small(pretrained=str(tmp_path))
    kept.mkdir()
    torch.save({"state_dict": source.state_dict()}, kept / "sgd-seed0-1.pt")
    same = small(pretrained=str(tmp_path))
    assert torch.equal(same.head.weight, source.head.weight)
    torch.save({"state_dict": source.state_dict()}, kept / "sam-seed0-2.pt")
    with pytest.raises(InputError, match="a folder with 2 files of weights: give one of the files"):
        small(pretrained=str(tmp_path))


def test_the_last_layer_starts_anew_where_the_classes_differ(tmp_path: Path):
    source = small(classes=5)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    other = small(classes=7, pretrained=str(tmp_path / "w.pt"))
    assert other.head.weight.shape == (7, 64)
    assert other.head.weight.any()
    assert torch.equal(other.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)


def test_positions_are_interpolated_for_another_size(tmp_path: Path):
    source = small(size=32)
    flat = torch.linspace(0, 1, 64)
    with torch.no_grad():
        source.pos_embed.copy_(flat.expand(1, 5, 64))  # the same at every place
    torch.save(source.state_dict(), tmp_path / "w.pt")
    larger = small(size=64, pretrained=str(tmp_path / "w.pt"))
    assert larger.pos_embed.shape == (1, 17, 64)
    torch.testing.assert_close(larger.pos_embed.detach(), flat.expand(1, 17, 64))


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path):
    file = tmp_path / "w.pt"
    torch.save(small("resnet18-imagenet").state_dict(), file)
    with pytest.raises(InputError, match=r"w.pt does not fit vit-s16: its cls_token .* has none"):
        small("vit-s16", pretrained=str(file))
    torch.save(
        models.build("vit-s16", channels=3, size=32, classes=5, width=0.4).state_dict(), file
    )
    with pytest.raises(InputError, match=r"has the shape \(1, 1, 64\), the file has one of .*128"):
        small("vit-s16", pretrained=str(file))


def test_files_that_are_none_are_refused_in_one_line(tmp_path: Path):
    with pytest.raises(InputError, match="no weights at"):
        small(pretrained=str(tmp_path / "missing.pt"))
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(InputError, match="holds no weights that can be read") as refusal:
            small(pretrained=str(tmp_path / name))
        assert "\n" not in str(refusal.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        small(pretrained=str(tmp_path / "list.pt"))


def test_the_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(*_: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(InputError, match=r"\(no route\): fetch model.safetensors from") as refusal:
        small(pretrained="hub")
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="no weights for resnet20 at the hub: give a file"):
        models.build("resnet20", channels=3, size=32, classes=10, pretrained="hub")


def test_the_hub_gives_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = pytest.importorskip("huggingface_hub")
    source = small()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    asked: list[object] = []

    def download(*what: object) -> str:
        asked.append(what)
        return str(tmp_path / "w.pt")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    same = small(pretrained="hub")
    assert asked == [(models.MODELS["vit-s16"].hub, "model.safetensors")]
    assert torch.equal(same.norm.weight, source.norm.weight)

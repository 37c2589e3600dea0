"""Every field of a training does what it says, against the plainest loop."""

import json
import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flatmin
from flatmin.training import ImageData, InputError, Run, Training, load, models, train
from flatmin.training.data import batches
from flatmin.training.data.augmentation import moments
from flatmin.training.seeds import derive, generator

SHORT = Training(data="digits", model="mlp", method="sgd", epochs=3, batch=60)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits", limit=300)


def plain_losses(data: ImageData, optimizer_of, rate, smoothing=0.0, max_norm=None) -> list[float]:
    """15 steps as everybody would write them; `rate` gives the learning rate of step t, from 0."""
    mean, std = moments(data.train_images)
    x = (data.train_images.float() - mean.float()) / std.float()
    torch.manual_seed(derive(0, "weights"))
    model = models.build("mlp", channels=1, size=8, classes=10)
    optimizer = optimizer_of(model.parameters())
    order = generator(0, "order")
    losses: list[float] = []
    for _ in range(3):
        for rows in torch.randperm(300, generator=order).split(60):
            for group in optimizer.param_groups:
                group["lr"] = rate(len(losses))
            optimizer.zero_grad()
            loss = F.cross_entropy(
                model(x[rows]), data.train_labels[rows], label_smoothing=smoothing
            )
            loss.backward()
            if max_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            losses.append(loss.item())
    return losses


def our_losses(data: ImageData, **changed: object) -> list[float]:
    return train(replace(SHORT, observe=("losses",), **changed), data).observed["losses"]


def cosine(lr: float, total: int = 15, warm: int = 0):
    half = lambda t: (
        lr * (1 + torch.tensor(torch.pi * (t - warm) / (total - warm)).cos().item()) / 2
    )
    return lambda t: lr * (t + 1) / (warm + 1) if t < warm else half(t)


SGD = lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4)


@pytest.mark.parametrize(
    "base, lr, optimizer",
    [
        ("sgd", 0.1, SGD),
        ("nesterov", 0.1, lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=5e-4, nesterov=True)),
        ("adam", 0.01, lambda p: torch.optim.Adam(p, 0.01, weight_decay=5e-4)),
        ("adamw", 0.01, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=5e-4)),
    ],
)
def test_every_base_optimizer_is_torchs(digits: ImageData, base: str, lr: float, optimizer):
    ours = our_losses(digits, base=base, lr=lr)
    assert ours == pytest.approx(plain_losses(digits, optimizer, cosine(lr)), rel=1e-4)


@pytest.mark.parametrize(
    "fields, rate",
    [
        ({"schedule": "constant"}, lambda t: 0.1),
        ({"schedule": "constant", "warmup": 0.6}, lambda t: min((t + 1) / 4, 1) * 0.1),
        ({"warmup": 1.0}, cosine(0.1, warm=5)),
        ({"warmup": 2.95}, lambda t: 0.1 * (t + 1) / 16),
        (
            {"schedule": "step", "milestones": (0.4, 0.8), "gamma": 0.2},
            lambda t: 0.1 * 0.2 ** ((t >= 6) + (t >= 12)),
        ),
        (
            {"schedule": "step", "milestones": (0.4,), "warmup": 0.4},
            lambda t: 0.1 * (min((t + 1) / 3, 1) if t < 6 else 0.1),
        ),
    ],
    ids=["constant", "warmed up", "cosine warmed up", "warm to the end", "step", "step warmed up"],
)
def test_every_schedule_gives_each_step_its_rate(digits: ImageData, fields, rate):
    run = train(replace(SHORT, observe=("losses", "learning-rates"), **fields), digits)
    assert run.observed["learning-rates"] == pytest.approx([rate(t) for t in range(15)])
    assert run.observed["losses"] == pytest.approx(plain_losses(digits, SGD, rate), rel=1e-4)


@pytest.mark.parametrize(
    "said, share",
    [
        ("cosine", lambda t: (1 + math.cos(math.pi * t / 15)) / 2),
        ("linear:2", lambda t: 1 + t / 15),
        # The learning rate falls along a cosine, from the first step on.
        ("proportional:0.5", lambda t: 0.5 + 0.25 * (1 + math.cos(math.pi * t / 15))),
    ],
)
def test_every_schedule_gives_each_step_its_radius(digits: ImageData, said: str, share):
    asked = replace(SHORT, method="sam", rho=0.2, observe=("radii",), rho_schedule=said)
    expected = [0.2 * share(t) for t in range(15)]
    assert train(asked, digits).observed["radii"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "said, why",
    [
        ("cosinus", "unknown radius schedule 'cosinus': did you mean cosine"),
        ("constant:0.5", "a constant radius has no end: leave it out"),
        ("cosine:-1", "a share of the radius, at least 0, such as cosine:0.5"),
        ("linear:half", "a share of the radius, at least 0, such as linear:0.5"),
        ("proportional:2", r"above that at the highest: give a share in \[0, 1\]"),
    ],
)
def test_a_radius_schedule_that_cannot_be_is_one_line(said: str, why: str):
    with pytest.raises(InputError, match=why):
        replace(SHORT, rho_schedule=said)


def test_a_radius_schedule_has_one_form_however_it_is_written():
    written = [replace(SHORT, rho_schedule=said) for said in ("cosine", "cosine:0", "cosine:0.0")]
    assert len({training.key for training in written}) == 1
    assert replace(SHORT, rho_schedule="cosine:.5").rho_schedule == "cosine:0.5"


def test_rows_from_before_a_field_was_there_keep_their_keys():
    assert (
        Training("digits", "mlp", "sam").key == "074e9d4d23c75e4c"
    )  # as it was when results/ began


def test_labels_are_smoothed(digits: ImageData):
    expected = plain_losses(digits, SGD, cosine(0.1), smoothing=0.2)
    assert our_losses(digits, label_smoothing=0.2) == pytest.approx(expected, rel=1e-4)


def test_the_per_sample_losses_of_esam_are_smoothed_too(digits: ImageData):
    smooth = our_losses(digits, method="esam", label_smoothing=0.2)[0]
    assert smooth == pytest.approx(our_losses(digits, label_smoothing=0.2)[0], rel=1e-6)


def test_the_gradient_is_clipped(digits: ImageData):
    expected = plain_losses(digits, SGD, cosine(0.1), max_norm=0.3)
    ours = our_losses(digits, max_norm=0.3)
    assert ours == pytest.approx(expected, rel=1e-4)
    assert ours != pytest.approx(our_losses(digits), rel=1e-2)


def test_bfloat16_is_near_float32_and_not_the_same(digits: ImageData):
    wide, narrow = our_losses(digits), our_losses(digits, precision="bfloat16")
    assert narrow[0] == pytest.approx(wide[0], rel=0.02)
    assert narrow[0] != wide[0]
    run = train(replace(SHORT, precision="bfloat16", method="sam", epochs=8), digits)
    assert run.accuracy > 70


@pytest.mark.parametrize("method", ["ss-sam", "esam"])
def test_the_coins_of_a_method_are_thrown_by_the_seed_of_the_run(digits: ImageData, method: str):
    """With weights and batches of seed 0 for all: what differs is the coin alone."""
    curves = [
        our_losses(digits, method=method, rho=0.2, options=(("seed", seed),)) for seed in (0, 1)
    ]
    assert curves[0] == our_losses(digits, method=method, rho=0.2)
    assert curves[0] != curves[1]
    seeded = our_losses(digits, method=method, rho=0.2, seed=1)
    assert seeded == our_losses(digits, method=method, rho=0.2, seed=1, options=(("seed", 1),))
    assert seeded != our_losses(digits, method=method, rho=0.2, seed=1, options=(("seed", 0),))


@pytest.mark.parametrize(
    "method, options, parts",
    [
        ("agnostic-sam", {"beta": 0.5, "rho2": 0.01}, {"beta": 0.5, "rho2": 0.01}),
        ("friendly-sam", {"variant": "released"}, {"variant": "released"}),
        ("ae-agnostic-sam", {"lambda1": 0.5, "lambda2": 0.5}, {"lambda1": 0.5, "lambda2": 0.5}),
        ("look-friendly-sam", {"k": 3, "alpha": 0.1}, {"k": 3, "alpha": 0.1}),
    ],
)
def test_options_reach_the_method(method: str, options, parts):
    base = torch.optim.SGD([torch.zeros(1)], 0.1)
    built = flatmin.methods.find(method).build(base, total_steps=10, settings=options)
    found = {
        **asdict(built.direction),  # type: ignore[call-overload]
        **asdict(built.policy),  # type: ignore[call-overload]
        **asdict(built.descent),  # type: ignore[call-overload]
    }
    assert parts.items() <= found.items()


def test_options_change_the_run(digits: ImageData):
    usual = our_losses(digits, method="agnostic-sam", rho=0.2)
    same = our_losses(digits, method="agnostic-sam", rho=0.2, options=(("beta", 0.9),))
    other = our_losses(digits, method="agnostic-sam", rho=0.2, options=(("beta", 0.0),))
    assert usual == same != other


def test_a_large_auxiliary_batch_is_evaluated_in_parts(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
):
    """Its gradient is that of all its images at once, whatever the parts."""
    in_parts = our_losses(digits, method="agnostic-sam", rho=0.2, fraction=2.5)
    with monkeypatch.context() as patch:
        patch.setattr(batches.Batch, "parts", lambda batch, size: iter([batch]))
        at_once = our_losses(digits, method="agnostic-sam", rho=0.2, fraction=2.5)
    assert in_parts == pytest.approx(at_once, rel=1e-4)
    assert in_parts != at_once
    run = train(replace(SHORT, method="agnostic-sam", fraction=2.5, epochs=1), digits)
    assert run.cost.ratio == pytest.approx(2 + 2 * 2.5)
    parts = batches.Batch(*[torch.arange(5)] * 3).parts(4)
    assert [part.targets.tolist() for part in parts] == [[0, 1, 2], [3, 4]]  # none of one image
    all_of_it = train(replace(SHORT, method="agnostic-sam", fraction=99.0, epochs=1), digits)
    assert all_of_it.cost.ratio == pytest.approx(2 + 2 * 5)


def test_cutout_cuts_training_images_alone(digits: ImageData):
    white = replace(digits, train_images=digits.train_images.clamp_min(1))
    run = train(replace(SHORT, cutout=8, epochs=1, model="cnn"), white)
    assert run.epochs[0].loss != train(replace(SHORT, epochs=1, model="cnn"), white).epochs[0].loss


@pytest.mark.parametrize("size", [5, 16])
def test_images_are_resized(digits: ImageData, size: int, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, ...]] = []

    def watched(channels: int, given: int, classes: int, width: float) -> nn.Module:
        assert given == size
        model = models.small.mlp(channels, given, classes, width)
        model.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[1:])))
        return model

    monkeypatch.setattr(models, "MODELS", {"mlp": models.Network(watched, 1)})
    run = train(replace(SHORT, size=size, epochs=20, cutout=1, augment=True), digits)
    assert set(seen) == {(1, size, size)}
    assert run.accuracy > 50


def test_a_wider_model_has_more_to_do(digits: ImageData):
    assert our_losses(digits, width=0.25) != our_losses(digits)


def test_the_final_model_is_examined_on_further_sets(digits: ImageData):
    run = train(replace(SHORT, examine=("digits",)), digits)
    assert run.examined == {"digits": run.accuracy}  # limits are for training images
    again = train(replace(SHORT, examine=("top-5", "digits:top-5")), digits)
    assert again.examined["top-5"] == again.examined["digits:top-5"] > again.accuracy
    guesses = train(replace(SHORT, epochs=1, lr=1e-6, examine=("top-5",)), digits)
    assert 30 < guesses.examined["top-5"] < 80  # of ten classes, before anything is learned
    mnist_like = replace(digits, classes=tuple("abcdefghij"))
    with pytest.raises(InputError, match="cannot be examined on digits: its classes"):
        train(replace(SHORT, examine=("digits",)), mnist_like)


# What is recorded.


def observed(data: ImageData, *names: str, **changed: object) -> Run:
    return train(replace(SHORT, observe=names, **changed), data)


def gradients(data: ImageData) -> list[Tensor]:
    """Of the first two steps of SGD with learning rate 0.1, flat."""
    mean, std = moments(data.train_images)
    x = (data.train_images.float() - mean.float()) / std.float()
    torch.manual_seed(derive(0, "weights"))
    model = models.build("mlp", channels=1, size=8, classes=10)
    found: list[Tensor] = []
    for rows in torch.randperm(300, generator=generator(0, "order")).split(60)[:2]:
        model.zero_grad()
        F.cross_entropy(model(x[rows]), data.train_labels[rows]).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    return found


def test_gradients_are_observed_at_the_unperturbed_weights(digits: ImageData):
    names = ("gradient-norms", "cosine-previous")
    settings = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    first, second = gradients(digits)
    run = observed(digits, *names, **settings)
    assert run.observed["gradient-norms"][:2] == pytest.approx(
        [float(first @ first), float(second @ second)], rel=1e-4
    )
    assert str(run.observed["cosine-previous"][0]) == "nan"
    cos = float(first @ second / first.norm() / second.norm())
    assert run.observed["cosine-previous"][1] == pytest.approx(cos, abs=1e-5)
    sam = observed(digits, *names, method="sam", rho=0.5, **settings)
    assert sam.observed["gradient-norms"][0] == run.observed["gradient-norms"][0]


def test_the_perturbed_gradient_is_compared_with_the_first(digits: ImageData):
    still = observed(digits, "cosine-perturbed").observed["cosine-perturbed"]
    near = observed(digits, "cosine-perturbed", method="sam", rho=1e-3).observed["cosine-perturbed"]
    far = observed(digits, "cosine-perturbed", method="sam", rho=2.0).observed["cosine-perturbed"]
    assert still == pytest.approx([1.0] * 15)
    assert near[0] == pytest.approx(1.0, abs=1e-3)
    assert far[0] < 0.99


def test_perturbed_steps_and_their_radii_are_recorded(digits: ImageData):
    run = observed(digits, "perturbed", "radii", method="look-sam", rho=0.2)
    assert run.observed["perturbed"] == [float(t % 5 == 0) for t in range(15)]
    assert run.observed["radii"] == pytest.approx([0.2 * (t % 5 == 0) for t in range(15)], rel=1e-4)


def test_recording_changes_nothing(digits: ImageData):
    everything = observed(
        digits, *sorted(set(flatmin.training.recorder.OBSERVABLES)), method="agnostic-sam"
    )
    nothing = observed(digits, method="agnostic-sam")
    assert [e.loss for e in everything.epochs] == [e.loss for e in nothing.epochs]
    assert nothing.observed == {}
    steps = {name for name, row in flatmin.training.recorder.OBSERVABLES.items() if row.of_step}
    assert {len(everything.observed[name]) for name in steps} == {15}
    assert {len(v) for name, v in everything.observed.items() if name not in steps} == {3}


def test_wrong_and_right_labels_are_counted_apart(digits: ImageData):
    names = ("wrong-label-accuracy", "right-label-accuracy")
    run = observed(digits, *names, noise="0.4", epochs=30)
    wrong, right = (run.observed[name] for name in names)
    for epoch, w, r in zip(run.epochs, wrong, right, strict=True):
        assert 0.4 * w + 0.6 * r == pytest.approx(epoch.train_accuracy)
    assert right[5] > wrong[5] + 20  # what is true is learned first
    assert wrong[-1] > 50  # and the rest is learned by heart
    clean = observed(digits, *names)
    assert all(str(value) == "nan" for value in clean.observed["wrong-label-accuracy"])
    assert clean.observed["right-label-accuracy"] == [e.train_accuracy for e in clean.epochs]


def test_gradients_of_esam_cannot_be_observed(digits: ImageData):
    with pytest.raises(InputError, match="cannot observe gradient-norms, since esam"):
        observed(digits, "gradient-norms", method="esam")


# What cannot be.


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"method": "agnostic"}, "unknown method 'agnostic': did you mean .*agnostic-sam"),
        ({"model": "resnet21"}, "unknown model 'resnet21': did you mean .*resnet20"),
        ({"base": "adamm"}, "unknown base optimizer 'adamm': did you mean .*adam"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean cosine"),
        ({"precision": "float16"}, "unknown precision 'float16': did you mean .*float"),
        ({"observe": ("gradient-norm",)}, "unknown observable 'gradient-norm': did you mean"),
        ({"noise": "2"}, r"noise 2 is outside \[0, 1\)"),
        ({"epochs": 1.5}, "epochs 1.5 does not fit: expected a whole number"),
        ({"batch": True}, "batch True does not fit: expected a whole number"),
        ({"lr": "0.1"}, "lr '0.1' does not fit: expected a number"),
        ({"milestones": 0.5}, "milestones 0.5 does not fit: expected a tuple"),
        ({"options": 5}, "options 5 do not fit: expected names and values"),
        ({"epochs": 0}, "epochs 0 is out of range: expected a whole number from 1 on"),
        ({"batch": -1}, "batch -1 is out of range"),
        ({"limit": 0}, "limit 0 is out of range"),
        ({"size": 0}, "size 0 is out of range"),
        ({"rho": -0.1}, "rho -0.1 is out of range: expected a radius of at least 0"),
        ({"rho": float("nan")}, "rho nan is out of range"),
        ({"rho": 1e300}, r"rho 1e\+300 is out of range"),
        ({"lr": 0.0}, "lr 0.0 is out of range: expected a number above 0"),
        ({"lr": float("inf")}, "lr inf is out of range"),
        ({"momentum": 1.0}, r"momentum 1.0 is out of range: expected a number in \[0, 1\)"),
        ({"momentum": 0.0, "base": "nesterov"}, "momentum 0.0 is out of range"),
        ({"weight_decay": -1.0}, "weight_decay -1.0 is out of range"),
        ({"fraction": 0.0}, "fraction 0.0 is out of range"),
        ({"holdout": 1.0}, "holdout 1.0 is out of range"),
        ({"gamma": 0.0}, "gamma 0.0 is out of range"),
        ({"warmup": 3.0}, "warmup 3.0 is out of range: expected fewer than the epochs"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 is out of range"),
        ({"cutout": -1}, "cutout -1 is out of range"),
        ({"width": 0.0}, "width 0.0 is out of range"),
        ({"max_norm": 0.0}, "max_norm 0.0 is out of range"),
        (
            {"schedule": "step"},
            r"milestones \(\) is out of range: expected some with schedule step",
        ),
        ({"milestones": (0.5,)}, "and none with any other"),
        ({"schedule": "step", "milestones": (1.5,)}, "expected shares of the epochs"),
        ({"options": (("beta", 1),)}, "sgd has no options, got 'beta'"),
        (
            {"method": "agnostic-sam", "options": (("betta", 1),)},
            "unknown option of agnostic-sam 'betta': did you mean beta",
        ),
        (
            {"method": "agnostic-sam", "options": (("beta", 7.0),)},
            "an option of agnostic-sam does not fit: beta must",
        ),
        (
            {"method": "agnostic-sam", "options": (("auxiliary", "previous"),)},
            "that is another method, with a name of its own",
        ),
    ],
    ids=str,
)
def test_an_impossible_training_is_refused_in_one_line(changed: dict[str, object], words: str):
    with pytest.raises(InputError, match=words) as refusal:
        replace(SHORT, **changed)
    assert "\n" not in str(refusal.value)


def test_what_does_not_fit_the_data_or_the_machine_is_one_line(digits: ImageData):
    with pytest.raises(InputError, match=r"holdout 0\.001 of 300 training images leaves 0"):
        train(replace(SHORT, holdout=0.001), digits)
    with pytest.raises(InputError, match="device abacus cannot be used"):
        train(SHORT, digits, device="abacus")


def test_a_field_that_is_written_in_another_way_is_the_same():
    step = {"schedule": "step", "milestones": (0.5,)}
    ours = replace(SHORT, method="look-sam", noise="0.4", options=(("alpha", 0.1),), **step)
    step = {"schedule": "step", "milestones": [0.5]}
    theirs = replace(SHORT, method="look-sam", noise=0.4, options={"alpha": 0.1}, **step)
    assert ours == theirs
    assert ours.key == theirs.key


def test_a_training_comes_back_from_json():
    training = replace(
        SHORT,
        method="agnostic-sam",
        options=(("rho2", 0.1), ("beta", 0.5)),
        schedule="step",
        milestones=(0.5, 0.75),
        observe=("losses",),
    )
    assert training.options == (("beta", 0.5), ("rho2", 0.1))
    again = Training.of(json.loads(json.dumps(asdict(training))))
    assert again == training
    assert again.key == training.key
    assert hash(again) == hash(training)


def test_what_json_describes_wrongly_is_one_line():
    with pytest.raises(
        InputError, match="unknown field of a training 'epoch': did you mean epochs"
    ):
        Training.of({"data": "digits", "model": "mlp", "method": "sgd", "epoch": 3})
    with pytest.raises(InputError, match="a training without model: say which model"):
        Training.of({"data": "digits", "method": "sgd"})


def test_every_field_is_part_of_the_key():
    other = {
        "data": "mnist",
        "model": "cnn",
        "method": "vasso",
        "noise": "0.5",
        "base": "adam",
        "schedule": "constant",
        "precision": "bfloat16",
        "auxiliary": "containing",
        "rho_schedule": "cosine",
        "pretrained": "hub",
        "limit": 7,
        "size": 9,
        "max_norm": 1.0,
        "rho": 0.7,
        "examine": ("mnist",),
        "observe": ("losses",),
        "augment": True,
        "options": (("theta", 0.5),),
        "analysis": (("eigenvalues", 5),),
        "base_options": (("dampening", 0.1),),
        "loss": "torch.nn.functional:mse_loss",
        "metric": "min:torch.nn.functional:mse_loss",
        "milestones": (0.5,),
    }
    keys = {SHORT.key}
    for field in fields(Training):
        value = other.get(field.name)
        if value is None:
            value = getattr(SHORT, field.name) + (1 if field.type == "int" else 0.5)
            value = min(value, 0.95) if field.name in ("momentum", "holdout", "gamma") else value
            value = 0.5 if field.name == "label_smoothing" or field.name == "gamma" else value
        besides: dict[str, Any] = {
            "options": {"method": "vasso"},
            "milestones": {"schedule": "step"},
            "auxiliary": {"fraction": 1.0},
        }
        keys.add(replace(SHORT, **{field.name: value}, **besides.get(field.name, {})).key)
    assert len(keys) == len(fields(Training)) + 1

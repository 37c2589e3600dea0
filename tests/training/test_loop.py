"""The training loop against the plainest one, and its promise of paired runs."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

from flatmin import methods
from flatmin.engine.cost import Cost
from flatmin.training import Epoch, ImageData, InputError, Run, Training, load, models, train
from flatmin.training.data import noise
from flatmin.training.data.augmentation import moments
from flatmin.training.data.batches import RunData
from flatmin.training.data.images import stratified
from flatmin.training.processes import ProcessGroup
from flatmin.training.seeds import derive, generator

SHORT = Training(data="digits", model="mlp", method="sgd", epochs=2, batch=64, noise="0.3")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits", limit=300)


def without_time(run: Run) -> object:
    return [replace(epoch, seconds=0.0) for epoch in run.epochs], run.cost, run.accuracy


def test_sgd_is_the_loop_that_everybody_writes(digits: ImageData):
    """Model, noise, normalisation, order, cosine schedule, accuracy: written out in plain torch."""
    run = train(SHORT, digits)

    labels = noise.symmetric(digits.train_labels, 0.3, 10, seed=0)
    mean, std = moments(digits.train_images)
    mean, scale = mean.float(), 1 / std.float()
    x = (digits.train_images.float() - mean) * scale
    torch.manual_seed(derive(0, "weights"))
    model = models.build("mlp", channels=1, size=8, classes=10)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    steps = 2 * (300 // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = generator(0, "order")
    for epoch in run.epochs:
        rows = torch.randperm(300, generator=order)
        loss_sum, right = 0.0, 0
        for batch in rows[:256].split(64):
            optimizer.zero_grad()
            scores = model(x[batch])
            loss = F.cross_entropy(scores, labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * 64
            right += int((scores.argmax(1) == labels[batch]).sum())
        with torch.no_grad():
            answers = model((digits.test_images.float() - mean) * scale).argmax(1)
        assert epoch.loss == pytest.approx(loss_sum / 256, rel=1e-5)
        assert epoch.train_accuracy == 100 * right / 256
        assert epoch.accuracy == 100 * float((answers == digits.test_labels).double().mean())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", methods.TABLE)
def test_every_method_trains_and_gives_the_same_bits_again(digits: ImageData, name: str):
    training = replace(SHORT, method=name, epochs=1)
    first, again = train(training, digits), train(training, digits)
    assert without_time(first) == without_time(again)
    assert first.cost.steps == 4
    assert first.cost.skipped == 0


@pytest.mark.parametrize("model, augment", [("mlp", False), ("cnn", True)])
def test_methods_start_from_the_same_weights_and_see_the_same_batches(
    digits: ImageData, model: str, augment: bool
):
    """With radius 0, each is SGD, whatever other streams of random numbers it draws from."""
    training = replace(SHORT, model=model, augment=augment, epochs=1)
    plain = train(training, digits)
    for name in ("sam", "agnostic-sam", "ae-sam", "friendly-sam"):
        still = train(replace(training, method=name, rho=0.0), digits)
        assert [asdict(e) | {"seconds": 0} for e in still.epochs] == [
            asdict(e) | {"seconds": 0} for e in plain.epochs
        ]


@pytest.mark.parametrize("changed", ["seed", "lr", "noise", "augment", "batch", "weight_decay"])
def test_whatever_is_part_of_the_training_changes_it(digits: ImageData, changed: str):
    other = {"seed": 1, "lr": 0.05, "noise": "0.2", "augment": True, "batch": 32}
    other["weight_decay"] = 5e-2
    ours = train(SHORT, digits).epochs[-1].loss
    theirs = train(replace(SHORT, **{changed: other[changed]}), digits).epochs[-1].loss
    assert ours != theirs


@pytest.mark.parametrize(
    "method, ratio", [("sgd", 1.0), ("sam", 2.0), ("agnostic-sam", 2.5), ("look-sam", 1.25)]
)
def test_gradient_cost_is_counted_in_samples(digits: ImageData, method: str, ratio: float):
    run = train(replace(SHORT, method=method), digits)
    assert run.cost.ratio == pytest.approx(ratio)
    assert run.epochs[-1].passes == pytest.approx(2 * ratio)


def test_an_auxiliary_batch_has_its_fraction(digits: ImageData):
    half = train(replace(SHORT, method="agnostic-sam", fraction=0.5), digits)
    assert half.cost.ratio == pytest.approx(3.0)


def test_an_auxiliary_batch_may_hold_the_primary_one(digits: ImageData):
    asked = replace(SHORT, method="sam-db", auxiliary="containing", fraction=2.5, batch=64)
    run_data = RunData(asked, digits, ProcessGroup.here("cpu"))
    around, seen = run_data.auxiliary(), set[str]()
    for primary in run_data.primary.round():
        batch = around.next()
        assert len(batch) == 160
        assert torch.equal(batch.inputs[:64], primary.inputs)
        # None of the further images is among the primary ones, and they are others each time.
        mine, theirs = primary.inputs.flatten(1), batch.inputs[64:].flatten(1)
        assert torch.cdist(mine, theirs).min() > 0
        seen.add(str(theirs[0].tolist()))
    assert len(seen) == run_data.steps
    # With nothing around it, the primary batch gives SAM's step.
    alone = replace(asked, fraction=1.0, epochs=1)
    sam = replace(SHORT, method="sam", batch=64, epochs=1)
    same = train(alone, digits).epochs[0], train(sam, digits).epochs[0]
    assert same[0].loss == same[1].loss


def test_the_radius_is_the_default_one_unless_given(digits: ImageData):
    usual = train(replace(SHORT, method="sam", epochs=1), digits)
    wide = train(replace(SHORT, method="sam", rho=0.2, epochs=1), digits)
    assert usual.cost.radius == pytest.approx(0.05, rel=1e-4)
    assert wide.cost.radius == pytest.approx(0.2, rel=1e-4)


def test_held_out_images_are_judged_by_their_labels_as_given(digits: ImageData):
    """All images are the same, so that there is one answer for all: its share must come out."""
    data = replace(digits, train_images=torch.zeros_like(digits.train_images))
    run = train(replace(SHORT, holdout=0.1, noise="0.5"), data)
    noisy = noise.symmetric(data.train_labels, 0.5, 10, seed=0)
    held = noisy[stratified(noisy, 30, generator(0, "holdout"))]
    assert round(run.accuracy * 30 / 100, 9) in torch.bincount(held, minlength=10).tolist()
    assert run.cost.primary_samples == 2 * (270 // 64) * 64


def test_held_out_images_are_not_trained_on(digits: ImageData):
    noisy = noise.symmetric(digits.train_labels, 0.3, 10, seed=0)
    held = stratified(noisy, 30, generator(0, "holdout"))
    images = digits.train_images.clone()
    images[held] = images[held].flip(-1)  # the shades, and so the normalisation, stay
    mirrored = replace(digits, train_images=images)
    for training in (SHORT, replace(SHORT, holdout=0.1)):
        losses = [[e.loss for e in train(training, d).epochs] for d in (digits, mirrored)]
        assert (losses[0] == losses[1]) == bool(training.holdout)


def test_the_test_set_has_no_part_in_a_tuning_run(digits: ImageData):
    training = replace(SHORT, holdout=0.1)
    blind = replace(digits, test_images=digits.test_images * 0, test_labels=digits.test_labels * 0)
    assert without_time(train(training, digits)) == without_time(train(training, blind))


def test_the_callers_random_numbers_go_on_undisturbed(digits: ImageData):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(replace(SHORT, epochs=1), digits)
    assert torch.equal(torch.rand(3), expected)


def test_a_watcher_hears_of_every_epoch_as_it_ends(digits: ImageData):
    heard: list[tuple[int, Epoch]] = []
    run = train(SHORT, digits, lambda number, epoch: heard.append((number, epoch)))
    assert heard == list(enumerate(run.epochs, 1))


def test_a_batch_larger_than_the_training_set_is_refused(digits: ImageData):
    with pytest.raises(InputError, match="a batch of 301 is more than the 300 images"):
        train(replace(SHORT, batch=301), digits)


def test_images_of_other_classes_than_those_learned_are_refused(digits: ImageData):
    apart = replace(digits, test_labels=torch.full_like(digits.test_labels, 10))
    with pytest.raises(InputError, match="no class of the test images of digits is among those"):
        train(SHORT, apart)


def test_published_weights_go_on_seeing_the_colours_that_they_were_trained_with():
    pixels = torch.arange(12 * 3 * 32 * 32).view(12, 3, 32, 32).remainder(251).to(torch.uint8)
    labels = torch.arange(12).remainder(2)
    data = ImageData("colours", ("a", "b"), pixels, labels, pixels, labels, torch.arange(12))
    own = moments(pixels)
    deit = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    vit = torch.full((3,), 0.5), torch.full((3,), 0.5)
    for model, pretrained, (mean, std) in (
        ("deit-s", None, (own[0] / 255, own[1] / 255)),
        ("deit-s", "hub", deit),
        ("vit-s16", "weights.pt", vit),
        ("resnet20", "weights.pt", (own[0] / 255, own[1] / 255)),  # has no published weights
    ):
        training = Training("colours", model, "sgd", batch=4, pretrained=pretrained)
        seen = (
            RunData(training, data, ProcessGroup.here("cpu"))
            .examined.plain(torch.arange(12))
            .inputs
        )
        expected = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.testing.assert_close(seen, expected.float(), rtol=1e-5, atol=1e-5)


def test_a_run_that_diverges_says_so(digits: ImageData):
    with pytest.warns(RuntimeWarning, match="not finite|non-finite|skipped"):
        run = train(replace(SHORT, lr=1e30, epochs=3), digits)
    assert run.cost.skipped > 0
    assert run.trouble is not None
    assert f"{run.cost.skipped} of 12 steps skipped" in run.trouble


def test_a_run_that_learned_nothing_says_so():
    epoch = Epoch(loss=2.3, train_accuracy=10.0, accuracy=10.5, passes=1.0, seconds=1.0)
    run = Run(SHORT, (epoch,), Cost(steps=4), chance=10.0)
    assert run.trouble == "learned nothing: accuracy at chance"
    assert replace(run, epochs=(replace(epoch, accuracy=50.0),)).trouble is None
    tuning = replace(run, training=replace(SHORT, holdout=0.1))
    assert tuning.trouble is None  # among wrong labels, chance may be all there is
    assert replace(run, epochs=(replace(epoch, loss=float("nan")),)).trouble == (
        "diverged: the loss is not finite"
    )


def test_seeds_differ_by_purpose_and_by_run_and_stay_for_good():
    seeds = {derive(seed, use) for seed in (-1, 0, 1) for use in ("weights", "order", "noise")}
    assert len(seeds) == 9
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "weights") == 6699829313034778310  # results of earlier versions depend on it

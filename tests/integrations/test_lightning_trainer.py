"""Lightning's automatic optimization takes the steps that a plain loop takes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tables import IMAGES, LABELS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from weights import deviation, same_bits

import flatmin
from flatmin.integrations import before_descent

lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402 - it may be absent
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy  # noqa: E402
from lightning.pytorch.utilities.exceptions import MisconfigurationException  # noqa: E402

from flatmin.integrations.lightning import SharpnessAwareModule  # noqa: E402

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

METHODS = ["sam", "agnostic-sam", "ae-agnostic-sam-previous", "look-sam"]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
DATA = TensorDataset(IMAGES[:96], LABELS[:96])
BATCH = 24
EPOCHS = 2

pytestmark = [
    # Lightning's: how it asks torch for the leaves of a tree.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    # Lightning's advice on workers, logging intervals and lonely steps.
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`"),
]


@pytest.fixture(autouse=True)
def _silent():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def small(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 10)).to(dtype)


def optimizer_of(method: str, model: nn.Module, **options: Any) -> flatmin.SharpnessAware:
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = EPOCHS * len(DATA) // BATCH
    return flatmin.methods.find(method).build(base, 0.1, total_steps=steps, model=model, **options)


class Plainly:
    """What every module of these tests does, whatever its base class."""

    def __init__(self, method: str = "sam", paired: bool = False, **options: Any) -> None:
        super().__init__()
        dtype = options.pop("dtype", torch.float32)
        self.dtype_of_data = dtype
        self.paired = paired
        self.net = small(dtype)
        self.made = optimizer_of(method, self.net, **options)
        self.looks: list[int] = []

    def train_dataloader(self) -> Any:
        images, labels = DATA.tensors
        loader = DataLoader(TensorDataset(images.to(self.dtype_of_data), labels), BATCH)
        return flatmin.paired(loader) if self.paired else loader

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        self.looks.append(len(batch[1]))
        return {"loss": cross_entropy(self.net(batch[0]), batch[1]), "of": batch_idx}

    def configure_optimizers(self) -> Any:
        return self.made


class Digits(Plainly, SharpnessAwareModule):
    pass


class Ordinary(Plainly, lightning.LightningModule):
    pass


def fit(module: Any, epochs: int = EPOCHS, **options: Any) -> Any:
    lightning.Trainer(max_epochs=epochs, **{**QUIET, **options}).fit(module)
    return module


def loop(
    method: str,
    pairs: Callable[[Any], Any],
    *,
    look: Callable[[nn.Module, Any], Tensor] = lambda net, b: cross_entropy(net(b[0]), b[1]),
    dtype: torch.dtype = torch.float32,
    data: TensorDataset = DATA,
    **options: Any,
) -> nn.Module:
    """The plain loop: `pairs` makes (primary, auxiliary) of each batch."""
    net = small(dtype)
    optimizer = optimizer_of(method, net, **options)

    def closure(batch: Any) -> Callable[[], Tensor]:
        def evaluate() -> Tensor:
            loss = look(net, batch)
            loss.backward()
            return loss

        return evaluate

    images, labels = data.tensors
    for _ in range(EPOCHS):
        for batch in zip(images.to(dtype).split(BATCH), labels.split(BATCH), strict=True):
            primary, auxiliary = pairs(batch)
            closures = [closure(b) for b in (primary, auxiliary) if b is not None]
            optimizer.step(*closures)
    return net


def alone(batch: Any) -> tuple[Any, None]:
    return batch, None


# --- the same weights


@pytest.mark.parametrize("method", METHODS)
def test_the_example_ends_with_the_weights_of_the_plain_loop(method: str, example: Any):
    trained = example("lightning_digits").train(method, 2, **QUIET)
    assert same_bits(trained, example("plain").train(method, 2))


@pytest.mark.parametrize("method", METHODS)
def test_batches_of_an_ordinary_loader_are_split_where_the_method_needs_two(method: str):
    needed = flatmin.methods.find(method).auxiliary
    net = loop(method, (lambda b: flatmin.split(b, 0.25)) if needed else alone)
    assert same_bits(fit(Digits(method)).net, net)


def test_the_share_that_is_split_off_can_be_chosen():
    module = Digits("agnostic-sam")
    module.auxiliary_fraction = 0.5
    net = loop("agnostic-sam", lambda b: flatmin.split(b, 0.5))
    assert same_bits(fit(module).net, net)


@pytest.mark.parametrize("method", ["sam", "vasso", "look-sam", "gsam", "lookbehind-sam"])
def test_methods_with_one_batch_need_no_base_class_of_ours(method: str):
    assert same_bits(fit(Ordinary(method)).net, loop(method, alone))


def test_a_method_without_auxiliary_batch_sees_the_primary_one_of_a_pair():
    assert same_bits(fit(Digits("sam", paired=True)).net, loop("sam", alone))


def test_other_optimizers_step_as_ever():
    def base_alone(module: Any) -> Any:
        module.made = torch.optim.SGD(module.net.parameters(), lr=0.1, momentum=0.9)
        return fit(module).net

    assert same_bits(base_alone(Digits()), base_alone(Ordinary()))


def test_bfloat16_is_the_loop_under_autocast():
    def look(net: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return cross_entropy(net(batch[0]), batch[1])

    net = loop("agnostic-sam", flatmin.split, look=look)
    trained = fit(Digits("agnostic-sam"), precision="bf16-mixed").net
    assert same_bits(trained, net)
    assert not same_bits(trained, loop("agnostic-sam", flatmin.split))


def test_float16_is_scaled_by_flatmin_amp():
    def look(net: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.float16, cache_enabled=False):
            return cross_entropy(net(batch[0]), batch[1])

    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    module = fit(Digits("agnostic-sam"), plugins=plugin, gradient_clip_val=0.5)
    net = loop("agnostic-sam", flatmin.split, look=look, max_norm=0.5)
    # Gradients of float16 products: a scale moves those below 6e-5 out of the subnormal numbers.
    assert deviation(module.net, net) < 1e-3
    assert module.made.cost.perturbed == 8
    assert scaler.state_dict()["_growth_tracker"] == 8


# --- large batches


@pytest.mark.parametrize("pieces", [2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_equal_the_whole_batch(method: str, pieces: int):
    class Pieces(Digits):
        micro_batches = pieces

    module = fit(Pieces(method, dtype=torch.float64))
    needed = flatmin.methods.find(method).auxiliary
    net = loop(method, flatmin.split if needed else alone, dtype=torch.float64)
    assert deviation(module.net, net) < 1e-12
    primary = 18 if needed else 24
    assert max(look for look in module.looks if look != 6) == -(-primary // pieces)


def test_more_micro_batches_than_samples_are_an_error():
    module = Digits()
    module.micro_batches = BATCH + 1
    with pytest.raises(ValueError, match="cannot be split in two: use a larger batch"):
        fit(module)


@pytest.mark.parametrize("number", [0, -1, True])
def test_micro_batches_are_counted_from_one(number: int):
    module = Digits()
    module.micro_batches = number
    with pytest.raises(ValueError, match="micro_batches must be a whole number of at least 1"):
        fit(module)


# --- what is clipped


@pytest.mark.parametrize("method", ["sam", "agnostic-sam", "lookbehind-sam"])
def test_clipping_meets_the_gradient_that_is_descended_alone(method: str):
    needed = flatmin.methods.find(method).auxiliary
    module = fit(Digits(method), gradient_clip_val=0.3)

    net = small()
    optimizer = optimizer_of(method, net)
    clipped: list[float] = []
    for _ in range(EPOCHS):
        for batch in zip(DATA.tensors[0].split(BATCH), DATA.tensors[1].split(BATCH), strict=True):
            batches = flatmin.split(batch) if needed else (batch,)

            def look(b: Any) -> Tensor:
                loss = cross_entropy(net(b[0]), b[1])
                loss.backward()
                return loss

            def clip() -> None:
                clipped.append(float(nn.utils.clip_grad_norm_(net.parameters(), 0.3)))

            with before_descent(optimizer, clip):
                optimizer.step(*((lambda b=b: look(b)) for b in batches))
    assert same_bits(module.net, net)
    assert max(clipped) > 0.3


def test_hooks_before_the_optimizer_see_each_descended_gradient_once():
    class Hooked(Digits):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert optimizer.param_groups is self.made.param_groups
            seen.append([p.grad.clone() for p in self.net.parameters()])

    seen: list[list[Tensor]] = []
    descended: list[list[Tensor]] = []
    module = Hooked("sam")
    module.made.base.register_step_post_hook(
        lambda *_: descended.append([p.grad.clone() for p in module.net.parameters()])
    )
    fit(module)
    assert len(seen) == 8
    for mine, theirs in zip(seen, descended, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


# --- what is told


def test_the_loss_that_is_logged_and_handed_on_is_the_one_at_the_unperturbed_weights():
    class Logged(Digits):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss, on_step=True, on_epoch=True)
            self.log_dict({"twice": 2 * loss}, on_step=True)
            (self.around if self.looking_around else self.here).append(loss.item())
            return loss

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            told.append(float(outputs["loss"]))
            logged.append(float(self.trainer.callback_metrics["loss_step"]))
            doubled.append(float(self.trainer.callback_metrics["twice"]))

    told: list[float] = []
    logged: list[float] = []
    doubled: list[float] = []
    module = Logged("agnostic-sam")
    module.here, module.around = [], []
    fit(module, epochs=1)
    assert told == logged == module.here
    assert doubled == [2 * loss for loss in module.here]
    assert len(module.here) == 4
    assert len(module.around) == 4 * 3  # a step looks at the auxiliary batch twice
    assert float(module.trainer.callback_metrics["loss_epoch"]) == pytest.approx(sum(told) / 4)


def test_a_raise_while_looking_around_leaves_the_weights_and_logging_as_they_were():
    class Failing(Digits):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.looking_around:
                raise KeyError("a mistake of the user's")
            return cross_entropy(self.net(batch[0]), batch[1])

    module = Failing("sam")
    with pytest.raises(KeyError):
        fit(module)
    assert same_bits(module.net, small())
    assert not module.looking_around


def test_validation_sees_whole_batches():
    class Validated(Digits):
        def val_dataloader(self) -> Any:
            return DataLoader(DATA, 32)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            sizes.append(len(batch[1]))

    sizes: list[int] = []
    fit(Validated("agnostic-sam"), epochs=1)
    assert set(sizes) == {32}


# --- what is counted


class Accuracy:
    """A metric of somebody's own: a plain object, with tensors, numbers and a list."""

    def __init__(self) -> None:
        self.right, self.batches, self.parts = torch.zeros(()), 0, [torch.zeros(())]

    def update(self, logits: Tensor, labels: Tensor) -> None:
        right = (logits.argmax(1) == labels).sum()
        self.right += right
        self.parts[0] += right
        self.parts.append(right)
        self.batches += 1

    def compute(self) -> float:
        return float(self.right)


class Buffered(nn.Module):
    """Another: a module, its state a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("samples", torch.zeros((), dtype=torch.long))

    def update(self, labels: Tensor) -> None:
        self.samples += len(labels)

    def reset(self) -> None:
        self.samples.zero_()


class Measured(Digits):
    def __init__(self, method: str, **options: Any) -> None:
        super().__init__(method, **options)
        classes: dict[str, Any] = {"task": "multiclass", "num_classes": 10}
        self.accuracy = torchmetrics.Accuracy(**classes)
        self.several = torchmetrics.MetricCollection(
            [torchmetrics.Precision(**classes), torchmetrics.Recall(**classes)]
        )
        self.curve = torchmetrics.AUROC(**classes)  # keeps what it sees in lists
        self.own = {"all": [Accuracy()]}
        self.buffered = Buffered()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        now = self.accuracy(logits, labels)
        assert now == (logits.argmax(1) == labels).float().mean()
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.several.update(logits, labels)
        self.curve.update(logits.detach(), labels)
        self.own["all"][0].update(logits.detach(), labels)
        self.buffered.update(labels)
        if not self.looking_around:
            self.seen.append((logits.detach(), labels))
        return cross_entropy(logits, labels)

    def on_train_epoch_end(self) -> None:
        logits, labels = (torch.cat(x) for x in zip(*self.seen, strict=True))
        right = (logits.argmax(1) == labels).sum()
        assert self.buffered.samples == len(labels)
        assert self.own["all"][0].right == right == self.own["all"][0].parts[0]
        assert len(self.own["all"][0].parts) - 1 == self.own["all"][0].batches == len(self.seen)
        for metric in (self.several, self.curve):
            alone = metric.clone()
            alone.reset()
            alone.update(logits, labels)
            assert str(metric.compute()) == str(alone.compute())
        self.accurate = float(right / len(labels))


ONE_LOSS = [m for m, row in flatmin.methods.TABLE.items() if not row.per_sample]


@pytest.mark.parametrize("method", ONE_LOSS)
def test_metrics_see_each_primary_batch_once(method: str):
    module = fit(Measured(method), epochs=1)
    needed = flatmin.methods.find(method).auxiliary
    assert sum(len(labels) for _, labels in module.seen) == (72 if needed else 96)
    assert float(module.trainer.callback_metrics["accuracy"]) == pytest.approx(module.accurate)


def test_metrics_see_every_micro_batch_once():
    module = Measured("agnostic-sam", paired=True)
    module.micro_batches = 3
    fit(module, epochs=1)
    assert [len(labels) for _, labels in module.seen] == 12 * [8]
    assert float(module.trainer.callback_metrics["accuracy"]) == pytest.approx(module.accurate)


# --- what is skipped


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
@pytest.mark.parametrize("look", ["first", "later"])
@pytest.mark.parametrize("method", ["sam", "agnostic-sam", "lookbehind-sam"])
def test_a_batch_without_a_loss_is_skipped(method: str, look: str):
    class Skipping(Digits):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 1 and self.looking_around == (look == "later"):
                return None
            return super().training_step(batch, batch_idx)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            descended.append(optimizer)

    descended: list[Any] = []
    module = fit(Skipping(method))
    rows = [row for row in range(len(DATA)) if row // BATCH != 1]
    kept = TensorDataset(*DATA[rows])
    needed = flatmin.methods.find(method).auxiliary
    assert same_bits(module.net, loop(method, flatmin.split if needed else alone, data=kept))
    assert module.made.cost.steps == EPOCHS * 3
    assert len(descended) == EPOCHS * 3 * (5 if method == "lookbehind-sam" else 1)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_micro_batch_without_a_loss_adds_nothing():
    class Skipping(Digits):
        micro_batches = 2

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            first = torch.equal(batch[1], DATA.tensors[1][BATCH * batch_idx :][:12])
            return super().training_step(batch, batch_idx) if first else None

    def half(net: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(net(batch[0][:12]), batch[1][:12]) / 2

    module = fit(Skipping("sam", dtype=torch.float64))
    assert deviation(module.net, loop("sam", alone, look=half, dtype=torch.float64)) < 1e-12


# --- averaged weights


@pytest.mark.parametrize("method", ["sam", "agnostic-sam"])
def test_averaged_weights_get_statistics_of_their_own(method: str):
    class Normalized(Digits):
        def __init__(self) -> None:
            super().__init__(method)
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(32, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))
            self.made = optimizer_of(method, self.net)
            self.beginning = flat(self.net)
            self.weights: list[Tensor] = []

        def on_train_epoch_end(self) -> None:
            self.weights.append(flat(self.net))

    averages = lightning.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)
    module = fit(Normalized(), epochs=4, callbacks=[averages])
    # Lightning averages the weights that each epoch begins with; one more epoch gathers statistics.
    mean = torch.stack([module.beginning, *module.weights[:3]]).mean(0)
    assert torch.allclose(flat(module.net), mean, rtol=0, atol=1e-6)
    assert module.made.cost.steps == 16
    norm = module.net[1]
    expected = nn.BatchNorm1d(12, momentum=None)
    with torch.no_grad():
        for x in DATA.tensors[0].split(BATCH):
            expected(module.net[0](x))
    assert int(norm.num_batches_tracked) == 4
    assert torch.allclose(norm.running_mean, expected.running_mean, atol=1e-6)
    assert torch.allclose(norm.running_var, expected.running_var, atol=1e-6)


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


# --- resuming


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")  # a resumed run's does
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_one_that_was_not_stopped(method: str, tmp_path: Path, example: Any):
    def trainer() -> Any:
        saves = lightning.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
        quiet = {**QUIET, "enable_checkpointing": True}
        return lightning.Trainer(max_epochs=3, callbacks=[saves], **quiet)

    digits = example("lightning_digits")
    whole = digits.Digits(method)
    trainer().fit(whole)

    resumed = digits.Digits(method)
    newer = "weights_only" in signature(lightning.Trainer.fit).parameters
    asked = {"weights_only": True} if newer else {}
    trainer().fit(resumed, ckpt_path=tmp_path / "epoch=0.ckpt", **asked)
    assert same_bits(resumed.model, whole.model)
    assert resumed.optimizers().cost == whole.optimizers().cost


# --- what is refused


def test_accumulation_by_lightning_is_refused_with_the_way_to_go():
    module = Digits()
    with pytest.raises(MisconfigurationException, match="set micro_batches = 4 on your Digits"):
        fit(module, accumulate_grad_batches=4)
    assert same_bits(module.net, small())


@pytest.mark.filterwarnings("ignore:When using .Trainer.accumulate_grad_batches")
def test_a_schedule_of_accumulation_is_refused_before_the_first_batch():
    later = lightning.callbacks.GradientAccumulationScheduler({1: 4})
    module = Digits()
    with pytest.raises(MisconfigurationException, match="set micro_batches = 4 on your Digits"):
        fit(module, callbacks=[later])
    assert module.looks == []
    assert same_bits(module.net, small())


def test_a_schedule_that_accumulates_nothing_is_none():
    never = lightning.callbacks.GradientAccumulationScheduler({0: 1})
    assert same_bits(fit(Digits(), callbacks=[never]).net, loop("sam", alone))


def test_an_engine_that_steps_by_itself_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SingleDeviceStrategy, "handles_gradient_accumulation", True)  # DeepSpeed's
    with pytest.raises(MisconfigurationException, match="SingleDeviceStrategy steps inside its ow"):
        fit(Digits())


def test_fsdp1_is_refused():
    module = Digits()
    module._trainer = SimpleNamespace(
        strategy=FSDPStrategy(), accumulate_grad_batches=1, train_dataloader=None, callbacks=[]
    )
    with pytest.raises(MisconfigurationException, match="FSDPStrategy swaps the storage"):
        module._refuse(module.made)


def test_processes_that_would_draw_the_same_pairs_are_refused():
    module = Digits("agnostic-sam", paired=True)
    module._trainer = SimpleNamespace(
        strategy=SingleDeviceStrategy(),
        accumulate_grad_batches=1,
        world_size=2,
        callbacks=[],
        train_dataloader=module.train_dataloader(),
    )
    with pytest.raises(MisconfigurationException, match="would draw the same batches"):
        module._refuse(module.made)


def test_accumulation_beside_an_ordinary_module_is_refused():
    module = Ordinary()
    with pytest.raises(RuntimeError, match=r"Lightning accumulates.*SharpnessAwareModule"):
        fit(module, accumulate_grad_batches=2)
    assert same_bits(module.net, small())


def test_esam_is_refused():
    with pytest.raises(MisconfigurationException, match="LossRise chooses samples"):
        fit(Digits("esam"))


def test_the_loss_scaler_beside_an_ordinary_module_is_refused():
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(TypeError, match="needs a closure"):
        fit(Ordinary(), plugins=plugin)


def test_a_hook_that_forgets_its_base_class_is_told():
    class Forgetful(Digits):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    with pytest.raises(MisconfigurationException, match=r"must call super\(\)"):
        fit(Forgetful("agnostic-sam"))


def test_manual_optimization_takes_closures_of_its_own():
    class Manual(Ordinary):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            def look(part: Any) -> Tensor:
                loss = cross_entropy(self.net(part[0]), part[1])
                self.manual_backward(loss)
                return loss

            primary, auxiliary = flatmin.split(batch)
            self.optimizers().step(lambda: look(primary), aux_closure=lambda: look(auxiliary))

    assert same_bits(fit(Manual("agnostic-sam")).net, loop("agnostic-sam", flatmin.split))

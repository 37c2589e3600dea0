"""The Hugging Face Trainer takes the steps that a plain loop takes."""

from __future__ import annotations

import math
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tables import IMAGES, LABELS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, IterableDataset, SequentialSampler, default_collate
from weights import deviation, same_bits

import flatmin

pytest.importorskip("transformers", reason="transformers is not installed")

from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import Trainer, TrainerCallback, TrainingArguments

from flatmin.integrations.transformers import SharpnessAwareTrainer, drawn_indices

METHODS = ["sam", "agnostic-sam", "ae-agnostic-sam-previous", "look-sam"]
SIZE, BATCH, EPOCHS = 96, 24, 2
STEPS = EPOCHS * SIZE // BATCH

Inputs = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch):
    """Accelerate remembers the first accelerator of a process, and older Trainers its precision."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    forget()


def forget() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Digits(Dataset[Inputs]):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.images, self.labels = IMAGES[:SIZE].to(dtype), LABELS[:SIZE]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Inputs:
        return {"images": self.images[i], "labels": self.labels[i]}


class Stream(IterableDataset[Inputs]):
    def __iter__(self) -> Iterator[Inputs]:
        yield from (Digits()[i] for i in range(SIZE))


class Classifier(nn.Module):
    """A model as the Trainer likes it; it draws random numbers, as most do."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(32, 12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 10)
        ).to(dtype)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(images)
        found = {"logits": logits}
        return found if labels is None else {"loss": cross_entropy(logits, labels), **found}


class InOrder:
    """Sequential sampling, which older releases have no argument for."""

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Ours(InOrder, SharpnessAwareTrainer):
    pass


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.01,
        "optim": "adamw_torch",  # by default a fused kernel, which rounds otherwise
        "lr_scheduler_type": "linear",
        "max_grad_norm": 0.0,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return TrainingArguments(str(folder), **given)


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters in the groups that the Trainer makes: a norm is summed in their order."""
    decayed = Trainer.get_decay_parameter_names(None, model)
    named = list(model.named_parameters())
    groups = [[p for n, p in named if (n in decayed) is wanted] for wanted in (True, False)]
    return [{"params": group} for group in groups]


def adamw(model: nn.Module, lr: float = 0.01) -> torch.optim.Optimizer:
    """The Trainer's base optimizer."""
    return torch.optim.AdamW(grouped(model), lr=lr, weight_decay=0.0)


def trainer_of(
    folder: Path,
    method: Any = "sam",
    dtype: torch.dtype = torch.float32,
    options: dict[str, Any] | None = None,
    **asked: Any,
) -> SharpnessAwareTrainer:
    keywords = {"rho": 0.1, "train_dataset": Digits(dtype), "method": method, **(options or {})}
    model = keywords.pop("model", None) or Classifier(dtype)
    return keywords.pop("of", Ours)(model, arguments(folder, **asked), **keywords)


def batches(dtype: torch.dtype = torch.float32) -> Iterator[tuple[int, Inputs]]:
    data = Digits(dtype)
    for step in range(STEPS):
        at = range(BATCH * step % SIZE, BATCH * step % SIZE + BATCH)
        yield step, default_collate([data[i] for i in at])


def drawn(step: int, batch: Inputs) -> tuple[Inputs, Inputs]:
    data = Digits(batch["images"].dtype)
    at = drawn_indices(SIZE, BATCH // 4, seed=42, step=step)
    return batch, default_collate([data[i] for i in at])


def split(step: int, batch: Inputs) -> tuple[Inputs, Inputs]:
    return flatmin.split(batch)


def plain(
    method: str,
    pairs: Callable[[int, Inputs], tuple[Inputs, Inputs]] = drawn,
    dtype: torch.dtype = torch.float32,
    *,
    cast: Callable[[], Any] = nullcontext,
    **options: Any,
) -> nn.Module:
    """The Trainer's schedule and base optimizer, in a loop of one's own."""
    model = Classifier(dtype)
    row = flatmin.methods.find(method)
    optimizer = row.build(adamw(model), 0.1, total_steps=STEPS, model=model, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)

    def losses_on(chosen: Tensor | None, batch: Inputs) -> Tensor:
        x, y = batch["images"], batch["labels"]
        x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
        with cast():
            return cross_entropy(model.net(x), y, reduction="none")

    def look(batch: Inputs) -> Tensor:
        with cast():
            logits = model.net(batch["images"])
            loss = cross_entropy(logits, batch["labels"])
        loss.backward()
        return loss

    for step, batch in batches(dtype):
        torch.manual_seed(step)
        primary, auxiliary = pairs(step, batch)
        if row.per_sample:
            optimizer.step(partial(losses_on, batch=batch))
        elif row.auxiliary:
            optimizer.step(partial(look, primary), partial(look, auxiliary))
        else:
            optimizer.step(partial(look, batch))
        schedule.step()
    return model


class Seeded(TrainerCallback):
    """The Trainer's loaders draw random numbers of their own; so every step is seeded."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(state.global_step)


def train(trainer: SharpnessAwareTrainer, **options: Any) -> nn.Module:
    trainer.add_callback(Seeded())
    trainer.train(**options)
    return trainer.model


# --- the same weights


@pytest.mark.parametrize("method", [*METHODS, "vasso", "gsam", "lookbehind-sam"])
def test_training_is_that_of_the_plain_loop(method: str, tmp_path: Path):
    assert same_bits(train(trainer_of(tmp_path, method)), plain(method))


@pytest.mark.parametrize("method", ["agnostic-sam", "look-agnostic-sam"])
def test_an_auxiliary_batch_may_be_split_off(method: str, tmp_path: Path):
    trainer = trainer_of(tmp_path, method, options={"auxiliary": "split"})
    assert same_bits(train(trainer), plain(method, split))


def test_an_optimizer_may_be_handed_over(tmp_path: Path):
    model = Classifier()
    made = flatmin.AgnosticSAM(adamw(model), 0.1, model=model)
    options = {"model": model, "optimizers": (made, None), "rho": None}
    trainer = trainer_of(tmp_path, None, options=options)
    assert same_bits(train(trainer), plain("agnostic-sam"))
    assert made.cost.steps == STEPS


def test_a_method_may_be_a_function_of_the_base_optimizer(tmp_path: Path):
    def method(base: torch.optim.Optimizer) -> flatmin.SharpnessAware:
        return flatmin.SAM(base, rho=0.1, model=trainer.model)

    trainer = trainer_of(tmp_path, method, options={"rho": None})
    assert same_bits(train(trainer), plain("sam"))


def test_a_method_that_chooses_samples_takes_one_loss_for_each(tmp_path: Path):
    def losses(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
        return cross_entropy(outputs["logits"], labels, reduction="none")

    trainer = trainer_of(tmp_path, "esam", options={"compute_loss_func": losses})
    assert same_bits(train(trainer), plain("esam"))


@pytest.mark.parametrize("method", METHODS)
def test_the_vision_transformer_of_the_example_is_trained_as_in_a_plain_loop(
    method: str, tmp_path: Path, example: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
):
    digits = example("transformers_digits")
    monkeypatch.setattr(Trainer, "_get_train_sampler", InOrder._get_train_sampler)
    trainer = digits.trainer_of(
        method, str(tmp_path), max_steps=4, lr_scheduler_type="constant", disable_tqdm=True,
        logging_strategy="no",
        optim="sgd", learning_rate=0.1,
    )  # fmt: skip
    trained = train(trainer)

    model = digits.vision_transformer().train()
    data = digits.Images(example("plain").digits()[0])
    row = flatmin.methods.find(method)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = row.build(base, total_steps=4, model=model, max_norm=1.0)

    def look(indices: list[int]) -> Tensor:
        loss = model(**default_collate([data[i] for i in indices])).loss
        loss.backward()
        return loss

    for step in range(4):
        torch.manual_seed(step)
        primary = list(range(64 * step, 64 * step + 64))
        auxiliary = drawn_indices(len(data), 16, seed=42, step=step)
        closures = [partial(look, primary), partial(look, auxiliary)]
        optimizer.step(*closures[: 1 + row.auxiliary])
    # Not bit for bit: how products and norms are rounded depends on where their tensors lie. Nor
    # with Adam, which makes the rounding of a zero gradient (the keys' bias) as large as others.
    assert deviation(trained, model) < 1e-5 < 1e-3 < deviation(digits.vision_transformer(), model)


# --- micro-batches, precision and clipping


@pytest.mark.parametrize(
    "method, auxiliary", [*((method, "drawn") for method in METHODS), ("agnostic-sam", "split")]
)
def test_accumulated_micro_batches_equal_the_large_batch(
    method: str, auxiliary: str, tmp_path: Path
):
    model = partial(_without_dropout, torch.float64)
    chosen: Any = {"auxiliary": auxiliary, "auxiliary_fraction": 0.25}
    whole = trainer_of(tmp_path, method, torch.float64, {"model": model(), **chosen})
    pieces = trainer_of(
        tmp_path, method, torch.float64, {"model": model(), **chosen},
        per_device_train_batch_size=BATCH // 3, gradient_accumulation_steps=3,
    )  # fmt: skip
    if auxiliary == "split":  # the same samples, whichever batch they are split from
        for trainer in (whole, pieces):
            trainer._with_auxiliary = lambda parts: _every_fourth(parts)
    assert deviation(train(pieces), train(whole)) < 1e-10
    assert pieces.state.global_step == whole.state.global_step == STEPS


def _without_dropout(dtype: torch.dtype) -> Classifier:
    model = Classifier(dtype)
    model.net[2].p = 0.0
    return model


def _every_fourth(parts: list[Inputs]) -> tuple[list[Inputs], list[Inputs]]:
    rows = [torch.arange(len(part["labels"])) % 4 == 3 for part in parts]
    primary = [{k: v[~r] for k, v in part.items()} for part, r in zip(parts, rows, strict=True)]
    return primary, [
        {k: v[r] for k, v in part.items()} for part, r in zip(parts, rows, strict=True)
    ]


def test_a_large_auxiliary_batch_comes_in_pieces_that_fit(tmp_path: Path):
    sizes: list[int] = []
    trainer = trainer_of(
        tmp_path, "agnostic-sam", options={"auxiliary_fraction": 1.0}, max_steps=2,
        per_device_train_batch_size=8, gradient_accumulation_steps=3,
    )  # fmt: skip
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["labels"])), with_kwargs=True
    )
    train(trainer)
    assert len(sizes) == 2 * (3 + 3 + 3 + 3)  # two primary looks, two auxiliary ones
    assert set(sizes) == {8}


@pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast")  # older Trainers' own
def test_bfloat16_is_the_loop_under_autocast(tmp_path: Path):
    cast = partial(torch.autocast, "cpu", torch.bfloat16)
    trained = train(trainer_of(tmp_path, "agnostic-sam", bf16=True))
    assert same_bits(trained, plain("agnostic-sam", cast=cast))
    assert not same_bits(trained, plain("agnostic-sam"))


@pytest.mark.parametrize("most", [0.0, 0.05])
def test_a_loss_scaler_is_used_by_flatmin_amp(most: float, tmp_path: Path):
    trainer = trainer_of(tmp_path, "agnostic-sam", max_grad_norm=most)
    # On a CPU Accelerate makes none. A power of two, so that scaling changes no bit.
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    forget()
    unscaled = trainer_of(tmp_path, "agnostic-sam", max_grad_norm=most)
    assert same_bits(train(trainer), train(unscaled))
    assert trainer.accelerator.scaler.state_dict()["_growth_tracker"] == STEPS


@pytest.mark.parametrize("method", ["sam", "agnostic-sam", "lookbehind-sam"])
def test_clipping_meets_the_gradient_that_is_descended_alone(method: str, tmp_path: Path):
    trained = train(trainer_of(tmp_path, method, max_grad_norm=0.05, optim="sgd"))
    # SGD, since Adam would not notice a gradient of another length.
    free = train(trainer_of(tmp_path, method, max_grad_norm=0.0, optim="sgd"))

    model = Classifier()
    base = torch.optim.SGD(model.parameters(), lr=0.01)
    build = flatmin.methods.find(method).build
    optimizer = build(base, 0.1, total_steps=STEPS, model=model, max_norm=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)

    def look(batch: Inputs) -> Tensor:
        loss = model(**batch)["loss"]
        loss.backward()
        return loss

    for step, batch in batches():
        torch.manual_seed(step)
        pair = drawn(step, batch)
        needed = flatmin.methods.find(method).auxiliary
        optimizer.step(*(partial(look, b) for b in pair[: 1 + needed]))
        schedule.step()
    assert deviation(trained, model) < 1e-6 < 1e-3 < deviation(free, model)


# --- what is told


def test_what_is_logged_is_the_loss_and_the_gradient_that_count(tmp_path: Path):
    trainer = trainer_of(tmp_path, logging_strategy="steps", logging_steps=1, max_grad_norm=1e-3)
    looks: list[float] = []
    lengths: list[float] = []
    trainer.model.register_forward_hook(lambda *seen: looks.append(seen[2]["loss"].item()))

    class Spy(TrainerCallback):
        def on_train_begin(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            base = optimizer.optimizer.base
            base.register_step_pre_hook(lambda *_: lengths.append(_length(base)))

    trainer.add_callback(Spy())
    train(trainer)
    seen = [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history[:STEPS]]
    assert [loss for loss, _ in seen] == pytest.approx(looks[::2], abs=1e-4)
    assert looks[::2] != pytest.approx(looks[1::2], abs=1e-3)
    # Ours clips after every other hook, so that the spy saw each gradient at its full length.
    assert all(math.isfinite(norm) and norm > 1e-3 for _, norm in seen)
    assert [norm for _, norm in seen] == pytest.approx(lengths, rel=1e-3)


def _length(base: torch.optim.Optimizer) -> float:
    grads = [p.grad for group in base.param_groups for p in group["params"]]
    return float(torch.stack([g.norm() for g in grads]).norm())


def test_accelerate_may_step_again_when_training_is_over(tmp_path: Path):
    trainer = trainer_of(tmp_path, max_steps=1)
    train(trainer)
    assert trainer.accelerator.sync_gradients


# --- what runs behind ours, and what it counts


class Behind(Trainer):
    """A Trainer of somebody else's, as TRL's are: it measures, counts and logs on the way."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.figures: Any = {"train": defaultdict(list)}
        self.samples, self.total = 0, torch.zeros(())
        self.latest: deque[float] = deque(maxlen=3)
        self.meter = Meter()
        self.stepped = 0
        super().__init__(*args, **options)

    def training_step(self, model: nn.Module, inputs: Any, *items: Any) -> Tensor:
        loss = 2 * super().training_step(model, inputs, *items)
        self.stepped += 1
        return loss

    def compute_loss(self, model: nn.Module, inputs: Inputs, *args: Any, **options: Any) -> Any:
        loss = 3 * super().compute_loss(model, inputs, *args, **options)
        self.figures["train"]["loss"].append(loss.item())
        self.samples += len(inputs["labels"])
        self.total += loss.detach()
        self.latest.append(loss.item())
        self.meter.update(loss.item())
        self.log({"told": loss.item()})
        return loss


class Meter:
    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, value: float) -> None:
        self.sum += value
        self.count += 1

    def compute(self) -> float:
        return self.sum / self.count


class Before(SharpnessAwareTrainer):
    """And one in front of ours."""

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        loss = super().compute_loss(*args, **options)
        (self.again if self.looking_around else self.here).append(loss.item())
        return loss


class Both(InOrder, Before, Behind):
    def __init__(self, *args: Any, **options: Any) -> None:
        self.here, self.again = [], []
        super().__init__(*args, **options)


ONE_LOSS = [m for m, row in flatmin.methods.TABLE.items() if not row.per_sample]


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("method", ONE_LOSS)
def test_overrides_run_at_every_look_and_count_once(method: str, pieces: int, tmp_path: Path):
    trainer = trainer_of(
        tmp_path, method, options={"of": Both}, num_train_epochs=1, logging_strategy="no",
        per_device_train_batch_size=BATCH // pieces, gradient_accumulation_steps=pieces,
    )  # fmt: skip
    looks: list[float] = []
    trainer.model.register_forward_hook(lambda *seen: looks.append(3 * seen[2]["loss"].item()))
    train(trainer)
    first = trainer.figures["train"]["loss"]
    assert trainer.samples == SIZE
    assert trainer.stepped == trainer.meter.count == len(first) == pieces * SIZE // BATCH
    assert trainer.here == first  # `again` is a record of the trainer's too
    assert trainer.again == []
    assert trainer.meter.sum == pytest.approx(sum(first))
    assert float(trainer.total) == pytest.approx(sum(first), rel=1e-5)
    assert list(trainer.latest) == first[-3:]
    told = [entry["told"] for entry in trainer.state.log_history if "told" in entry]
    assert told == first
    assert first[:pieces] == pytest.approx(looks[:pieces], rel=1e-6)
    cost = trainer.optimizer.optimizer.cost
    primary = pieces * (cost.gradients - cost.auxiliary)  # auxiliary batches are not cut
    assert len(looks) == primary + cost.auxiliary >= len(first)


def test_a_loss_computed_behind_ours_is_the_one_that_is_descended(tmp_path: Path):
    trainer = trainer_of(tmp_path, "sam", options={"of": Both}, optim="sgd")
    scaled = train(trainer)

    model = Classifier()
    optimizer = flatmin.SAM(torch.optim.SGD(grouped(model), lr=0.01), 0.1, model=model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)

    def look(batch: Inputs) -> Tensor:
        loss = 3 * model(**batch)["loss"]
        loss.backward()
        return loss

    for step, batch in batches():
        torch.manual_seed(step)
        optimizer.step(partial(look, batch))
        schedule.step()
    assert same_bits(scaled, model)


def test_large_data_that_a_trainer_holds_is_not_copied(tmp_path: Path):
    class Holding(Both):
        def compute_loss(self, *args: Any, **options: Any) -> Any:
            held.update((id(self.bank), id(self.train_dataset), id(self.eval_dataset)))
            return super().compute_loss(*args, **options)

    held: set[int] = set()
    trainer = trainer_of(tmp_path, "sam", options={"of": Holding}, max_steps=1)
    trainer.bank, trainer.eval_dataset = torch.zeros(1 << 17), [{}]
    train(trainer)
    assert len(held) == 3


# --- inputs that are prepared


class Generating(Trainer):
    """As GRPO's: lists come in, completions are generated from them once in two micro-batches."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.generated: list[list[float]] = []
        self.step_of_batch, self.buffered = 0, None
        super().__init__(*args, **options)

    def _prepare_inputs(self, inputs: Any) -> Inputs:
        assert isinstance(inputs, list)
        if self.step_of_batch % 2 == 0:
            noise = torch.randn(len(inputs), 1)  # the completions
            self.generated.append(noise.flatten().tolist())
            self.buffered = noise.chunk(2)
        half = slice(0, BATCH // 2) if self.step_of_batch % 2 == 0 else slice(BATCH // 2, None)
        batch = default_collate(inputs[half])
        batch["images"] = batch["images"] + self.buffered[self.step_of_batch % 2]
        return batch

    def training_step(self, model: nn.Module, inputs: Any, *items: Any) -> Tensor:
        loss = super().training_step(model, inputs, *items)
        self.step_of_batch += 1
        return loss


class GeneratingOurs(InOrder, SharpnessAwareTrainer, Generating):
    pass


@pytest.mark.parametrize("method", ["sam", "agnostic-sam-previous", "lookbehind-sam"])
def test_completions_are_generated_once_a_step(method: str, tmp_path: Path):
    """A loader of lists; two micro-batches share what the first of them has generated."""
    data = [Digits()[i] for i in range(SIZE)]
    options = {"of": GeneratingOurs, "train_dataset": data, "data_collator": list}
    trainer = trainer_of(
        tmp_path, method, options=options, max_steps=2, gradient_accumulation_steps=2
    )
    train(trainer)
    assert len(trainer.generated) == 2

    model = Classifier()
    row = flatmin.methods.find(method)
    optimizer = row.build(adamw(model), 0.1, total_steps=2, model=model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 2)
    for step in range(2):
        torch.manual_seed(step)
        noise = torch.randn(BATCH, 1)
        assert noise.flatten().tolist() == trainer.generated[step]
        batch = [default_collate(data[BATCH * i :][:BATCH]) for i in (2 * step, 2 * step + 1)]
        images = torch.cat([batch[0]["images"][:12], batch[1]["images"][12:]]) + noise
        labels = torch.cat([batch[0]["labels"][:12], batch[1]["labels"][12:]])

        def look(images: Tensor = images, labels: Tensor = labels) -> Tensor:
            loss = sum(
                model(x, y)["loss"] / 2
                for x, y in zip(images.chunk(2), labels.chunk(2), strict=True)
            )
            loss.backward()
            return loss

        optimizer.step(look)
        schedule.step()
    assert deviation(trainer.model, model) < 1e-5 < 1e-3 < deviation(Classifier(), model)


def test_an_auxiliary_batch_of_completions_is_refused(tmp_path: Path):
    data = [Digits()[i] for i in range(SIZE)]
    options = {"of": GeneratingOurs, "train_dataset": data, "data_collator": list}
    trainer = trainer_of(tmp_path, "agnostic-sam", options=options)
    with pytest.raises(ValueError, match=r"prepares its batches from a list.*one batch"):
        train(trainer)
    assert same_bits(trainer.model, Classifier())


def test_a_step_that_others_take_themselves_may_not_generate_again(tmp_path: Path):
    class Alone(Trainer):
        def training_step(self, model: nn.Module, inputs: Any, *items: Any) -> Tensor:
            model.generate(inputs)
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    class Sharp(InOrder, SharpnessAwareTrainer, Alone):
        pass

    generated: list[Any] = []
    model = Classifier()
    model.generate = generated.append
    trainer = trainer_of(tmp_path, "sam", options={"of": Sharp, "model": model})
    with pytest.raises(RuntimeError, match=r"Alone calls generate in every look.*_prepare_inputs"):
        train(trainer)
    assert len(generated) == 1
    assert same_bits(model, Classifier())
    assert model.generate == generated.append


def test_a_method_that_chooses_samples_cannot_run_overrides_of_training_step(tmp_path: Path):
    with pytest.raises(ValueError, match="training_step of Behind would never run"):
        train(trainer_of(tmp_path, "esam", options={"of": Both}))


# --- what an interrupt leaves


@pytest.mark.parametrize("stop", ["should_training_stop", "raise"])
def test_micro_batches_that_wait_for_a_step_are_not_dropped_silently(stop: str, tmp_path: Path):
    class Stopping(TrainerCallback):
        armed = True

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if state.global_step == 1 and self.armed:
                self.armed = False
                if stop == "raise":
                    raise KeyboardInterrupt
                control.should_training_stop = True
            return control

    asked = {"per_device_train_batch_size": BATCH // 3, "gradient_accumulation_steps": 3}
    trainer = trainer_of(tmp_path, "sam", max_steps=4, **asked)
    trainer.add_callback(Stopping())
    message = "stopped within a step, so that 1 of its 3 micro-batches"
    if stop == "raise":
        with pytest.raises(KeyboardInterrupt):
            train(trainer)
        with pytest.warns(RuntimeWarning, match=message):
            trainer.train()
        assert trainer.optimizer.optimizer.cost.steps == 1 + 4
    else:
        with pytest.warns(RuntimeWarning, match=message):
            train(trainer)
        assert trainer.optimizer.optimizer.cost.steps == 1
    assert trainer._waiting == []


# --- resuming


@pytest.mark.parametrize(
    "method, stopped", [*((method, 3) for method in METHODS), ("agnostic-sam", 4)]
)  # within an epoch, and between two
def test_a_resumed_run_equals_one_that_was_not_stopped(method: str, stopped: int, tmp_path: Path):
    saving = {"save_strategy": "steps", "save_steps": stopped, "max_grad_norm": 0.5}
    whole = trainer_of(tmp_path, method, **saving)
    whole.train()
    resumed = trainer_of(tmp_path, method, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stopped}"))
    assert same_bits(resumed.model, whole.model)
    assert resumed.optimizer.optimizer.cost.steps == STEPS


# --- what is drawn


def test_a_draw_is_without_replacement_and_depends_on_what_it_says():
    draw = drawn_indices(1000, 100, seed=0, step=0)
    assert len(set(draw)) == 100
    assert set(draw) < set(range(1000))
    others = [
        drawn_indices(1000, 100, seed=1, step=0),
        drawn_indices(1000, 100, seed=0, step=1),
        drawn_indices(1000, 100, seed=0, step=0, rank=1),
    ]
    assert all(set(draw) != set(other) for other in others)
    assert sorted(drawn_indices(3, 100, seed=0, step=0)) == [0, 1, 2]


def test_every_sample_is_drawn_about_as_often():
    counts = torch.zeros(50)
    for step in range(2000):
        counts[drawn_indices(50, 5, seed=0, step=step)] += 1
    assert counts.min() > 140
    assert counts.max() < 260


# --- what is refused


def test_no_method_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="which method"):
        trainer_of(tmp_path, None, options={"rho": None})


def test_two_methods_are_an_error(tmp_path: Path):
    model = Classifier()
    made = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="leave out one of them"):
        trainer_of(tmp_path, "sam", options={"model": model, "optimizers": (made, None)})


def test_an_unknown_method_offers_the_nearest(tmp_path: Path):
    with pytest.raises(ValueError, match="did you mean agnostic-sam"):
        trainer_of(tmp_path, "agnostic-san")


def test_a_radius_for_a_method_that_has_its_own_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="rho is the radius of a named method"):
        trainer_of(tmp_path, flatmin.SAM)


@pytest.mark.parametrize("fraction", [0.0, 1.5, -1.0])
def test_the_fraction_has_a_range(fraction: float, tmp_path: Path):
    with pytest.raises(ValueError, match="auxiliary_fraction must lie in"):
        trainer_of(tmp_path, options={"auxiliary_fraction": fraction})


def test_the_source_of_auxiliary_batches_is_one_of_two(tmp_path: Path):
    with pytest.raises(ValueError, match="auxiliary must be one of 'drawn', 'split'"):
        trainer_of(tmp_path, options={"auxiliary": "paired"})


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_engines_that_own_the_gradients_are_refused(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = SimpleNamespace(distributed_type=SimpleNamespace(value=engine))
    monkeypatch.setattr(
        Trainer,
        "create_accelerator_and_postprocess",
        lambda self: setattr(self, "accelerator", made),
    )
    with pytest.raises(ValueError, match=f"with {engine}, gradients or weights belong to an eng"):
        trainer_of(tmp_path)


def test_an_optimizer_of_another_kind_is_refused(tmp_path: Path):
    model = Classifier()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="steps flatmin optimizers, got SGD"):
        trainer_of(
            tmp_path, None, options={"model": model, "optimizers": (base, None), "rho": None}
        )


def test_the_trainer_itself_cannot_step_a_flatmin_optimizer(tmp_path: Path):
    model = Classifier()
    made = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    ordinary = Trainer(model, arguments(tmp_path), train_dataset=Digits(), optimizers=(made, None))
    with pytest.raises(TypeError, match="needs a closure"):
        ordinary.train()
    assert same_bits(model, Classifier())


def test_an_iterable_data_set_must_be_split(tmp_path: Path):
    options = {"train_dataset": Stream()}
    with pytest.raises(TypeError, match=r"write SharpnessAwareTrainer.*auxiliary='split'"):
        train(trainer_of(tmp_path, "agnostic-sam", options=options, max_steps=STEPS))
    options["auxiliary"] = "split"
    trained = train(trainer_of(tmp_path, "agnostic-sam", options=options, max_steps=STEPS))
    assert same_bits(trained, plain("agnostic-sam", split))


def test_choosing_samples_by_one_loss_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"one loss a sample.*got a loss of shape \(\)"):
        train(trainer_of(tmp_path, "esam"))


def test_choosing_samples_of_several_micro_batches_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=1 .got 2 micro-batches"):
        train(trainer_of(tmp_path, "esam", gradient_accumulation_steps=2))

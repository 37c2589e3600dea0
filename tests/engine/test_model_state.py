"""With `model=`, a step is one visit to the batch: running statistics and random numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tables import IMAGES, LABELS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import flatmin
from flatmin import methods


def conv(norm: nn.Module) -> nn.Sequential:
    """For images of 4 × 8 pixels, the middle rows of real digits."""
    layers = (nn.Unflatten(1, (1, 4, 8)), nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(48, 10))


def dense(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 12), norm, nn.ReLU(), nn.Linear(12, 10))


def series(norm: nn.Module) -> nn.Sequential:
    layers = (nn.Unflatten(1, (4, 8)), nn.Conv1d(4, 6, 3), norm, nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(36, 10))


def mixed() -> nn.Sequential:
    """Two layers of different widths, one within a block, one that keeps no statistics."""
    plain = nn.BatchNorm1d(12, track_running_stats=False)
    block = nn.Sequential(nn.Linear(12, 7), nn.BatchNorm1d(7, momentum=0.3), nn.Dropout(0.3))
    return nn.Sequential(
        nn.Linear(32, 12), nn.BatchNorm1d(12), plain, nn.ReLU(), block, nn.Linear(7, 10)
    )


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "BatchNorm1d": lambda: dense(nn.BatchNorm1d(12)),
    "BatchNorm2d": lambda: conv(nn.BatchNorm2d(4)),
    "cumulative BatchNorm": lambda: conv(nn.BatchNorm2d(4, momentum=None)),
    "SyncBatchNorm": lambda: conv(nn.SyncBatchNorm(4)),
    "InstanceNorm1d": lambda: series(nn.InstanceNorm1d(6, affine=True, track_running_stats=True)),
    "InstanceNorm2d": lambda: conv(nn.InstanceNorm2d(4, track_running_stats=True)),
    "several layers": mixed,
}
LOOKS = ["sgd", "sam", "agnostic-sam", "look-sam", "lookbehind-sam", "esam"]

every_network = pytest.mark.parametrize("network", NETWORKS)
every_look = pytest.mark.parametrize("method", LOOKS)


class Training:
    """A model and a method; `on_pass(i)` runs before pass i of a step and may break it."""

    def __init__(
        self, network: str | nn.Module, method: str = "sam", *, know: bool = True, **options: Any
    ) -> None:
        torch.manual_seed(0)
        self.model = NETWORKS[network]() if isinstance(network, str) else network
        self.row = methods.TABLE[method]
        base = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        if know:
            options["model"] = self.model
        self.optimizer = self.row.build(base, total_steps=10, **options)
        self.passes = 0
        self.on_pass: Callable[[int], float] = lambda number: 1.0

    def closure(self, start: int, chosen: Tensor | None = None) -> Tensor:
        x, y = IMAGES[start : start + 16], LABELS[start : start + 16]
        x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
        self.passes += 1
        factor = self.on_pass(self.passes - 1)
        losses = factor * cross_entropy(self.model(x), y, reduction="none")
        if self.row.per_sample:
            return losses
        losses.mean().backward()
        return losses.mean()

    def step(self, number: int = 0) -> None:
        self.passes = 0
        closures = [partial(self.closure, 16 * number)]
        if self.row.auxiliary:
            closures.append(partial(self.closure, 900 + 16 * number))
        self.optimizer.step(*closures)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


def assert_equal(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, x in ours.items():
        assert torch.equal(x, expected[name]), name


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, "track_running_stats")]


# --- running statistics


@every_network
@every_look
def test_statistics_move_once_a_step(network: str, method: str):
    training = Training(network, method)
    tracked = [layer.track_running_stats for layer in layers(training.model)]
    for number in range(3):
        once = copy.deepcopy(training.model)
        once(IMAGES[16 * number : 16 * number + 16])
        training.step(number)
        assert_equal(buffers(training.model), buffers(once))
    assert [layer.track_running_stats for layer in layers(training.model)] == tracked


@every_network
def test_without_the_model_they_move_at_every_pass(network: str):
    """What the test above rests on."""
    training = Training(network, know=False)
    once = copy.deepcopy(training.model)
    once(IMAGES[:16])
    training.step()
    assert any(
        not torch.equal(b, dict(once.named_buffers())[name])
        for name, b in training.model.named_buffers()
    )


def passes_of(method: str) -> int:
    training = Training("BatchNorm1d", method)
    training.step()
    return training.passes


BROKEN = [(method, number) for method in LOOKS for number in range(passes_of(method))]


@every_network
@pytest.mark.parametrize("method, broken", BROKEN)
def test_statistics_come_back_when_a_pass_raises(network: str, method: str, broken: int):
    training = Training(network, method)
    before = buffers(training.model)

    def interrupt(number: int) -> float:
        if number == broken:
            training.model(IMAGES[:4])  # so that the pass has something to undo
            raise KeyboardInterrupt
        return 1.0

    training.on_pass = interrupt
    with pytest.raises(KeyboardInterrupt):
        training.step()
    assert_equal(buffers(training.model), before)
    training.on_pass = lambda number: 1.0
    training.step()
    fresh = Training(network, method)
    fresh.step()
    assert_equal(buffers(training.model), buffers(fresh.model))


@every_network
@pytest.mark.parametrize("method", LOOKS)
def test_statistics_come_back_when_a_step_is_skipped(network: str, method: str):
    training = Training(network, method)
    before = buffers(training.model)
    training.on_pass = lambda number: float("nan")
    with pytest.warns(RuntimeWarning, match="skipped"):
        training.step()
    assert_equal(buffers(training.model), before)


@every_network
def test_layers_in_evaluation_mode_stay_as_they_are(network: str):
    """Frozen statistics, as when a trained network is tuned further: used in every pass."""
    training = Training(network, "agnostic-sam")
    training.model(IMAGES[500:600])
    for layer in layers(training.model):
        layer.eval()
    before = buffers(training.model)
    outputs: list[tuple[Tensor, Tensor]] = []

    def compare(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        alone = copy.deepcopy(layer)
        alone._forward_hooks.clear()
        alone.track_running_stats = bool(dict(layer.named_buffers()))
        outputs.append((output.detach(), alone(inputs[0]).detach()))

    for layer in layers(training.model):
        layer.register_forward_hook(compare)
    training.step()
    assert_equal(buffers(training.model), before)
    assert len(outputs) == 4 * len(layers(training.model))
    assert all(torch.equal(ours, alone) for ours, alone in outputs)


def test_some_layers_may_be_frozen_and_others_not():
    training = Training("several layers")
    first, _, second = layers(training.model)
    first.eval()
    still = buffers(first)
    training.step()
    assert_equal(buffers(first), still)
    assert second.num_batches_tracked == 1


def test_which_layers_are_frozen_may_change_between_steps():
    training = Training("several layers")
    first, _, second = layers(training.model)
    for trained, frozen in ((first, second), (second, first), (first, second)):
        trained.train()
        frozen.eval()
        before = training.optimizer.cost.steps
        training.step()
        assert training.optimizer.cost.steps == before + 1
    assert first.num_batches_tracked == 2
    assert second.num_batches_tracked == 1


@pytest.mark.parametrize("broken", [0, 1])
def test_a_closure_may_set_the_mode_itself(broken: int):
    """`model.train()` in the closure, after an evaluation has left the model in its own mode."""
    training = Training("BatchNorm1d")
    training.model.eval()
    before = buffers(training.model)

    def train(number: int) -> float:
        training.model.train()
        return float("nan") if number == broken else 1.0

    training.on_pass = train
    with pytest.warns(RuntimeWarning, match="skipped"):
        training.step()
    assert_equal(buffers(training.model), before)
    broken = -1
    training.step()
    assert layers(training.model)[0].num_batches_tracked == 1


def test_a_layer_added_later_counts_too():
    training = Training("BatchNorm1d")
    late = nn.BatchNorm1d(10)
    training.model.append(late)
    training.optimizer.add_param_group({"params": late.parameters()})
    training.step()
    assert late.num_batches_tracked == 1


def test_a_model_in_evaluation_mode_draws_no_statistics_and_no_masks():
    training = Training("several layers")
    training.model.eval()
    before, state = buffers(training.model), torch.get_rng_state()
    training.step()
    assert_equal(buffers(training.model), before)
    assert torch.equal(torch.get_rng_state(), state)


# --- random numbers


class Masks(nn.Dropout):
    """Dropout that keeps each mask it has drawn."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.drawn: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(torch.ones_like(x))
        self.drawn.append(out.detach() != 0)
        return x * out


def masks(method: str, *, know: bool = True, **options: Any) -> tuple[list[Tensor], Tensor]:
    """The masks of the passes of one step, in order, and what the stream gives afterwards."""
    dropout = Masks()
    model = nn.Sequential(nn.Linear(32, 12), dropout, nn.Linear(12, 10))
    training = Training(model, method, know=know, **options)
    torch.manual_seed(7)
    training.step()
    return dropout.drawn, torch.rand(4)


def drawn_alone(times: int) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(7)
    dropout = Masks()
    for _ in range(times):
        dropout(torch.ones(16, 12))
    return dropout.drawn, torch.rand(4)


@pytest.mark.parametrize("method", ["sam", "look-sam", "gsam", "lookbehind-sam"])
def test_every_pass_over_a_batch_draws_the_same_mask(method: str):
    seen, after = masks(method)
    (first,), expected = drawn_alone(1)
    assert len(seen) >= 2
    assert all(torch.equal(mask, first) for mask in seen)
    assert torch.equal(after, expected)


def test_the_auxiliary_batch_has_a_mask_of_its_own():
    seen, after = masks("agnostic-sam")
    (first, second), expected = drawn_alone(2)
    primary, aux, aux_again, primary_again = seen
    assert torch.equal(primary, first)
    assert torch.equal(primary_again, first)
    assert torch.equal(aux, second)
    assert torch.equal(aux_again, second)
    assert torch.equal(after, expected)


@pytest.mark.parametrize("options", [{"replay_random": False}, {"know": False}])
@pytest.mark.parametrize("method", ["sam", "agnostic-sam", "lookbehind-sam"])
def test_without_replay_each_pass_draws_a_new_mask(method: str, options: dict[str, bool]):
    seen, after = masks(method, **options)
    alone, expected = drawn_alone(len(seen))
    assert all(torch.equal(mask, other) for mask, other in zip(seen, alone, strict=True))
    assert not torch.equal(seen[0], seen[-1])
    assert torch.equal(after, expected)


def test_a_pass_that_raises_leaves_the_stream_where_the_step_found_it():
    training = Training("several layers")
    torch.manual_seed(7)
    expected = torch.rand(4)

    def interrupt(number: int) -> float:
        if number == 1:
            torch.rand(100)
            raise KeyboardInterrupt
        return 1.0

    training.on_pass = interrupt
    torch.manual_seed(7)
    with pytest.raises(KeyboardInterrupt):
        training.step()
    assert torch.equal(torch.rand(4), expected)


# --- what the model counts, and a compiled one


def test_one_hook_stays_and_samples_are_counted():
    """A hook of its own for each pass would have compiled graphs compiled anew each time."""
    training = Training("BatchNorm1d", "agnostic-sam")
    training.step()
    training.step()
    copied = copy.deepcopy((training.model, training.optimizer))
    flatmin.SAM(torch.optim.SGD(copied[0].parameters(), lr=0.1), model=copied[0])
    for model in (training.model, copied[0]):
        assert len(model._forward_pre_hooks) == 1
    training = Training("BatchNorm1d", "agnostic-sam")
    training.step()
    assert training.optimizer.cost.samples == 4 * 16
    assert training.optimizer.cost.primary_samples == 16


def test_samples_are_counted_whichever_way_the_model_is_called():
    class Keywords(nn.Linear):
        def forward(self, scale: float, *, images: Tensor, mask: Any = None) -> Tensor:
            return scale * super().forward(images)

    model = Keywords(32, 10)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = flatmin.SAM(base, model=model)

    def accumulated() -> Tensor:
        """Two micro-batches."""
        losses = [
            cross_entropy(model(0.5, images=IMAGES[at]), LABELS[at])
            for at in (slice(0, 10), slice(10, 16))
        ]
        torch.stack(losses).sum().backward()
        return torch.stack(losses).sum()

    optimizer.step(accumulated)
    assert optimizer.cost.samples == 32
    assert optimizer.cost.primary_samples == 16


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_keeps_the_promises_too():
    plain, compiled = Training("several layers"), Training("several layers")
    compiled.model = torch.compile(compiled.model, backend="eager")
    base = torch.optim.SGD(compiled.model.parameters(), lr=0.05, momentum=0.9)
    compiled.optimizer = flatmin.SAM(base, model=compiled.model)
    for number in range(2):
        for training in (plain, compiled):
            torch.manual_seed(number)
            training.step(number)
    ours = {name.removeprefix("_orig_mod."): b for name, b in compiled.model.named_buffers()}
    assert_equal(ours, buffers(plain.model))
    assert compiled.optimizer.cost == plain.optimizer.cost
    for ours, expected in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)

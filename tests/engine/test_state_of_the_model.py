"""With `model=`, a step is one visit to all that the model holds beside the weights."""

from __future__ import annotations

import copy
import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tables import BEGIN_PERTURBED, IMAGES, LABELS, METHODS
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations, prune

import flatmin
from flatmin import methods
from flatmin.engine import model_state


class Codebook(nn.Module):
    """Moving averages of what is nearest, behind torch's count of changes and before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(6, width))
        self.register_buffer("uses", torch.zeros(6))
        self.register_buffer("constant", torch.arange(3))
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            nearest = torch.cdist(x, self.codes).argmin(1)
            self.codes.data[nearest] += 0.1 * (x - self.codes[nearest])
            self.uses += torch.bincount(nearest, minlength=6)
        return x + 0.1 * self.codes[nearest]


class Queue(nn.Module):
    """A momentum encoder of frozen parameters, its queue, and a pointer that is made anew."""

    def __init__(self, encoder: nn.Linear) -> None:
        super().__init__()
        self.encoder = [encoder]  # not a submodule: it is the model's already
        self.slow = copy.deepcopy(encoder).requires_grad_(False)
        self.swapped = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("queue", torch.zeros(40, encoder.out_features))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(
                self.slow.parameters(), self.encoder[0].parameters(), strict=True
            ):
                slow.mul_(0.9).add_(fast, alpha=0.1)
            self.swapped.data = self.swapped.data * 0.9
            start = int(self.pointer) % 20
            self.queue[start : start + len(x)] = self.slow(x)
            self.pointer = self.pointer + len(x)
        return self.encoder[0](x) + 0.01 * self.queue.mean(0) * self.swapped.sum()


class Noise(nn.Module):
    """Random numbers of Python, NumPy, torch, and a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.Generator().manual_seed(3)
        self.numpy = np.random.default_rng(3)
        self.seen: list[tuple[float, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        drawn = (
            random.random(),
            float(np.random.rand()),  # noqa: NPY002
            float(torch.rand(())),
            float(torch.rand((), generator=self.own)),
            float(self.numpy.random()),
        )
        self.seen.append(drawn)
        return x * (1 + 0.01 * sum(drawn))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    encoder = nn.Linear(12, 12)
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(32, 12)),
        nn.BatchNorm1d(12),
        Codebook(12),
        encoder,
        Queue(encoder),
        nn.Linear(12, 10),
    )


class Visit:
    def __init__(self, method: str, lr: float = 0.0, **options: Any) -> None:
        self.model = network()
        self.row = methods.TABLE[method]
        base = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=lr)
        self.optimizer = self.row.build(base, total_steps=9, model=self.model, **options)
        self.spoil = lambda call: 1.0
        self.calls = 0
        self.inputs: list[dict[str, Tensor]] = []
        self.stood: Any = None

    def losses(self, start: int, chosen: Tensor | None = None) -> Tensor:
        x, y = IMAGES[start : start + 16], LABELS[start : start + 16]
        x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
        factor = self.spoil(self.calls)
        self.calls += 1
        self.inputs.append(copy.deepcopy(self.model.state_dict()))
        self.stood = self.stood or copy.deepcopy(self.model)
        losses = factor * cross_entropy(self.model(x), y, reduction="none")
        if not self.row.per_sample:
            losses.mean().backward()
        return losses if self.row.per_sample else losses.mean()

    def step(self, number: int = 0) -> None:
        self.calls = 0
        self.inputs.clear()
        closures = [partial(self.losses, 16 * number)]
        if self.row.auxiliary:
            closures.append(partial(self.losses, 900))
        self.optimizer.step(*closures)

    def held(self) -> dict[str, Tensor]:
        return copy.deepcopy(dict(self.model.state_dict()))


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert torch.equal(x, b[name]), name


every_method = pytest.mark.parametrize("method", METHODS)


@every_method
def test_after_a_step_the_model_is_as_after_one_forward_pass(method: str):
    visit = Visit(method)
    for number in range(3):
        visit.stood = None
        visit.step(number)
        once = visit.stood  # the model as the first pass found it: at `w`, or at `w + eps`
        once(IMAGES[16 * number : 16 * number + 16])
        if method in BEGIN_PERTURBED:  # what is trained has come home since
            trained = (p for p in visit.model.parameters() if p.requires_grad)
            mine = (p for p in once.parameters() if p.requires_grad)
            for p, q in zip(mine, trained, strict=True):
                p.data.copy_(q.data)
        assert_same(visit.held(), dict(once.state_dict()))


@every_method
def test_every_pass_starts_from_what_the_first_has_found(method: str):
    visit = Visit(method)
    outside = {id(p) for p in visit.model.parameters() if p.requires_grad}
    trained = {n for n, p in visit.model.named_parameters() if id(p) in outside}
    for number in range(2):
        visit.step(number)
        first, *later = visit.inputs
        for found in later:
            assert found.keys() == first.keys()
            for name in found.keys() - trained:
                assert torch.equal(found[name], first[name]), name


@every_method
def test_a_step_that_is_dropped_leaves_the_model_as_it_was(method: str):
    visit = Visit(method)
    visit.step()
    passes = visit.calls
    for spoiled in range(passes):
        visit.optimizer.policy = flatmin.policy.Always()
        before = visit.held()
        visit.spoil = lambda call, at=spoiled: float("nan") if call == at else 1.0
        visit.optimizer._warned_of_skipping = False
        with pytest.warns(RuntimeWarning, match="skipped"):
            visit.step(1)
        assert_same(visit.held(), before)

        def broken(call: int, at: int = spoiled) -> float:
            if call == at:
                raise KeyboardInterrupt
            return 1.0

        visit.spoil = broken
        with pytest.raises(KeyboardInterrupt):
            visit.step(1)
        assert_same(visit.held(), before)


@pytest.mark.parametrize("method", ["sgd", "sam", "agnostic-sam", "lookbehind-sam"])
def test_large_frozen_parameters_are_saved_when_something_writes_to_them(
    method: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model_state, "SMALL", 0)
    visit = Visit(method)
    whole = model_state._Held.__init__

    def none_is_small(self: Any, model: nn.Module, ours: set[int], trainable: int) -> None:
        whole(self, model, ours, 0)

    monkeypatch.setattr(model_state._Held, "__init__", none_is_small)
    for number in range(3):
        once = copy.deepcopy(visit.model)
        once(IMAGES[16 * number : 16 * number + 16])
        visit.step(number)
        assert_same(visit.held(), dict(once.state_dict()))
        first = visit.inputs[0]
        assert all(torch.equal(x["4.slow.weight"], first["4.slow.weight"]) for x in visit.inputs)
    before = visit.held()
    visit.spoil = lambda call: float("nan")
    with pytest.warns(RuntimeWarning, match="skipped"):
        visit.step(3)
    assert_same(visit.held(), before)


def test_what_begins_to_move_later_is_noticed():
    """A layer that is evaluated in its first steps, and trained then."""
    visit = Visit("sam")
    visit.model.eval()
    visit.step(0)
    visit.step(1)
    visit.model.train()
    once = copy.deepcopy(visit.model)
    once(IMAGES[32:48])
    visit.step(2)
    assert_same(visit.held(), dict(once.state_dict()))


@pytest.mark.parametrize("method", ["sam", "agnostic-sam", "gsam", "lookbehind-sam"])
def test_all_random_numbers_are_drawn_once_a_batch(method: str):
    torch.manual_seed(0)
    random.seed(0)
    noise = Noise()
    model = nn.Sequential(nn.Linear(32, 10), noise)
    row = methods.TABLE[method]
    optimizer = row.build(
        torch.optim.SGD(model.parameters(), lr=0.1),
        total_steps=9,
        model=model,
        replay_random=[noise.own, noise.numpy],
    )

    def loss_on(start: int) -> Tensor:
        loss = cross_entropy(model(IMAGES[start : start + 8]), LABELS[start : start + 8])
        loss.backward()
        return loss

    batches = [0, 900][: 1 + row.auxiliary]
    for _ in range(3):
        noise.seen.clear()
        optimizer.step(*(partial(loss_on, start) for start in batches))
        assert len(noise.seen) > len(batches)
        assert len(set(noise.seen)) == len(batches)  # each batch draws once, and not the other's
    states = (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    expected = (random.random(), np.random.rand())  # noqa: NPY002
    random.setstate(states[0])
    assert random.random() == expected[0]


@pytest.mark.parametrize("seed", range(4))  # words that are larger than before, and smaller
def test_a_generator_that_has_gone_once_round_is_brought_back(seed: int):
    """MT19937 draws 624 words at once: after as many its position is the same again."""
    model, seen = nn.Linear(32, 10), []
    generator = np.random.Generator(np.random.MT19937(seed))
    generator.bytes(4)
    optimizer = flatmin.SAM(
        torch.optim.SGD(model.parameters(), lr=0.1), model=model, replay_random=[generator]
    )

    def loss() -> Tensor:
        seen.append(generator.bytes(4 * 624))
        loss = cross_entropy(model(IMAGES[:8]), LABELS[:8])
        loss.backward()
        return loss

    optimizer.step(loss)
    optimizer.step(loss)
    assert seen[0] == seen[1] != seen[2] == seen[3]


def test_random_numbers_are_as_before_after_a_step_that_raises():
    noise = Noise()
    model = nn.Sequential(nn.Linear(32, 10), noise)
    optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)

    def loss() -> Tensor:
        model(IMAGES[:8])
        raise KeyboardInterrupt

    random.seed(5)
    state = np.random.get_state()  # noqa: NPY002
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(loss)
    assert random.random() == random.Random(5).random()
    after = np.random.get_state()  # noqa: NPY002
    assert state[2] == after[2]
    assert (state[1] == after[1]).all()


def test_what_is_no_generator_is_refused():
    model = nn.Linear(2, 2)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = flatmin.SAM(base, model=model, replay_random=["torch"])
    with pytest.raises(TypeError, match=r"torch\.Generator"):
        optimizer.step(lambda: model(torch.ones(1, 2)).sum())


def reading(kind: str) -> nn.Sequential:
    """A network with buffers that layers or hooks read while it is evaluated."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))
    if kind == "pruned":
        prune.l1_unstructured(model[1], "weight", amount=0.5)
    if kind == "fake quantized":
        model.append(FakeQuantize())
    if kind == "reads statistics":
        model[1].register_forward_hook(
            lambda module, inputs, output: output + 0.1 * module.running_mean
        )
    return model


@pytest.mark.parametrize("kind", ["pruned", "fake quantized", "reads statistics"])
def test_buffers_are_there_in_every_pass(kind: str):
    model, once = reading(kind), reading(kind)
    optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.0), model=model)
    keys = set(model.state_dict())
    once(IMAGES[:16])
    seen: list[dict[str, Tensor]] = []

    def closure() -> Tensor:
        loss = cross_entropy(model(IMAGES[:16]), LABELS[:16])
        seen.append(model.state_dict())
        assert all(x is not None for x in seen[-1].values())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert [set(found) for found in seen] == [keys, keys]
    assert_same(dict(model.state_dict()), dict(once.state_dict()))


@pytest.mark.parametrize("method", ["sam", "gsam", "agnostic-sam", "lookbehind-sam", "sgd"])
def test_gradients_of_others_parameters_are_those_of_one_pass(method: str):
    torch.manual_seed(0)
    body, head = nn.Linear(32, 12), nn.Linear(12, 10)
    model = nn.Sequential(body, nn.Tanh(), head)
    row = methods.TABLE[method]
    optimizer = row.build(torch.optim.SGD(head.parameters(), lr=0.1), total_steps=5, model=model)

    def loss_on(start: int) -> Tensor:
        loss = cross_entropy(model(IMAGES[start : start + 8]), LABELS[start : start + 8])
        loss.backward()
        return loss

    closures = [partial(loss_on, start) for start in [0, 900][: 1 + row.auxiliary]]
    closures[0]()
    once = body.weight.grad.clone()
    body.weight.grad = None
    optimizer.step(*closures)
    assert torch.equal(body.weight.grad, once)  # head moves only after the last pass
    closures[0]()
    twice = body.weight.grad.clone()
    body.weight.grad = once.clone()
    optimizer.step(*closures)  # adds to what is there, as one backward pass does
    assert torch.allclose(body.weight.grad, twice, rtol=0, atol=1e-6)
    kept = body.weight.grad.clone()

    def broken() -> Tensor:
        loss_on(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(broken, *closures[1:])
    assert torch.equal(body.weight.grad, kept)

"""Odd parameters and every base: ascent, strides, gradients that others own, shared memory, growth,
base optimizers of every kind."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tables import IMAGES, LABELS, METHODS
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.functional import cross_entropy

import flatmin
from flatmin import methods
from flatmin.engine.several import Several
from flatmin.engine.space import Space

every_method = pytest.mark.parametrize("method", METHODS)


class Reversed(torch.autograd.Function):
    """The identity, whose gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


def run(
    method: str,
    network: Callable[[Tensor], Tensor],
    base: torch.optim.Optimizer | list[torch.optim.Optimizer],
    steps: int = 4,
    sign: float = 1.0,
    closed: Callable[[Tensor], None] = Tensor.backward,
    dtype: torch.dtype = torch.float64,
    resume: Callable[[flatmin.SharpnessAware], flatmin.SharpnessAware] = lambda o: o,
    **options: Any,
) -> flatmin.SharpnessAware:
    """Some steps of a method; `sign` -1 trains minus the loss."""
    row = methods.TABLE[method]
    optimizer = row.build(base, 0.1, total_steps=9, **options)

    def losses(start: int, chosen: Tensor | None = None) -> Tensor:
        x, y = IMAGES[start : start + 12].to(dtype), LABELS[start : start + 12]
        x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
        value = sign * cross_entropy(network(x), y, reduction="none")
        if row.per_sample:
            return value
        closed(value.mean())
        return value.mean()

    for t in range(steps):
        if t == steps // 2:
            optimizer = resume(optimizer)
        closures = [partial(losses, 12 * t), partial(losses, 900 + 12 * t)]
        optimizer.step(*closures[: 1 + row.auxiliary])
    return optimizer


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# --- bases that go up


def dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 10)).double()


@every_method
@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_to_maximise_is_to_minimise_the_negative_bit_for_bit(method: str, base: str):
    kind = getattr(torch.optim, base)
    up, down = dense(), dense()
    run(method, up, kind(up.parameters(), lr=0.05, maximize=True), sign=-1.0, max_norm=0.8)
    run(method, down, kind(down.parameters(), lr=0.05), max_norm=0.8)
    assert same_bits(up, down)


@every_method
def test_each_group_goes_its_own_way(method: str):
    """Against a network that reverses the gradient of what is to go up."""
    mixed, turned = dense(), dense()
    groups = [
        {"params": mixed[0].parameters()},
        {"params": mixed[2].parameters(), "maximize": True},
    ]
    run(method, mixed, torch.optim.SGD(groups, lr=0.05, momentum=0.9))

    def reversing(x: Tensor) -> Tensor:
        w, b = (Reversed.apply(p) for p in (turned[2].weight, turned[2].bias))
        return nn.functional.linear(turned[1](turned[0](x)), w, b)

    groups = [{"params": turned[0].parameters()}, {"params": turned[2].parameters()}]
    run(method, reversing, torch.optim.SGD(groups, lr=0.05, momentum=0.9))
    assert same_bits(mixed, turned)


def test_ascent_by_hand():
    w = torch.zeros(1, requires_grad=True)
    optimizer = flatmin.SAM(torch.optim.SGD([w], lr=0.1, maximize=True), rho=0.5)

    def closure() -> Tensor:
        value = -(((w - 3) ** 2) / 2).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert w.item() == pytest.approx(0.35)


# --- strides


class Convolutions(nn.Module):
    """Images of 4 × 8 pixels; with one input channel the strides of a filter are ambiguous."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 2)
        self.large = nn.Conv2d(4, 130, (1, 5))
        self.last = nn.Linear(130, 10)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x.view(-1, 1, 4, 8)).relu()).relu()
        return self.last(self.large(x).relu().flatten(1))


def _require_strides(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for p in itertools.chain.from_iterable(g["params"] for g in optimizer.param_groups):
        assert p.grad is None or p.grad.stride() == p.stride()


FUSED: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.01),
}


@every_method
@pytest.mark.parametrize("base", FUSED)
def test_gradients_lie_as_their_parameters_do(method: str, base: str, monkeypatch: Any):
    monkeypatch.setattr("flatmin.engine.space.LARGE", 256)  # some blocks joined, some not
    usual, ours = Convolutions(), Convolutions().to(memory_format=torch.channels_last)
    for model, how in ((usual, {}), (ours, {"fused": True})):
        built = FUSED[base](model.parameters(), **how)
        built.register_step_pre_hook(_require_strides)
        run(method, model, built, 3, max_norm=0.5)
    for p, q in zip(ours.parameters(), usual.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["sam", "gsam", "friendly-sam", "look-sam", "asam"])
def test_transposed_and_gappy_parameters(method: str):
    def wide(make: Callable[[Tensor], Tensor]) -> tuple[nn.Parameter, nn.Parameter]:
        torch.manual_seed(0)
        return nn.Parameter(make(torch.randn(32, 16).double())), nn.Parameter(
            torch.randn(10, 16).double()
        )

    found = []
    for make in (
        lambda x: x,
        lambda x: x.t().contiguous().t(),
        lambda x: torch.empty(32, 40, dtype=x.dtype)[:, 3:19].copy_(x),
    ):
        w, v = wide(make)
        run(
            method,
            lambda x, w=w, v=v: torch.tanh(x @ w) @ v.t(),
            torch.optim.SGD([w, v], lr=0.1, momentum=0.9),
        )
        found.append(w.detach())
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-12)
    assert torch.allclose(found[0], found[2], rtol=0, atol=1e-12)


# --- gradients that the next pass overwrites


@every_method
@pytest.mark.parametrize("large", [False, True])
def test_a_closure_may_write_into_the_same_gradients_each_time(
    method: str, large: bool, monkeypatch: Any
):
    if large:
        monkeypatch.setattr("flatmin.engine.space.LARGE", 0)
    if methods.TABLE[method].per_sample:
        pytest.skip("its backward passes are the optimizer's own")
    usual, ours = dense(), dense()
    static = [torch.zeros_like(p) for p in ours.parameters()]

    def into_static(loss: Tensor) -> None:
        grads = torch.autograd.grad(loss, list(ours.parameters()))
        for p, mine, g in zip(ours.parameters(), static, grads, strict=True):
            p.grad = mine.copy_(g)

    run(method, usual, torch.optim.SGD(usual.parameters(), lr=0.05))
    run(method, ours, torch.optim.SGD(ours.parameters(), lr=0.05), closed=into_static)
    assert same_bits(usual, ours)


@pytest.fixture
def _alone_in_a_world() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone_in_a_world")
@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_buckets_of_a_world_of_one(views: bool, named: bool, monkeypatch: Any):
    monkeypatch.setattr("flatmin.engine.space.LARGE", 0)
    for method in METHODS:
        usual, ours = dense(), dense()
        wrapped = nn.parallel.DistributedDataParallel(ours, gradient_as_bucket_view=views)
        run(method, usual, torch.optim.SGD(usual.parameters(), lr=0.05))
        options = {"model": wrapped} if named else {}
        run(method, wrapped, torch.optim.SGD(ours.parameters(), lr=0.05), **options)
        assert same_bits(usual, ours), method


@pytest.mark.usefixtures("_alone_in_a_world")
def test_a_shard_that_has_moved_is_noticed():
    mesh = init_device_mesh("cpu", (1,))
    p = nn.Parameter(distribute_tensor(torch.randn(4, 3), mesh, [Shard(0)]))
    space = Space([[p]])
    assert space.still_holds()
    p._local_tensor = p._local_tensor.clone()
    assert not space.still_holds()


# --- one place in memory


def test_parameters_that_share_memory_are_refused_by_name():
    e, f = nn.Linear(6, 4), nn.Linear(4, 6)
    f.weight = nn.Parameter(e.weight.t())
    model = nn.ModuleDict({"e": e, "f": f})
    optimizer = flatmin.SAM(torch.optim.SGD(model.parameters(), lr=0.0), model=model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'e\.weight' and 'f\.weight' share memory"):
        optimizer.step(lambda: f(e(torch.ones(1, 6))).sum())
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


def test_parameters_of_two_types_that_share_memory_are_refused():
    flat = torch.randn(4, dtype=torch.float64)
    within = nn.Parameter(flat[1:3])
    for other in (flat.view(torch.float32)[0:6:5], flat.view(torch.float32)[5:7]):
        params = [nn.Parameter(other), within]
        optimizer = flatmin.SAM(torch.optim.SGD(params, lr=0.0))
        with pytest.raises(ValueError, match="share memory"):
            optimizer.step(lambda: sum((p.double() ** 2).sum() for p in params))


def test_views_that_are_apart_are_welcome():
    flat = torch.randn(40)
    params = [nn.Parameter(flat[:10]), nn.Parameter(flat[10:40].view(5, 6)[:, :3])]
    params.append(nn.Parameter(flat[10:40].view(5, 6)[:, 3:]))  # interleaved with the one before
    before = flat.clone()
    optimizer = flatmin.SAM(torch.optim.SGD(params, lr=0.0), rho=0.3, measure_radius=True)

    def closure() -> Tensor:
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(flat, before)
    assert optimizer.cost.radius == pytest.approx(0.3, rel=1e-5)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@every_method
def test_a_parameter_that_is_listed_twice_counts_once(method: str):
    once, twice = dense(), dense()
    params = list(twice.parameters())
    optimizer = run(
        method, twice, torch.optim.SGD([*params, params[0]], lr=0.0), measure_radius=True
    )
    expected = run(method, once, torch.optim.SGD(once.parameters(), lr=0.0), measure_radius=True)
    assert optimizer.cost == expected.cost  # also the radius travelled
    assert same_bits(once, twice)


# --- parameters that become others


@pytest.mark.parametrize("method", ["sam", "friendly-sam", "look-sam", "agnostic-sam-previous"])
@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_a_vocabulary_grows_and_a_layer_becomes_double(method: str, base: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 3))
    kind: Any = getattr(torch.optim, base)
    built = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if base == "SGD" else {}))
    optimizer = methods.TABLE[method].build(built, total_steps=9, model=model)

    def closure(top: int) -> Tensor:
        loss = model[1](model[0](torch.tensor([0, top])).to(model[1].weight.dtype)).square().sum()
        loss.backward()
        return loss

    optimizer.step(lambda: closure(19))
    weight = model[0].weight
    grown = torch.cat([weight.detach(), torch.ones(5, 4)])
    weight.data = grown
    optimizer.step(lambda: closure(24))
    assert weight.shape == (25, 4)
    assert not torch.equal(weight[24], torch.ones(4))
    assert torch.equal(weight[22], torch.ones(4)) or base == "AdamW"  # decay alone moves it
    model[1].double()
    optimizer.step(lambda: closure(24))
    assert model[1].weight.dtype == torch.float64
    state = optimizer.state_dict()["state"]
    for i, p in enumerate(model.parameters()):
        for name, buffer in state[i].items():
            if buffer.ndim:
                assert (buffer.shape, buffer.dtype) == (p.shape, p.dtype), name


def test_a_parameter_that_shrinks_is_named_with_its_buffer():
    model = nn.Linear(4, 4)
    optimizer = flatmin.FriendlySAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)

    def closure() -> Tensor:
        loss = model(torch.ones(1, 4)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    model.weight.data = torch.ones(3, 4)
    model.bias.data = torch.ones(3)
    said = r"'friendly_mean' of the parameter 'weight'.*\(4, 4\).*\(3, 4\)"
    with pytest.raises(ValueError, match=said):
        optimizer.step(closure)


# --- several bases, and those with a form of their own


def pair(params: Any, lr: float = 0.02) -> list[torch.optim.Optimizer]:
    params = list(params)
    return [
        torch.optim.Muon([p for p in params if p.ndim == 2], lr=lr),
        torch.optim.AdamW([p for p in params if p.ndim != 2], lr=lr),
    ]


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def saved(optimizer: torch.optim.Optimizer) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@needs_muon
@every_method
def test_several_bases_are_one_optimizer(method: str):
    """One norm over all, each steps its own; resumed in the middle, with a schedule on top."""
    model = dense()
    optimizer = run(method, model, pair(model.parameters()))
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    resumed = dense()

    def resume(old: flatmin.SharpnessAware) -> flatmin.SharpnessAware:
        new = methods.TABLE[method].build(pair(resumed.parameters()), 0.1, total_steps=9)
        new.load_state_dict(saved(old))
        return new

    run(method, resumed, pair(resumed.parameters()), resume=resume)
    assert same_bits(model, resumed)


@needs_muon
def test_the_pair_steps_with_one_perturbation_over_all():
    ours, hand = dense(), dense()
    run("sam", ours, pair(ours.parameters()), 3)
    bases = pair(hand.parameters())
    params = list(hand.parameters())
    for t in range(3):
        x, y = IMAGES[12 * t : 12 * t + 12].double(), LABELS[12 * t : 12 * t + 12]
        g = torch.autograd.grad(cross_entropy(hand(x), y), params)
        norm = torch.sqrt(sum((z**2).sum() for z in g))
        was = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, z in zip(params, g, strict=True):
                p.add_(0.1 * z / norm)
        seen = torch.autograd.grad(cross_entropy(hand(x), y), params)
        with torch.no_grad():
            for p, w, z in zip(params, was, seen, strict=True):
                p.copy_(w)
                p.grad = z
        for base in bases:
            base.step()
    for p, q in zip(ours.parameters(), params, strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-8)  # Muon orthogonalises in bfloat16


def test_what_several_bases_cannot_be_is_refused():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    one = torch.optim.SGD([p], lr=0.1)
    with pytest.raises(ValueError, match="held by two"):
        flatmin.SAM([one, torch.optim.Adam([p, q])])
    with pytest.raises(ValueError, match="already sharpness-aware"):
        flatmin.SAM([one, flatmin.SAM(torch.optim.SGD([q], lr=0.1))])
    optimizer = flatmin.SAM([one, torch.optim.Adam([q])])
    assert isinstance(optimizer.base, Several)
    with pytest.raises(ValueError, match="which is to step the new group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    optimizer.base.optimizers[0].add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert len(optimizer.param_groups) == 3
    clone = copy.deepcopy(optimizer)
    assert len(clone.base.optimizers) == 2


class EightBit(torch.optim.SGD):
    """State that only its own `load_state_dict` brings back as it was: whole numbers of 8 bits."""

    def step(self, closure: Any = None) -> Any:
        super().step()
        for p in self.param_groups[0]["params"]:
            buffer = self.state[p]["momentum_buffer"]
            self.state[p]["scale"] = scale = buffer.abs().max() / 127 + 1e-12
            self.state[p]["packed"] = (buffer / scale).round().to(torch.int8)
            self.state[p]["momentum_buffer"] = self.state[p]["packed"].to(p.dtype) * scale

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():
            assert set(state) == {"momentum_buffer", "scale", "packed"}  # not ours


class Slow(torch.optim.Optimizer):
    """Weights of its own outside of `state`, and a form of its own (as Lookahead has)."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.count = inner, 0
        self.slow = {p: p.detach().clone() for p in inner.param_groups[0]["params"]}
        self.defaults, self.param_groups = inner.defaults, inner.param_groups
        self.state = inner.state
        self._optimizer_step_pre_hooks: dict[int, Any] = {}
        self._optimizer_step_post_hooks: dict[int, Any] = {}

    def step(self, closure: Any = None) -> Any:
        self.inner.step()
        self.count += 1
        if self.count % 2 == 0:
            for p, slow in self.slow.items():
                slow.lerp_(p.detach(), 0.5)
                p.data.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "slow": list(self.slow.values()), "n": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        for slow, kept in zip(self.slow.values(), state_dict["slow"], strict=True):
            slow.copy_(kept)
        self.count = state_dict["n"]


class Counting(torch.optim.SGD):
    """A number beside the standard form, and a state that is made anew when it is asked for."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.count
        return super().step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "count"})


class Fleeting(torch.optim.Optimizer):
    """Whatever is put into its `state` from outside is gone."""

    def __init__(self, params: Any) -> None:
        self.kept: dict[Tensor, Tensor] = {}
        super().__init__(params, {"lr": 0.05})

    @property
    def state(self) -> Any:
        return {p: {"m": m} for p, m in self.kept.items()}

    @state.setter
    def state(self, state: Any) -> None:
        self.kept = {p: found["m"] for p, found in state.items()}

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            self.kept[p] = 0.9 * self.kept.get(p, torch.zeros_like(p)) + p.grad
            p.data.sub_(self.kept[p], alpha=0.05)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.state = self.__dict__.pop("state")  # where torch has put it


OWN_FORM: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "loads in its own way": lambda params: EightBit(params, lr=0.05, momentum=0.9),
    "saves in its own form": lambda params: Slow(torch.optim.Adam(params, lr=0.01)),
    "saves more": lambda params: Counting(params, lr=0.1, momentum=0.9),
    "makes its state anew": Fleeting,
}


@pytest.mark.parametrize("base", OWN_FORM)
@pytest.mark.parametrize("method", ["sam", "friendly-sam", "look-sam", "agnostic-sam"])
def test_a_base_saves_and_loads_in_its_own_way(method: str, base: str):
    whole, resumed = dense(), dense()
    run(method, whole, OWN_FORM[base](list(whole.parameters())))

    def resume(old: flatmin.SharpnessAware) -> flatmin.SharpnessAware:
        built = OWN_FORM[base](list(resumed.parameters()))
        new = methods.TABLE[method].build(built, 0.1, total_steps=9)
        new.load_state_dict(saved(old))
        return new

    run(method, resumed, OWN_FORM[base](list(resumed.parameters())), resume=resume)
    assert same_bits(whole, resumed)


def test_a_base_keeps_a_rho_of_its_own():
    model, alone = dense(), dense()
    base = torch.optim.Adadelta(model.parameters(), lr=0.5, rho=0.8)
    optimizer = flatmin.SAM(base, rho=0.1, measure_radius=True)
    assert optimizer.param_groups[0]["rho"] == 0.8
    assert optimizer.radius_key == "sam_rho"
    assert optimizer.rho == 0.1
    optimizer.rho = 0.0
    assert optimizer.param_groups[0]["rho"] == 0.8
    run("sgd", alone, torch.optim.Adadelta(alone.parameters(), lr=0.5, rho=0.8), 1)

    def closure() -> Tensor:
        loss = cross_entropy(model(IMAGES[:12].double()), LABELS[:12])
        loss.backward()
        return loss

    optimizer.step(closure)
    assert same_bits(model, alone)
    optimizer.rho = 0.2
    optimizer.step(closure)
    assert optimizer.cost.radius == pytest.approx(0.2)
    with pytest.raises(ValueError, match="rho"):
        optimizer.rho = -1.0


def _names() -> list[tuple[str, dict[str, Any]]]:
    kinds = [
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    ]
    kinds = [n for n in kinds if n not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")]
    forms: list[dict[str, Any]] = [{"foreach": False}, {"foreach": True}, {"fused": True}]
    return [
        (name, form)
        for name, form in itertools.product(kinds, forms)
        if not form.get("fused") or name in ("SGD", "Adam", "AdamW", "Adagrad")
    ]


def _elsewhere(name: str, params: Any) -> torch.optim.Optimizer:
    package, kind, options = {
        "schedule-free": ("schedulefree", "AdamWScheduleFree", {"lr": 0.01}),
        "lion": ("lion_pytorch", "Lion", {"lr": 0.01}),
        "prodigy": ("prodigyopt", "Prodigy", {"lr": 1.0}),
        "adan": ("adan_pytorch", "Adan", {"lr": 0.01}),
    }[name]
    return getattr(pytest.importorskip(package), kind)(params, **options)


ALL_BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    f"{name} {'fused' if 'fused' in form else 'foreach' if form['foreach'] else 'plain'}": partial(
        getattr(torch.optim, name), lr=0.01, **form
    )
    for name, form in _names()
} | {name: partial(_elsewhere, name) for name in ("schedule-free", "lion", "prodigy", "adan")}


@pytest.mark.parametrize("base", ALL_BASES)
def test_sam_over_every_base_is_hand_written_sam_over_it(base: str):
    """Ten steps in double precision, resumed once."""
    ours, hand = dense(), dense()
    build = ALL_BASES[base]

    def training(optimizer: Any) -> Any:
        if hasattr(optimizer, "train"):  # schedule-free ones have modes
            optimizer.train()
        return optimizer

    def resume(old: flatmin.SharpnessAware) -> flatmin.SharpnessAware:
        new = flatmin.SAM(build(ours.parameters()), rho=0.1)
        new.load_state_dict(saved(old))
        return training(new)

    built = build(ours.parameters())
    training(flatmin.SAM(built, rho=0.1))
    run("sam", ours, built, 10, resume=resume)
    alone = training(build(hand.parameters()))
    params = list(hand.parameters())
    for t in range(10):
        x, y = IMAGES[12 * t : 12 * t + 12].double(), LABELS[12 * t : 12 * t + 12]
        g = torch.autograd.grad(cross_entropy(hand(x), y), params)
        norm = torch.sqrt(sum((z**2).sum() for z in g)) + 1e-12
        was = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, z in zip(params, g, strict=True):
                p.add_(0.1 * z / norm)
        seen = torch.autograd.grad(cross_entropy(hand(x), y), params)
        with torch.no_grad():
            for p, w, z in zip(params, was, seen, strict=True):
                p.copy_(w)
                p.grad = z.clone()
        alone.step()
    for p, q in zip(ours.parameters(), params, strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-10), (p - q).abs().max()


def test_modes_of_the_base_are_reached():
    schedulefree = pytest.importorskip("schedulefree")
    model = dense()
    base = schedulefree.SGDScheduleFree(model.parameters(), lr=0.1)
    optimizer = flatmin.SAM(base, rho=0.1)
    optimizer.train()
    assert base.param_groups[0]["train_mode"]
    optimizer.eval()
    assert not base.param_groups[0]["train_mode"]

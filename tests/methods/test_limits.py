"""Limits in which two methods must coincide, and the geometry that methods claim."""

from __future__ import annotations

import copy
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from reference import network
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

import flatmin
from flatmin import descent, direction, policy
from flatmin.engine.probe import Looking

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 8
RHO = 0.1

BASES = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-3),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=5e-3),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}


class Training:
    """A small network on real digits; `weights` after `STEPS` steps, and every loss evaluated."""

    def __init__(self, dtype: torch.dtype = torch.float64, activation: Any = torch.nn.Tanh) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(network.PIXELS, network.HIDDEN),
            activation(),
            torch.nn.Linear(network.HIDDEN, network.CLASSES),
        ).to(dtype)
        self.dtype = dtype
        self.losses: list[float] = []
        self.gradients: list[torch.Tensor] = []

    @property
    def weights(self) -> torch.Tensor:
        return parameters_to_vector(self.model.parameters()).detach()

    def sample_losses(self, batch: network.Batch, chosen: torch.Tensor | None = None):
        x, y = torch.tensor(batch.x, dtype=self.dtype), torch.tensor(batch.y)
        x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
        return cross_entropy(self.model(x), y, reduction="none")

    def mean_loss(self, batch: network.Batch) -> torch.Tensor:
        loss = self.sample_losses(batch).mean()
        loss.backward()
        self.losses.append(float(loss.detach()))
        self.gradients.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]))
        return loss

    def run(self, optimizer: Any, auxiliary: bool = False, per_sample: bool = False, steps=STEPS):
        for primary, other in network.batches(steps):
            if per_sample:
                optimizer.step(partial(self.sample_losses, primary))
            elif auxiliary:
                optimizer.step(lambda: self.mean_loss(primary), lambda: self.mean_loss(other))
            else:
                optimizer.step(lambda: self.mean_loss(primary))
        return self


def trained(build: Callable[..., Any], base: str, **protocol: bool) -> torch.Tensor:
    training = Training()
    optimizer = build(BASES[base](training.model.parameters()))
    if isinstance(optimizer, flatmin.SharpnessAware):
        return training.run(optimizer, **protocol).weights
    for primary, _ in network.batches(STEPS):
        optimizer.zero_grad()
        training.mean_loss(primary)
        optimizer.step()
    return training.weights


# --- rho = 0


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", flatmin.methods.TABLE)
def test_without_a_radius_every_method_is_its_base_bit_for_bit(name: str, base: str):
    method = flatmin.methods.find(name)
    plain, ours = Training(torch.float32), Training(torch.float32)
    bare = BASES[base](plain.model.parameters())
    optimizer = method.build(BASES[base](ours.model.parameters()), 0.0, total_steps=STEPS)

    for primary, _ in network.batches(STEPS):
        bare.zero_grad()
        plain.mean_loss(primary)
        bare.step()
    ours.run(optimizer, method.auxiliary, method.per_sample)

    assert torch.equal(ours.weights, plain.weights)
    assert not torch.equal(plain.weights, Training(torch.float32).weights)
    assert (optimizer.cost.gradients, optimizer.cost.perturbed) == (STEPS, 0)


# --- limits of one hyperparameter

sam = partial(flatmin.SAM, rho=RHO)
asam = partial(flatmin.ASAM, rho=RHO)
same = lambda base: base


def with_parts(**parts: Any) -> Callable[..., Any]:
    return partial(flatmin.SharpnessAware, rho=RHO, **parts)


EXACT = {
    "default parts = SAM": (partial(flatmin.SharpnessAware, rho=RHO), sam),
    "FriendlySAM sigma=0 = SAM": (partial(flatmin.FriendlySAM, rho=RHO, sigma=0.0), sam),
    "FriendlySAM released sigma=0 = SAM": (
        partial(flatmin.FriendlySAM, rho=RHO, sigma=0.0, variant="released"),
        sam,
    ),
    "FriendlyASAM sigma=0 = ASAM": (partial(flatmin.FriendlyASAM, rho=RHO, sigma=0.0), asam),
    "VASSO theta=1 = SAM": (partial(flatmin.VASSO, rho=RHO, theta=1.0), sam),
    "LookSAM k=1 = SAM": (partial(flatmin.LookSAM, rho=RHO, k=1), sam),
    "LookSAM alpha=0 = every k-th step SAM": (
        partial(flatmin.LookSAM, rho=RHO, k=3, alpha=0.0),
        partial(flatmin.SharpnessAware, rho=RHO, policy=policy.EveryK(3)),
    ),
    "SSSAM p=1 = SAM": (partial(flatmin.SSSAM, rho=RHO, p=1.0), sam),
    "SSSAM p=0 = base": (partial(flatmin.SSSAM, rho=RHO, p=0.0), same),
    "AESAM lambdas=-inf = SAM": (
        partial(flatmin.AESAM, total_steps=STEPS, rho=RHO, lambda1=-inf, lambda2=-inf),
        sam,
    ),
    "AESAM lambdas=inf = base": (
        partial(flatmin.AESAM, total_steps=STEPS, rho=RHO, lambda1=inf, lambda2=inf),
        same,
    ),
    "AELookSAM lambdas=-inf = SAM": (
        partial(flatmin.AELookSAM, total_steps=STEPS, rho=RHO, lambda1=-inf, lambda2=-inf),
        sam,
    ),
    "AELookSAM lambdas=inf = base": (
        partial(flatmin.AELookSAM, total_steps=STEPS, rho=RHO, lambda1=inf, lambda2=inf),
        same,
    ),
    "GSAM alpha=0 = SAM": (partial(flatmin.GSAM, rho=RHO, alpha=0.0), sam),
    "WSAM gamma=0.5 = SAM": (partial(flatmin.WSAM, rho=RHO, gamma=0.5), sam),
    "WSAM gamma=0 = base": (partial(flatmin.WSAM, rho=RHO, gamma=0.0), same),
    "Mixed share=1 = SAM": (with_parts(descent=descent.Mixed(1.0)), sam),
    "Mixed share=0 = base": (with_parts(descent=descent.Mixed(0.0)), same),
    "MixedRWP share=1 = RWP": (
        partial(flatmin.MixedRWP, rho=RHO, share=1.0),
        partial(flatmin.RWP, rho=RHO),
    ),
    "MixedRWP share=0 = base": (partial(flatmin.MixedRWP, rho=RHO, share=0.0), same),
    "PreviousAgnosticSAM rho2=0 = PreviousSAM of rho1": (
        partial(flatmin.PreviousAgnosticSAM, rho1=RHO, rho2=0.0),
        partial(flatmin.PreviousSAM, rho=RHO),
    ),
    "LateSAM start=0 = SAM": (
        partial(flatmin.LateSAM, total_steps=STEPS, rho=RHO, start=0.0),
        sam,
    ),
    "LateSAM start=1 = base": (
        partial(flatmin.LateSAM, total_steps=STEPS // 2, rho=RHO, start=1.0),
        same,
    ),
    "Early end=1 = SAM": (with_parts(policy=policy.Early(STEPS // 2, end=1.0)), sam),
    "Early end=0 = base": (with_parts(policy=policy.Early(STEPS, end=0.0)), same),
    "Both of Always and a policy = the policy": (
        with_parts(policy=policy.Both(policy.Always(), policy.EveryK(3))),
        with_parts(policy=policy.EveryK(3)),
    ),
    "Both of Late and Early that do not meet = base": (
        with_parts(policy=policy.Both(policy.Late(STEPS, 0.5), policy.Early(STEPS, 0.5))),
        same,
    ),
    "Both lets what its policies remember move": (
        with_parts(policy=policy.Both(policy.Late(STEPS, 0.0), policy.LargeGradient(STEPS))),
        partial(flatmin.AESAM, total_steps=STEPS, rho=RHO),
    ),
}

CLOSE = {
    "FisherSAM eta=0 = SAM": (partial(flatmin.FisherSAM, rho=RHO, eta=0.0), sam),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("limit", EXACT)
def test_limits_coincide_bit_for_bit(limit: str, base: str):
    ours, other = (trained(build, base) for build in EXACT[limit])
    assert torch.equal(ours, other)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("limit", CLOSE)
def test_limits_coincide_up_to_rounding(limit: str, base: str):
    ours, other = (trained(build, base) for build in CLOSE[limit])
    assert deviation(ours, other) <= 1e-12


AUXILIARY = {
    "AgnosticSAM rho2=0 = SAM of rho1": (
        partial(flatmin.AgnosticSAM, rho1=RHO, rho2=0.0),
        sam,
    ),
    "AgnosticASAM rho2=0 = ASAM of rho1": (
        partial(flatmin.AgnosticASAM, rho1=RHO, rho2=0.0),
        asam,
    ),
    "AlignSAM = AgnosticSAM(lmbda rho, rho, beta=0)": (
        partial(flatmin.AlignSAM, rho=RHO, lmbda=3.0),
        partial(flatmin.AgnosticSAM, rho1=3.0 * RHO, rho2=RHO, beta=0.0),
    ),
    "AlignASAM = AgnosticASAM(lmbda rho, rho, beta=0)": (
        partial(flatmin.AlignASAM, rho=RHO, lmbda=3.0),
        partial(flatmin.AgnosticASAM, rho1=3.0 * RHO, rho2=RHO, beta=0.0),
    ),
    "LateAgnosticSAM start=0 = AgnosticSAM": (
        partial(flatmin.LateAgnosticSAM, total_steps=STEPS, rho=RHO, start=0.0),
        partial(flatmin.AgnosticSAM, rho=RHO),
    ),
    "AgnosticSAM's default radii": (
        partial(flatmin.AgnosticSAM, rho=RHO),
        partial(flatmin.AgnosticSAM, rho1=2 * RHO, rho2=RHO),
    ),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("limit", AUXILIARY)
def test_limits_with_an_auxiliary_batch_coincide(limit: str, base: str):
    build, other = AUXILIARY[limit]
    takes_two = other not in (sam, asam)
    expected = trained(other, base, auxiliary=takes_two)
    assert deviation(trained(build, base, auxiliary=True), expected) <= 1e-12


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("chosen", [direction.OtherBatch(), direction.FullComponent()])
def test_a_direction_from_the_same_batch_is_sam(chosen: Any, base: str):
    training = Training()
    optimizer = flatmin.SharpnessAware(
        BASES[base](training.model.parameters()), RHO, direction=chosen
    )
    for primary, _ in network.batches(STEPS):
        optimizer.step(lambda: training.mean_loss(primary), lambda: training.mean_loss(primary))
    assert deviation(training.weights, trained(sam, base)) <= 1e-12


@pytest.mark.parametrize("base", BASES)
def test_esam_with_all_weights_and_all_samples_is_sam(base: str):
    esam = partial(flatmin.ESAM, rho=RHO, beta=1.0, gamma=1.0)
    assert deviation(trained(esam, base, per_sample=True), trained(sam, base)) <= 1e-12


@pytest.mark.parametrize("base", BASES)
def test_lookbehind_with_one_look_is_sam(base: str):
    lookbehind = partial(flatmin.LookbehindSAM, rho=RHO, k=1, alpha=1.0)
    assert deviation(trained(lookbehind, base), trained(sam, base)) <= 1e-12


def deviation(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the way travelled."""
    return float((ours - expected).norm() / (expected - Training().weights).norm())


# --- what the limits above rest on: none of these methods is SAM to begin with


@pytest.mark.parametrize(
    "build, protocol",
    [
        (flatmin.FriendlySAM, {}),
        (flatmin.VASSO, {}),
        (flatmin.LookSAM, {}),
        (flatmin.SSSAM, {}),
        (flatmin.GSAM, {}),
        (flatmin.FisherSAM, {}),
        (flatmin.LookbehindSAM, {}),
        (flatmin.MSAM, {}),
        (flatmin.RWP, {}),
        (flatmin.MixedRWP, {}),
        (flatmin.WSAM, {}),
        (partial(flatmin.LateSAM, total_steps=STEPS), {}),
        (flatmin.PreviousSAM, {}),
        (flatmin.PreviousAgnosticSAM, {}),
        (flatmin.AgnosticSAM, {"auxiliary": True}),
        (flatmin.ESAM, {"per_sample": True}),
    ],
)
def test_away_from_the_limit_methods_differ_from_sam(build: Any, protocol: dict[str, bool]):
    ours = trained(partial(build, rho=RHO), "sgd", **protocol)
    assert deviation(ours, trained(sam, "sgd")) > 1e-5


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "chosen",
    [
        direction.Momentum(),
        direction.Random(),
        direction.Previous(),
        direction.PreviousAgnostic(),
    ],
)
def test_a_step_that_begins_perturbed_costs_one_gradient_and_returns_the_loss_there(
    chosen: Any, base: str
):
    training = Training()
    optimizer = flatmin.SharpnessAware(
        BASES[base](training.model.parameters()), RHO, direction=chosen
    )
    for step, (primary, _) in enumerate(network.batches(3)):
        w = training.weights
        stood: list[torch.Tensor] = []

        def closure(primary: network.Batch = primary, stood: Any = stood) -> torch.Tensor:
            stood.append(training.weights.clone())
            assert optimizer.looking == Looking("primary", perturbed=True, first=True)
            return training.mean_loss(primary)

        loss = optimizer.step(closure)
        assert len(stood) == 1
        assert float(loss) == training.losses[-1]
        begins_at_home = step == 0 and not isinstance(chosen, direction.Random)
        assert torch.equal(stood[0], w) is begins_at_home
    assert (optimizer.cost.gradients, optimizer.cost.perturbed) == (3, 3)
    assert optimizer.gradients_per_step() == 1.0


@pytest.mark.parametrize(
    "chosen",
    [
        direction.Friendly(on_skipped=True, variant="released"),
        direction.Suppressed(on_skipped=True),
        direction.Agnostic(auxiliary="previous", on_skipped=True),
    ],
)
def test_what_skipped_steps_have_moved_is_in_a_checkpoint(chosen: Any):
    """Taken before the first perturbed step."""
    training, batches = Training(), network.batches(STEPS)
    parts = {"direction": chosen, "policy": policy.Late(STEPS, start=0.5)}

    def optimizer() -> flatmin.SharpnessAware:
        return flatmin.SharpnessAware(BASES["sgd"](training.model.parameters()), RHO, **parts)

    def run(ours: flatmin.SharpnessAware, chunk: Any) -> torch.Tensor:
        for primary, _ in chunk:
            ours.step(partial(training.mean_loss, primary))
        return training.weights.clone()

    first = optimizer()
    run(first, batches[:3])
    weights = copy.deepcopy(training.model.state_dict())
    saved = copy.deepcopy(first.state_dict())
    expected = run(first, batches[3:])
    training.model.load_state_dict(weights)
    again = optimizer()
    again.load_state_dict(saved)
    assert torch.equal(run(again, batches[3:]), expected)
    assert set(chosen.buffers) <= set(saved["state"][0])


def test_a_policy_of_the_step_counts_from_the_share_and_not_from_its_rounding():
    """0.7 times 10 is a little more than 7 in floats."""
    for total, start, first in [(10, 0.7, 7), (200, 0.875, 175), (12, 0.875, 11), (3, 0.0, 0)]:
        late, early = policy.Late(total, start), policy.Early(total, start)
        asked = [SimpleNamespace(step=t) for t in range(total)]
        assert [late.perturbs(at) for at in asked] == [t >= first for t in range(total)]
        assert [early.perturbs(at) for at in asked] == [t < first for t in range(total)]
        assert late.rate == pytest.approx(1 - first / total)
        assert early.rate == pytest.approx(first / total)


# --- orthogonality


class Recorder(torch.optim.SGD):
    """SGD that keeps each gradient it was given."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.given: list[torch.Tensor] = []

    def step(self, closure: Any = None) -> Any:
        grads = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        self.given.append(torch.cat(grads))
        return super().step(closure)


def is_orthogonal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return abs(float(a @ b)) <= 1e-10 * float(a.norm() * b.norm())


def is_parallel(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Of one direction, not of opposite ones."""
    return float((a / a.norm() - b / b.norm()).norm()) <= 1e-10


def test_look_sam_reuses_what_is_orthogonal_to_the_gradient():
    training = Training()
    base = Recorder(training.model.parameters())
    training.run(flatmin.LookSAM(base, rho=RHO, k=2, alpha=0.7), steps=2)

    g, g_s, g_next = training.gradients
    assert torch.equal(base.given[0], g_s)
    added = base.given[1] - g_next
    assert is_orthogonal(added, g)
    assert is_parallel(added, g_s - (g @ g_s) / (g @ g) * g)
    assert float(added.norm()) == pytest.approx(0.7 * float(g_next.norm()), rel=1e-10)


def test_gsam_subtracts_what_is_orthogonal_to_the_perturbed_gradient():
    training = Training()
    base = Recorder(training.model.parameters())
    training.run(flatmin.GSAM(base, rho=RHO, alpha=0.5), steps=1)

    g, g_s = training.gradients
    subtracted = (g_s - base.given[0]) / 0.5
    assert is_orthogonal(subtracted, g_s)
    assert is_parallel(g - subtracted, g_s)
    assert float(subtracted.norm()) > 1e-6 * float(g.norm())


# --- invariance


def looked_at(build: Callable[..., Any], factor: float) -> list[float]:
    """The losses one step sees, after an exact rescaling that leaves a ReLU network's function."""
    training = Training(activation=torch.nn.ReLU)
    first, _, last = training.model
    with torch.no_grad():
        first.weight.mul_(factor)
        first.bias.mul_(factor)
        last.weight.div_(factor)
    optimizer = build(BASES["sgd"](training.model.parameters()))
    auxiliary = build.func in (flatmin.AgnosticASAM, flatmin.AlignASAM)
    return training.run(optimizer, auxiliary, steps=1).losses


@pytest.mark.parametrize("factor", [0.25, 8.0])
@pytest.mark.parametrize(
    "method",
    [flatmin.ASAM, flatmin.FriendlyASAM, flatmin.AgnosticASAM, flatmin.AlignASAM],
    ids=lambda method: method.__name__,
)
def test_the_adaptive_metric_ignores_rescaling(method: Any, factor: float):
    build = partial(method, rho=0.5, eta=0.0)
    assert looked_at(build, factor) == looked_at(build, 1.0)


def test_the_euclidean_metric_does_not_ignore_rescaling():
    first, perturbed = looked_at(sam, 8.0)
    assert first == looked_at(sam, 1.0)[0]
    assert perturbed != pytest.approx(looked_at(sam, 1.0)[1], rel=1e-3)

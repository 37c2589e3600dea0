"""Every method against its plainest form: twenty steps in double precision on real digits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from reference import bases, methods, network
from torch.nn.functional import cross_entropy

import flatmin
from flatmin import descent, direction, geometry, policy
from flatmin.engine.random import generator, uniform

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 20
TOLERANCE = 1e-10

BASES = {
    "sgd": (torch.optim.SGD, bases.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}),
    "adam": (torch.optim.Adam, bases.Adam, {"lr": 0.01, "weight_decay": 5e-3}),
    "adamw": (torch.optim.AdamW, bases.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}
NOW_AND_THEN = policy.Both(policy.Late(STEPS, start=0.2), policy.EveryK(3))
RADII = {"one group": (0.1,), "two groups": (0.05, 0.2)}


def normal(seed: int, step: int, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """The standard normal numbers of a step, parameter by parameter."""
    numbers = generator(torch.device("cpu"), seed, step, 0)
    drawn = [torch.empty(s, dtype=torch.float64).normal_(generator=numbers) for s in shapes]
    return np.concatenate([x.numpy().ravel() for x in drawn])


@dataclass(frozen=True)
class Row:
    """flatmin's optimizer over a base, the reference's loop, and which closures the first takes."""

    build: Callable[[torch.optim.Optimizer], flatmin.SharpnessAware]
    reference: Callable[..., Any]
    auxiliary: bool = False
    per_sample: bool = False


def named(name: str, reference: Callable[..., Any]) -> Row:
    method = flatmin.methods.find(name)
    build = partial(method.build, total_steps=STEPS)
    return Row(build, reference, method.auxiliary, method.per_sample)


def made(function: Any, reference: Any, *, auxiliary: bool = False, **hyper: Any) -> Row:
    """The same hyperparameters, other than the defaults, on both sides."""
    return Row(partial(function, **hyper), partial(reference, **hyper), auxiliary)


def parts(reference: Any, *, auxiliary: bool = False, **chosen: Any) -> Row:
    return Row(partial(flatmin.SharpnessAware, **chosen), reference, auxiliary)


NAMED = {
    "sam": methods.sam,
    "asam": methods.asam,
    "fisher-sam": methods.fisher_sam,
    "friendly-sam": methods.friendly_sam,
    "friendly-asam": methods.friendly_asam,
    "agnostic-sam": methods.agnostic_sam,
    "agnostic-asam": methods.agnostic_asam,
    "align-sam": methods.align_sam,
    "align-asam": methods.align_asam,
    "vasso": methods.vasso,
    "look-sam": methods.look_sam,
    "ss-sam": partial(methods.ss_sam, uniform=uniform),
    "ae-sam": methods.ae_sam,
    "ae-look-sam": methods.ae_look_sam,
    "gsam": methods.gsam,
    "esam": partial(methods.esam, uniform=uniform),
    "lookbehind-sam": methods.lookbehind_sam,
    "msam": methods.msam,
    "rwp": partial(methods.rwp, normal=normal),
    "mixed-rwp": partial(methods.mixed_rwp, normal=normal),
    "wsam": methods.wsam,
    "late-sam": methods.late_sam,
    "late-agnostic-sam": methods.late_agnostic_sam,
    "previous-sam": methods.previous_sam,
    "previous-agnostic-sam": methods.previous_agnostic_sam,
    "agnostic-sam-previous": methods.agnostic_sam_previous,
    "ae-agnostic-sam": methods.ae_agnostic_sam,
    "ae-friendly-sam": methods.ae_friendly_sam,
    "ae-agnostic-sam-previous": methods.ae_agnostic_sam_previous,
    "look-agnostic-sam": methods.look_agnostic_sam,
    "look-friendly-sam": methods.look_friendly_sam,
    "sam-db": methods.other_batch,
    "sam-full": methods.full_component,
    "sam-noise": methods.noise_component,
}

ROWS = {name: named(name, reference) for name, reference in NAMED.items()} | {
    # Hyperparameters that are not the defaults.
    "asam, eta": made(flatmin.ASAM, methods.asam, eta=0.3),
    "fisher-sam, eta": made(flatmin.FisherSAM, methods.fisher_sam, eta=30.0),
    "friendly-sam, sigma": made(flatmin.FriendlySAM, methods.friendly_sam, sigma=0.6, lmbda=0.7),
    "friendly-asam, sigma": made(
        flatmin.FriendlyASAM, methods.friendly_asam, sigma=0.6, lmbda=0.7, eta=0.3
    ),
    "agnostic-sam, radii": made(
        flatmin.AgnosticSAM, methods.agnostic_sam, auxiliary=True, rho1=0.15, rho2=0.12, beta=0.4
    ),
    "agnostic-asam, beta": made(
        flatmin.AgnosticASAM, methods.agnostic_asam, auxiliary=True, beta=0.0, eta=0.3
    ),
    "align-sam, lmbda": made(flatmin.AlignSAM, methods.align_sam, auxiliary=True, lmbda=1.3),
    "vasso, theta": made(flatmin.VASSO, methods.vasso, theta=0.3),
    "look-sam, k": made(flatmin.LookSAM, methods.look_sam, k=3, alpha=0.4),
    "ss-sam, p": Row(
        partial(flatmin.SSSAM, p=0.7, seed=3),
        partial(methods.ss_sam, uniform=uniform, p=0.7, seed=3),
    ),
    "ae-sam, lambdas": Row(
        partial(flatmin.AESAM, total_steps=STEPS, lambda1=-0.5, lambda2=0.5, delta=0.8),
        partial(methods.ae_sam, lambda1=-0.5, lambda2=0.5, delta=0.8),
    ),
    "ae-look-sam, alpha": Row(
        partial(flatmin.AELookSAM, total_steps=STEPS, alpha=0.4, lambda1=-1.0, lambda2=1.0),
        partial(methods.ae_look_sam, alpha=0.4, lambda1=-1.0, lambda2=1.0),
    ),
    "gsam, alpha": made(flatmin.GSAM, methods.gsam, alpha=0.5),
    "esam, seed": Row(
        # With a beta much smaller, some step keeps none of the four tensors, and no loss rises.
        partial(flatmin.ESAM, beta=0.8, gamma=0.3, seed=5),
        partial(methods.esam, uniform=uniform, beta=0.8, gamma=0.3, seed=5),
        per_sample=True,
    ),
    "lookbehind-sam, k": made(flatmin.LookbehindSAM, methods.lookbehind_sam, k=3, alpha=0.8),
    "rwp, adaptive": Row(
        partial(flatmin.RWP, eta=30.0, beta=0.7, seed=3),
        partial(methods.rwp, normal=normal, eta=30.0, beta=0.7, seed=3),
    ),
    "mixed-rwp, adaptive": Row(
        partial(flatmin.MixedRWP, share=0.3, eta=30.0, beta=0.7, seed=3),
        partial(methods.mixed_rwp, normal=normal, share=0.3, eta=30.0, beta=0.7, seed=3),
    ),
    "wsam, gamma": made(flatmin.WSAM, methods.wsam, gamma=0.3),
    "late-sam, start": Row(
        partial(flatmin.LateSAM, total_steps=STEPS, start=0.35),
        partial(methods.late_sam, start=0.35),
    ),
    "late-agnostic-sam, start": Row(
        partial(flatmin.LateAgnosticSAM, total_steps=STEPS, start=0.35, beta=0.4),
        partial(methods.late_agnostic_sam, start=0.35, beta=0.4),
        auxiliary=True,
    ),
    "previous-agnostic-sam, radii": made(
        flatmin.PreviousAgnosticSAM, methods.previous_agnostic_sam, rho1=0.15, rho2=0.12, beta=0.0
    ),
    # The authors' code rather than their paper.
    "friendly-sam, released": Row(
        partial(flatmin.FriendlySAM, variant="released"), methods.friendly_sam_released
    ),
    # Parts that have no name of their own.
    "lookbehind in the adaptive metric": parts(
        partial(methods.lookbehind_sam, metric=methods.asam_metric),
        geometry=geometry.Adaptive(),
        descent=descent.Lookbehind(),
    ),
    "momentum, climbed": parts(partial(methods.msam, sign=1), direction=direction.Momentum(sign=1)),
    "early and every third": parts(
        methods.early_sam_every_third,
        policy=policy.Both(policy.Early(STEPS, end=0.5), policy.EveryK(3)),
    ),
    "sam-noise, orthogonal": Row(
        partial(flatmin.methods.find("sam-noise").construct, projection="orthogonal"),
        methods.noise_component_orthogonal,
        auxiliary=True,
    ),
    # What the direction remembers, moved by the steps between too.
    "friendly, on skipped": parts(
        methods.friendly_on_skipped,
        direction=direction.Friendly(on_skipped=True),
        policy=NOW_AND_THEN,
    ),
    "vasso, on skipped": parts(
        methods.vasso_on_skipped,
        direction=direction.Suppressed(on_skipped=True),
        policy=NOW_AND_THEN,
    ),
    "agnostic-previous, on skipped": parts(
        methods.agnostic_previous_on_skipped,
        direction=direction.Agnostic(auxiliary="previous", on_skipped=True),
        policy=NOW_AND_THEN,
    ),
    # Named methods again, spelled as their parts.
    "parts of asam": parts(methods.asam, geometry=geometry.Adaptive(eta=0.01)),
    "parts of fisher-sam": parts(methods.fisher_sam, geometry=geometry.Fisher(eta=1.0)),
    "parts of look-sam": parts(
        methods.look_sam, policy=policy.EveryK(5), descent=descent.Reuse(0.7)
    ),
}


def first_weights() -> np.ndarray:
    return 0.3 * np.random.default_rng(1).normal(size=sum(network.Network.sizes))


def referred(row: Row, base: Any, radii: tuple[float, ...]) -> tuple[np.ndarray, network.Network]:
    """The reference's weights before and after each step, and the network that it asked."""
    loss = network.Network()
    W1, b1, W2, b2 = loss.sizes
    rho = radii[0] if len(radii) == 1 else np.repeat(radii, (W1 + b1, W2 + b2))
    w = first_weights()
    path, first = [w], []
    steps = row.reference(loss, base, rho, w, network.batches(STEPS))
    for _ in range(STEPS):
        asked = len(loss.points)
        path.append(next(steps))
        first.append(loss.points[asked])
    loss.points = first
    return np.array(path), loss


def torch_network() -> torch.nn.Sequential:
    model = torch.nn.Sequential(
        torch.nn.Linear(network.PIXELS, network.HIDDEN),
        torch.nn.Tanh(),
        torch.nn.Linear(network.HIDDEN, network.CLASSES),
    ).double()
    torch.nn.utils.vector_to_parameters(torch.tensor(first_weights()), model.parameters())
    return model


def grouped(model: torch.nn.Sequential, radii: tuple[float, ...]) -> list[dict[str, Any]]:
    layers = [model] if len(radii) == 1 else [model[0], model[2]]
    return [
        {"params": list(layer.parameters()), "rho": rho}
        for layer, rho in zip(layers, radii, strict=True)
    ]


def trained(row: Row, make_base: Any, radii: tuple[float, ...]):
    """flatmin's weights before and after each step, the losses it returned, and its cost."""
    model = torch_network()
    optimizer = row.build(make_base(grouped(model, radii)))
    flat = lambda: torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()

    def mean_loss(batch: network.Batch) -> torch.Tensor:
        loss = cross_entropy(model(torch.tensor(batch.x)), torch.tensor(batch.y))
        loss.backward()
        return loss

    def sample_losses(batch: network.Batch, chosen: torch.Tensor | None) -> torch.Tensor:
        x, y = torch.tensor(batch.x), torch.tensor(batch.y)
        x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
        return cross_entropy(model(x), y, reduction="none")

    path, losses = [flat()], []
    for primary, auxiliary in network.batches(STEPS):
        if row.per_sample:
            loss = optimizer.step(partial(sample_losses, primary))
        elif row.auxiliary:
            loss = optimizer.step(lambda: mean_loss(primary), lambda: mean_loss(auxiliary))
        else:
            loss = optimizer.step(lambda: mean_loss(primary))
        losses.append(float(loss))
        path.append(flat())
    return np.array(path), losses, optimizer.cost


def test_every_method_of_the_table_has_its_reference():
    assert set(NAMED) == set(flatmin.methods.TABLE) - {"sgd"}


@pytest.mark.parametrize("radii", RADII.values(), ids=RADII)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ROWS)
def test_twenty_steps_equal_the_reference(name: str, base: str, radii: tuple[float, ...]):
    ours, plain, hyper = BASES[base]
    expected, asked = referred(ROWS[name], plain(**hyper), radii)
    path, losses, cost = trained(ROWS[name], partial(ours, **hyper), radii)

    off = np.linalg.norm(path - expected, axis=1)
    travelled = np.linalg.norm(expected[-1] - expected[0])
    assert off[-1] <= TOLERANCE * travelled, f"‖w - w_ref‖ before and after each step: {off}"
    # Where the first gradient was taken: at `w`, or at `w + eps` of a step that begins there.
    looked_from = zip(asked.points, network.batches(STEPS), strict=True)
    before = [asked.losses(w, B).mean() for w, (B, _) in looked_from]
    assert losses == pytest.approx(before, rel=TOLERANCE)
    assert cost.gradients == asked.gradients


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "name",
    [
        "ss-sam",
        "ae-sam",
        "ae-look-sam",
        "ae-agnostic-sam-previous",
        "late-sam",
        "early and every third",
    ],
)
def test_the_twenty_steps_take_both_branches(name: str, base: str):
    """Otherwise the comparison above would say nothing about one of them."""
    _, plain, hyper = BASES[base]
    _, asked = referred(ROWS[name], plain(**hyper), RADII["one group"])
    assert STEPS + 2 <= asked.gradients <= 2 * STEPS - 2


def test_without_a_momentum_of_the_base_msam_keeps_its_own():
    plain = {"lr": 0.1}
    expected, _ = referred(ROWS["msam"], bases.SGD(**plain), (0.1,))
    path, _, _ = trained(ROWS["msam"], partial(torch.optim.SGD, **plain), (0.1,))
    travelled = np.linalg.norm(expected[-1] - expected[0])
    assert np.linalg.norm(path[-1] - expected[-1]) <= TOLERANCE * travelled


class Pair:
    """Two bases, each of which steps one layer; the second has no momentum of its own."""

    def __init__(self, size: int, lr: float) -> None:
        self.of, self.size = (bases.SGD(lr, 0.9), bases.SGD(lr)), size
        self.mean = 0.0

    @property
    def kept(self):
        mean = np.zeros_like(self.last) + self.mean if hasattr(self, "last") else None
        if mean is None:
            return None
        mean[: self.size] = self.of[0].velocity
        return mean

    def step(self, w, g):
        self.mean, self.last = 0.9 * self.mean + 0.1 * g, w
        parts = [slice(0, self.size), slice(self.size, None)]
        return np.concatenate([b.step(w[s], g[s]) for b, s in zip(self.of, parts, strict=True)])


def test_of_several_bases_each_brings_the_momentum_that_it_has():
    W1, b1, *_ = network.Network.sizes
    expected, _ = referred(ROWS["msam"], Pair(W1 + b1, 0.1), (0.1,))

    def build(groups: list[dict[str, Any]]) -> Any:
        params = groups[0]["params"]
        first = torch.optim.SGD(params[:2], lr=0.1, momentum=0.9)
        return [first, torch.optim.SGD(params[2:], lr=0.1)]

    row = Row(partial(flatmin.MSAM, rho=0.1), methods.msam)
    path, _, _ = trained(row, build, (0.1,))
    travelled = np.linalg.norm(expected[-1] - expected[0])
    assert np.linalg.norm(path[-1] - expected[-1]) <= TOLERANCE * travelled


def test_the_hand_written_gradient_equals_autograd():
    (batch, _), *_ = network.batches(1)
    model = torch_network()
    cross_entropy(model(torch.tensor(batch.x)), torch.tensor(batch.y)).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()
    gradient = network.Network().grad(first_weights(), batch)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("base", BASES)
def test_the_hand_written_bases_equal_torch(base: str):
    ours, plain, hyper = BASES[base]
    rng = np.random.default_rng(2)
    w = first_weights()
    parameter = torch.nn.Parameter(torch.tensor(w))
    theirs, mine = ours([parameter], **hyper), plain(**hyper)
    for _ in range(STEPS):
        g = rng.normal(size=w.size)
        parameter.grad = torch.tensor(g)
        theirs.step()
        w = mine.step(w, g)
    np.testing.assert_allclose(w, parameter.detach().numpy(), rtol=0, atol=1e-13)


# --- by hand: two weights, two steps, plain SGD


close = partial(pytest.approx, rel=TOLERANCE)


def two_weights() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([3.0, 2.0], dtype=torch.float64))


def quadratic(w: torch.nn.Parameter, curvature: list[float], centre: list[float]):
    """A closure over ½ Σ curvature (w − centre)²; its gradient is curvature (w − centre)."""

    def closure() -> torch.Tensor:
        off = w - torch.tensor(centre, dtype=torch.float64)
        loss = (torch.tensor(curvature, dtype=torch.float64) * off**2).sum() / 2
        loss.backward()
        return loss

    return closure


def test_two_steps_of_sam_by_hand():
    w = two_weights()
    optimizer = flatmin.SAM(torch.optim.SGD([w], lr=0.25), rho=5.0)
    closure = quadratic(w, [1, 2], [0, 0])

    # w = (3, 2): loss (9 + 2·4)/2 = 8.5; g = (3, 2·2) = (3, 4), of norm 5; eps = 5 g/5 = (3, 4);
    # g_s = (3+3, 2(2+4)) = (6, 12); w - g_s/4 = (3 - 1.5, 2 - 3) = (1.5, -1).
    assert float(optimizer.step(closure)) == close(8.5)
    assert w.tolist() == close([1.5, -1])

    # w = (1.5, -1): loss (2.25 + 2)/2 = 2.125; g = (1.5, -2), of norm 2.5; eps = 5 g/2.5 = (3, -4);
    # g_s = (1.5+3, 2(-1-4)) = (4.5, -10); w - g_s/4 = (1.5 - 1.125, -1 + 2.5) = (0.375, 1.5).
    assert float(optimizer.step(closure)) == close(2.125)
    assert w.tolist() == close([0.375, 1.5])


def test_two_steps_of_agnostic_sam_by_hand():
    w = two_weights()
    base = torch.optim.SGD([w], lr=3 / 17)
    optimizer = flatmin.AgnosticSAM(base, rho=5.0, beta=0.5)
    primary = quadratic(w, [1, 2], [0, 0])

    # A = ½ ‖w - (7, -1)‖², whose gradient at (3, 2) is (-4, 3), of norm 5; eps_v = (-4, 3);
    # there it is (-8, 6); v = (0 + (-8, 6))/2 = (-4, 3), of norm 5.
    # g = (3, 4), of norm 5; eps = 10 g/5 - 5 v/5 = (6, 8) - (-4, 3) = (10, 5);
    # g_s = (3+10, 2(2+5)) = (13, 14); w = (3 - 39/17, 2 - 42/17) = (12/17, -8/17).
    optimizer.step(primary, quadratic(w, [1, 1], [7, -1]))
    assert w.tolist() == close([12 / 17, -8 / 17])

    # A's centre is now w - (1, 4/3): gradient (1, 4/3), of norm 5/3; eps_v = (3, 4);
    # there it is (4, 16/3); v = ((-4, 3) + (4, 16/3))/2 = (0, 25/6), of norm 25/6.
    # g = (12, -16)/17, of norm 20/17; eps = 10 (0.6, -0.8) - 5 (0, 1) = (6, -13);
    # g_s = (12/17 + 6, 2(-8/17 - 13)) = (114, -458)/17;
    # w = (12/17 - 342/289, -8/17 + 1374/289) = (-138, 1238)/289.
    optimizer.step(primary, quadratic(w, [1, 1], [12 / 17 - 1, -8 / 17 - 4 / 3]))
    assert w.tolist() == close([-138 / 289, 1238 / 289])


@pytest.mark.parametrize(
    "total_steps, perturbed, expected",
    [(2, 2, [0.375, 1.5]), (3, 2, [0.375, 1.5]), (4, 1, [1.125, -0.5])],
)
def test_two_steps_of_ae_sam_by_hand(total_steps: int, perturbed: int, expected: list[float]):
    w = two_weights()
    optimizer = flatmin.AESAM(torch.optim.SGD([w], lr=0.25), total_steps, rho=5.0)
    closure = quadratic(w, [1, 2], [0, 0])

    # s = 3² + 4² = 25; mu = 0.1·25 = 2.5; sigma² = 0.9/e¹⁰ + 0.1 (25 - 2.5)² = 50.62504;
    # c = 1; mu + c sigma = 2.5 + 7.11513 = 9.61513 <= 25: SAM's first step, above.
    optimizer.step(closure)
    assert w.tolist() == close([1.5, -1])

    # s = 1.5² + 2² = 6.25; mu = 0.9·2.5 + 0.1·6.25 = 2.875;
    # sigma² = 0.9·50.62504 + 0.1 (6.25 - 2.875)² = 46.70160, sigma = 6.83386; c = 1 - 2/T:
    # T = 2: 2.875 + 0 = 2.875, and T = 3: 2.875 + 6.83386/3 = 5.15295: SAM's second step, above;
    # T = 4: 2.875 + 6.83386/2 = 6.29193 > 6.25: w - g/4 = (1.5 - 0.375, -1 + 0.5).
    optimizer.step(closure)
    assert w.tolist() == close(expected)
    assert optimizer.cost.perturbed == perturbed


@pytest.mark.parametrize("lambda2, perturbed", [(0.34, 1), (0.36, 0)])
def test_the_first_threshold_of_ae_sam_by_hand(lambda2: float, perturbed: int):
    w = two_weights()
    with torch.no_grad():
        w.div_(100)
    optimizer = flatmin.AESAM(torch.optim.SGD([w], lr=0.25), total_steps=1, lambda2=lambda2)

    # g = (0.03, 0.04), s = 0.0025; mu = 0.1 s = 0.00025; sigma² = 0.9/e¹⁰ + 0.1 (0.9 s)²
    # = 4.0860e-5 + 0.0506e-5 = 4.1366e-5; sigma = 0.0064316, so s = mu + 0.34983 sigma.
    optimizer.step(quadratic(w, [1, 2], [0, 0]))
    assert optimizer.cost.perturbed == perturbed

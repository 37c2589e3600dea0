"""Whatever the shapes, the types, the missing gradients and the parts: the promises hold."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import flatmin
from flatmin import descent, direction, geometry, policy, selection
from flatmin.engine import space
from flatmin.engine.random import uniform

SAMPLES, STEPS = 4, 4

# A bfloat16 weight of size 30 does not feel a step of 0.01, and the optimizer says so.
pytestmark = pytest.mark.filterwarnings("ignore:the perturbation:RuntimeWarning")


def quick(examples: int) -> Any:
    return settings(deadline=None, max_examples=examples, derandomize=True)


# --- training


@dataclass(frozen=True)
class Weights:
    """One parameter: its shape, its type, the size of its weights, and what it lacks.

    Fields:
        missing: the passes of a step, from 0, that leave it no gradient.
        turned: its dimensions lie in memory in reverse order, as with other memory formats.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    size: float = 1.0
    frozen: bool = False
    missing: frozenset[int] = frozenset()
    turned: bool = False

    def draw(self, generator: torch.Generator) -> torch.nn.Parameter:
        weights = (self.size * torch.randn(self.shape, generator=generator)).to(self.dtype)
        if self.turned:
            weights = torch.empty_like(weights.mT.contiguous()).mT.copy_(weights)
        return torch.nn.Parameter(weights, not self.frozen)


@dataclass(frozen=True)
class Look:
    """What a closure saw: which batch, at which weights, and the gradients that it left."""

    batch: str
    at: list[Tensor]
    gradients: list[Tensor | None] = field(default_factory=list)


@dataclass
class Training:
    """Waves over drawn parameters: a smooth loss, other ones at each step and on each batch.

    The parameters are dealt to as many groups as there are radii. Those of more elements than
    `large` are apart from the others in memory while the optimizer works on them. `looks` are those
    of the last step; its pass number `broken` raises.
    """

    weights: list[Weights]
    radii: list[float]
    make_base: Callable[..., torch.optim.Optimizer]
    parts: dict[str, Any]
    seed: int
    large: int
    lr: float = 0.01
    measure_radius: bool = False

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.params = [w.draw(generator) for w in self.weights]
        dealt = [(rho, self.params[i :: len(self.radii)]) for i, rho in enumerate(self.radii)]
        groups = [{"params": params, "rho": rho} for rho, params in dealt if params]
        self.base = self.make_base(groups, lr=self.lr)
        self.optimizer = flatmin.SharpnessAware(
            self.base, measure_radius=self.measure_radius, **self.parts
        )
        self.looks: list[Look] = []
        self.steps = 0
        self.broken: int | None = None

    def closure(self, batch: str, chosen: Tensor | None = None) -> Tensor:
        number = len(self.looks)
        look = Look(batch, self.now())
        self.looks.append(look)
        if number == self.broken:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(2 * self.steps + (batch == "auxiliary"))
        waves = torch.rand(SAMPLES, len(self.params), generator=generator, dtype=torch.float64)
        waves = waves if chosen is None else waves[chosen]
        losses = torch.stack([self.loss(number, wave) for wave in waves.tolist()])
        if batch == "primary" and self.optimizer.selection.per_sample:
            return losses
        losses.mean().backward()
        look.gradients.extend(None if p.grad is None else p.grad.clone() for p in self.params)
        return losses.mean()

    def loss(self, number: int, wave: list[float]) -> Tensor:
        terms = [
            (real(p) * (length + 0.5) + length).sin().sum().double()
            for p, length, drawn in zip(self.params, wave, self.weights, strict=True)
            if number not in drawn.missing
        ]
        return torch.stack(terms).sum()

    def step(self) -> Tensor:
        self.looks.clear()
        closures = [partial(self.closure, "primary")]
        if self.optimizer.direction.auxiliary_passes:
            closures.append(partial(self.closure, "auxiliary"))
        with patch.object(space, "LARGE", self.large):
            loss = self.optimizer.step(*closures)
        self.steps += 1
        return loss

    def run(self, steps: int = STEPS) -> Training:
        for _ in range(steps):
            self.step()
        return self

    def now(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params]

    def bits(self) -> dict[str, bytes]:
        """Weights, state and numbers, as they lie in memory."""
        packed = self.optimizer.state_dict()
        found = {str(i): bits(p) for i, p in enumerate(self.params)}
        for i, kept in packed["state"].items():
            found |= {f"{i} {name}": bits(torch.as_tensor(x)) for name, x in kept.items()}
        return found | {"groups": repr(packed["param_groups"]).encode()}

    @property
    def in_order(self) -> list[tuple[int, float]]:
        """The trainable parameters in the order of the groups, each with its radius."""
        place = {id(p): i for i, p in enumerate(self.params)}
        return [
            (place[id(p)], group["rho"])
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.requires_grad
        ]

    @property
    def reaches(self) -> bool:
        """Does any radius differ from 0?"""
        groups = self.optimizer.param_groups
        return any(self.optimizer.direction.largest_radius(g["rho"]) > 0 for g in groups)


def real(p: Tensor) -> Tensor:
    return torch.view_as_real(p) if p.is_complex() else p


def bits(x: Tensor) -> bytes:
    return x.detach().reshape(-1).clone().view(torch.uint8).numpy().tobytes()


# --- what is drawn

REAL = [torch.float32, torch.float64, torch.bfloat16]
TYPES = st.sampled_from([[t] for t in (*REAL, torch.complex64, torch.complex128)] + [REAL])
DOUBLE = st.sampled_from([[torch.float64], [torch.float64, torch.complex128]])
SIZES = st.sampled_from([1e-2, 1.0, 30.0])
SHAPES = st.sampled_from([(), (1,), (3,), (0,), (2, 3), (4, 0), (2, 1, 3), (60,)])
MATRICES = st.sampled_from([(2, 3), (4, 2), (2, 1, 3), (2, 3, 4)])
NEVER = frozenset(range(8))
ANY_PASSES = st.one_of(st.frozensets(st.integers(0, 4), max_size=3), st.just(NEVER))


@st.composite
def parameters(draw: Any, types: Any = TYPES, missing: Any = ANY_PASSES) -> list[Weights]:
    """One to five; the first always has a gradient, so that no pass is without any."""
    dtypes = st.sampled_from(draw(types))
    first = st.builds(Weights, st.sampled_from([(2,), (3, 2)]), dtypes, SIZES)
    more = st.builds(Weights, SHAPES, dtypes, SIZES, st.booleans(), missing)
    turned = st.builds(Weights, MATRICES, dtypes, SIZES, turned=st.just(True))
    return [draw(first), *draw(st.lists(more | turned, max_size=4))]


shares = partial(st.floats, 0.0, 1.0)
seeds = st.integers(0, 99)
SINGLE_CLIMBS = st.one_of(
    st.just(direction.Ascent()),
    st.builds(
        direction.Friendly, shares(), st.floats(0.1, 0.95), st.sampled_from(["paper", "released"])
    ),
    st.builds(direction.Suppressed, shares(exclude_min=True)),
)
DIRECTIONS = st.one_of(
    SINGLE_CLIMBS,
    st.builds(
        direction.Agnostic,
        st.sampled_from([None, 0.0, 0.2]),
        st.sampled_from([None, 0.0, 0.1]),
        st.sampled_from([0.0, 0.5, 0.9]),
        st.sampled_from([0.0, 1.0, 2.0]),
        st.sampled_from(["batch", "previous"]),
    ),
    st.sampled_from(
        [
            direction.OtherBatch(),
            direction.FullComponent(),
            direction.NoiseComponent(),
            direction.NoiseComponent("orthogonal"),
        ]
    ),
)
METRICS = st.one_of(
    st.just(geometry.Euclidean()),
    st.builds(geometry.Adaptive, st.sampled_from([0.01, 1.0])),
    st.builds(geometry.Fisher, st.sampled_from([0.5, 10.0])),
)
SUBSETS = st.builds(geometry.RandomSubset, st.sampled_from([0.4, 0.8, 1.0]), seeds)
GEOMETRIES = st.one_of(METRICS, SUBSETS, st.builds(geometry.Product, METRICS, METRICS | SUBSETS))
POLICIES = st.one_of(
    st.just(policy.Always()),
    st.builds(policy.EveryK, st.integers(1, 3)),
    st.builds(policy.Bernoulli, shares(), seeds),
    st.builds(
        policy.LargeGradient,
        st.integers(1, 9),
        st.floats(-2, 2),
        st.floats(-2, 2),
        st.floats(0, 0.9),
    ),
)
DESCENTS = st.one_of(
    st.just(descent.Plain()),
    st.builds(descent.Reuse, shares()),
    st.builds(descent.SurrogateGap, shares()),
    st.builds(descent.Lookbehind, st.integers(1, 3), st.floats(0.1, 1.0)),
)
SELECTIONS = st.one_of(
    st.just(selection.WholeBatch()),
    st.builds(selection.LossRise, st.sampled_from([0.3, 0.8, 1.0])),
)
BASES: Any = st.sampled_from(
    [
        torch.optim.SGD,
        partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01),
        torch.optim.Adam,
        partial(torch.optim.AdamW, weight_decay=0.1),
    ]
)


def trainings(**chosen: Any) -> Any:
    """Trainings of drawn parameters, radii, bases and parts; some of them chosen."""
    parts = {
        "direction": DIRECTIONS,
        "geometry": GEOMETRIES,
        "policy": POLICIES,
        "descent": DESCENTS,
        "selection": SELECTIONS,
    }
    drawn: dict[str, Any] = {
        "weights": parameters(),
        "radii": st.lists(st.sampled_from([0.0, 0.05, 0.5]), min_size=1, max_size=3),
        "make_base": BASES,
        "seed": seeds,
        "large": st.sampled_from([-1, 4, space.LARGE]),
        "parts": st.fixed_dictionaries({k: chosen.pop(k, v) for k, v in parts.items()}),
    }
    return st.builds(Training, **{**drawn, **chosen})


# --- the promises


@quick(80)
@given(training=trainings(lr=st.just(0.0)))
def test_a_step_of_length_zero_never_moves_a_bit(training: Training):
    before = [bits(p) for p in training.params]
    training.run()
    assert [bits(p) for p in training.params] == before
    assert training.optimizer.cost.steps == STEPS


@quick(80)
@given(training=trainings(), broken=st.integers(0, 9))
def test_a_pass_that_raises_leaves_no_trace(training: Training, broken: int):
    untroubled = replace(training).run(2)
    training.run(1)
    before = training.bits()
    training.broken = broken % len(untroubled.looks)
    event(f"pass {training.broken} raised")
    with pytest.raises(KeyboardInterrupt):
        training.step()
    assert training.bits() == before
    training.broken = None
    training.step()
    assert training.bits() == untroubled.bits()


@quick(80)
@given(training=trainings(), stop=st.integers(0, STEPS))
def test_a_resumed_run_has_the_bits_of_one_that_did_not_stop(training: Training, stop: int):
    resumed = replace(training, seed=training.seed + 1)
    training.run(stop)
    file = io.BytesIO()
    torch.save(training.optimizer.state_dict(), file)
    file.seek(0)
    resumed.optimizer.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for p, saved in zip(resumed.params, training.params, strict=True):
            p.copy_(saved)
    resumed.steps = stop
    assert resumed.bits() == training.bits()
    assert resumed.run().bits() == training.run().bits()


@quick(80)
@given(training=trainings())
def test_the_cost_counts_every_pass_and_every_pass_is_wanted(training: Training):
    parts = training.optimizer
    forwards = parts.selection.share < 1  # a look at the losses alone
    further = parts.direction.auxiliary_passes + parts.descent.further_passes
    cost = flatmin.Cost()
    for t in range(STEPS):
        at_home = [bits(p) for p in training.params]
        training.step()
        assert [bits(w) for w in training.looks[0].at] == at_home
        batches = [look.batch for look in training.looks]
        assert len(batches) in (1, 2 + further + forwards)
        assert batches[0] == "primary"
        assert batches.count("auxiliary") in (0, parts.direction.auxiliary_passes)
        perturbed = len(batches) > 1
        if not training.reaches:
            assert not perturbed
        elif isinstance(parts.policy, (policy.Always, policy.EveryK)):
            assert perturbed == (t % getattr(parts.policy, "k", 1) == 0)
        elif isinstance(parts.policy, policy.Bernoulli):
            assert perturbed == (uniform(parts.policy.seed, t) < parts.policy.p)
        event(f"perturbed: {perturbed}")
        cost += flatmin.Cost(
            steps=1,
            perturbed=perturbed,
            gradients=len(batches) - (perturbed and forwards),
            auxiliary=batches.count("auxiliary"),
        )
        assert parts.cost == cost


@quick(80)
@given(training=trainings())
def test_what_has_no_gradient_stays_where_it_is_also_while_looking_around(training: Training):
    still = [i for i, w in enumerate(training.weights) if w.frozen or w.missing == NEVER]
    assume(still)
    start = [bits(p) for p in training.params]
    for _ in range(STEPS):
        training.step()
        seen = [look.at for look in training.looks] + [training.now()]
        assert all(bits(weights[i]) == start[i] for weights in seen for i in still)
    assert not any(training.optimizer.state.get(training.params[i]) for i in still)


PREVIOUS = st.just(direction.Agnostic(beta=0.0, auxiliary="previous"))


@quick(80)
@given(training=trainings(direction=PREVIOUS | DIRECTIONS))
def test_clearing_gradients_in_place_between_steps_clears_no_memory(training: Training):
    tidy = replace(training)
    for _ in range(STEPS):
        training.step()
        tidy.step()
        tidy.optimizer.zero_grad(set_to_none=False)
        assert tidy.bits() == training.bits()


def follows_the_group(parts: dict[str, Any]) -> bool:
    chosen = parts["direction"]
    return not (getattr(chosen, "rho1", None) or getattr(chosen, "rho2", None))


@quick(50)
@given(training=trainings(radii=st.just([0.0]), direction=DIRECTIONS))
def test_radius_zero_is_the_base_optimizer(training: Training):
    assume(follows_the_group(training.parts))
    alone = replace(training)
    for _ in range(STEPS):
        alone.looks.clear()
        alone.base.zero_grad()
        loss = alone.closure("primary")
        if loss.ndim:
            loss.mean().backward()
        alone.base.step()
        alone.steps += 1
    training.run()
    assert [bits(p) for p in training.params] == [bits(p) for p in alone.params]
    assert training.optimizer.cost.gradients == STEPS


class Recorder(torch.optim.SGD):
    """SGD that keeps what it was given."""

    def step(self, closure: Any = None) -> None:
        self.given = [*getattr(self, "given", []), [p.grad for p in self.param_groups[0]["params"]]]
        super().step()


@pytest.mark.parametrize(
    "missing, expected",
    [({0}, "gg"), ({1}, "0g"), ({2}, "--"), ({0, 1}, "0g"), ({0, 1, 2}, "--")],
)
@pytest.mark.parametrize("large", [-1, space.LARGE])
def test_the_last_pass_decides_whether_the_base_gets_a_gradient(
    missing: set[int], expected: str, large: int
):
    """Where that has left one, those of other passes count as zero where they have left none."""
    weights = [Weights((2,), torch.float32, missing=frozenset(m)) for m in (set(), missing)]
    parts = {"descent": descent.Lookbehind(k=2)}
    training = Training(weights, [0.05], Recorder, parts, seed=0, large=large).run(1)
    seen = ["-" if g is None else "g" if g.any() else "0" for _, g in training.base.given]
    assert "".join(seen) == expected


@pytest.mark.parametrize("dtype", [*REAL, torch.float16, torch.complex64])
@pytest.mark.parametrize("large", [-1, space.LARGE])
def test_a_zero_gradient_climbs_nowhere_in_every_type(dtype: torch.dtype, large: int):
    training = Training([Weights((3,), dtype)], [0.05], torch.optim.SGD, {}, seed=0, large=large)
    training.loss = lambda number, wave: (0 * real(training.params[0])).sum().double()
    before = bits(training.params[0])
    training.run(2)
    assert all(bits(look.at[0]) == before for look in training.looks)
    assert bits(training.params[0]) == before


# --- the equations: eps = rho Γ(d), at every step, in double precision


@dataclass
class Formula:
    """The displacement of a direction with one climb, on one flat vector."""

    training: Training
    mean: Tensor | None = None

    def flat(self, tensors: list[Tensor | None]) -> Tensor:
        """Of the trainable parameters, in the order of the groups; 0 where there is none."""
        pieces = []
        for i, _ in self.training.in_order:
            x, p = tensors[i], self.training.params[i]
            pieces.append(real(torch.zeros_like(p) if x is None else x).detach().reshape(-1))
        return torch.cat(pieces)

    @property
    def rho(self) -> Tensor:
        pieces = [
            torch.full((real(self.training.params[i]).numel(),), rho, dtype=torch.float64)
            for i, rho in self.training.in_order
        ]
        return torch.cat(pieces)

    def along(self, g: Tensor) -> Tensor:
        """`d`, and the mean that it leaves."""
        chosen, before = self.training.parts["direction"], self.mean
        if isinstance(chosen, direction.Ascent):
            return g
        if isinstance(chosen, direction.Suppressed):
            self.mean = g if before is None else (1 - chosen.theta) * before + chosen.theta * g
            return self.mean
        if chosen.variant == "released":
            self.mean = g if before is None else chosen.lmbda * before + (1 - chosen.lmbda) * g
            return g if before is None else g - chosen.sigma * before
        before = torch.zeros_like(g) if before is None else before
        self.mean = chosen.lmbda * before + (1 - chosen.lmbda) * g
        return g - chosen.sigma * self.mean

    def metric(self, metric: Any, w: Tensor, g: Tensor, t: int) -> tuple[Tensor, float]:
        """`T`, and the gain of the climb."""
        if isinstance(metric, geometry.Product):
            parts = [self.metric(part, w, g, t) for part in (metric.first, metric.second)]
            return parts[0][0] * parts[1][0], parts[0][1] * parts[1][1]
        if isinstance(metric, geometry.Adaptive):
            return w.abs() + metric.eta, 1.0
        if isinstance(metric, geometry.Fisher):
            return (1 + metric.eta * g**2) ** -0.5, 1.0
        if isinstance(metric, geometry.RandomSubset):
            pieces = [
                torch.full_like(
                    real(self.training.params[i]).detach().reshape(-1),
                    uniform(metric.seed, t, n) < metric.beta,
                )
                for n, (i, _) in enumerate(self.training.in_order)
            ]
            return torch.cat(pieces), 1 / metric.beta
        return torch.ones_like(w), 1.0


@quick(80)
@given(
    training=trainings(
        weights=parameters(
            DOUBLE, st.sampled_from([frozenset(), frozenset({0}), frozenset({0, 1})])
        ),
        direction=SINGLE_CLIMBS,
        policy=st.just(policy.Always()),
        descent=st.just(descent.Plain()),
        selection=st.just(selection.WholeBatch()),
        measure_radius=st.just(True),
    )
)
def test_the_perturbation_is_the_formula(training: Training):
    assume(training.reaches)
    formula, chosen = Formula(training), training.parts["geometry"]
    travelled = 0.0
    for t in range(STEPS):
        training.step()
        first, second = training.looks
        w, g = formula.flat(list(first.at)), formula.flat(first.gradients)
        eps = formula.flat(list(second.at)) - w
        d = formula.along(g)
        assume(d.norm() > 1e-6 * g.norm())  # no digits are left of a difference that vanishes
        T, gain = formula.metric(chosen, w, g, t)
        expected = formula.rho * gain * T**2 * d / ((T * d).norm() + 1e-12)
        atol = 1e-9 * float(expected.abs().max()) + 1e-14 * float(w.abs().max())
        torch.testing.assert_close(eps, expected, rtol=1e-9, atol=atol)
        travelled += float(eps.norm())
        if len(set(formula.rho.tolist())) == 1 and bool((T > 0).all()):
            event("one radius")
            length = float((eps / T).norm()) / gain
            assert length == pytest.approx(float(formula.rho[0]), rel=1e-9)
    assert training.optimizer.cost.distance == pytest.approx(travelled)


@quick(80)
@given(
    training=trainings(
        weights=parameters(st.sampled_from([[t] for t in REAL])),
        direction=st.just(direction.Ascent()),
        geometry=st.just(geometry.Euclidean()),
        policy=st.just(policy.Always()),
        descent=st.just(descent.Plain()),
        selection=st.just(selection.WholeBatch()),
    )
)
def test_in_every_type_the_weights_are_perturbed_to_the_nearest(training: Training):
    """`w + eps` is off by the rounding of eps and of the sum: no more, in the coarsest type too."""
    assume(training.reaches)
    formula = Formula(training)
    training.run(2)
    first, second = training.looks
    precision = torch.finfo(training.weights[0].dtype).eps
    w, g = formula.flat(list(first.at)).double(), formula.flat(first.gradients).double()
    eps = formula.rho * g / (g.norm() + 1e-12)
    off = (formula.flat(list(second.at)).double() - (w + eps)).abs()
    assert bool((off <= precision * (w.abs() + 2 * eps.abs()) + 1e-30).all())

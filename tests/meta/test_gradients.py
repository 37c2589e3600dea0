"""Meta-gradients in double precision against explicit formulas, and against finite differences."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from reference import meta as reference
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

import flatmin
from flatmin import direction, geometry
from flatmin.meta import MAML, MetaLearner, Perturbation, SharpMAML, Task

RATE, RHO = 0.05, 0.3

DIRECTIONS = {
    "ascent": direction.Ascent(),
    "friendly": direction.Friendly(),
    "friendly released": direction.Friendly(sigma=0.7, variant="released"),
    "suppressed": direction.Suppressed(theta=0.4),
    "agnostic": direction.Agnostic(),
    "align": direction.Agnostic(beta=0.0),
    "agnostic previous": direction.Agnostic(auxiliary="previous"),
    "other batch": direction.OtherBatch(),
    "full component": direction.FullComponent(),
}
GEOMETRIES = {
    "euclidean": geometry.Euclidean(),
    "adaptive": geometry.Adaptive(),
    "fisher": geometry.Fisher(),
    "subset": geometry.RandomSubset(seed=3),
    "adaptive x fisher": geometry.Adaptive() * geometry.Fisher(),
    "only": geometry.Only(lambda name, p: p.ndim > 1),
}


def sinusoids(count: int = 2) -> tuple[nn.Module, list[Task]]:
    """Regression of sinusoids of random amplitude and phase, as in the MAML paper, made small."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    a, b = 0.1 + 4.9 * torch.rand(count).double(), 3.14 * torch.rand(count).double()
    x = 10 * torch.rand(2, count, 5, 1).double() - 5
    y = a.view(-1, 1, 1) * torch.sin(x + b.view(-1, 1, 1))
    return model.double(), [Task(x[0, i], y[0, i], x[1, i], y[1, i]) for i in range(count)]


def images(count: int = 2) -> tuple[nn.Module, list[Task]]:
    """Three ways on images of 6 x 6 pixels, with batch statistics, and smooth throughout."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Tanh(),
        nn.Conv2d(3, 3, 3, stride=2, padding=1),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(27, 3),
    )
    x, q = torch.randn(count, 3, 1, 6, 6).double(), torch.randn(count, 6, 1, 6, 6).double()
    y = torch.arange(3)
    return model.double(), [Task(x[i], y, q[i], y.repeat(2)) for i in range(count)]


@dataclass
class Problem:
    model: nn.Module
    tasks: list[Task]
    loss: object

    @property
    def point(self) -> list[Tensor]:
        return list(self.model.parameters())

    def at(self, w: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        names = [name for name, _ in self.model.named_parameters()]
        return self.loss(functional_call(self.model, dict(zip(names, w, strict=True)), (x,)), y)

    def ours(self, learner: MetaLearner) -> Tensor:
        self.model.zero_grad()
        learner.backward(self.tasks)
        return flat([p.grad for p in self.model.parameters()])

    def expected(self, **setting) -> Tensor:
        return flat(reference.meta_gradient(self.at, self.point, self.tasks, rate=RATE, **setting))


SINUSOIDS = Problem(*sinusoids(), mse_loss)
IMAGES = Problem(*images(), cross_entropy)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors]).clone()


def close(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() <= 1e-9 * max(1.0, float(b.abs().max()))


PAIRS = list(itertools.product(DIRECTIONS, GEOMETRIES))


@pytest.mark.parametrize("along, metric", PAIRS)
def test_every_direction_in_every_geometry_is_its_formula(along: str, metric: str):
    """1 and 5 steps, first and second order, through eps and not, in a loop and together."""
    lower = Perturbation(RHO, DIRECTIONS[along], GEOMETRIES[metric])
    for steps, first, through in itertools.product((1, 5), (True, False), (True, False)):
        if first and not through:
            continue  # the same: without a graph there is nothing to flow
        expected = SINUSOIDS.expected(
            steps=steps,
            direction=along,
            geometry=metric,
            rho=RHO,
            through=through,
            second=not first,
        )
        for batching in ("loop", "vmap"):
            learner = MetaLearner(
                SINUSOIDS.model,
                mse_loss,
                RATE,
                steps,
                first,
                lower=lower,
                through_perturbation=through,
                batching=batching,
            )
            close(SINUSOIDS.ours(learner), expected)


@pytest.mark.parametrize("along, metric", PAIRS)
def test_the_same_of_a_small_convolutional_network(along: str, metric: str):
    lower = Perturbation(RHO, DIRECTIONS[along], GEOMETRIES[metric])
    for steps, batching in ((1, "loop"), (5, "vmap")):
        learner = SharpMAML(
            IMAGES.model, cross_entropy, RATE, steps, lower=lower, batching=batching
        )
        expected = IMAGES.expected(steps=steps, direction=along, geometry=metric, rho=RHO)
        close(IMAGES.ours(learner), expected)


@pytest.mark.parametrize("along", DIRECTIONS)
@pytest.mark.parametrize("problem", (SINUSOIDS, IMAGES), ids=("sinusoids", "images"))
def test_finite_differences_of_the_meta_loss_agree(problem: Problem, along: str):
    """Central differences, extrapolated twice, along a random direction; |w| would have a kink."""
    lower = Perturbation(RHO, DIRECTIONS[along], geometry.Fisher())
    for steps in (1, 5):
        learner = SharpMAML(problem.model, problem.loss, RATE, steps, lower=lower, batching="vmap")
        gradient = problem.ours(learner)
        torch.manual_seed(2)
        u = torch.randn_like(gradient)
        u /= u.norm()
        start = [p.detach().clone() for p in problem.point]

        def loss_at(h: float) -> float:
            pieces = u.split([p.numel() for p in start])
            with torch.no_grad():
                for p, w, piece in zip(problem.point, start, pieces, strict=True):
                    p.copy_(w + h * piece.view_as(w))
            return float(learner(problem.tasks).detach())

        def slope(h: float) -> float:
            return (loss_at(h) - loss_at(-h)) / (2 * h)

        h = 5e-4
        coarse, middle, fine = slope(h), slope(h / 2), slope(h / 4)
        once = (4 * middle - coarse) / 3, (4 * fine - middle) / 3
        found = (16 * once[1] - once[0]) / 15
        loss_at(0.0)
        assert abs(found - float(gradient @ u)) <= 1e-9 * max(1.0, abs(found))


@pytest.mark.parametrize("problem", (SINUSOIDS, IMAGES), ids=("sinusoids", "images"))
@pytest.mark.parametrize("first", (True, False))
def test_maml_is_its_formula(problem: Problem, first: bool):
    for steps, batching in itertools.product((1, 5), ("loop", "vmap")):
        learner = MAML(problem.model, problem.loss, RATE, steps, first, batching=batching)
        close(problem.ours(learner), problem.expected(steps=steps, second=not first))


@pytest.mark.parametrize("along", DIRECTIONS)
@pytest.mark.parametrize("batching", ("loop", "vmap"))
def test_without_a_radius_it_is_maml_bit_for_bit(along: str, batching: str):
    plain = MAML(IMAGES.model, cross_entropy, RATE, 2, batching=batching)
    lower = Perturbation(0.0, DIRECTIONS[along])
    sharp = SharpMAML(IMAGES.model, cross_entropy, RATE, 2, lower=lower, batching=batching)
    assert torch.equal(IMAGES.ours(plain), IMAGES.ours(sharp))


def test_without_a_radius_above_a_meta_step_is_maml_bit_for_bit():
    found = []
    for upper in (None, Perturbation(0.0)):
        model, tasks = images()
        learner = MetaLearner(model, cross_entropy, RATE, 1, upper=upper, batching="loop")
        optimizer = learner.optimizer(torch.optim.Adam(learner.parameters(), 1e-2))
        for _ in range(3):
            learner.step(optimizer, tasks)
        found.append(flat(list(model.parameters())))
    assert torch.equal(*found)


@pytest.mark.parametrize("form", ("low", "up", "both"))
@pytest.mark.parametrize("base", ("sgd", "adam"))
def test_sharp_maml_is_its_three_forms(form: str, base: str):
    """Three meta-steps with a base optimizer, against the paper's equations."""
    make = {
        "sgd": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9),
        "adam": lambda params: torch.optim.Adam(params, 0.01),
    }[base]
    model, tasks = images()
    below = Perturbation(RHO) if form != "up" else None
    above = Perturbation(0.2) if form != "low" else None
    learner = SharpMAML(model, cross_entropy, RATE, 2, lower=below, upper=above, batching="vmap")
    optimizer = learner.optimizer(make(learner.parameters()))

    plain = Problem(*images(), cross_entropy)
    rule = make(plain.model.parameters())
    setting = {"rate": RATE, "steps": 2}
    if below:
        setting |= {"direction": "ascent", "rho": RHO}
    for _ in range(3):
        learner.step(optimizer, tasks)
        if above:
            grads = reference.sharp_meta_gradient(plain.at, plain.point, tasks, 0.2, **setting)
        else:
            grads = reference.meta_gradient(plain.at, plain.point, tasks, **setting)
        for p, g in zip(plain.point, grads, strict=True):
            p.grad = g
        rule.step()
    close(flat(list(model.parameters())), flat(plain.point))


def test_a_direction_of_a_user_runs_in_both_probes():
    @dataclass(frozen=True)
    class Blend(direction.Direction):
        """Climb this gradient and half of the last step's."""

        def displacement(self, at):
            last = at.recall("blend_last")
            at.keep("blend_last", at.grad)
            return at.climb(at.grad if last is None else at.grad + 0.5 * last)

    lower = Perturbation(RHO, Blend())
    found = []
    for batching in ("loop", "vmap"):
        learner = SharpMAML(IMAGES.model, cross_entropy, RATE, 3, lower=lower, batching=batching)
        found.append(IMAGES.ours(learner))
    close(*found)
    # and by the optimizer: a plain step at w + eps is what the inner loop does at its first
    model, tasks = images()
    start = flat(list(model.parameters()))
    task = tasks[0]
    optimizer = flatmin.SharpnessAware(
        torch.optim.SGD(model.parameters(), RATE), RHO, direction=Blend()
    )
    learner = MetaLearner(model, cross_entropy, RATE, 3, lower=lower)
    adapted = flat(list(learner.adapted(task.support_x, task.support_y).parameters()))

    def closure():
        loss = cross_entropy(model(task.support_x), task.support_y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    close(adapted, flat(list(model.parameters())))
    assert (adapted - start).abs().max() > 1e-3


@pytest.mark.parametrize("along", [name for name in DIRECTIONS if name != "agnostic previous"])
@pytest.mark.parametrize("metric", GEOMETRIES)
def test_an_inner_step_is_the_step_of_the_optimizer(along: str, metric: str):
    """The two probes agree: three steps of SGD with the part, the support set as both batches."""
    model, tasks = images()
    x, y = tasks[0][:2]
    lower = Perturbation(RHO, DIRECTIONS[along], GEOMETRIES[metric])
    learner = MetaLearner(model, cross_entropy, RATE, 3, lower=lower)
    expected = flat(list(learner.adapted(x, y).parameters()))
    optimizer = flatmin.SharpnessAware(
        torch.optim.SGD(model.parameters(), RATE),
        RHO,
        direction=lower.direction,
        geometry=lower.geometry,
        model=model,
    )

    def closure():
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure, closure if lower.direction.auxiliary_passes else None)
    close(flat(list(model.parameters())), expected)

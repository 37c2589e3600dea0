"""What a meta-learner promises beside its numbers, and what it says to those who misuse it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import flatmin
from flatmin import direction, meta
from flatmin.meta import ANIL, FOMAML, MAML, MetaLearner, MetaSGD, Perturbation, SharpMAML, Task


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def tasks(count: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Task]:
    torch.manual_seed(seed)
    y = torch.arange(3)
    x, q = torch.randn(count, 3, 4).to(dtype), torch.randn(count, 6, 4).to(dtype)
    return [Task(x[i], y, q[i], y.repeat(2)) for i in range(count)]


def gradient(learner: MetaLearner, batch: list[Task]) -> Tensor:
    learner.zero_grad()
    learner.backward(batch)
    return torch.cat([p.grad.reshape(-1) for p in learner.parameters()])


# How tasks run


@pytest.mark.parametrize("method", ("sgd", "sam", "friendly-asam", "agnostic-sam", "fisher-sam"))
@pytest.mark.parametrize("batching", ("vmap", 2, 3, 4, 100))
def test_chunks_and_the_loop_give_the_same_numbers(method: str, batching: str | int):
    lower = Perturbation.named(method, 0.1)
    model = network(torch.float32)
    found = [
        gradient(SharpMAML(model, cross_entropy, 0.1, 3, lower=lower, batching=b), batch)
        for b in ("loop", batching)
        for batch in [tasks(dtype=torch.float32)]
    ]
    assert (found[0] - found[1]).abs().max() <= 1e-6


def test_tasks_of_different_sizes_run_one_after_another():
    batch = tasks(2)
    batch[1] = Task(*(part[:3] if i < 2 else part[:4] for i, part in enumerate(batch[1])))
    by_hand = torch.stack([gradient(MAML(network(), cross_entropy, 0.1, 2), [t]) for t in batch])
    together = gradient(MAML(network(), cross_entropy, 0.1, 2, batching="vmap"), batch)
    assert torch.allclose(by_hand.mean(0), together, rtol=0, atol=1e-12)


def test_auto_measures_once_and_says_what_it_takes():
    learner = MAML(network(), cross_entropy, 0.1, 1)
    assert learner.batching_says == "batching: to be measured on the first meta-batch"
    first = gradient(learner, tasks(10))
    assert learner.batching_says.startswith("batching: ")
    assert all(form in learner.batching_says for form in ("loop", "4 at once", "10 at once"))
    said = learner.batching_says
    assert torch.allclose(gradient(learner, tasks(10)), first)
    assert learner.batching_says == said
    resumed = MAML(network(), cross_entropy, 0.1, 1)
    resumed.load_state_dict(learner.state_dict())
    assert not resumed.batching_says.endswith("first meta-batch")


def test_auto_takes_the_loop_where_tasks_cannot_run_together():
    class Asks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1.0 if x.sum().item() > -1e9 else 0.0)

    learner = MAML(nn.Sequential(Asks(4, 3)).double(), cross_entropy, 0.1, 1)
    assert gradient(learner, tasks()).isfinite().all()
    assert "batching: loop" in learner.batching_says
    assert "cannot run" in learner.batching_says


def test_backward_adds_to_what_is_there_and_forward_has_the_graph():
    learner = MAML(network(), cross_entropy, 0.1, 2, batching="vmap")
    once = gradient(learner, tasks())
    loss = learner.backward(tasks())
    twice = torch.cat([p.grad.reshape(-1) for p in learner.parameters()])
    assert torch.allclose(twice, 2 * once)
    learner.zero_grad()
    own = learner(tasks())
    own.backward()
    assert torch.allclose(torch.cat([p.grad.reshape(-1) for p in learner.parameters()]), once)
    assert torch.allclose(own.detach(), loss)


# The named choices


def test_fomaml_is_the_query_gradient_where_the_inner_loop_ends():
    model, batch = network(), tasks(1)
    adapted = MAML(model, cross_entropy, 0.1, 3).adapted(*batch[0][:2])
    loss = cross_entropy(adapted(batch[0].query_x), batch[0].query_y)
    expected = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(loss, list(adapted.parameters()))]
    )
    assert torch.allclose(gradient(FOMAML(model, cross_entropy, 0.1, 3), batch), expected)


@pytest.mark.parametrize("batching", ("loop", "vmap"))
def test_anil_moves_the_last_layer_alone(batching: str):
    model, batch = network(), tasks()
    learner = ANIL(model, cross_entropy, 0.5, 2, batching=batching)
    adapted = learner.adapted(*batch[0][:2])
    moved = [
        not torch.equal(p, q) for p, q in zip(model.parameters(), adapted.parameters(), strict=True)
    ]
    assert moved == [False, False, True, True]
    # the body learns as well, through the query loss
    body, head = nn.Sequential(*model[:2]), model[2]

    def loss_of(task: Task) -> Tensor:
        w = list(head.parameters())
        for _ in range(2):
            out = nn.functional.linear(body(task.support_x), *w)
            slopes = torch.autograd.grad(cross_entropy(out, task.support_y), w, create_graph=True)
            w = [p - 0.5 * g for p, g in zip(w, slopes, strict=True)]
        return cross_entropy(nn.functional.linear(body(task.query_x), *w), task.query_y)

    expected = torch.autograd.grad(
        torch.stack([loss_of(t) for t in batch]).mean(), list(model.parameters())
    )
    assert torch.allclose(
        gradient(learner, batch), torch.cat([g.reshape(-1) for g in expected]), atol=1e-12
    )


@pytest.mark.parametrize("batching", ("loop", "vmap"))
def test_meta_sgd_learns_a_step_size_for_each_weight(batching: str):
    batch = tasks(1)
    learner = MetaSGD(network(), cross_entropy, 0.2, batching=batching)
    gradient(learner, batch)
    plain = MAML(network(), cross_entropy, 0.2, 1, batching=batching)
    gradient(plain, batch)
    for p, q in zip(learner.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad)
    # d loss / d rate = - slope at the start * slope of the query loss at the end
    model = network()
    slope = torch.autograd.grad(
        cross_entropy(model(batch[0].support_x), batch[0].support_y), list(model.parameters())
    )
    adapted = learner.adapted(*batch[0][:2])
    end = torch.autograd.grad(
        cross_entropy(adapted(batch[0].query_x), batch[0].query_y), list(adapted.parameters())
    )
    expected = torch.cat([-(a * b).reshape(-1) for a, b in zip(slope, end, strict=True)])
    assert torch.allclose(learner.rates.grad, expected)


def test_an_inner_step_of_agnostic_sam_takes_three_gradients():
    calls: list[int] = []

    def counted(out: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return cross_entropy(out, y)

    found = {}
    for method in ("sgd", "sam", "friendly-sam", "agnostic-sam", "align-sam"):
        learner = MetaLearner(
            network(), counted, 0.1, 4, lower=Perturbation.named(method, 0.1), batching="loop"
        )
        gradient(learner, tasks(1))
        calls.clear()
        gradient(learner, tasks(1))
        found[method] = (len(calls) - 1) / 4
    assert found == {"sgd": 1, "sam": 2, "friendly-sam": 2, "agnostic-sam": 3, "align-sam": 3}


def test_memory_restarts_with_each_task():
    """In the first inner step beta changes nothing, whatever the task before has left."""
    batch = tasks()
    found = []
    for beta in (0.0, 0.9):
        lower = Perturbation(0.1, direction.Agnostic(beta=beta))
        learner = SharpMAML(network(), cross_entropy, 0.1, 1, lower=lower, batching="loop")
        gradient(learner, tasks(seed=3))
        found.append(gradient(learner, batch))
    assert torch.allclose(*found, rtol=0, atol=1e-10)


def test_the_test_adapts_as_training_does_or_plainly():
    lower, batch = Perturbation.named("agnostic-sam", 0.5), tasks()
    sharp = SharpMAML(network(), cross_entropy, 0.5, 2, lower=lower)
    plain = MAML(network(), cross_entropy, 0.5, 2)
    assert torch.equal(sharp.evaluate(batch, plainly=True).losses, plain.evaluate(batch).losses)
    assert not torch.allclose(sharp.evaluate(batch).losses, plain.evaluate(batch).losses)
    own = [
        float(cross_entropy(sharp.adapted(*t[:2])(t.query_x), t.query_y).detach()) for t in batch
    ]
    assert torch.allclose(sharp.evaluate(batch).losses, torch.tensor(own).double())
    assert not torch.equal(sharp.evaluate(batch, steps=5).losses, sharp.evaluate(batch).losses)


def test_scores_count_the_classes_that_are_met():
    learner, batch = MAML(network(), cross_entropy, 0.5, 3, batching=2), tasks()
    scores = learner.evaluate(batch)
    for task, accuracy in zip(batch, scores.accuracies, strict=True):
        met = learner.adapted(*task[:2])(task.query_x).argmax(1) == task.query_y
        assert float(accuracy) == pytest.approx(float(met.float().mean()))
    numbers = [Task(t.support_x, t.support_x[:, :3], t.query_x, t.query_x[:, :3]) for t in batch]
    assert MAML(network(), mse_loss, 0.1, 1).evaluate(numbers).accuracies.isnan().all()


def test_evaluation_leaves_no_trace():
    learner = SharpMAML(network(), cross_entropy, 0.5, 2, lower=Perturbation(0.1))
    before = copy.deepcopy(learner.model.state_dict())
    with torch.no_grad():
        learner.evaluate(tasks())
    assert all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())


@pytest.mark.parametrize("upper", ("sam", "asam", "friendly-sam", "agnostic-sam", "align-sam"))
def test_every_direction_serves_above(upper: str):
    """The meta-step is the step of `SharpnessAware` on the meta-gradient: nothing else."""
    batch, others = tasks(), tasks(seed=1)
    found = []
    for own in (True, False):
        learner = SharpMAML(
            network(), cross_entropy, 0.1, 1, upper=Perturbation.named(upper, 0.1), batching="loop"
        )
        base = torch.optim.SGD(learner.parameters(), 0.1)
        if own:
            learner.step(learner.optimizer(base), batch, others)
        else:
            row = flatmin.methods.find(upper)
            closures = [lambda: learner.backward(batch)]
            if row.auxiliary:
                closures.append(lambda: learner.backward(others))
            row.build(base, 0.1, total_steps=1).step(*closures)
        found.append(torch.cat([p.detach().reshape(-1) for p in learner.parameters()]))
    assert torch.equal(*found)


def test_geometries_choose_by_the_names_of_the_model():
    only = flatmin.geometry.Only
    batch = tasks()
    weights = Perturbation(0.1, geometry=only(lambda name, p: name.endswith("weight")))
    below = SharpMAML(network(), cross_entropy, 0.1, 2, lower=weights, batching="vmap")
    by_size = Perturbation(0.1, geometry=only(lambda name, p: p.ndim == 2))
    same = SharpMAML(network(), cross_entropy, 0.1, 2, lower=by_size, batching="loop")
    assert torch.allclose(gradient(below, batch), gradient(same, batch), rtol=0, atol=1e-12)
    above = SharpMAML(network(), cross_entropy, 0.1, 1, upper=weights)
    optimizer = above.optimizer(torch.optim.SGD(above.parameters(), 0.1))
    assert above.step(optimizer, batch).isfinite()
    nothing = Perturbation(0.1, geometry=only(lambda name, p: False))
    with pytest.raises(ValueError, match="chooses none of the parameters"):
        SharpMAML(network(), cross_entropy, 0.1, 1, lower=nothing)


# Tasks that diverge


def test_tasks_that_diverge_are_left_out_counted_and_said():
    batch = tasks()
    bad = Task(batch[1].support_x * 1e308, *batch[1][1:])
    mixed = [batch[0], bad, *batch[2:]]
    expected = gradient(MAML(network(), cross_entropy, 0.1, 2), [batch[0], *batch[2:]])
    for batching in ("loop", "vmap"):
        learner = MAML(network(), cross_entropy, 0.1, 2, batching=batching)
        with pytest.warns(RuntimeWarning, match="1 of the tasks diverged.*lower inner_lr=0.1"):
            found = gradient(learner, mixed)
        assert torch.allclose(found, expected)
        assert learner.diverged == 1
        scores = learner.evaluate(mixed)
        assert scores.diverged == 1
        assert float(scores.accuracies[1]) == 0.0


def test_where_every_task_diverges_nothing_moves():
    bad = [Task(t.support_x * 1e308, *t[1:]) for t in tasks()]
    for upper in (None, Perturbation(0.1)):
        lower = Perturbation(1e200)
        learner = MetaLearner(network(), cross_entropy, 0.1, 1, lower=lower, upper=upper)
        before = [p.clone() for p in learner.parameters()]
        optimizer = learner.optimizer(torch.optim.Adam(learner.parameters()))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert learner.step(optimizer, bad).isnan()
        assert any("rho=1e+200" in str(warning.message) for warning in said)
        for p, q in zip(learner.parameters(), before, strict=True):
            assert torch.equal(p, q)
        assert learner.diverged == 5


# Bad input: one line each, with what to do


class Changed(nn.Linear):
    """A layer that does in its forward pass what it should not."""

    def __init__(self, what: str) -> None:
        super().__init__(4, 3)
        self.what = what
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        if self.what == "data":
            w = w.data
        elif self.what == "in place":
            w = w.mul_(0.5)
        elif self.what == "buffer":
            self.seen += 1
        elif self.what == "input":
            x = x.mul_(0.5)
        elif self.what == "no graph":
            return (x @ w.detach().T).detach()
        return x @ w.T + self.bias


@pytest.mark.parametrize(
    "what, line",
    (
        ("data", "0.weight gets no gradient: the forward pass reads its .data"),
        ("in place", "compute a new tensor there"),
        ("buffer", "the model changes buffer 0.seen in place"),
        ("input", "the model changes the input in place"),
        ("no graph", "the loss has no graph to the weights"),
    ),
)
def test_models_that_are_no_function_of_their_weights(what: str, line: str):
    learner = MAML(nn.Sequential(Changed(what)).double(), cross_entropy, 0.1, 1)
    with pytest.raises(ValueError, match=line) as caught:
        learner.backward(tasks())
    assert "\n" not in str(caught.value)


def test_a_number_asked_of_tasks_that_run_together():
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(out, y) * (2.0 if out.sum().item() > 0 else 1.0)

    learner = MAML(network(), loss, 0.1, 1, batching="vmap")
    with pytest.raises(RuntimeError, match='use batching="loop"') as caught:
        learner.backward(tasks())
    assert "\n" not in str(caught.value)
    assert gradient(MAML(network(), loss, 0.1, 1, batching="loop"), tasks()).isfinite().all()


@pytest.mark.parametrize(
    "loss, error, line",
    (
        (lambda out, y: cross_entropy(out, y).detach(), ValueError, "has no graph"),
        (lambda out, y: cross_entropy(out, y).item(), ValueError, "has no graph"),
        (lambda out, y: cross_entropy(out, y, reduction="none"), TypeError, "must be one number"),
    ),
)
def test_losses_that_are_none(loss, error: type[Exception], line: str):
    with pytest.raises(error, match=line) as caught:
        MAML(network(), loss, 0.1, 1).backward(tasks())
    assert "\n" not in str(caught.value)


def test_running_statistics_are_refused_and_explained():
    for layer in (nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True)):
        model = nn.Sequential(layer, nn.Linear(4, 3))
        with pytest.raises(ValueError, match="track_running_stats=False") as caught:
            MAML(model, cross_entropy, 0.1, 1)
        assert "\n" not in str(caught.value)
    MAML(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), cross_entropy, 0.1, 1)


@pytest.mark.parametrize(
    "build, error, line",
    (
        (lambda m: MAML(m, mse_loss, 0.0, 1), ValueError, "inner_lr must lie in"),
        (lambda m: MAML(m, mse_loss, 0.1, 0), ValueError, "steps must be a whole number"),
        (lambda m: MAML(m, mse_loss, 0.1, 1, batching="fast"), ValueError, "'auto', 'loop'"),
        (lambda m: MAML(m, mse_loss, 0.1, 1, batching=0), ValueError, "batching must be"),
        (lambda m: MAML(m, mse_loss, 0.1, 1, adapted=["x"]), ValueError, "no parameter 'x'"),
        (lambda m: MAML(m.requires_grad_(False), mse_loss, 0.1, 1), ValueError, "none can learn"),
        (
            lambda m: MAML(nn.Sequential(m, network(torch.float32)), mse_loss, 0.1, 1),
            ValueError,
            "move the model to one device and type",
        ),
        (lambda m: SharpMAML(m, mse_loss, 0.1, 1), ValueError, "give lower=, upper="),
        (lambda m: Perturbation(-0.1), ValueError, "rho must be"),
        (lambda m: Perturbation(0.1, "sam"), TypeError, "direction must be one of"),
        (lambda m: Perturbation.named("sammy"), ValueError, "did you mean"),
        (lambda m: Perturbation.named("ae-sam"), ValueError, "has a policy of its own"),
        (lambda m: Perturbation.named("gsam"), ValueError, "has a descent of its own"),
        (lambda m: Perturbation.named("esam"), ValueError, "has a selection of its own"),
        (lambda m: MAML(m, mse_loss, 0.1, 1).backward([]), ValueError, "has no task"),
        (lambda m: MAML(m, mse_loss, 0.1, 1).backward(tasks()[0]), TypeError, "wrap it"),
        (lambda m: MAML(m, mse_loss, 0.1, 1).backward([1]), TypeError, "list of flatmin.meta.Task"),
        (lambda m: meta.conv4(1, 8, 5), ValueError, "size must be >= 16"),
        (lambda m: meta.conv4(1, 28, 5, down="none"), ValueError, "'stride', 'pool'"),
    ),
)
def test_wrong_arguments_are_one_line(build, error: type[Exception], line: str):
    with pytest.raises(error, match=line) as caught:
        build(network())
    assert "\n" not in str(caught.value)


def test_a_direction_that_branches_on_its_numbers_is_told_how():
    class Picky(direction.Direction):
        def displacement(self, at):
            return at.climb(at.grad) if at.norm(at.grad) > 0 else at.climb(-1.0 * at.grad)

    lower = Perturbation(0.1, Picky())
    found = gradient(SharpMAML(network(), cross_entropy, 0.1, 1, lower=lower), tasks())
    assert found.isfinite().all()  # "auto" takes the loop
    with pytest.raises(RuntimeError, match='use batching="loop"'):
        SharpMAML(network(), cross_entropy, 0.1, 1, lower=lower, batching="vmap").backward(tasks())


def test_a_gradient_that_is_zero_has_a_perturbation_that_is_zero():
    """Where the norm has no derivative, nothing becomes nan."""
    batch = [Task(t.support_x * 0, t.support_y, t.query_x, t.query_y) for t in tasks()]
    model = nn.Linear(4, 3, bias=False).double()
    for method in ("sam", "asam", "agnostic-sam", "friendly-sam"):
        lower = Perturbation.named(method, 0.1)
        found = gradient(SharpMAML(model, cross_entropy, 0.1, 2, lower=lower), batch)
        assert torch.allclose(found, gradient(MAML(model, cross_entropy, 0.1, 2), batch))


# The network of the literature


@pytest.mark.parametrize("down", ("stride", "pool"))
def test_the_networks_have_the_published_sizes(down: str):
    def count(*shape: int) -> int:
        return sum(p.numel() for p in meta.conv4(*shape, down=down).parameters())

    assert count(1, 28, 5) == 112_261
    assert count(1, 28, 20) == 113_236
    if down == "pool":
        assert count(3, 84, 5) == 121_093
    out = meta.conv4(3, 32, 5, filters=8, down=down)(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 5)

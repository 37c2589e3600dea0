"""m-sharpness: each rank climbs its own batch's gradient, in silence; all descend together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tables import METHODS
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.optim import SGD
from torch.profiler import ProfilerActivity, profile

from distributed.common import (
    RHO,
    SOME,
    Findings,
    Worker,
    deviation,
    flat,
    main,
    small,
)
from flatmin.methods import TABLE

STEPS = 7
ONE_GRADIENT = [
    name
    for name, method in TABLE.items()
    if name != "sgd"
    and method.build(SGD([torch.zeros(1, requires_grad=True)]), total_steps=9).gradients_per_step()
    == 1
]


def quiet_now_and_then(worker: Worker) -> Worker:
    """Every third gradient is small, so that the adaptive policy takes both branches."""
    worker.factor = lambda batch, call: 0.05 if worker.steps % 3 == 2 else 1.0
    return worker


def local(method: str, wrapping: str = "ddp", **options: Any) -> Worker:
    return quiet_now_and_then(Worker(method, wrapping, ascent="local", **options))


# --- the ranks afterwards


def equal_ranks(method: str, wrapping: str, *, listen: bool) -> dict[str, Any]:
    """What each rank has after each step and, if one listens, the reductions in its passes."""
    worker = local(method, wrapping)
    said = Talk(worker) if listen else None
    steps, talk = [], []
    for _ in range(STEPS):
        worker.step()
        steps.append(worker.bits())
        if said:
            talk.append(said.reductions)
            said.reductions = []
    return {"steps": steps, "talk": talk, "perturbed": worker.optimizer.cost.perturbed}


def globally(method: str) -> float:
    """How far local ascent leads from global ascent: nowhere, if nothing was climbed locally."""
    ours, theirs = local(method), quiet_now_and_then(Worker(method, "ddp"))
    return deviation(ours.run(STEPS).params, theirs.run(STEPS).params)


# --- who talks when


class Talk:
    """Counts what this rank sends in each pass: reductions of gradients, and collectives at all."""

    def __init__(self, worker: Worker, *, every_collective: bool = False) -> None:
        self.reductions: list[int] = []
        self.collectives: list[list[str]] = []
        self.every_collective = every_collective
        worker.around = self.listen
        if not every_collective:
            worker.model.register_comm_hook(None, self.reduce)

    def reduce(self, state, bucket):  # torch compares annotations, which would be strings here
        self.reductions[-1] += 1
        return allreduce_hook(state, bucket)

    @contextmanager
    def listen(self, batch: str) -> Iterator[None]:
        self.reductions.append(0)
        if not self.every_collective:
            yield
            return
        with profile(activities=[ProfilerActivity.CPU]) as events:
            yield
        names = {e.key for e in events.key_averages()}
        self.collectives.append(sorted(n for n in names if "gloo:" in n or "c10d::" in n))


def with_statistics(dtype: torch.dtype) -> nn.Module:
    layers = nn.Linear(32, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 10)
    return nn.Sequential(*layers).to(dtype)


def collectives(method: str, build: Callable[[torch.dtype], nn.Module]) -> list[list[str]]:
    """The collectives in each pass of the third step, when DDP has settled its buckets."""
    worker = local(method, build=build).run(2)
    said = Talk(worker, every_collective=True)
    worker.step()
    return said.collectives


def whole_step(method: str) -> list[str]:
    """Every collective of the third step, those outside its passes too."""
    worker = local(method, build=small).run(2)
    with profile(activities=[ProfilerActivity.CPU]) as events:
        worker.step()
    return sorted(event.name for event in events.events() if "c10d::" in event.name)


# --- by hand, in one process


Gradient = Callable[[Tensor], Tensor]


class Hand:
    """The gradient of each rank's batch at any weights, and SGD with momentum, by hand."""

    def __init__(self) -> None:
        self.worker = quiet_now_and_then(Worker("sgd", dtype=torch.float64, build=small))
        self.w = flat(self.worker.params)
        self.velocity = torch.zeros_like(self.w)

    def step(self, kind: str = "primary") -> list[Gradient]:
        """The gradients of the ranks' batches, as functions of the weights."""
        x, y = self.worker.batch(kind)
        factor = self.worker.factor(kind, 0)
        halves = zip(x.chunk(2), y.chunk(2), strict=True)
        return [lambda w, x=x, y=y: self.gradient(w, x, y) * factor for x, y in halves]

    def gradient(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(w, self.worker.model.parameters())
        loss = nn.functional.cross_entropy(self.worker.model(x), y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.worker.params)])

    def descend(self, g: Tensor) -> None:
        self.velocity = 0.9 * self.velocity + g + 1e-3 * self.w
        self.w = self.w - 0.05 * self.velocity
        self.worker.steps += 1


def mean(values: list[Any]) -> Any:
    return sum(values) / len(values)


def unit(x: Tensor) -> Tensor:
    return x / (x.norm() + 1e-12)


def by_hand_sgd(hand: Hand) -> None:
    for _ in range(STEPS):
        hand.descend(mean([grad(hand.w) for grad in hand.step()]))


def by_hand_sam(hand: Hand) -> None:
    for _ in range(STEPS):
        seen = [grad(hand.w + RHO * unit(grad(hand.w))) for grad in hand.step()]
        hand.descend(mean(seen))


def by_hand_friendly_sam(hand: Hand) -> None:
    """Each rank moves the common mean by its own gradient; the mean of these is kept."""
    m = torch.zeros_like(hand.w)
    for _ in range(STEPS):
        grads = hand.step()
        g = [grad(hand.w) for grad in grads]
        means = [0.9 * m + 0.1 * g_r for g_r in g]
        eps = [RHO * unit(g_r - m_r) for g_r, m_r in zip(g, means, strict=True)]
        seen = [grad(hand.w + e) for grad, e in zip(grads, eps, strict=True)]
        m = mean(means)
        hand.descend(mean(seen))


def by_hand_agnostic_sam(hand: Hand) -> None:
    v = torch.zeros_like(hand.w)
    for _ in range(STEPS):
        seen, kept = [], []
        for grad, aux in zip(hand.step(), hand.step("auxiliary"), strict=True):
            v_r = 0.9 * v + 0.1 * aux(hand.w + RHO * unit(aux(hand.w)))
            eps = 2 * RHO * unit(grad(hand.w)) - RHO * unit(v_r)
            seen.append(grad(hand.w + eps))
            kept.append(v_r)
        v = mean(kept)
        hand.descend(mean(seen))


def by_hand_look_sam(hand: Hand) -> None:
    """What is reused is measured against the gradient of the joined batch."""
    h = torch.zeros_like(hand.w)
    for t in range(STEPS):
        grads = hand.step()
        g = mean([grad(hand.w) for grad in grads])
        if t % 5 == 0:
            seen = mean([grad(hand.w + RHO * unit(grad(hand.w))) for grad in grads])
            h = seen - (g @ seen) / (g @ g) * g
            hand.descend(seen)
        else:
            hand.descend(g + 0.7 * g.norm() / h.norm() * h)


def by_hand_gsam(hand: Hand) -> None:
    for _ in range(STEPS):
        grads = hand.step()
        g = mean([grad(hand.w) for grad in grads])
        seen = mean([grad(hand.w + RHO * unit(grad(hand.w))) for grad in grads])
        hand.descend(seen - 0.1 * (g - (g @ seen) / (seen @ seen) * seen))


def by_hand_ae_sam(hand: Hand) -> None:
    """The ranks decide on the mean of their squared norms."""
    mu, var = 0.0, torch.exp(torch.tensor(-10.0, dtype=torch.float64)).item()
    for t in range(STEPS):
        grads = hand.step()
        g = [grad(hand.w) for grad in grads]
        s = mean([(x @ x).item() for x in g])
        mu = 0.9 * mu + 0.1 * s
        var = 0.9 * var + 0.1 * (s - mu) ** 2
        c = t / 6 * -1.0 + (1 - t / 6) * 1.0
        if s >= mu + c * var**0.5:
            hand.descend(
                mean([grad(hand.w + RHO * unit(x)) for grad, x in zip(grads, g, strict=True)])
            )
        else:
            hand.descend(mean(g))


def by_hand_lookbehind_sam(hand: Hand) -> None:
    """The first climb is each rank's own; the further ones follow gradients of the joined batch."""
    for _ in range(STEPS):
        grads, slow = hand.step(), hand.w
        eps = [RHO * unit(grad(slow)) for grad in grads]
        seen = [mean([grad(slow + e) for grad, e in zip(grads, eps, strict=True)])]
        for _ in range(4):
            eps = [e + RHO * unit(seen[-1]) for e in eps]
            seen.append(mean([grad(slow + e) for grad, e in zip(grads, eps, strict=True)]))
        for g in seen:
            hand.descend(g)
            hand.worker.steps -= 1
        hand.w = slow + 0.5 * (hand.w - slow)
        hand.worker.steps += 1


BY_HAND: dict[str, Callable[[Hand], None]] = {
    "sgd": by_hand_sgd,
    "sam": by_hand_sam,
    "friendly-sam": by_hand_friendly_sam,
    "agnostic-sam": by_hand_agnostic_sam,
    "look-sam": by_hand_look_sam,
    "gsam": by_hand_gsam,
    "ae-sam": by_hand_ae_sam,
    "lookbehind-sam": by_hand_lookbehind_sam,
}


def by_hand(method: str) -> dict[str, Any]:
    worker = local(method, dtype=torch.float64, build=small).run(STEPS)
    hand = Hand()
    BY_HAND[method](hand)
    found = deviation(worker.params, [hand.w], small(torch.float64).parameters())
    return {"of the way": found, "perturbed": worker.optimizer.cost.perturbed}


# --- passes in a loop of one's own


def by_passes(method: str, ascent: str) -> dict[str, Any]:
    expected, worker = (
        quiet_now_and_then(Worker(method, "ddp", ascent=ascent, build=small)) for _ in range(2)
    )
    expected.run(STEPS)
    silent = []
    for _ in range(STEPS):
        worker.calls.clear()
        with worker.optimizer.passes() as step:
            for turn in step:
                silent.append(not turn.communicate)
                with nullcontext() if turn.communicate else worker.model.no_sync():
                    with torch.set_grad_enabled(turn.gradient):
                        loss = worker.closure(turn.batch, turn.samples)
                    if worker.method.per_sample and turn.gradient:
                        loss.mean().backward()
                turn.done(loss)
        worker.steps += 1
    bits = worker.bits()
    return {"same": expected.bits() == bits, "silent": sum(silent), "bits": bits}


def scenarios(found: Findings, folder: Path) -> None:
    for method in METHODS:
        views = "ddp with views"
        found.note(f"equal, {method}, {views}", equal_ranks, method, views, listen=True)
    for method in (*SOME, "esam"):
        found.note(f"passes, {method}, local", by_passes, method, "local")
    for method in SOME:
        found.note(f"equal, {method}, ddp", equal_ranks, method, "ddp", listen=False)
        found.note(f"passes, {method}, global", by_passes, method, "global")
        found.note(f"globally, {method}", globally, method)
    for method in BY_HAND:
        found.note(f"hand, {method}", by_hand, method)
    for method in ("sgd", *ONE_GRADIENT):
        found.note(f"whole step, {method}", whole_step, method)
    for method in ("sam", "agnostic-sam"):
        found.note(f"collectives, {method}", collectives, method, small)
        found.note(f"collectives with statistics, {method}", collectives, method, with_statistics)


if __name__ == "__main__":
    main({"local": scenarios})

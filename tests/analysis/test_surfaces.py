"""Loss surfaces, point by point against weights that are put in place by hand."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from curvatures import CASES, Batch, loss, mean_loss
from torch import Tensor, nn

from flatmin import analysis
from flatmin.analysis import pictures, surfaces

CASE = CASES["convolutions, BatchNorm"]
AT = (np.array([-0.5, 0.0, 1.0]), np.array([-1.0, 0.25]))


def normalised(w: Tensor, d: Tensor) -> Tensor:
    """Filter by filter; tensors of one dimension stay."""
    if w.ndim < 2:
        return torch.zeros_like(w)
    return torch.stack([x * (f.norm() / x.norm()) for f, x in zip(w, d, strict=True)])


def by_hand(statistics: str, a: float, b: float, batches: list[Batch]) -> tuple[float, float]:
    """Loss and accuracy at a point of the two random directions of seed 3."""
    model = CASE.model()
    source = torch.Generator().manual_seed(3)
    params = list(model.parameters())
    ways = [
        [
            normalised(p.detach(), torch.randn(p.shape, generator=source, dtype=p.dtype))
            for p in params
        ]
        for _ in range(2)
    ]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for p, u, v in zip(params, *ways, strict=True):
            p.copy_(p + a * u + b * v)
        for m in norms:
            m.train(statistics != "fixed")
        if statistics == "reestimated":
            found: dict[nn.Module, list[tuple[Tensor, Tensor, int]]] = {m: [] for m in norms}
            for m in norms:
                m.momentum = 1.0  # the statistics of the last batch alone
            for batch in batches:
                model(batch[0])
                for m in norms:
                    found[m].append((m.running_mean.clone(), m.running_var.clone(), len(batch[1])))
            for m, seen in found.items():
                total = sum(n for *_, n in seen)
                m.running_mean.copy_(sum(mean * n for mean, _, n in seen) / total)
                m.running_var.copy_(sum(var * n for _, var, n in seen) / total)
                m.eval()
        value = float(mean_loss(model, batches))
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return value, 100 * hits / sum(len(y) for _, y in batches)


@pytest.mark.parametrize("statistics", ["fixed", "batch", "reestimated"])
def test_every_point_is_that_of_weights_put_there_by_hand(statistics: Any):
    model, batches = CASE.model().train(), CASE.batches()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model)
    random = torch.get_rng_state()
    found = analysis.surface(
        model, loss, batches, at=AT, statistics=statistics, metrics="accuracy", seed=3
    )
    for i, a in enumerate(AT[0]):
        for j, b in enumerate(AT[1]):
            value, right = by_hand(statistics, a, b, batches)
            assert found.losses[i, j] == pytest.approx(value, rel=1e-10)
            assert found.metrics["accuracy"][i, j] == pytest.approx(right)
    assert found.statistics == statistics
    assert surfaces.SAID[statistics] in found.says
    assert "one-dimensional tensors not moved" in found.says
    # nothing of the model has changed: weights, buffers, modes, gradients, momentum, random numbers
    for x, y in zip(model.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    assert all(m.training and getattr(m, "momentum", 0.1) == 0.1 for m in model.modules())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(torch.get_rng_state(), random)


class Stops(Exception):
    pass


def stopping(after: int, error: BaseException) -> Any:
    """A loss that ends the search at its call number `after`."""
    calls = [0]

    def function(model: nn.Module, batch: Batch) -> Tensor:
        calls[0] += 1
        if calls[0] > after:
            raise error
        return loss(model, batch)

    return function


def test_weights_come_back_after_an_exception_and_the_grid_goes_on(tmp_path: Path):
    model, batches, file = (
        CASE.model(torch.float32),
        CASE.batches(torch.float32),
        tmp_path / "a.npz",
    )
    before = copy.deepcopy(model.state_dict())
    whole = analysis.surface(model, loss, batches, at=AT)
    with pytest.raises(Stops):
        analysis.surface(model, stopping(9, Stops()), batches, at=AT, file=file)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    calls = [0]

    def counted(model: nn.Module, batch: Batch) -> Tensor:
        calls[0] += 1
        return loss(model, batch)

    again = analysis.surface(model, counted, batches, at=AT, file=file)
    assert np.array_equal(again.losses, whole.losses)
    # three points were there: of six, the first is looked at again; three calls tell sum from mean
    assert calls[0] == 3 + 2 * (6 - 3 + 1)


def test_ctrl_c_leaves_what_is_known_and_the_next_call_goes_on(tmp_path: Path):
    model, batches, file = CASE.model(), CASE.batches(), tmp_path / "a.npz"
    part = analysis.surface(model, stopping(7, KeyboardInterrupt()), batches, at=AT, file=file)
    assert part.interrupted
    assert part.known.tolist() == [[True, True], [False, False], [False, False]]
    assert "interrupted: 4 of 6 points not evaluated" in part.says
    again = analysis.surface(model, loss, batches, at=AT, file=file)
    assert not again.interrupted
    assert np.array_equal(again.losses[part.known], part.losses[part.known])
    with pytest.raises(KeyboardInterrupt):  # of which nothing is known
        analysis.surface(model, stopping(4, KeyboardInterrupt()), batches, at=AT)


def test_a_file_of_another_grid_is_refused_by_what_differs(tmp_path: Path):
    model, batches, file = CASE.model(), CASE.batches(), tmp_path / "a.npz"
    given: dict[str, Any] = {"at": [0.0], "file": file}
    analysis.surface(model, loss, batches, **given)
    with pytest.raises(ValueError, match="holds a grid with other coordinates: give another file"):
        analysis.surface(model, loss, batches, at=[0.1], file=file)
    with pytest.raises(ValueError, match="with other directions:"):
        analysis.surface(model, loss, batches, seed=1, **given)
    with pytest.raises(ValueError, match="with other data:"):
        analysis.surface(model, loss, batches[:1], **given)
    with pytest.raises(ValueError, match="with other statistics, metrics:"):
        analysis.surface(model, loss, batches, statistics="batch", metrics="accuracy", **given)
    with pytest.raises(ValueError, match="holds a grid of another loss: it has"):
        analysis.surface(model, lambda m, b: 2 * loss(m, b), batches, **given)
    with torch.no_grad():
        model[1].running_var.add_(1)
    with pytest.raises(ValueError, match="with other weights:"):
        analysis.surface(model, loss, batches, **given)
    file.write_text("no grid")
    with pytest.raises(ValueError, match="holds no grid of losses"):
        analysis.surface(model, loss, batches, **given)


class Cliff(nn.Module):
    """`log w`: nan to the left of 0, -inf at it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.prod().log() + 0 * x.sum(1)


def test_what_is_not_finite_stays_a_gap():
    model = Cliff()
    found = analysis.surface(
        model, lambda m, x: m(x).mean(), torch.ones(2, 1), torch.eye(2), at=[-2.0, -1.0, 0.0]
    )
    assert np.isnan(found.losses[0, 2])
    assert found.losses[1, 2] == -np.inf
    assert found.losses[2, 2] == 0
    assert found.known.all()
    assert "7 of 9 points not finite" in found.says
    for kind in ("contour", "surface"):
        drawn = pictures.picture(found, kind=kind)["data"][0]
        z = drawn["z"]
        assert (z[2][0], z[2][1], z[2][2], z[0][0]) == (None, None, 0.0, 0.0)
        assert drawn["connectgaps"] is False
    assert [trace.type for trace in found.figure(kind="surface").data] == ["surface"]
    assert "7 of 9 points not finite" in found._repr_html_()


def test_planes_of_checkpoints_pass_through_them():
    source = torch.Generator().manual_seed(0)
    nets = [CASE.model() for _ in range(5)]
    for i, net in enumerate(nets):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * i * torch.randn(p.shape, generator=source, dtype=p.dtype))
    batches = CASE.batches()
    direct = [mean_loss(net, batches).item() for net in nets]

    line = analysis.line_between(nets[0], nets[1], nets[4].state_dict())
    found = analysis.surface(nets[0], loss, batches, line, at=[0.0, 1.0])
    assert found.losses == pytest.approx([direct[1], direct[4]])

    plane = analysis.plane_through(nets[3], *nets[:3])
    for point, value in zip(plane.path, direct[:3], strict=True):
        here = analysis.surface(nets[3], loss, batches, plane, at=tuple([x] for x in point))
        assert here.losses.item() == pytest.approx(value)

    flat = torch.stack([analysis.Parameters(net).vector() for net in nets])
    plane = analysis.plane_of(nets[0], nets)
    _, S, Vt = np.linalg.svd((flat - flat.mean(0)).detach().numpy(), full_matrices=False)
    assert plane.shares == pytest.approx(S[:2] ** 2 / (S**2).sum())
    for v, direction in zip(Vt, plane.vectors, strict=False):
        assert abs(v @ direction.numpy()) == pytest.approx(1)
    away = (flat - flat[-1]).detach()
    for i, (point, apart) in enumerate(zip(plane.path, plane.apart, strict=True)):
        shadow = sum(c * v for c, v in zip(point, plane.vectors, strict=True))
        assert float((away[i] - shadow).norm()) == pytest.approx(apart, abs=1e-6)
    here = analysis.surface(nets[0], loss, batches, plane, at=[0.0])
    assert here.losses.item() == pytest.approx(direct[-1])
    assert f"{sum(plane.shares):.0%} of the variance" in here.says
    assert here.figure().data[1].x == tuple(plane.path[:, 0])


def test_eigenvectors_are_taken_by_magnitude():
    model, batches = CASE.model(), CASE.batches()
    H = analysis.Hessian(model, loss, batches, mode="eval")
    found = analysis.eigenvalues(H, 3, tol=1e-6)
    assert abs(found.values[-1]) > abs(found.values[1]) > 0 > found.values[-1]
    step = 1e-3
    bowl = analysis.surface(model, loss, batches, found, at=[-step, 0.0, step])
    second = (bowl.losses[2, 1] + bowl.losses[0, 1] - 2 * bowl.losses[1, 1]) / step**2
    assert second == pytest.approx(max(found.values, key=abs), rel=1e-3)


def test_misuse_is_told():
    model, batches = CASE.model(), CASE.batches()
    other = CASES["LayerNorm, GroupNorm"].model()
    with pytest.raises(ValueError, match=r"checkpoint 2 is not of this model: it lacks 0\.w"):
        analysis.line_between(model, model, {})
    narrow = {**model.state_dict(), "7.weight": torch.zeros(3, 5)}
    with pytest.raises(ValueError, match=r"7.weight is \(3, 5\) and should be \(3, 4\)"):
        analysis.line_between(model, narrow, model)
    broken = {**model.state_dict(), "7.bias": torch.full((3,), torch.nan)}
    with pytest.raises(ValueError, match=r"checkpoint 1 holds 7\.bias with values that are not"):
        analysis.plane_of(model, [broken, model, model])
    with pytest.raises(ValueError, match="hold the same weights"):
        analysis.line_between(model, model, copy.deepcopy(model))
    with pytest.raises(ValueError, match="lie on one line"):
        analysis.plane_of(model, [model] * 3)
    with pytest.raises(ValueError, match="at least 3, got 2"):
        analysis.plane_of(model, [model] * 2)
    with pytest.raises(ValueError, match=r"the directions move 7\.weight, 7\.bias, which"):
        analysis.surface(other, loss, batches, analysis.random_directions(model))
    with pytest.raises(ValueError, match="give parameters= to what makes them"):
        analysis.surface(model, loss, batches, analysis.random_directions(model), parameters="7.*")
    with pytest.raises(ValueError, match="one or two columns of 187 numbers"):
        analysis.surface(model, loss, batches, torch.ones(5))
    with pytest.raises(ValueError, match="have to ascend"):
        analysis.surface(model, loss, batches, at=[1.0, 0.0])
    with pytest.raises(ValueError, match="statistics must be one of"):
        analysis.surface(model, loss, batches, statistics="running")  # type: ignore[arg-type]
    bare = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(ValueError, match=r"1 keeps no statistics.*pass statistics='batch'"):
        analysis.surface(bare, loss, batches)
    twice = lambda m, b: loss(m, b) + loss(m, b)
    with pytest.raises(ValueError, match="calls the model 2 times"):
        analysis.surface(model, twice, batches, at=[0.0], metrics="accuracy")
    with pytest.raises(ValueError, match="finds no labels"):
        analysis.accuracy(torch.ones(2, 2), (torch.ones(2), torch.ones(2)))


def test_half_precision_and_wrappers_are_looked_at_too():
    model = nn.Sequential(nn.Linear(4, 3)).to(torch.bfloat16)
    batch = torch.ones(6, 4, dtype=torch.bfloat16), torch.zeros(6, dtype=torch.int64)
    named = {f"module.{name}": x for name, x in model.state_dict().items()}
    moved = {name: x + 1 for name, x in model.state_dict().items()}
    line = analysis.line_between(model, named, moved)
    with warnings.catch_warnings(action="error"):
        found = analysis.surface(model, loss, batch, line, at=[0.0])
    assert found.losses.item() == loss(model, batch).item()

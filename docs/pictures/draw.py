"""Draw the pictures of the documentation from real runs; a minute on one core.

    python docs/pictures/draw.py

Digits with 60 % wrong labels, one network, trained from the same weights on the same batches by SGD
and by Agnostic-SAM. `flatmin.analysis` walks around what each has found; the accuracies over the
radius are those that `results/` holds. Nothing in a picture is put there by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import flatmin
from flatmin import analysis

HERE = Path(__file__).parent
WRONG, EPOCHS, BATCH, RHO = 0.6, 40, 64, 0.2
REACH, POINTS = 1.0, 23
GREY, BLUE, ORANGE = "#7d858f", "#3b8fc4", "#d9702e"
FONT = 'font-family="system-ui,sans-serif"'

Batch = tuple[Tensor, Tensor]


# The runs ---------------------------------------------------------------------------------------


def digits() -> tuple[Batch, Batch]:
    """Training images, six in ten with a wrong label, and test images with the right ones."""
    data = load_digits()
    x = torch.tensor(data.images / 16, dtype=torch.float32).flatten(1)
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    chance = torch.Generator().manual_seed(1)
    moved = torch.rand(len(train), generator=chance) < WRONG
    labels = (y[train] + moved * torch.randint(1, 10, train.shape, generator=chance)) % 10
    return (x[train], labels), (x[test], y[test])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def trained(method: str, train: Batch) -> nn.Module:
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    steps = EPOCHS * (len(train[0]) // BATCH)
    optimizer = flatmin.methods.find(method).build(base, RHO, total_steps=steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    chance = torch.Generator().manual_seed(2)

    def loss_on(rows: Tensor) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            loss = cross_entropy(model(train[0][rows]), train[1][rows])
            loss.backward()
            return loss

        return closure

    for _ in range(EPOCHS):
        order = torch.randperm(len(train[0]), generator=chance)
        for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
            optimizer.step(loss_on(rows))
            schedule.step()
    return model


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def accuracy(model: nn.Module, batch: Batch) -> float:
    with torch.no_grad():
        return 100 * float((model(batch[0]).argmax(1) == batch[1]).float().mean())


# SVG --------------------------------------------------------------------------------------------


def svg(width: float, height: float, parts: Iterable[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img">'
        f"<title>{title}</title>{''.join(parts)}</svg>\n"
    )


def words(x: float, y: float, text: str, size: float = 16, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{GREY}" '
        f"{FONT}>{text}</text>"
    )


def mixed(a: str, b: str, share: float) -> str:
    """A colour between two."""
    pairs = ((int(a[i : i + 2], 16), int(b[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in pairs)


def bowl(heights: np.ndarray, x0: float, top: float, colour: str) -> Iterable[str]:
    """A surface seen from above and in front, far patches first."""
    n = len(heights)
    across, deep, up = 9.2, 4.4, 190.0

    def seen(i: int, j: int) -> tuple[float, float]:
        return x0 + (i - j) * across, 215 + (i + j) * deep - up * min(heights[i, j] / top, 1.0)

    for i, j in sorted(itertools.product(range(n - 1), repeat=2), key=sum):
        corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
        if min(heights[at] for at in corners) > top:
            continue  # above the frame
        share = min(float(np.mean([heights[at] for at in corners])) / top, 1.0)
        points = " ".join("{:.0f},{:.0f}".format(*seen(*at)) for at in corners)
        fill = mixed(colour, "#f4f4f1", 0.85 * share)
        yield f'<path d="M{points}z" fill="{fill}" stroke="{mixed(colour, "#30353c", 0.35)}"/>'


def minima(rises: Sequence[np.ndarray], names: Sequence[str], told: Sequence[str]) -> str:
    top = float(np.quantile(rises[0], 0.8))
    parts = ['<g stroke-width=".5" stroke-linejoin="round">']
    for k, (rise, colour) in enumerate(zip(rises, (ORANGE, BLUE), strict=True)):
        parts += bowl(rise, 215 + 430 * k, top, colour)
    parts.append("</g>")
    for k, (name, text) in enumerate(zip(names, told, strict=True)):
        parts.append(words(215 + 430 * k, 436, name, 25))
        # two lines, so that they can be read on a phone
        parts += [
            words(215 + 430 * k, 466 + 25 * i, line, 20) for i, line in enumerate(text.split("; "))
        ]
    return svg(860, 504, parts, "The training loss around two minima")


def plot(
    lines: Sequence[tuple[str, str, Sequence[float], Sequence[float]]],
    x_title: str,
    y_title: str,
    title: str,
    ticks: Sequence[tuple[float, str]],
) -> str:
    """Lines with their names at their ends; x as it is given, y from the least to the most."""
    xs = [x for _, _, across, _ in lines for x in across]
    ys = [y for _, _, _, along in lines for y in along]
    left, right, high, low = 52.0, 480.0, 30.0, 300.0
    bottom, most = min(ys), max(ys)

    def at(x: float, y: float) -> str:
        across = left + (x - min(xs)) / (max(xs) - min(xs)) * (right - left)
        return f"{across:.1f},{low - (y - bottom) / (most - bottom) * (low - high):.1f}"

    parts = [f'<path d="M{left},{high}V{low}H{right}" fill="none" stroke="{GREY}"/>']
    for y in (bottom, (bottom + most) / 2, most):
        height = float(at(min(xs), y).split(",")[1])
        parts.append(words(left - 8, height + 5, f"{y:.3g}", 15, "end"))
    for x, text in ticks:
        parts.append(words(float(at(x, bottom).split(",")[0]), low + 21, text, 15))
    parts += [words((left + right) / 2, low + 46, x_title), words(4, 15, y_title, 16, "start")]
    taken: list[float] = []
    for name, colour, across, along in lines:
        path = "L".join(at(x, y) for x, y in zip(across, along, strict=True))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        x, y = (float(v) for v in at(across[-1], along[-1]).split(","))
        while any(abs(y - other) < 18 for other in taken):
            y -= 2
        taken.append(y)
        parts.append(words(x + 8, y + 5, name, 16, "start").replace(GREY, colour))
    return svg(620, 356, parts, title)


# The pictures -----------------------------------------------------------------------------------


def over_radius() -> str:
    """Held-out accuracy over the radius, as it was tuned: from `results/`."""
    from flatmin.studies.report import paper, runs

    record = runs.records([str(HERE.parents[1] / "results/beyond/agnostic-for-free-digits-small")])[
        0
    ]
    block = paper.blocks(record.plan, record.rows)[0]
    shown = {"SAM": BLUE, "F-SAM": "#00815d", "Agnostic-SAM": ORANGE}
    lines = []
    for line in block.summary.lines:
        if line.title in shown:
            radii = sorted(line.judged)
            across = [float(np.log2(rho)) for rho in radii]
            lines.append((line.title, shown[line.title], across, [line.judged[r] for r in radii]))
    radii = sorted({rho for line in block.summary.lines for rho in line.judged})
    return plot(
        lines,
        "radius ρ",
        "accuracy on held-out images (labels wrong there too), %",
        "Accuracy over the radius",
        [(float(np.log2(rho)), f"{rho:g}") for rho in radii],
    )


def main() -> None:
    torch.set_num_threads(1)
    train, test = digits()
    names = {"sgd": "SGD", "agnostic-sam-previous": "Agnostic-SAM (previous)"}
    models = {method: trained(method, train) for method in names}
    rises, told, facts = [], [], []
    for model in models.values():
        plane = analysis.random_directions(model, seed=0)
        coordinates = np.linspace(-REACH, REACH, POINTS)
        found = analysis.surface(model, mean_loss, train, plane, (coordinates, coordinates))
        rises.append(found.losses - found.losses[POINTS // 2, POINTS // 2])
        largest = analysis.eigenvalues(analysis.Hessian(model, mean_loss, train), k=1).values[0]
        test_accuracy = accuracy(model, test)
        told.append(f"{test_accuracy:.1f} % of the test images; largest curvature {largest:.3g}")
        facts.append((test_accuracy, float(largest), float(found.losses[POINTS // 2, POINTS // 2])))
    save("minima", minima(rises, list(names.values()), told))

    sgd, flat = models.values()
    line, at = analysis.line_between(sgd, sgd, flat), np.linspace(-0.25, 1.25, 61)
    found = [
        analysis.surface(sgd, mean_loss, data, line, at, metrics="accuracy")
        for data in (train, test)
    ]
    fitted, right = (each.metrics["accuracy"].tolist() for each in found)
    shown = [
        ("training labels", ORANGE, at.tolist(), fitted),
        ("test images", BLUE, at.tolist(), right),
    ]
    ends = list(zip((0.0, 1.0), names.values(), strict=True))
    way = "on the straight way from one minimum to the other"
    save("between", plot(shown, way, "accuracy, %", "Accuracy between two minima", ends))
    save("radius", over_radius())
    for name, fact in zip(names, facts, strict=True):
        print(name, *(f"{number:.4g}" for number in fact))


def save(name: str, picture: str) -> None:
    (HERE / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()

"""What curvature costs, in gradients, and how near it comes: `flatmin.analysis` beside its peers.

    python benchmarks/analysis.py [--rounds 5] [--steps 300] [--threads 2] [--json FILE]
        [--rows product,vit,eigenvalues,hard,trace,surface,memory,alignment,theorem]

The network is ResNet-20, trained for `--steps` steps of SGD on CIFAR-10 ($FLATMIN_DATA), in
evaluation mode; the images are real. Costs are CPU time in units of one gradient (forward and
backward of the same model on the same images), taken in the same round: within it competitors take
turns, and figures are medians over rounds. curvlinops (with scipy's eigsh) and hessian-eigenthings
are measured beside where they can be imported.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse, stats
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import flatmin
from flatmin import analysis
from flatmin.training import models
from flatmin.training.data import images
from flatmin.training.data.augmentation import Images, moments
from flatmin.training.models.transformer import VisionTransformer

Batch = tuple[Tensor, Tensor]
K = 5
TOL = 1e-3


def loss(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return cross_entropy(model(x), y)


def peer(name: str) -> Any:
    """A package, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def cifar10(count: int) -> Batch:
    data = images.load("cifar10", limit=count)
    shown = Images(data.train_images, *moments(data.train_images))
    return shown.plain(torch.arange(count)), data.train_labels


def trained(batch: Batch, steps: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = models.build("resnet20", channels=3, size=32, classes=10)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, max(1, steps))
    last = 0.0
    for _ in range(steps):
        rows = torch.randint(len(batch[1]), (128,))
        base.zero_grad()
        value = loss(model, (batch[0][rows], batch[1][rows]))
        value.backward()
        base.step()
        schedule.step()
        last = float(value.detach())
    print(f"ResNet-20 after {steps} steps: batch loss {last:.3f}", flush=True)
    return model.eval()


def gradient(model: nn.Module, batch: Batch) -> Callable[[], Any]:
    params = list(model.parameters())
    return lambda: torch.autograd.grad(loss(model, batch), params)


def cpu(f: Callable[[], Any]) -> float:
    started = time.process_time()
    f()
    return time.process_time() - started


def ratios(unit: Callable[[], Any], rows: dict[str, Callable[[], Any]], rounds: int) -> Any:
    """Median CPU time of each row, in units of `unit` in the same round."""
    found: dict[str, list[float]] = {name: [] for name in rows}
    unit()
    for f in rows.values():
        f()
    for _ in range(rounds):
        base = (cpu(unit) + cpu(unit)) / 2
        for name, f in rows.items():
            found[name].append(cpu(f) / base)
    return {name: round(statistics.median(x), 2) for name, x in found.items()}


def curvlinops_hessian(model: nn.Module, batch: Batch) -> Any:
    module = peer("curvlinops")
    if module is None:
        return None
    pieces = list(zip(batch[0].split(128), batch[1].split(128), strict=True))
    params = [p for p in model.parameters() if p.requires_grad]
    return module.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), params, pieces, check_deterministic=False
    )


def eigenthings_hessian(model: nn.Module, batch: Batch) -> Any:
    module = peer("hessian_eigenthings")
    if module is None:
        return None
    pieces = list(zip(batch[0].split(128), batch[1].split(128), strict=True))
    return module.HessianOperator(model, pieces, loss)


def product_row(model: nn.Module, batch: Batch, rounds: int, peers: bool = True) -> dict[str, Any]:
    """One product on 128 images."""
    kept = analysis.Hessian(model, loss, batch)
    anew = analysis.Hessian(model, loss, batch, memory=0)
    v = torch.randn(kept.shape[0])
    rows = {"graph kept": lambda: kept @ v, "recomputed": lambda: anew @ v}
    if peers:
        theirs = curvlinops_hessian(model, batch)
        if theirs is not None:
            rows["curvlinops"] = lambda: theirs @ v
        others = eigenthings_hessian(model, batch)
        if others is not None:
            rows["hessian-eigenthings"] = lambda: others.matvec(v)
    return ratios(gradient(model, batch), rows, rounds)


def vit_row(batch: Batch, rounds: int) -> dict[str, Any]:
    """One product of a vision transformer of 6 blocks and 192 channels, 64 patches an image."""
    torch.manual_seed(0)
    model = VisionTransformer(3, 32, 10, heads=3, depth=6, patch=4).eval()
    with warnings.catch_warnings(action="ignore"):
        return product_row(model, batch, rounds, peers=False)


def eigenvalue_row(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Top five to 1e-3 on 512 images: products, and gradients in all, building graphs included.

    A gradient on 512 images is one on four batches of 128.
    """
    pieces = list(zip(batch[0].split(128), batch[1].split(128), strict=True))

    def whole() -> None:
        for piece in pieces:
            gradient(model, piece)()

    unit = statistics.median(cpu(whole) for _ in range(5))
    found: dict[str, Any] = {}

    def ours() -> None:
        H = analysis.Hessian(model, loss, batch)
        found["flatmin"] = analysis.eigenvalues(H, K, tol=TOL)
        print(found["flatmin"], flush=True)

    costs = {"flatmin": (cpu(ours) / unit, found["flatmin"].products)}
    values = {"flatmin": found["flatmin"].values}
    theirs = curvlinops_hessian(model, batch)
    if theirs is not None:
        calls = [0]
        inner = theirs.to_scipy()

        def counted(x: Any) -> Any:
            calls[0] += 1
            return inner @ x

        operator = sparse.linalg.LinearOperator(inner.shape, counted, dtype=np.float32)

        def by_eigsh() -> None:
            values["curvlinops + eigsh"] = np.sort(
                eigsh(operator, K, tol=TOL, return_eigenvectors=False)
            )[::-1]

        costs["curvlinops + eigsh"] = (cpu(by_eigsh) / unit, calls[0])
    module = peer("hessian_eigenthings")
    if module is not None:
        operator = eigenthings_hessian(model, batch)

        def by_eigenthings() -> None:
            result = module.lanczos(operator, k=K, max_iter=20, tol=TOL, seed=0)
            values["hessian-eigenthings"] = np.sort(np.asarray(result.eigenvalues))[::-1]

        costs["hessian-eigenthings"] = (cpu(by_eigenthings) / unit, 20)
    return {
        name: {
            "products": count,
            "gradients in all": round(cost, 1),
            "eigenvalues": [round(float(v), 4) for v in values[name]],
        }
        for name, (cost, count) in costs.items()
    }


def hard_row(batch: Batch) -> dict[str, Any]:
    """Spectra in which nothing stands out: a network before training, and a semicircle."""
    torch.manual_seed(1)
    model = models.build("resnet20", channels=3, size=32, classes=10).eval()
    found: dict[str, Any] = {}
    shares = (np.arange(20_000) + 0.5) / 20_000
    semicircle = sparse.diags_array(2 * stats.beta(1.5, 1.5).ppf(shares) - 1)
    for name, H in (
        ("ResNet-20, untrained", analysis.Hessian(model, loss, batch)),
        ("a semicircle of 20,000 values", semicircle),
    ):
        with warnings.catch_warnings(action="ignore"):
            result = analysis.eigenvalues(H, K, tol=TOL)
        print(result, flush=True)
        worst = float((result.residuals / np.abs(result.values)).max())
        found[name] = {
            "products": result.products,
            "converged": result.converged,
            "worst residual": round(worst, 5),
            "copies excluded": result.copies_excluded,
        }
    return found


def trace_row(model: nn.Module, batch: Batch, seeds: int = 5) -> dict[str, Any]:
    """Error of the trace at 30 products, against 240 on the same 64 images."""
    H = analysis.Hessian(model, loss, (batch[0][:64], batch[1][:64]))
    reference = analysis.trace(H, 240, seed=100)
    results = {"trace": [analysis.trace(H, 30, seed=s) for s in range(seeds)]}
    results["spectrum"] = [analysis.spectrum(H, 30, seed=s).trace for s in range(seeds)]
    found: dict[str, Any] = {"reference": str(reference)}
    for name, estimates in results.items():
        errors = [abs(e.value - reference.value) / abs(reference.value) for e in estimates]
        found[name] = {
            "error, %": [round(100 * e, 2) for e in errors],
            "root mean square, %": round(100 * float(np.sqrt(np.mean(np.square(errors)))), 2),
            "standard errors said, %": [
                round(100 * e.error / abs(reference.value), 2) for e in estimates
            ],
        }
    return found


def surface_row(model: nn.Module, batch: Batch, rounds: int) -> dict[str, Any]:
    """The speed of forward passes over that of a surface's points, on 512 images in batches of 128.

    The points are 9 of a plane, weights moved and all; the passes are as many at rest, in
    evaluation mode and without gradients.
    """
    pieces = list(zip(batch[0].split(128), batch[1].split(128), strict=True))
    before = [p.detach().clone() for p in model.parameters()]
    plane = analysis.random_directions(model)
    axis = [-0.1, 0.0, 0.1]

    @torch.no_grad()
    def passes() -> None:
        for piece in pieces * len(axis) ** 2:
            float(loss(model, piece))

    def points() -> None:
        analysis.surface(model, loss, pieces, plane, at=axis)

    found = ratios(passes, {"points": points}, rounds)
    same = all(map(torch.equal, before, model.parameters()))
    return {"of forward speed": round(1 / found["points"], 3), "weights bit-identical": same}


def alignment_row(batch: Batch, rounds: int) -> dict[str, Any]:
    """What watching the alignment every 10 steps adds to a training, in % of its CPU time.

    Batches of 128 and auxiliary ones of 32; in each round 10 steps without and 10 with, from the
    same weights.
    """
    found: dict[str, Any] = {}
    for name, method in (("Agnostic-SAM", flatmin.AgnosticSAM), ("SAM", flatmin.SAM)):
        model = models.build("resnet20", channels=3, size=32, classes=10).train()
        base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        optimizer = method(base, rho=0.05, model=model)
        monitor = analysis.AlignmentMonitor(model, every=10, optimizer=optimizer)
        primary, auxiliary = (
            (batch[0][:128], batch[1][:128]),
            (batch[0][128:160], batch[1][128:160]),
        )
        closures = _closures(model, primary), _closures(model, auxiliary)
        takes = 2 if optimizer.direction.auxiliary_passes else 1
        added: list[float] = []
        for _ in range(rounds + 1):
            plain = cpu(lambda: [optimizer.step(*closures[:takes]) for _ in range(10)])
            monitor.step = 0
            watched = cpu(lambda: [optimizer.step(*monitor.wrap(*closures)) for _ in range(10)])
            added.append(100 * (watched / plain - 1))
        monitor.close()
        found[name] = {
            "added, %": round(statistics.median(added[1:]), 1),  # the first round allocates
            "rounds, %": [round(x, 1) for x in added[1:]],
        }
    return found


def _closures(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        value = loss(model, batch)
        value.backward()
        return value

    return closure


def theorem_row(model: nn.Module, batch: Batch, rounds: int) -> dict[str, Any]:
    """Theorem 2 at a step, in gradients on the primary batch of 128; the auxiliary one has 32."""
    primary, auxiliary = (batch[0][:128], batch[1][:128]), (batch[0][128:160], batch[1][128:160])
    rows = {
        "a measurement": lambda: analysis.alignment_theorem(
            model, loss, primary, auxiliary, rho1=0.1, rho2=0.05
        )
    }
    return ratios(gradient(model, primary), rows, rounds)


def resident() -> int:
    """Bytes of memory that this process holds, those aside that the allocator has kept."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def memory_row(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What graphs hold against their budget, and what else a search for eigenvalues takes."""
    found: dict[str, Any] = {}
    for budget in (256, 768):
        H = analysis.Hessian(model, loss, batch, memory=f"{budget} MiB")
        v = torch.randn(H.shape[0])
        analysis.Hessian(model, loss, batch, memory=0) @ v  # what stays after any product
        before = resident()
        H @ v
        found[f"graphs within {budget} MiB"] = {
            "MiB": round((resident() - before) / 2**20),
            "share of images kept": round(H.kept, 3),
            "of the budget": round((resident() - before) / 2**20 / budget, 3),
        }
        del H
    return found | {"beside graphs": _beside()}


def _beside() -> dict[str, Any]:
    """Copies of the parameters beside graphs and basis, at the peak, of a wide network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2048, 4096), nn.Tanh(), nn.Linear(4096, 10))
    batch = torch.randn(16, 2048), torch.randint(10, (16,))
    count = sum(p.numel() for p in model.parameters())
    H = analysis.Hessian(model, loss, batch)
    with warnings.catch_warnings(action="ignore"):
        analysis.eigenvalues(H, 3, most=5)  # the graph is there, and what a first use allocates
    before = resident()
    peak = Peak(before)
    with peak, warnings.catch_warnings(action="ignore"):
        result = analysis.eigenvalues(H, 3, most=20)
    copies = (peak.bytes - before) / (4 * count)
    return {
        "parameters": count,
        "copies at the peak": round(copies, 1),
        "of these the basis and the vectors found": result.products + 3,
    }


class Peak:
    """The most memory held within, as a thread sees it every few milliseconds."""

    def __init__(self, start: int) -> None:
        self.bytes = start
        self._on = False

    def __enter__(self) -> Peak:
        import threading

        self._on = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._thread.join()

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while self._on:
            now = int(Path("/proc/self/statm").read_text().split()[1]) * page
            self.bytes = max(self.bytes, now)
            time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows",
        default="product,vit,eigenvalues,hard,trace,surface,memory,alignment,theorem",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = cifar10(4096)
    some = data[0][:128], data[1][:128]
    more = data[0][:512], data[1][:512]
    model = trained(data, options.steps)
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "product": lambda: product_row(model, some, options.rounds),
        "vit": lambda: vit_row(some, options.rounds),
        "eigenvalues": lambda: eigenvalue_row(model, more),
        "hard": lambda: hard_row(some),
        "trace": lambda: trace_row(model, data),
        "surface": lambda: surface_row(model, more, options.rounds),
        "memory": lambda: memory_row(model, more),
        "alignment": lambda: alignment_row(data, options.rounds),
        "theorem": lambda: theorem_row(model, data, options.rounds),
    }
    found: dict[str, Any] = {}
    for name in options.rows.split(","):
        found[name] = rows[name]()
        print(name, json.dumps(found[name], indent=2), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

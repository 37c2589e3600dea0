"""Sharp-MAML as its authors released it, beside ours: the same weights, tasks and meta-steps.

    git clone https://github.com/mominabbass/Sharp-MAML
    python benchmarks/released.py Sharp-MAML

Their learner, network and optimizer run as they are, out of the clone; of the torchmeta that they
bring, the modules and the inner step alone, since the rest needs torchvision. Printed is how far
apart the weights are after some meta-steps with SGD and Adam, in double precision, relative to the
way that they have come. With Adam, whose first steps divide a gradient by its size, rounding counts
for more.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatmin.meta import MAML, MetaLearner, Perturbation, SharpMAML, Task

WAYS, SHOTS, QUERIES, TASKS, FILTERS = 5, 1, 3, 4, 8
INNER_LR = 0.25  # they keep it in single precision, in which this one is exact
STEPS, META_STEPS = 2, 3
ALPHA, RHO = 0.05, 0.05
FORMS = {"MAML": (0.0, 0.0), "low": (ALPHA, 0.0), "up": (0.0, RHO), "both": (ALPHA, RHO)}
BASES: dict[str, tuple[Any, dict[str, float]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "Adam": (torch.optim.Adam, {"lr": 1e-3}),
}


def main() -> None:
    """Print one line for each form and base optimizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path, help="of mominabbass/Sharp-MAML")
    theirs = released(parser.parse_args().clone / "both")
    print("| form | base | apart, of the way |")
    print("| --- | --- | --- |")
    for form, (alpha, rho) in FORMS.items():
        for name, (base, options) in BASES.items():
            torch.manual_seed(0)
            start = theirs["model"](1, WAYS, hidden_size=FILTERS, feature_size=FILTERS).double()
            batches = [[task() for _ in range(TASKS)] for _ in range(META_STEPS)]
            here, there = copy.deepcopy(start), copy.deepcopy(start)
            ours = learner(here, alpha, rho)
            optimizer = ours.optimizer(base(here.parameters(), **options))
            other = theirs["learner"](
                there,
                optimizer=theirs["SAM"](there.parameters(), base, rho=rho, **options),
                step_size=INNER_LR,
                alpha=alpha,
                SAM_lower=alpha > 0,
                num_adaptation_steps=STEPS,
            )
            for batch in batches:
                ours.step(optimizer, batch)
                other.train([stacked(batch)], max_batches=1, verbose=False)
            apart = distance(here, there) / distance(here, start)
            print(f"| {form} | {name} | {apart:.1e} |", flush=True)


def released(folder: Path) -> dict[str, Any]:
    """Their learner, network and optimizer."""
    if not (folder / "maml").is_dir():
        sys.exit(f"no {folder / 'maml'}: clone https://github.com/mominabbass/Sharp-MAML there")
    sys.path.insert(0, str(folder))
    # packages without their __init__, which imports every data set
    for name in ("torchmeta", "torchmeta.utils"):
        module = ModuleType(name)
        vars(module)["__path__"] = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = module
    inner = importlib.import_module("torchmeta.utils.gradient_based")
    vars(sys.modules["torchmeta.utils"])["gradient_update_parameters"] = (
        inner.gradient_update_parameters
    )
    return {
        "learner": importlib.import_module("maml.metalearners.maml").MAML,
        "model": importlib.import_module("maml.model").MetaConvModel,
        "SAM": importlib.import_module("sam").SAM,
    }


def learner(model: Any, alpha: float, rho: float) -> MetaLearner:
    """Ours. As theirs it adapts no scale or shift of a BatchNorm, which is none of torchmeta's."""
    adapted = [name for name, _ in model.meta_named_parameters()]
    given = model, cross_entropy, INNER_LR, STEPS
    options: Any = {"adapted": adapted, "batching": "loop"}
    if not alpha and not rho:
        return MAML(*given, **options)
    lower = Perturbation(alpha) if alpha else None
    upper = Perturbation(rho) if rho else None
    return SharpMAML(*given, lower=lower, upper=upper, **options)


def task() -> Task:
    support = torch.rand(WAYS * SHOTS, 1, 28, 28, dtype=torch.float64)
    query = torch.rand(WAYS * QUERIES, 1, 28, 28, dtype=torch.float64)
    y = torch.arange(WAYS)
    return Task(support, y.repeat_interleave(SHOTS), query, y.repeat_interleave(QUERIES))


def stacked(tasks: list[Task]) -> dict[str, tuple[Tensor, Tensor]]:
    """A meta-batch, as their loop takes it."""
    x, y, query_x, query_y = (torch.stack(parts) for parts in zip(*tasks, strict=True))
    return {"train": (x, y), "test": (query_x, query_y)}


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return float(torch.stack([(p - q).detach().square().sum() for p, q in pairs]).sum().sqrt())


if __name__ == "__main__":
    main()

"""The sharpness-aware optimizers of others, as competitors: read where they lie, never copied.

Each lives in one file of a repository that needs much else, torchvision among it. That file alone
is run, and the names that it imports for its trainer stand for nothing.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from problems import Competitor, Problem
from torch import Tensor
from torch.nn import functional

Step = Callable[[], Any]
Build = Callable[[Problem, torch.optim.Optimizer], Step]


class Nothing:
    """In place of a class that is imported and not used."""


class Registry:
    """In place of a registry of classes, and of its decorator."""

    @staticmethod
    def register() -> Callable[[Any], Any]:
        return lambda thing: thing


@dataclass(frozen=True)
class Peer:
    """A file of somebody's repository, and what is measured of it.

    Fields:
        repository: where it comes from; its clone lies in a folder of the last part of the name.
        file: within the repository.
        competitors: makes them of the file's module.
        stubs: modules that it imports and we do not run, with the names it wants of each.
        siblings: whether it imports its neighbours relatively, which then run as they are.
    """

    repository: str
    file: str
    competitors: Callable[[Any], dict[str, Build]]
    stubs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    siblings: bool = False

    def load(self, folder: Path) -> dict[str, Build]:
        """Run the file and nothing else. Raises whatever it raises."""
        path = folder / self.repository.rpartition("/")[2] / self.file
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: clone {self.repository} there")
        package = f"peer_{path.parent.name}"
        name = f"{package}.{path.stem}" if self.siblings else f"peer_{path.stem}"
        stubs = {name: _module(name, names) for name, names in self.stubs.items()}
        if self.siblings:
            stubs[package] = _module(package, {"__path__": [str(path.parent)]})
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with _instead(stubs):
            spec.loader.exec_module(module)
        return self.competitors(module)


def _module(name: str, names: Mapping[str, Any]) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(names)
    return made


@contextmanager
def _instead(stubs: Mapping[str, ModuleType]) -> Generator[None]:
    """These modules, whatever else goes by their names; afterwards all is as it was."""
    before = dict(sys.modules)
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in set(sys.modules) - set(before):
            if name in stubs or name.startswith("peer_"):
                del sys.modules[name]
        sys.modules.update({name: before[name] for name in stubs if name in before})


def _two_steps(make: Callable[[Problem, torch.optim.Optimizer], Any]) -> Build:
    """The loop of optimizers in the manner of davda54/sam: first_step, second_step."""

    def build(problem: Problem, base: torch.optim.Optimizer) -> Step:
        optimizer = make(problem, base)
        primary, _ = problem.evaluations

        def step() -> None:
            optimizer.zero_grad()
            primary()
            optimizer.first_step(zero_grad=True)
            primary()
            optimizer.second_step(zero_grad=True)

        return step

    return build


def _by_class(make: Callable[..., Any], **hyperparameters: Any) -> Build:
    """They build the base optimizer themselves, from its class."""

    def optimizer(problem: Problem, base: torch.optim.Optimizer) -> Any:
        options = {k: v for k, v in base.defaults.items() if k in ("lr", "momentum")}
        return make(problem.model.parameters(), type(base), **hyperparameters, **options)

    return _two_steps(optimizer)


def _by_base(make: Callable[..., Any], **hyperparameters: Any) -> Build:
    """They take the base optimizer, and the parameters once more."""

    def optimizer(problem: Problem, base: torch.optim.Optimizer) -> Any:
        return make(problem.model.parameters(), base, **hyperparameters)

    return _two_steps(optimizer)


class _Constant:
    """A schedule of the radius that does not move."""

    def step(self) -> float:
        return 0.05


def _gsam(module: Any) -> Build:
    def build(problem: Problem, base: torch.optim.Optimizer) -> Step:
        optimizer = module.GSAM(problem.model.parameters(), base, problem.model, 0.1, _Constant())
        x, y = problem.primary

        def step() -> None:
            optimizer.set_closure(functional.cross_entropy, x, y)
            optimizer.step()
            optimizer.update_rho_t()

        return step

    return build


def _composer(module: Any) -> Build:
    def build(problem: Problem, base: torch.optim.Optimizer) -> Step:
        optimizer = module.SAMOptimizer(base, rho=0.05)
        primary, _ = problem.evaluations

        def closure(ddp_sync: bool = True, loss_dict: Any = None) -> Tensor:
            base.zero_grad()
            return primary().detach()

        return partial(optimizer.step, closure)

    return build


_VISION = dict.fromkeys(("CIFAR10", "CIFAR100", "ImageFolder"), Nothing)

PEERS = (
    Peer(
        "davda54/sam",
        "sam.py",
        lambda m: {
            "SAM": _by_class(m.SAM, rho=0.05),
            "ASAM": _by_class(m.SAM, rho=0.5, adaptive=True),
        },
    ),
    Peer(
        "mosaicml/composer",
        "composer/algorithms/sam/sam.py",
        lambda m: {"SAM": _composer(m)},
        {
            "composer": {},
            "composer.core": dict.fromkeys(("Algorithm", "Event", "State"), Nothing),
            "composer.loggers": {"Logger": Nothing},
            "composer.trainer": {},
            "composer.trainer._scaler": {"ClosureGradScaler": Nothing},
            "composer.utils": {"ensure_tuple": Nothing},
        },
    ),
    Peer(
        "nblt/F-SAM",
        "utils.py",
        lambda m: {"FriendlySAM": _by_class(m.FriendlySAM, rho=0.05)},
        {
            "torchvision": {},
            "torchvision.transforms": {},
            "torchvision.models": {},
            "torchvision.datasets": _VISION,
            "torchvision.datasets.utils": dict.fromkeys(
                ("download_url", "check_integrity"), Nothing
            ),
            "timm": {},
            "timm.models": {},
            "timm.models.vision_transformer": dict.fromkeys(("VisionTransformer", "_cfg"), Nothing),
            "models": {},
            "models.pyramidnet": {"PyramidNet": Nothing},
            "PIL": {"Image": Nothing},
        },
    ),
    Peer("juntang-zhuang/GSAM", "gsam/gsam.py", lambda m: {"GSAM": _gsam(m)}, siblings=True),
    Peer(
        "BingcongLi/VaSSO",
        "solver/vasso.py",
        lambda m: {"VASSO": _by_base(m.VASSO, rho=0.05, theta=0.9)},
        {
            "utils": {},
            "utils.configurable": {"configurable": Registry.register},
            "solver": {},
            "solver.build": {"OPTIMIZER_REGISTRY": Registry},
        },
    ),
)


def _pytorch_optimizer(folder: Path) -> dict[str, Build]:
    import pytorch_optimizer as peer

    return {
        "SAM": _by_class(peer.SAM, rho=0.05),
        "ASAM": _by_class(peer.SAM, rho=0.5, adaptive=True),
        "FriendlySAM": _by_class(peer.FriendlySAM, rho=0.05),
    }


def peers_in(folder: Path | None) -> tuple[list[Competitor], dict[str, str]]:
    """Every peer that is installed, or cloned below `folder`; and why the others cannot be run."""
    found: list[Competitor] = []
    missing: dict[str, str] = {}
    if folder is None:
        return found, missing
    loads = {peer.repository: peer.load for peer in PEERS}
    for name, load in {**loads, "pytorch_optimizer": _pytorch_optimizer}.items():
        try:
            with redirect_stdout(io.StringIO()):
                builds = load(folder)
        except Exception as error:  # noqa: PERF203 - one that fails is a line
            missing[name] = reason_of(error)
        else:
            found += [Competitor(f"{name}: {what}", b, 2) for what, b in builds.items()]
    return found, missing


def reason_of(error: Exception) -> str:
    """An error, as part of one line of a table."""
    said = (str(error).strip().splitlines() or [""])[0].replace("|", "/")
    return f"{type(error).__name__}: {said}"[:160]

"""What a digest sees of what users bring, and that it is the same in another process."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatmin import methods
from flatmin.training.digests import described, structure

SOURCE = """
import math
import settings
import torch
from functools import cache, partial
from torch import nn
from torch.nn.functional import cross_entropy

RATE = 0.1
WORDS = {"sgd", "adam", "b", "c"}
OPTIONS = {"nesterov": True, "layers": [4, 8]}
SHIFT = torch.arange(3.0)
COUNT = 0
CACHE = {}
LOG = []

def scale(x):
    return x * 1

def again(x, depth=0):
    return x if depth else again(x, 1)

def loss(outputs, targets):
    global COUNT
    COUNT = COUNT + 1
    CACHE[COUNT] = len(CACHE)
    LOG.append(COUNT)
    return scale(cross_entropy(outputs, targets))

@cache
def warm(step):
    return step + 3

def base(parameters):
    warm(1)
    assert "sgd" in {"sgd", "adam", "b", "c"} and len(WORDS) == 4 and again(1)
    return torch.optim.SGD(parameters, lr=RATE * settings.deep.FACTOR, nesterov=OPTIONS["nesterov"])

class Above(nn.Module):
    gain = 1.0

    @property
    def twice(self):
        return 2.0

    @staticmethod
    def through(x):
        return x

class Net(Above):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.slope = 0.5

    def forward(self, x):
        return self.through(torch.relu(self.layer(x)) * self.slope + SHIFT.add(1))

class Focal:
    def __init__(self, gamma=2.0):
        self.gamma = gamma

    def __call__(self, outputs, targets):
        return cross_entropy(outputs, targets) ** self.gamma

make = lambda: Net()
build = partial(base)
focal = Focal()
"""

CHANGES = {
    "a global number": ("RATE = 0.1", "RATE = 5.0", {"base", "build"}),
    "a global set": ('"b", "c"}\nOPTIONS', '"b", "d"}\nOPTIONS', {"base", "build"}),
    "deep in a global": ("[4, 8]", "[4, 9]", {"base", "build"}),
    "a global tensor": ("arange(3.0)", "arange(1.0, 4.0)", {"make", "net"}),
    "a helper": ("x * 1", "x * -1", {"loss"}),
    "what a cache is around": ("step + 3", "step + 4", {"base", "build"}),
    "the first helper's helper": ("x if depth", "-x if depth", {"base", "build"}),
    "the forward pass": ("torch.relu(self", "torch.tanh(self", {"make", "net"}),
    "what stands above": ("return 2.0", "return 3.0", {"make", "net"}),
    "a static method": ("    return x\n\nclass", "    return -x\n\nclass", {"make", "net"}),
    "what a class has": ("gain = 1.0", "gain = 2.0", {"make", "net"}),
    "what a network has": ("slope = 0.5", "slope = 0.7", {"make", "net"}),
    "what an object has": ("gamma=2.0", "gamma=1.0", {"focal"}),
    "what an object does": ("** self", "* self", {"focal"}),
    "a number that the functions set": ("COUNT = 0", "COUNT = 7", set()),
    "a mapping whose entries they set": ("CACHE = {}", "CACHE = {1: 2}", set()),
    "a list that they append to": ("LOG = []", "LOG = [1]", set()),
    "what nobody reads": ("import math", "import math\nOTHER = 1", set()),
}
SAY = """
import usermade, torch
from flatmin.training.digests import described, structure
torch.manual_seed(0)
for name in ("base", "build", "loss", "make", "focal"):
    print(name, described(getattr(usermade, name)))
print("net", structure(usermade.Net()))
"""


def said(folder: Path, factor: float, seed: str) -> dict[str, str]:
    """What is said of each, by a process of its own."""
    (folder / "usermade.py").write_text(SOURCE)
    (folder / "settings.py").write_text("import deep\n")
    (folder / "deep.py").write_text(f"import settings\nFACTOR = {factor}\nOTHER = {factor}\n")
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": seed}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    run = subprocess.run(
        [sys.executable, "-c", SAY], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert not run.returncode, run.stderr
    found: dict[str, str] = {}
    for line in run.stdout.splitlines():
        name, _, words = line.partition(" ")
        if name in ("base", "build", "loss", "make", "focal", "net"):
            last = name
            found[name] = words
        else:
            found[last] += line
    return found


def test_another_process_says_the_same_but_where_a_module_has_changed(tmp_path: Path):
    """With other hashes: `base` and `build` read FACTOR of the module `settings.deep`."""
    first, second = (said(tmp_path, factor, seed) for factor, seed in ((1.0, "1"), (2.0, "2")))
    assert {name for name in first if first[name] != second[name]} == {"base", "build"}
    for name in ("base", "build"):
        assert first[name] == second[name].replace("'FACTOR': '2.0'", "'FACTOR': '1.0'")
    assert " at 0x" not in str(first)


@pytest.fixture(scope="module")
def usual() -> dict[str, str]:
    return here(SOURCE)


def here(source: str) -> dict[str, str]:
    """What is said of each in this process, as of a notebook."""
    settings = type(sys)("settings")
    settings.deep = type(sys)("deep")
    settings.deep.FACTOR = 1.0
    sys.modules["settings"] = settings
    module = type(sys)("usermade")
    module.__file__ = "/elsewhere/usermade.py"
    sys.modules["usermade"] = module
    try:
        exec(compile(source, "usermade.py", "exec"), vars(module))
        torch.manual_seed(0)
        names = ("base", "build", "loss", "make", "focal")
        found = {name: described(getattr(module, name)) for name in names}
        return {**found, "net": structure(module.Net())}
    finally:
        del sys.modules["usermade"], sys.modules["settings"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_read_counts_and_nothing_else(change: str, usual: dict[str, str]):
    old, new, expected = CHANGES[change]
    assert SOURCE.count(old) == 1, change
    found = here(SOURCE.replace(old, new))
    assert {name for name in usual if usual[name] != found[name]} == expected


FACTOR = 2.0


def by(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: factor * x


def scaled(x: Tensor) -> Tensor:
    return FACTOR * x


def test_what_a_notebook_changes_between_two_calls_counts(monkeypatch: pytest.MonkeyPatch):
    before = described(scaled)
    assert before == described(scaled)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    assert described(scaled) != before


@dataclass
class Pair:
    a: float
    b: Any = None


class Counter:
    def __init__(self, n: int) -> None:
        self.n = n

    def of(self, x: Tensor) -> Tensor:
        return x * self.n

    @functools.cached_property
    def twice(self) -> int:
        return 2 * self.n


KINDS: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "held": (by, 1.0, 2.0),
    "arguments of a partial": (lambda a: functools.partial(by, factor=a), 1.0, 2.0),
    "a default": (lambda a: lambda x, y=a: x * y, 1, 2),
    "a default by name": (lambda a: lambda x, *, y=a: x * y, 1, 2),
    "a bound method": (lambda a: Counter(a).of, 1, 2),
    "an object": (Counter, 1, 2),
    "a dataclass": (Pair, 1.0, 2.0),
    "a dataclass of functions": (lambda a: Pair(0.0, by(a)), 1.0, 2.0),
    "a list": (lambda a: [1, {"b": (by(a),)}], 1.0, 2.0),
    "a long list": (lambda a: [*range(9999), 0][a:], 0, 1),
    "a tensor": (lambda a: torch.full((3,), a), 1.0, 2.0),
    "its type": (lambda a: torch.zeros(3, dtype=a), torch.float32, torch.float64),
    "an array": (lambda a: np.full(5000, a), 1.0, 2.0),
    "an array of objects": (lambda a: np.array([a, "x" * 99], dtype=object), 1.5, 2.5),
    "a mapping of another kind": (lambda a: UserDict(a=torch.full((5000,), a)), 1.0, 2.0),
    "weights of a loss": (lambda a: nn.CrossEntropyLoss(torch.tensor([1.0, a])), 1.0, 2.0),
    "a loss's options": (lambda a: nn.CrossEntropyLoss(label_smoothing=a), 0.0, 0.1),
    "a set": (lambda a: {"x", "y", a}, "z", "w"),
    "a method": (lambda a: methods.Method("mine", "Mine", a, by), 0.1, 0.2),
    "a library's functions": (lambda a: a, F.mse_loss, F.l1_loss),
    "a library's classes": (lambda a: a, torch.optim.SGD, torch.optim.Adam),
}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_things_are_described_alike_and_others_otherwise(kind: str):
    make, one, other = KINDS[kind]
    assert described(make(one)) == described(make(one))
    assert described(make(one)) != described(make(other))


def test_what_holds_itself_is_described():
    ring: list[Any] = [1]
    ring.append(ring)
    assert described(ring) == described(ring)
    holder = Counter(1)
    holder.n = holder  # type: ignore[assignment]
    assert "Counter" in described(holder)


def test_a_cell_that_is_empty_is_described():
    def outer() -> Callable[[], Any]:
        def inner() -> Any:
            return later

        if len(sys.argv) > 10_000:
            later = 1
        return inner

    assert described(outer())


def test_installed_libraries_are_named_and_not_followed():
    assert len(described(lambda x: F.cross_entropy(x, x))) < 1000
    assert described(torch.optim.SGD) == "torch.optim.sgd.SGD"
    assert importlib.import_module("numpy").__name__ == described(np)

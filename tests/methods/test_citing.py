"""What `flatmin.cite` prints is what the docstrings refer to, for every method, part and base."""

from __future__ import annotations

import inspect
import io
import re
from dataclasses import dataclass, is_dataclass

import pytest
import tables
import torch

import flatmin
from flatmin import citing, methods
from flatmin.direction import Direction

PARTS = [
    part
    for room in ("direction", "geometry", "policy", "selection", "descent")
    for part in vars(getattr(flatmin, room)).values()
    if isinstance(part, type) and is_dataclass(part)
]


def printed(*used) -> str:
    file = io.StringIO()
    flatmin.cite(*used, file=file)
    return file.getvalue()


def archived(text: str) -> set[str]:
    return set(re.findall(r"eprint\s+= \{(.*)\}", text))


def referred(thing: object) -> set[str]:
    reference = re.search(r"^Reference: (?:.+\n?)+", inspect.getdoc(thing) or "", re.MULTILINE)
    return set(re.findall(r"\d{4}\.\d{5}", reference[0] if reference else ""))


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_a_part_has_the_papers_of_its_docstring(part: type):
    named = set(citing.papers(citing.PARTS[part]))
    assert named | {"2010.01412"} == referred(part) | {"2010.01412"}


@pytest.mark.parametrize("name", [name for name in methods.TABLE if name != "sgd"])
def test_a_method_has_the_papers_of_its_docstring(name: str):
    method = methods.TABLE[name].construct
    # RWP's docstrings speak of the adaptive form too, which is cited where it is used
    other = {"2404.00357"} if "rwp" in name else set()
    function = getattr(method, "func", method)
    assert referred(function) - other <= archived(printed(name))
    assert archived(printed(name)) == archived(printed(method))


def test_what_was_chosen_is_cited_and_what_was_not_is_not():
    model = torch.nn.Linear(3, 2)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    parts = {"geometry": flatmin.geometry.Adaptive() * flatmin.geometry.Only([model.weight])}
    text = printed(flatmin.SharpnessAware(base, policy=flatmin.policy.EveryK(2), **parts))
    keys = re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE)
    assert keys == [
        "flatmin",
        "foret2021sharpness",
        "kwon2021asam",
        "mueller2023normalization",
        "liu2022towards",
        "sutskever2013importance",
    ]
    assert "2404.00357" in printed(
        flatmin.RWP(torch.optim.SGD(model.parameters(), lr=0.1), eta=0.1)
    )
    assert "2404.00357" not in printed("rwp")
    assert "yue2023" not in printed("mixed-rwp")
    assert "Align-SAM" not in printed("agnostic-sam")
    assert "Align-SAM" in printed("align-sam")
    assert archived(printed("sgd")) == set()


@pytest.mark.parametrize("base", tables.BASES)
def test_the_base_is_cited(base: str):
    made = tables.BASES[base](torch.nn.Linear(3, 2).parameters())
    text = printed(flatmin.SAM(made))
    assert "%" not in text
    assert archived(text) == archived(printed(made)) | {"2010.01412"}


def test_torch_has_no_base_without_a_paper():
    torch_has = {name for name in vars(torch.optim) if isinstance(getattr(torch.optim, name), type)}
    unusual = {"Optimizer", "SGD", "ASGD", "LBFGS", "Rprop", "SparseAdam"}
    assert torch_has - unusual <= set(citing.BASES)


@dataclass(frozen=True)
class Mine(Direction):
    def displacement(self, at):
        return at.climb(at.grad)


def test_what_is_not_known_is_named():
    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

    base = Own(torch.nn.Linear(3, 2).parameters())
    text = printed(flatmin.SharpnessAware(base, direction=Mine()))
    assert "% Mine is not flatmin's: cite it as its authors ask." in text
    assert "% Own is not flatmin's" in text


def test_what_cannot_be_cited_is_told():
    with pytest.raises(TypeError, match="not 3"):
        printed(3)
    with pytest.raises(ValueError, match="did you mean sam"):
        printed("samm")


def test_every_entry_is_used_and_well_formed():
    used = {"flatmin", citing.SAM, "anonymous2026align", "robbins1951stochastic"}
    used |= {"sutskever2013importance"}
    for keys in (*citing.PARTS.values(), *citing.BASES.values()):
        used |= set(keys)
    assert used == set(citing.entries())
    for key, entry in citing.entries().items():
        assert entry.count("{") == entry.count("}"), key
        assert all(
            re.search(rf"^  {field}\s+= \{{", entry, re.MULTILINE) for field in ("title", "author")
        )

"""What the site generates: formulas, cards, the command line; and that the reference is whole."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import xml.dom.minidom
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest

import flatmin
from flatmin import methods

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "docs" / "hooks"))

for needed in ("yaml", "tyro", "optuna", "pydantic"):
    pytest.importorskip(needed)

cards, commands, formulas, building, tutorial = map(
    importlib.import_module, ("cards", "commands", "formulas", "building", "tutorial")
)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return dict(cards.pages())


def text_of(html: str) -> str:
    """What a formula shows, tags taken away."""
    return re.sub(r"<[^>]*>|title=\"[^\"]*\"", "", html.replace("&nbsp;", " "))


def inside(thing: griffe.Object) -> Iterator[griffe.Object]:
    """It, and everything that is defined in it."""
    yield thing
    for member in thing.members.values():
        if isinstance(member, griffe.Object):
            yield from inside(member)


# --- formulas


def test_a_formula_becomes_mathematics():
    drawn = formulas.displayed("eps = rho T² g / ‖T g‖;   w <- base step from w with g_s")
    first, second = re.findall(r"<mtr>(.*?)</mtr>", drawn)
    norm = (
        '<mrow><mo stretchy="true" fence="true" form="prefix">‖</mo><mi>T</mi><mi>g</mi>'
        '<mo stretchy="true" fence="true" form="postfix">‖</mo></mrow>'
    )
    square = "<msup><mi>T</mi><mn>2</mn></msup>"
    top = f"<mrow><mi>ρ</mi>{square}<mi>g</mi></mrow>"
    assert first == f"<mtd><mi>ε</mi><mo>=</mo><mfrac>{top}{norm}</mfrac></mtd>"
    assert text_of(second) == "w← base step from w with gs"


def test_cases_stand_before_their_statements():
    drawn = formulas.displayed("t < start T:  w <- g / (1 + t)\nelse:         w <- sqrt(1 + eta f)")
    assert [text_of(cell) for cell in re.findall(r"<mtd>(.*?)</mtd>", drawn)] == [
        "t&lt;startT:",
        "w←g1+t",
        "else:",
        "w←1+ηf",
    ]


def formulas_of_everything() -> dict[str, str]:
    found = {name: cards.told(row).formula for name, row in methods.TABLE.items()}
    for room in ("direction", "geometry", "policy", "selection", "descent"):
        for name in getattr(flatmin, room).__all__:
            thing = getattr(getattr(flatmin, room), name)
            match = formulas.IN_DOCSTRING.match(inspect.getdoc(thing) or "")
            if match:
                found[name] = match[2]
    return found


def test_every_formula_is_drawn_whole():
    found = formulas_of_everything()
    assert len(found) > 55
    for formula in found.values():
        is_drawn_whole(formula)


def is_drawn_whole(formula: str) -> None:
    drawn = formulas.displayed(formula)
    xml.dom.minidom.parseString(drawn.replace("&nbsp;", " "))
    shown = text_of(drawn)
    assert not re.search(r"<-|&lt;-|\b(rho|eps|beta|sigma|lmbda|theta|alpha|gamma)\b|[`_^]", shown)
    for word, digit in re.findall(r"([^\W\d_²ᵀ]+)(\d?)", formula):
        assert {"sqrt": ""}.get(word, formulas.LETTERS.get(word, word)) + digit in shown


# --- cards


@pytest.mark.parametrize("name", methods.TABLE)
def test_a_card_says_what_is_known_of_a_method(name: str, pages: dict[str, str]):
    row, card = methods.TABLE[name], pages[name]
    assert f"# {row.title}\n" in card
    for argument in {"base", "rho", *row.hyperparameters}:
        assert re.search(rf"^`{argument}( = .*)?`\n:   [A-Z\"`0-9].{{20}}", card, re.MULTILINE)
    assert "<math" in card
    assert re.search(r"^\| cost \| .*gradient", card, re.MULTILINE)
    assert "@software{flatmin," in card
    if name != "sgd":
        assert "## What its paper claims\n\n" in card
        assert pages["index"].count(f"({name}.md)") == 1


def test_what_was_measured_is_what_results_say(pages: dict[str, str]):
    tables = (PROJECT / "results" / "README.md").read_text(encoding="utf-8")
    assert len(cards.measured()) > 40
    for line in cards.measured():
        _, value, *leads, _, _, _ = line.cells
        assert re.search(
            rf"{re.escape(value.strip('*'))}†?(\*\*)?( \([^|]*\))? \|.*"
            + "".join(rf"{re.escape(lead)}.*" for lead in leads if lead),
            tables,
        ), line
        assert value in pages[line.method]


def test_what_a_gradient_buys_is_what_results_say():
    tables = (PROJECT / "results" / "README.md").read_text(encoding="utf-8")
    page = (PROJECT / "docs" / "choosing.md").read_text(encoding="utf-8")
    found = re.findall(
        r"[−+]?\d+\.\d (?:±|\[)[^|]*(?= \|)", page.partition("## What a gradient")[2]
    )
    assert len(found) > 50
    assert [number for number in found if number not in tables.replace("†", "")] == []


def test_what_was_not_measured_is_said(pages: dict[str, str]):
    never = set(methods.TABLE) - {line.method for line in cards.measured()}
    assert never
    for name in never:
        assert f"`flatmin compare --methods sgd,sam,{name} --tune rho` measures it" in pages[name]


def test_a_paper_speaks_for_itself(pages: dict[str, str]):
    assert "SAM 96.58 ± 0.1" not in pages["sam"]  # another paper's measurement of it
    assert "**AE-SAM 96.63 ± 0.04**" in pages["ae-sam"]
    assert 'variant="released"` is the code\'s' in pages["friendly-sam"]
    assert "No paper has it" in pages["ae-friendly-sam"]
    assert "No paper has it" not in pages["wsam"]


def test_the_tables_to_choose_by_name_what_was_measured_and_every_radius():
    shown = re.findall(r"methods/([\w-]+)\.md", cards.compared())
    tuned = {line.method for line in cards.measured() if line.table.startswith("beyond/agnostic")}
    assert set(shown) == tuned
    assert "| 1.00 | 69.7 ± 3.7 | 48.5 ± 2.2 | 33.9 ± 0.8 | 33.9 ± 0.5 |" in cards.compared()
    for name, row in methods.TABLE.items():
        if name != "sgd":
            assert f"](methods/{name}.md) | {row.rho:g} | " in cards.radii()
    assert "efault" not in cards.radii()


def test_the_table_of_the_readme_is_what_was_measured():
    def cells(text: str) -> list[list[str]]:
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    readme = (PROJECT / "README.md").read_text("utf-8")
    head, _, *rows = cells(readme[readme.index("\n| | SGD |") : readme.index("\nBold: the best")])
    measured = {name: found for (name, _, *found) in cells(cards.compared())}
    for title, *column in zip(*[head, *rows], strict=True):
        if title:
            (name,) = (known for known in measured if known.startswith(f"[{title}]("))
            assert column == measured[name], title
    assert len(rows) == len(cards.DECIDING)


def test_the_home_page_takes_its_words_from_the_readme():
    home = building.on_page_markdown((PROJECT / "docs" / "index.md").read_text("utf-8"))
    readme = (PROJECT / "README.md").read_text("utf-8")
    assert "<!-- README" not in home
    assert "pip install torch" in home
    assert 'print(f"{right:.1%} of the test digits' in home
    assert "](docs/" not in home.replace("](docs/pictures/draw.py)", "")
    for link in re.findall(r"\]\((?!\w+:)([\w/-]+\.md)", home):
        made = link in ("methods/index.md", "tutorial.md")
        assert made or (PROJECT / "docs" / link).exists(), link
    assert set(re.findall(r"\]\((docs/[\w.-]+)", readme)) == {
        found for found in re.findall(r"\]\((docs/[\w.-]+)", readme) if (PROJECT / found).exists()
    }


# --- the reference


def test_the_command_line_is_whole():
    page = commands.page()
    assert re.findall(r"^## flatmin (\w+)$", page, re.MULTILINE) == [
        *commands.subcommands(commands.helped([]))
    ]
    assert "--rho" in page
    assert "### flatmin meta train" in page


def test_every_public_symbol_has_a_place():
    pages = "\n".join(p.read_text("utf-8") for p in (PROJECT / "docs/reference").glob("*.md"))
    named = re.findall(r"^(?::::|<!-- public:) ([\w.]+)", pages, re.MULTILINE)
    rooms = "methods direction geometry policy selection descent schedules engine integrations"
    for room in (
        "flatmin",
        *(f"flatmin.{each}" for each in f"{rooms} training analysis meta".split()),
    ):
        for name in getattr(importlib.import_module(room), "__all__", ()):
            thing = getattr(importlib.import_module(room), name)
            homes = {f"{room}.{name}", room, getattr(thing, "__module__", room), f"flatmin.{name}"}
            assert homes & (set(named) - {"flatmin"}), f"{room}.{name}"


def test_every_section_of_a_docstring_is_one_that_the_reference_knows():
    """Under another heading an example is set as prose, all in one paragraph."""
    extension = str(PROJECT / "docs" / "hooks" / "docstrings.py")
    package = griffe.load(
        "flatmin",
        search_paths=[PROJECT / "src"],
        docstring_parser="google",
        extensions=griffe.load_extensions(extension),
    )
    headings = [
        (section.kind, thing.path)
        for thing in inside(package)
        for section in (thing.docstring.parsed if thing.docstring else [])
    ]
    kinds = griffe.DocstringSectionKind
    assert [path for kind, path in headings if kind is kinds.admonition] == []
    assert sum(kind is kinds.examples for kind, _ in headings) > 100


def test_a_number_stays_on_the_line_of_its_interval():
    cells = "<td>−0.3 [−2.4, 1.9]</td><td><b>91.4 ± 1.6</b></td><td>a, b</td>"
    together = (
        "<td>−0.3\u00a0[−2.4,\u00a01.9]</td><td><b>91.4\u00a0±\u00a01.6</b></td><td>a, b</td>"
    )
    assert building.on_page_content(cells) == together


# --- the tutorial


def test_the_tutorial_runs_and_shows_what_it_prints():
    short = {"EPOCHS = 40": "EPOCHS = 1", "(0.01, 0.05, 0.2, 0.8)": "(0.05,)", ":1437": ":99"}
    page = tutorial.page(short)
    told = re.findall(
        r"^(sgd|sam|friendly-sam|agnostic-sam-previous) +[\d.]+% right", page, re.MULTILINE
    )
    assert told == ["sgd", "sam", "friendly-sam", "agnostic-sam-previous"]
    assert len(re.findall(r"largest +\d+\.\d+   trace +[-\d.]+   rise \d", page)) == 4
    assert "# Noisy digits\n" in page
    assert "# %%" not in page


def test_the_notebook_is_the_tutorial():
    made = json.loads(tutorial.notebook())
    code = [cell["source"] for cell in made["cells"] if cell["cell_type"] == "code"]
    source = tutorial.SOURCE.read_text(encoding="utf-8")
    assert len(code) == source.count("\n# %%\n")
    assert all(part in source for part in code)
    assert not any("](" in cell["source"] for cell in made["cells"] if cell not in code)
    assert {"id", "metadata", "source"} <= set(made["cells"][0])

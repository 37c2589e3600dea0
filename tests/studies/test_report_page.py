"""The report: complete without a network or a script, and alive in a browser."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browsing
import pytest
from browsing import drawn, media, tab_to
from comparisons import comparison, outcome

from flatmin.cli import main
from flatmin.studies.report import comparison as report
from flatmin.studies.report import section
from flatmin.studies.report.summary import summarise

ACCURACIES = {
    "sgd": [70.0, 72.0, 71.0],
    "sam": [80.0, 81.0, 79.0],
    "agnostic-sam": [80.5, 81.0, 78.0],
}
HELD_OUT = {
    "sam": {0.1: 30.0, 0.2: 40.0, 0.4: 12.0},
    "agnostic-sam": {0.1: 35.0, 0.2: 31.0, 0.4: 10.0},
}


def page(folder: Path, **changed: Any) -> str:
    found = outcome(folder, ACCURACIES, **changed)
    return report.render(found, summarise(found))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "report.html").write_text(
        page(folder, held_out=HELD_OUT, tune="rho", rho=(0.1, 0.2, 0.4))
    )
    return folder / "report.html"


class Table(HTMLParser):
    """The cells of the page's table, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def table(text: str) -> list[list[str]]:
    return [
        [" ".join(cell.split()) for cell in row]
        for row in Table(text[text.index("<table") : text.index("</table")]).rows
    ]


def test_the_table_is_plain_html(tuned: Path):
    head, *rows = table(tuned.read_text())
    assert len(head) == 10
    assert head[:3] == [
        "Method",
        "Test accuracy%, mean ± sd",
        "Difference to SGDpoints, 95 % interval",
    ]
    assert rows == [
        ["SGD", "71.0 ± 1.0", "", "71.0 ± 1.0", "–", "1.00", "0", "–", "50.0", "0.50"],
        [
            *("SAM", "80.0 ± 1.0", "+9.0 [6.3, 11.7]", "40.0 ± 0.5"),
            *("0.2", "2.00", "100", "0.200", "50.0", "0.50"),
        ],
        [
            *("Agnostic-SAM", "79.8 ± 1.6", "+8.8 [6.1, 11.6]", "31.9 ± 0.6"),
            *("0.1*", "2.50", "100", "0.100", "50.0", "0.50"),
        ],
    ]


def test_the_page_needs_no_network(tuned: Path):
    text = tuned.read_text()
    # all but Plotly itself, which names addresses and asks none of them: see the test offline
    outside = text[: text.index("<script>/**")] + text[text.rindex("<script>") :]
    assert len(text) - len(outside) > 1e6
    assert " src=" not in outside
    assert "@import" not in outside
    assert "url(" not in outside
    # the namespace of the mark is a name, and nobody asks for it
    assert "http" not in re.sub(r"http(:|%3A)//www\.w3\.org/2000/svg", "", outside)


def test_the_page_carries_its_results_as_data(tuned: Path):
    text = tuned.read_text()
    found = re.search(r'<script type="application/json" id="results">(.*?)</script>', text)
    assert found is not None
    results = json.loads(found[1])
    assert [row["method"] for row in results["methods"]] == list(ACCURACIES)
    assert results["methods"][1]["accuracy_by_seed"] == {"0": 80.0, "1": 81.0, "2": 79.0}
    assert results["methods"][0]["radius"] is None
    assert len(found[1]) < 5000


def test_the_command_in_the_report_asks_for_the_same_comparison(tuned: Path):
    """Parsed by the command line itself, it finds the folder its own."""
    text = tuned.read_text()
    command = re.search(r'id="command">(.*?)</code>', text, re.DOTALL)
    assert command is not None
    words = command[1].split()
    assert words[:2] == ["flatmin", "compare"]
    assert main([*words[1:], "--out", str(tuned.parent)]) == 0


@pytest.mark.parametrize(
    "changed", [{}, {"augment": True}, {"limit": 500, "fraction": 0.5}, {"rho": (0.3,)}]
)
def test_every_setting_is_in_the_command(changed: dict[str, Any]):
    words = section.command(comparison(**changed)).split()
    for name in ("data", "methods", "model", "noise", "epochs", "batch", "lr", "weight-decay"):
        assert f"--{name}" in words
    assert ("--no-augment" in words) != bool(changed.get("augment"))
    assert ("--limit" in words) == ("limit" in changed)
    assert ("--rho" in words) == ("rho" in changed)


def test_what_the_user_named_cannot_break_out_of_the_page(tmp_path: Path):
    found = outcome(tmp_path, ACCURACIES, troubles={("sam", 0): "</script><b>odd & bad"})
    text = report.render(found, summarise(found))
    assert "<b>odd" not in text
    assert "&lt;b&gt;odd &amp; bad" in text


def test_an_untuned_page_says_so_and_shows_no_tuning(tmp_path: Path):
    text = page(tmp_path)
    assert "Not tuned." in text
    assert 'data-kind="tuning"' not in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browsing.chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


EPOCHS = "[data-curve=accuracy][data-x=epoch]"


def test_the_page_opens_without_an_error_and_draws_its_plots(browser: Any, tuned: Path):
    browser.get(tuned.as_uri())
    assert browser.get_log("browser") == []
    assert len(browser.find_elements("css selector", ".results tbody tr")) == 3
    for name in ("accuracy", "train_accuracy", "loss"):
        assert len(set(drawn(browser, f"[data-curve={name}][data-x=epoch]"))) == 3
    assert len(set(drawn(browser, "[data-x=passes]"))) == 3
    assert len(set(drawn(browser, "[data-kind=tuning]"))) == 2
    points = browser.find_elements("css selector", "[data-kind=difference] .point")
    assert len(points) == 2 * (3 + 1)
    overflow = "return document.documentElement.scrollWidth - innerWidth"
    assert browser.execute_script(overflow) <= 0


def test_the_keyboard_reaches_the_methods_and_hides_one(browser: Any, tuned: Path):
    browser.get(tuned.as_uri())
    focused = tab_to(browser, "input[type=checkbox]", steps=10)
    before = drawn(browser, EPOCHS)
    focused.send_keys(" ")
    after = drawn(browser, EPOCHS)
    assert len(set(before)) == 3
    assert set(after) == set(before) - {before[0]}
    assert browser.get_log("browser") == []


def test_a_dark_screen_gets_a_dark_page_and_paper_a_light_one(browser: Any, tuned: Path):
    def colours(scheme: str, kind: str = "screen") -> tuple[str, str]:
        media(browser, scheme, kind)
        browser.get(tuned.as_uri())
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return paper, drawn(browser, EPOCHS)[0]

    light, dark, printed = colours("light"), colours("dark"), colours("dark", "print")
    assert light == ("rgb(253, 253, 251)", "rgb(107, 112, 120)")
    assert dark == ("rgb(22, 24, 28)", "rgb(169, 174, 183)")
    assert printed == ("rgb(255, 255, 255)", "rgb(107, 112, 120)")
    assert browser.get_log("browser") == []

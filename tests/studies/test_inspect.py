"""`flatmin inspect` as a user meets it: models of runs and files, a page, mistakes in one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browsing
import pytest
import torch
from comparisons import outcome
from PIL import Image
from torch.nn import functional as F

from flatmin.cli import main
from flatmin.studies.report import browser as drawing
from flatmin.studies.report import subjects
from flatmin.studies.report.inspection import Subject, Wanted, inspect
from flatmin.studies.store import weights
from flatmin.training import checkpoints, losses
from flatmin.training.checkpoints import Checkpoints
from flatmin.training.errors import InputError
from flatmin.training.loop import train

QUICK = ["--images", "24", "--points", "3", "--products", "16", "--rho", "0.1,0.2"]
ALIGNMENT = [0.1, None, 0.3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two cells that was interrupted: their checkpoints are there, their rows are not."""
    folder = tmp_path_factory.mktemp("run")
    none = {"sgd": [None], "sam": [None]}
    found = outcome(folder, none, epochs=2, limit=200)
    for each in found.comparison.plan({}, frozenset()):
        train(each, found.data, checkpoints=folder / "checkpoints" / each.key)
    cell = folder / "checkpoints" / each.key  # and of the last one, alignment was recorded
    kept = max(cell.glob("*.pt"))
    key, state = checkpoints.opened(kept.read_bytes())
    state = state()
    state["recorder"]["values"]["alignment-before"] = ALIGNMENT
    Checkpoints(cell, key).save(2, state)
    return folder


def inspected(*words: object) -> int:
    return main(["inspect", *QUICK, *map(str, words)])


def content(page: Path) -> dict[str, Any]:
    """What the page's script draws."""
    found = re.search(r'id="inspected">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    assert inspected(run) == 0
    return run / "inspection.html"


def test_a_run_says_itself_what_its_models_are(run: Path, page: Path):
    found = subjects.subjects([str(run)], images=24)
    assert [each.name for each in found] == ["SGD, seed 0", "SAM, ρ 0.05, seed 0"]
    shown = content(page)
    assert shown["series"] == [each.name for each in found]
    for k, each in enumerate(found):
        assert sum(len(y) for _, y in each.data) == 24
        total = sum(F.cross_entropy(each.model.eval()(x), y, reduction="sum") for x, y in each.data)
        middle = shown["surfaces"]["loss"][0]["drawn"][k]["kinds"][0][0]["customdata"][1][1]
        assert middle == pytest.approx(total.item() / 24, rel=1e-4)
    assert shown["metrics"] == ["loss", "accuracy"]
    names = [trace["name"] for trace in shown["plots"]["sharpness"]]
    assert len(names) == 6
    assert [trace["y"] for trace in shown["plots"]["alignment"]] == [ALIGNMENT]
    assert "http" not in re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert f"{run}/checkpoints" in page.read_text()


def test_ctrl_c_leaves_a_page_and_the_same_command_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    cell = next((run / "checkpoints").iterdir())
    calls = [0]
    stop = [10**6]

    def counted(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] > stop[0]:
            raise KeyboardInterrupt
        return F.cross_entropy(*args, **more)

    monkeypatch.setattr(losses, "F", SimpleNamespace(cross_entropy=counted))
    given = [cell, "--out", tmp_path / "a.html"]
    assert inspected(*given) == 0
    whole, shown = calls[0], content(tmp_path / "a.html")["surfaces"]
    shutil.rmtree(tmp_path / ".a-grids")
    calls[0], stop[0] = 0, whole - 4
    assert inspected(*given) == 130
    assert capsys.readouterr().err.endswith("the same command goes on with the surface\n")
    part = (tmp_path / "a.html").read_text()
    assert "Interrupted: what is missing was not measured." in part
    assert "interrupted: 4 of 9 points not evaluated" in part
    calls[0], stop[0] = 0, 10**6
    assert inspected(*given) == 0
    assert calls[0] == whole - 5 + 1  # five points were there, and one of these was looked at again
    assert content(tmp_path / "a.html")["surfaces"] == shown


def test_files_of_weights_and_functions_of_ones_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, scale in (("a", 1.0), ("b", 1.1), ("c", 1.3)):
        torch.manual_seed(len(name))
        state = {"0.weight": scale * torch.ones(3, 4) + torch.randn(3, 4), "0.bias": torch.ones(3)}
        torch.save({"model": state}, tmp_path / f"{name}.pt")
    (tmp_path / "mine_to_inspect.py").write_text(
        "import torch\n"
        "net = lambda: torch.nn.Sequential(torch.nn.Linear(4, 3))\n"
        "part = torch.eye(4), torch.arange(4) % 3\n"
        "data = lambda: (part, part)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["--model", "mine_to_inspect:net", "--data", "mine_to_inspect:data"]
    assert inspected("A=a.pt", "b.pt", *own, "--along", "between", "--statistics", "batch") == 0
    assert "A" in capsys.readouterr().out
    shown = content(Path("inspection.html"))
    assert shown["series"] == ["A", "b"]
    line = shown["surfaces"]["loss"][0]["drawn"][0]
    assert line["labels"] == ["from the first (0) to the second (1)"]
    assert "line between two checkpoints" in Path("inspection.html").read_text()
    assert inspected("a.pt", "b.pt", "c.pt", *own, "--along", "between") == 2
    assert "lie on one line" in capsys.readouterr().err


def test_a_finished_run_has_kept_its_weights(tmp_path: Path):
    found = outcome(tmp_path, {"sgd": [None], "sam": [None]}, epochs=1, limit=200)
    facts = {"channels": 1, "size": 8, "classes": 10}
    runs = [train(each, found.data) for each in found.comparison.plan({}, frozenset())]
    for each in runs:
        weights.keep(tmp_path / weights.FOLDER, each, facts)
    seen = subjects.subjects([str(tmp_path)], images=24)
    assert [each.name for each in seen] == ["SGD, seed 0", "SAM, ρ 0.05, seed 0"]
    for each, ran in zip(seen, runs, strict=True):
        assert ran.model is not None
        for name, x in ran.model.state_dict().items():
            assert torch.equal(each.model.state_dict()[name], x)
        x, y = each.data[0]
        expected = F.cross_entropy(each.model(x), y)
        assert each.loss(each.model, each.data[0]).item() == pytest.approx(expected.item())


def test_mistakes_are_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    cell = next((run / "checkpoints").iterdir())
    kept = max(cell.glob("*.pt"))
    _, state = checkpoints.opened(kept.read_bytes())
    plainly = state()["model"]
    plain, broken, cut = (tmp_path / name for name in ("plain.pt", "broken.pt", "cut.pt"))
    torch.save(plainly, plain)
    first = next(iter(plainly))
    torch.save({**plainly, first: plainly[first] * torch.nan}, broken)
    cut.write_bytes(kept.read_bytes()[:-1])
    (tmp_path / "empty").mkdir()
    known = ["--model", "mlp", "--data", "digits"]

    def says(*words: object) -> str:
        assert inspected(*words) == 2
        said = capsys.readouterr().err.splitlines()
        return said[-1]

    assert says(plain).endswith("does not say what it is of: add --model NAME and --data NAME")
    other = says(plain, "--model", "cnn", "--data", "digits")
    assert f"{plain} is not of cnn: it lacks " in other
    assert f"{first} is (256, 64) and should be (32,)" in other
    assert f"holds values that are not finite ({first})" in says(broken, *known)
    assert "cut.pt is damaged (its checksum does not fit)" in says(cut)
    assert f"no weights in {tmp_path / 'empty'}: give" in says(tmp_path / "empty")
    assert "holds files of weights (broken.pt, cut.pt, plain.pt): name those" in says(tmp_path)
    assert "there is nothing at nowhere" in says("nowhere")
    lost = says(plain, "--model", "no_module:net", "--data", "digits")
    assert "no_module:net cannot be imported (no module no_module)" in lost
    assert "takes two models" in says(plain, *known, "--along", "between")
    assert "--points 1 is out of range" in says(plain, *known, "--points", "1")
    assert "--rho 0.1,x is no radius" in says(plain, *known, "--rho", "0.1,x")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("flatmin.studies.report.browser.APPLICATIONS", ())
    assert "PNG and PDF take Chrome or Chromium: install one" in says(plain, *known, "--png")


def test_a_notebook_shows_any_model(run: Path):
    model = torch.nn.Linear(2, 1)

    def loss(model: Any, batch: Any) -> Any:
        return (model(batch) ** 2).mean()

    wanted = Wanted(points=3, products=3, rho=(0.1,))
    found = inspect([Subject("<b>", model, torch.eye(2), loss)], wanted)
    assert found.models[0].accuracy is None
    assert found.models[0].top[0][0] > 0
    shown = found._repr_html_()
    assert shown.startswith('<iframe srcdoc="')
    assert "&amp;lt;b&amp;gt;" in shown
    assert "<b>" not in shown


def test_pages_become_pictures_and_documents(tmp_path: Path):
    if not shutil.which("chromium"):
        pytest.skip("needs chromium")
    page = tmp_path / "a.html"
    page.write_text(
        "<body style='height:1500px'><script>document.documentElement.dataset.height = 1500;"
        "document.title = 'drawn'</script>"
    )
    picture = drawing.picture(drawing.find(), page, tmp_path / "a.png")
    with Image.open(picture) as shown:
        assert shown.size == (drawing.WIDTH, 1500)
    document = drawing.document(drawing.find(), page, tmp_path / "a.pdf")
    assert document.read_bytes().startswith(b"%PDF")
    with pytest.raises(InputError, match=r"no-such-browser cannot draw .*: open the page"):
        drawing.picture("no-such-browser", page, tmp_path / "b.png")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browsing.chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def test_the_page_draws_and_its_cameras_are_one(browser: Any, page: Path):
    browser.get(page.as_uri())
    seen = browser.execute_async_script(
        """const done = arguments[0], all = (q) => [...document.querySelectorAll(q)];
           const solid = all('[data-plot^="surface-"]'), flat = all('[data-plot^="contour-"]');
           const seen = () => ({
             eyes: solid.map((place) => place.layout.scene.camera.eye.x),
             scales: flat.map((place) => place.data[0].zmax),
             plots: all("[data-plot]").length,
             drawn: all("[data-plot] .main-svg").length,
             wide: document.documentElement.scrollWidth <= innerWidth,
           });
           setTimeout(async () => {
             await Plotly.relayout(solid[0], { "scene.camera": { eye: { x: 2, y: 1, z: 1 } } });
             setTimeout(() => done(seen()), 300);
           }, 300);"""
    )
    assert seen["eyes"] == [2, 2]
    assert seen["plots"] == 10
    assert seen["drawn"] >= 10
    assert len(set(seen["scales"])) == 1
    assert seen["wide"]
    assert [each for each in browser.get_log("browser") if each["level"] == "SEVERE"] == []

"""Build what would be released, and use it as somebody who has nothing but that.

    python .ci/release.py [--python PYTHON] [--keep FOLDER]

The source distribution is built, and the wheel from it; the wheel is installed into an empty
environment, where `import flatmin` must work with torch alone and be typed; then with the extras,
where a comparison must run from end to end. Everything is done in a folder that is removed;
`--keep` copies both files elsewhere once all of it has passed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

STEP = """
import torch, flatmin

weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
optimizer = flatmin.SAM(torch.optim.SGD([weight], lr=0.1), rho=0.5)


def closure():
    loss = weight.square().sum() / 2
    loss.backward()
    return loss


optimizer.step(closure)
torch.testing.assert_close(weight.detach(), torch.tensor([3.0, 4.0]) * (1 - 0.11))
print("flatmin", flatmin.__version__, "takes its step")
"""

TYPED = """
import torch

import flatmin

weight = torch.nn.Parameter(torch.zeros(2))
optimizer: flatmin.SharpnessAware = flatmin.SAM(torch.optim.SGD([weight], lr=0.1), rho=0.5)
radius: float = optimizer.param_groups[0]["rho"]
flatmin.SAM(torch.optim.SGD([weight], lr=0.1), rho="far")  # an error, which must be found
"""


def run(*words: str | Path, cwd: Path) -> str:
    """What a command prints; SystemExit with it if the command fails."""
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        shown = " ".join(str(word) for word in words if "\n" not in str(word))
        sys.exit(f"{shown} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def built(folder: Path) -> tuple[Path, Path]:
    """The source distribution and the wheel."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (source,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return source, wheel


def check_content(source: Path, wheel: Path) -> None:
    """SystemExit where something is missing, or there that does not belong."""
    with tarfile.open(source) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    for name in (
        "tests/tables.py",
        "recipes/papers.yaml",
        "docs/index.md",
        "CHANGELOG.md",
        "LICENSE",
    ):
        if name not in inside:
            sys.exit(f"{source.name} lacks {name}")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    for name in ("py.typed", "recipes/papers.yaml", "studies/report/templates/page.html"):
        if f"flatmin/{name}" not in names:
            sys.exit(f"{wheel.name} lacks flatmin/{name}")
    strangers = [n for n in names if not n.startswith(("flatmin/", "flatmin-"))]
    if strangers:
        sys.exit(f"{wheel.name} holds what is not the package: {', '.join(strangers[:5])}")


def check_types(python: Path, folder: Path) -> None:
    """SystemExit unless pyright and mypy read our types: they find the mistake, and no other."""
    (folder / "typed.py").write_text(TYPED)
    wrong = TYPED.count("\n", 0, TYPED.index('rho="far"')) + 1
    for name, words in {
        "pyright": ("pyright", "--pythonpath", python, "typed.py"),
        "mypy": ("mypy", "--python-executable", python, "--follow-imports=silent", "typed.py"),
    }.items():
        checker = Path(sys.executable).parent / name
        done = subprocess.run(
            [checker, *map(str, words[1:])], cwd=folder, capture_output=True, text=True, check=False
        )
        found = [line for line in done.stdout.splitlines() if "error:" in line]
        if len(found) != 1 or f"typed.py:{wrong}" not in found[0]:
            sys.exit(f"{name} should find one error, in line {wrong}, and found:\n{done.stdout}")
        print(f"{name} reads the types of the wheel")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--python", default=sys.executable, help="to make the environment with")
    asked.add_argument("--keep", type=Path, help="a folder for both files once all has passed")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, wheel = built(folder)
        check_content(source, wheel)
        print(f"{source.name} and {wheel.name} hold what they should")
        run(given.python, "-m", "venv", "environment", cwd=folder)
        python = folder / "environment" / "bin" / "python"
        install = (python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt")
        run(*install, wheel, cwd=folder)
        print(run(python, "-I", "-W", "ignore", "-c", STEP, cwd=folder).strip())
        check_types(python, folder)
        run(*install, f"{wheel}[studies,postgres]", cwd=folder)
        run(python, "-m", "pip", "check", cwd=folder)
        flatmin = python.parent / "flatmin"
        words = ("compare", "--data", "digits", "--methods", "sgd,sam", "--epochs", "1")
        run(flatmin, *words, "--seeds", "1", "--out", "out", cwd=folder)
        if not (folder / "out" / "report.html").exists():
            sys.exit("flatmin compare wrote no report")
        run(python, "-c", "import flatmin.analysis, flatmin.meta, psycopg", cwd=folder)
        print("with its extras it compares, analyses and learns to learn")
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
            for file in (source, wheel):
                print("kept:", shutil.copy(file, given.keep))


if __name__ == "__main__":
    main()

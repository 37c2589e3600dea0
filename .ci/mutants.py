"""Change the code here and there, and see which changes no test notices.

    make mutants ARGS="parts --sample 40 --seed 0"

cosmic-ray makes the changes: another operator, another number, a condition turned round, a loop
left out. A sample of the places in a room is changed, one at a time, in a clone of the last commit
that is removed afterwards; the room's tests run on each. Changes that survive are printed: each is
a gap in the tests, or a change of nothing, and docs/testing.md says which.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkItem

ROOT = Path(__file__).resolve().parent.parent

STEPS = "tests/methods tests/engine/test_walk.py tests/engine/test_vec.py"
"""What notices most, and is done in half a minute; the rest runs where it has not."""

SURFACE = "tests/documents/test_public_surface.py"
PROCESSES = "tests/distributed"
ENGINE = "tests/engine"

ROOMS = {
    "engine": (["engine"], [STEPS, ENGINE, PROCESSES]),
    "parts": (
        ["direction", "geometry", "policy", "selection", "descent"],
        [STEPS, ENGINE, PROCESSES],
    ),
    "optimizer": (
        ["optimizer.py", "schedules.py", "methods.py"],
        [f"{STEPS} {SURFACE}", ENGINE, PROCESSES],
    ),
    "statistics": (
        ["studies/report/statistics.py"],
        ["tests/studies/test_compare_statistics.py", "tests/studies/test_compare_summary.py"],
    ),
}
"""Room: what is changed, under src/flatmin; and the tests, the quick ones first."""

CONFIGURATION = """
[cosmic-ray]
module-path = [{modules}]
timeout = {timeout}
excluded-modules = []
test-command = "{command}"

[cosmic-ray.distributor]
name = "local"
"""


def main() -> None:
    """Print what survives in a room, and how many of how many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--sample", type=int, default=40, help="places to change (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        modules, tests = ROOMS[asked.room]
        (clone / "tests.sh").write_text(script(tests))
        configuration = clone / "mutants.toml"
        configuration.write_text(
            CONFIGURATION.format(
                modules=", ".join(f'"src/flatmin/{each}"' for each in modules),
                timeout=900.0,
                command="bash tests.sh",
            )
        )
        session = clone / "mutants.sqlite"
        cosmic_ray(clone, "baseline", configuration.name)  # unchanged, the tests must pass
        cosmic_ray(clone, "init", configuration.name, session.name)
        with use_db(str(session), WorkDB.Mode.open) as database:
            places = sampled(database.work_items, asked.sample, asked.seed)
            database.clear()
            database.add_work_items(places)
        started = time.monotonic()
        cosmic_ray(clone, "exec", configuration.name, session.name)
        with use_db(str(session), WorkDB.Mode.open) as database:
            done = database.completed_work_items
    alive = [(item, result) for item, result in done if result.test_outcome == TestOutcome.SURVIVED]
    for item, result in alive:
        (change,) = item.mutations
        print(f"\n{change.module_path}:{change.start_pos[0]} {change.operator_name}")
        print(result.diff)
    minutes = (time.monotonic() - started) / 60
    print(f"{asked.room}: {len(alive)} of {len(done)} changes survive ({minutes:.0f} min)")


def script(tests: list[str]) -> str:
    """Run the tests, as far as one fails."""
    # no bytecode: a change that is undone within a second, at the same size, would stay in it
    lines = ["set -e", "export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$PWD/src"]
    python = ROOT / ".venv" / "bin" / "python"
    lines += [f"{python} -m pytest -x -q -p no:cacheprovider {each}" for each in tests]
    return "\n".join(lines) + "\n"


def cosmic_ray(folder: Path, *words: str) -> None:
    """One of its commands; SystemExit with what it said if it fails."""
    done = subprocess.run(
        [Path(sys.executable).parent / "cosmic-ray", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-5000:]
        sys.exit(f"cosmic-ray {' '.join(words)} failed:\n{said}")


def sampled(items: tuple[WorkItem, ...], count: int, seed: int) -> list[WorkItem]:
    """One change at each of some places that mean something, the same for the same seed."""
    drawn = random.Random(seed)
    places: dict[tuple[str, tuple[int, int]], list[WorkItem]] = {}
    for item in items:
        (change,) = item.mutations
        # `X | None` in an annotation is no operation, and bits of floats are an error at once
        if "BitOr" in change.operator_name or any(
            f"_{bits}" in change.operator_name for bits in ("BitAnd", "BitXor", "LShift", "RShift")
        ):
            continue
        places.setdefault((str(change.module_path), change.start_pos), []).append(item)
    chosen = drawn.sample(sorted(places), min(count, len(places)))
    return [
        drawn.choice(sorted(places[place], key=lambda item: item.mutations[0].operator_name))
        for place in chosen
    ]


if __name__ == "__main__":
    main()

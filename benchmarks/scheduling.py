"""What a cell costs beyond its training: time to take it up, to keep its row and to end it.

    python benchmarks/scheduling.py                     # 1,000 cells, 4 workers, SQLite
    python benchmarks/scheduling.py --workers 1 --cells 200
    python benchmarks/scheduling.py --storage postgresql://me@localhost/flatmin

The cells do nothing. The overhead of a cell is the time that its worker takes for it, from its
first row to its last; the start of the workers, once per run, is told apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from trivial import Many, Nothing

from flatmin.studies.plan.tuning import Progress
from flatmin.studies.run import processes
from flatmin.studies.store.location import StudyLocation
from flatmin.studies.store.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--storage", help="URL of a PostgreSQL database; default SQLite")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        name = f"scheduling-{time.time_ns()}"
        store = Store.open(StudyLocation.new(Path(folder), asked.storage, study=name), {"of": name})
        seen: list[tuple[float, int]] = []

        def tick(store: Store, _: Progress) -> None:
            if store.rows:
                seen.append((time.perf_counter(), len(store.rows)))

        start = time.perf_counter()
        processes.run(store, Many(asked.cells), Nothing(), asked.workers, tick, pause=0.1)
        (first, before), (last, after) = seen[0], seen[-1]
    a_cell = 1000 * (last - first) / (after - before) * asked.workers
    kind = "PostgreSQL" if asked.storage else "SQLite"
    print(f"{asked.cells} cells, {asked.workers} workers, {kind}")
    print(f"{a_cell:.1f} ms of a worker's time for each cell (to reach: 50)")
    print(f"{(after - before) / (last - first):.0f} cells a second; {first - start:.1f} s to start")


if __name__ == "__main__":
    main()

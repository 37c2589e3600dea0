"""`flatmin meta train` and `flatmin meta test`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flatmin.cli.messages import stop

if TYPE_CHECKING:
    from flatmin.cli.arguments import MetaArguments, MetaTest, MetaTrain
    from flatmin.meta.batching import Batching
    from flatmin.studies.meta.training import Validation
    from flatmin.studies.plan.fewshot import FewShot


def meta(wanted: MetaArguments) -> int:
    """Train, or test what is trained."""
    from flatmin.cli.arguments import MetaTrain
    from flatmin.training import processes

    with processes.started():
        if isinstance(wanted.action, MetaTrain):
            return _train(wanted.action)
        return _test(wanted.action)


def _train(wanted: MetaTrain) -> int:
    from flatmin.studies.meta import training
    from flatmin.studies.meta.pools import Pools
    from flatmin.studies.run.processes import interrupts

    settings = wanted.settings.checked()
    batching = _batching(wanted.batching)
    folder = wanted.out or Path("runs") / f"meta-{settings.data}-{settings.key}"
    try:
        with interrupts(signal.default_int_handler):
            pools = Pools.load(settings)
            training.train(settings, pools, folder, batching=batching, tell=StepReport())
    except KeyboardInterrupt:
        return _interrupted(kept(folder))
    if processes_lead():
        print(f"flatmin: {folder} is trained; next: flatmin meta test {folder}", file=sys.stderr)
    return 0


def _test(wanted: MetaTest) -> int:
    from flatmin.studies.meta import page, testing, training
    from flatmin.studies.meta.pools import Pools
    from flatmin.studies.run.processes import interrupts
    from flatmin.studies.store import files

    tested: list[testing.Tested] = []
    known: dict[object, Pools] = {}
    try:
        with interrupts(signal.default_int_handler):
            for folder in _folders(wanted.runs):
                settings = training.settings(folder)
                if settings not in known:
                    known = {settings: Pools.load(settings)}  # of one at a time
                tested.append(testing.measured(settings, known[settings], folder))
    except KeyboardInterrupt:
        return _interrupted(
            "interrupted: each training keeps its test once it is finished; "
            "the same command continues"
        )
    tables = testing.tables(tested)
    if processes_lead():
        path = wanted.out or Path(wanted.runs[0]) / "report.html"
        command = f"flatmin meta test {' '.join(wanted.runs)}"
        said = page.markdown(tables, command)
        with files.told(path, "give another file by --out"):
            files.write(path, page.page(tables, command))
            files.write(path.with_suffix(".md"), said)
        print(said)
        print(f"flatmin: {path}", file=sys.stderr)
    return 0


def kept(folder: Path) -> str:
    """What to say when training in `folder` is interrupted."""
    return (
        f"interrupted: {folder} keeps every training up to its last checkpoint; "
        f"the same command continues"
    )


def _interrupted(line: str) -> int:
    """The exit status after Ctrl-C, of which torchrun tells every process: one speaks for all."""
    return stop(line, 130) if processes_lead() else 130


def processes_lead() -> bool:
    """Does this process speak for all that torchrun has started?"""
    from flatmin.training.processes import ProcessGroup

    return ProcessGroup.here("cpu").leads


def _folders(runs: tuple[str, ...]) -> Iterator[Path]:
    """The folders named, or those in them that hold a training."""
    from flatmin.studies.meta.training import SETTINGS
    from flatmin.studies.store import files
    from flatmin.training.errors import InputError

    for run in runs:
        folder = Path(run)
        inside = sorted(path.parent for path in folder.glob(f"*/{SETTINGS}"))
        if files.is_file(folder / SETTINGS) or not inside:
            if not files.is_folder(folder):
                raise InputError(f"no folder {run}: give one of `flatmin meta train`")
            yield folder
        else:
            yield from inside


def _batching(said: str) -> Batching:
    from flatmin.training.errors import InputError

    if said in ("auto", "loop", "vmap"):
        return said
    if said.isdecimal() and int(said) > 0:
        return int(said)
    raise InputError(f"--batching {said}: give auto, loop, vmap, or how many tasks run at once")


class StepReport:
    """Tells of meta-steps on the standard error, where a terminal or a log can follow."""

    def __init__(self, about: str = "") -> None:
        self._about = about
        self._told = 0
        self._form = ""

    def __call__(
        self, wanted: FewShot, step: int, loss: float, history: list[Validation], form: str
    ) -> None:
        if form != self._form:
            self._form = form
            print(f"flatmin: {self._about}{form}", file=sys.stderr, flush=True)
        if len(history) > self._told:
            self._told = len(history)
            now = history[-1]
            lost = f", {now.diverged} tasks diverged" if now.diverged else ""
            print(
                f"flatmin: {self._about}meta-step {now.step} of {wanted.steps}: "
                f"loss {now.loss:.3f}, validation {now.accuracy:.2f} ± {now.half:.2f} %, "
                f"{now.seconds:.0f} s{lost}",
                file=sys.stderr,
                flush=True,
            )

"""The page that shows how the project is built names what is there."""

from __future__ import annotations

import re
from pathlib import Path

from test_floors import FLOORS

import flatmin

SOURCES = Path(flatmin.__file__).parent
PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_its_floors_are_those_that_are_held():
    picture = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert picture is not None
    drawn: dict[str, int] = {}
    floor = -1
    for line in picture[1].splitlines():
        at = re.match(r" (\d)?  +((?:[\w.]+(?:, )?)+)   ", line)
        if at is not None:
            floor = int(at[1]) if at[1] else floor
            drawn.update(dict.fromkeys(at[2].split(", "), floor))
    named = {room or "flatmin": floor for room, floor in FLOORS.items()}
    unseen = {"studies", "__main__"}  # a folder of rooms, and one line that calls the cli
    assert drawn == {room: floor for room, floor in named.items() if room not in unseen}


def test_every_file_that_it_names_is_there():
    named = set(re.findall(r"`((?:[\w-]+/)*[\w-]+(?:\.py|\.yaml|/))`", PAGE))
    assert len(named) > 30
    missing = [name for name in named if not any((at / name).exists() for at in (SOURCES, PROJECT))]
    assert missing == []

"""All that two processes do, in one launch: most of a launch is importing torch."""

from __future__ import annotations

from distributed import buffers, checkpoint, equality, local, sharding, trouble
from distributed.common import main

SCRIPTS = {
    "equality": equality.scenarios,
    "local": local.scenarios,
    "buffers": buffers.scenarios,
    "sharding": sharding.scenarios,
    "checkpoint": checkpoint.scenarios,
    "trouble": trouble.scenarios,
}

if __name__ == "__main__":
    main(SCRIPTS)

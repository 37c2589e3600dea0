"""`python -m flatmin` is `flatmin`."""

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """`flatmin` as it is typed: run the command line and end the process.

    An interrupt ends it with one line, whenever it comes. Amid an import, where a KeyboardInterrupt
    might be swallowed or become a traceback, and wherever else there is nothing to be kept, it ends
    at once; `flatmin.cli.run` asks for the exception while it trains.
    """
    signal.signal(signal.SIGINT, _leave)
    from flatmin.cli import app

    status = app.main()
    sys.exit(status)


def _leave(*_: object) -> NoReturn:
    os.write(2, b"flatmin: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()

"""The commands of `flatmin`: words in, words out.

`arguments` has the flags of each command, one dataclass a command; the module named after a command
does what it asks for, and `app` chooses among them and turns every mistake into one line. A new
command is a dataclass in `arguments`, a function in a module of its own, a line in `app`.
"""

from flatmin.cli.app import main

__all__ = ["main"]

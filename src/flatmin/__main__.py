"""`python -m flatmin` is `flatmin`."""

from flatmin.cli import program

if __name__ == "__main__":
    program()

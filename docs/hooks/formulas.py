"""Formulas, as docstrings have them, to MathML, which browsers draw without a script.

    eps = rho g / ‖g‖;   w <- base step from w with ∇L(w + eps)

A line may begin with a case that ends in a colon and two spaces; statements end in a semicolon and
two spaces; words of two letters or more are words unless they are symbols. What stands before a
slash, up to an operator, is a numerator, and the one thing behind it the denominator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

LETTERS = {
    "alpha": "α",
    "beta": "β",
    "delta": "δ",
    "eps": "ε",
    "eta": "η",
    "gamma": "γ",
    "lambda": "λ",
    "lmbda": "λ",
    "mu": "μ",
    "rho": "ρ",
    "sigma": "σ",
    "theta": "θ",
}
NAMES = {"var", "share", "start"}
"""Quantities whose symbol is a word."""
FUNCTIONS = {"sqrt", "cos", "max", "min", "int"}
OPERATORS = {"<-": "←", ">=": "≥", "<=": "≤", "-": "−", "=": "=", "+": "+", ">": ">", "<": "<"}
OPERATORS |= {mark: mark for mark in (",", ";", ":", "·", "∈")}
ENDS = {"(": ")", "[": "]", "‖": "‖", "|": "|"}

IN_DOCSTRING = re.compile(r"\A((?:.+\n)+\n)((?: {4}.*\n)+)\n")
"""The first sentence of a docstring, and the formula behind it."""

TOKEN = re.compile(
    r"\s*(?P<code>`[^`]*`)|\s*(?P<operator><-|>=|<=|[-+=<>,;:·∈])|(?P<space>\s+)"
    r"|(?P<number>\d+(\.\d+)?)|(?P<super>[²ᵀ']|\^)|(?P<sub>_)|(?P<slash>/)"
    r"|(?P<open>[(\[])|(?P<close>[)\]])|(?P<bar>[‖|])|(?P<word>[a-z]+'s|[^\W\d_²ᵀ]+\d?)|(?P<other>.)"
)


def displayed(text: str) -> str:
    """The lines of a formula as one block."""
    rows = [row for line in text.splitlines() if line.strip() for row in _rows(line)]
    cased = any(case for case, _ in rows)
    cells = "".join(
        "<mtr>"
        + (f"<mtd>{_math(case)}</mtd>" if cased else "")
        + f"<mtd>{_math(statement)}</mtd></mtr>"
        for case, statement in rows
    )
    kind = "cases" if cased else "lines"
    return (
        f'<div class="formula" title="{escape(text.strip())}">'
        f'<math display="block" class="{kind}"><mtable>{cells}</mtable></math></div>'
    )


def _rows(line: str) -> Iterator[tuple[str, str]]:
    """The case, if any, and the statement of each row of a line."""
    case, colon, rest = re.match(r"(?:(.*?)(:)  +)?(.*)", line.strip(), re.DOTALL).groups()
    for index, statement in enumerate(re.split(r";  +", rest)):
        yield (f"{case}:" if colon and not index else ""), statement.strip()


def _math(text: str) -> str:
    return "".join(_Reader(text).sequence(None)) if text else ""


class _Reader:
    """One pass over the tokens of a statement."""

    def __init__(self, text: str) -> None:
        self.tokens = [(match.lastgroup, match[0].strip()) for match in TOKEN.finditer(text)]
        self.at = 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else ("end", "")

    def sequence(self, end: str | None) -> list[str]:
        """What stands before `end`, which is passed."""
        done: list[str] = []
        factors: list[str] = []  # since the last operator: what a slash would put on top
        words: list[str] = []

        def told() -> None:
            if words:
                done.extend(factors)
                factors.clear()
                before = "&nbsp;" if done else ""
                after = "&nbsp;" if self.peek()[1] not in (")", "") else ""
                done.append(f"<mtext>{before}{escape(' '.join(words))}{after}</mtext>")
                words.clear()

        while True:
            kind, token = self.peek()
            if kind == "end" or (end is not None and token == end):
                told()
                self.at += kind != "end"
                return done + factors
            if kind == "space":
                self.at += 1
            elif words and token in (",", ":"):
                self.at += 1
                words[-1] += token
            elif kind == "operator":
                told()
                self.at += 1
                sign = "" if done or factors else ' form="prefix"'
                done += [*factors, f"<mo{sign}>{escape(OPERATORS[token])}</mo>"]
                factors.clear()
            elif kind == "slash":
                told()
                self.at += 1
                while self.peek()[0] == "space":
                    self.at += 1
                over = factors or [done.pop()]
                fraction = f"<mfrac>{_row(over)}{self.below()}</mfrac>"
                factors[:] = [fraction]
            elif kind == "code" or (kind == "word" and _is_prose(token, self.peek(1))):
                self.at += 1
                words.append(token.strip("`"))
            else:
                told()
                factors.append(self.factor())

    def below(self) -> str:
        """A denominator, which needs no brackets."""
        if self.peek()[1] != "(":
            return self.factor()
        self.at += 1
        return _row(self.sequence(")"))

    def factor(self) -> str:
        """One thing with what hangs on it."""
        kind, token = self.peek()
        self.at += 1
        if kind == "number":
            made = f"<mn>{token}</mn>"
        elif kind == "word":
            made = self.called(token)
        elif kind == "open":
            inner = self.fenced(token)
            # a fraction alone needs no brackets
            alone = re.fullmatch(
                r"<mrow><mo[^>]*>.</mo>(<mfrac>.*</mfrac>)<mo[^>]*>.</mo></mrow>", inner
            )
            made = alone[1] if alone and alone[1].count("<mfrac>") == 1 else inner
        elif kind == "bar":
            made = self.fenced(token)
        else:
            made = f"<mo>{escape(token)}</mo>"
        return self.hung(made)

    def called(self, name: str) -> str:
        """A symbol, or a function with its argument."""
        if name == "sqrt" and self.peek()[1] == "(":
            self.at += 1
            return f"<msqrt>{''.join(self.sequence(')'))}</msqrt>"
        digit = re.fullmatch(r"(\D+)(\d)", name)
        letter = digit[1] if digit else name
        made = f"<mi>{LETTERS.get(letter, letter)}</mi>"
        if digit:
            made = f"<msub>{made}<mn>{digit[2]}</mn></msub>"
        if name in NAMES and self.peek()[0] == "space":
            return f'{made}<mspace width="0.25em"/>'
        if self.peek() == ("open", "("):
            self.at += 1
            return f"<mrow>{made}{self.fenced('(')}</mrow>"
        return made

    def fenced(self, opening: str) -> str:
        closing = ENDS[opening]
        inner = "".join(self.sequence(closing))
        fence = '<mo stretchy="true" fence="true" form="{}">{}</mo>'.format
        return f"<mrow>{fence('prefix', opening)}{inner}{fence('postfix', closing)}</mrow>"

    def hung(self, made: str) -> str:
        """With subscript and superscript."""
        below = above = ""
        while self.peek()[0] in ("sub", "super"):
            kind, token = self.peek()
            self.at += 1
            if kind == "sub":
                below = self.script()
            elif token == "^":
                above = self.script()
            else:
                above = {"²": "<mn>2</mn>", "ᵀ": "<mo>⊤</mo>", "'": "<mo>′</mo>"}[token]
        if below and above:
            return f"<msubsup>{made}{below}{above}</msubsup>"
        if below:
            return f"<msub>{made}{below}</msub>"
        return f"<msup>{made}{above}</msup>" if above else made

    def script(self) -> str:
        """What stands behind `_` or `^`: a symbol, a word, or a group without its brackets."""
        kind, token = self.peek()
        self.at += 1
        if token == "(":
            return _row(self.sequence(")"))
        if kind == "number":
            return f"<mn>{token}</mn>"
        return f"<mi>{LETTERS.get(token, token)}</mi>"


def _is_prose(word: str, following: tuple[str, str]) -> bool:
    if word == "a":
        return True
    letters = word.rstrip("0123456789")
    known = letters in LETTERS or letters in NAMES
    return len(letters) > 1 and not (known or following[1] in ("(", "_") or word in FUNCTIONS)


def _row(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"

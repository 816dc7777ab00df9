"""Sums of texts: `'A dog ran.' - 'A dog slept.' + 0.5 * @cat.txt`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.reading import MEBIBYTE, read_bytes

LARGEST = 16 * MEBIBYTE
_SIGN = re.compile(r"\s*([+-])\s*")
_WEIGHT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*\*\s*")
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_PLAIN = re.compile(r"\S.*?(?=\s+[+-](?:\s|$)|\s*$)", re.DOTALL)


@dataclass(frozen=True)
class Term:
    """A text, and what its thoughts are multiplied by."""

    weight: float
    text: str


def parse(expression: str) -> list[Term]:
    """The terms of a sum.

    A term is a text in single or double quotes, `@` and the name of a file that holds one, or a text as it is, which
    goes on to the next `+` or `-` with white space on both sides. A number and `*` may stand before it.

    Raises:
        UserError: there is no such sum, with what was expected; or a file cannot be read.
    """
    terms: list[Term] = []
    place = 0
    expression = expression.strip()
    while place < len(expression) or not terms:
        sign = _SIGN.match(expression, place)
        if terms and sign is None:
            raise _wrong(expression, place, "expected + or - between two texts")
        place = sign.end() if sign else place
        weight = _WEIGHT.match(expression, place)
        place = weight.end() if weight else place
        found = _QUOTED.match(expression, place) or _PLAIN.match(expression, place)
        if found is None:
            raise _wrong(expression, place, "expected a text in quotes, or @ and a file")
        quoted = expression[place] in "'\""
        if quoted and found.re is _PLAIN:
            raise _wrong(expression, place, "a quote that is left open")
        place = found.end()
        text = (found[1] if found[1] is not None else found[2]) if quoted else text_of(found[0])
        size = float(weight[1]) if weight else 1.0
        terms.append(Term(-size if sign and sign[1] == "-" else size, text))
    return terms


def text_of(argument: str) -> str:
    """A text as it is given on the command line: itself, or of `@file` what the file holds, less its last line end.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    if not argument.startswith("@"):
        return argument
    path = Path(argument[1:])
    try:
        text = read_bytes(path, LARGEST).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a text that begins with @ goes into a file, too") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; expected text") from None
    return re.sub(r"\r?\n\Z", "", text)


def _wrong(expression: str, place: int, what: str) -> UserError:
    rest = f"at '{one_line(expression[place:], 40)}'" if expression[place:] else "at its end"
    return UserError(f"'{one_line(expression, 80)}': {what}, {rest}; such as \"'A' - 'B' + @c.txt\"")

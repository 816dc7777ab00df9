"""Sums of texts as they are typed."""

from __future__ import annotations

import pytest

from pyro_ltm.errors import UserError
from pyro_ltm.thoughts.expression import Term, parse, text_of


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("A - B + C", [(1, "A"), (-1, "B"), (1, "C")]),
        ("'A dog ran.' - \"B's - own\"+0.5 * 'c d'", [(1, "A dog ran."), (-1, "B's - own"), (0.5, "c d")]),
        ("-a well-known man + 2*b-c", [(-1, "a well-known man"), (2, "b-c")]),
        ("'a'\n - \n'b'", [(1, "a"), (-1, "b")]),
        ("one text", [(1, "one text")]),
        ("''", [(1, "")]),
    ],
)
def test_terms(expression, terms):
    assert parse(expression) == [Term(weight, text) for weight, text in terms]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "expected a text in quotes, or @ and a file, at its end"),
        ("a -", "expected a text in quotes, or @ and a file, at its end"),
        ("'a' 'b'", "expected + or - between two texts, at ''b''"),
        ("a + 'b", "a quote that is left open, at ''b'"),
    ],
)
def test_what_is_no_sum(expression, says):
    with pytest.raises(UserError) as error:
        parse(expression)
    assert says in str(error.value)
    assert "such as" in str(error.value)


def test_texts_in_files(tmp_path):
    path = tmp_path / "a text.txt"
    path.write_bytes("\ufeffGrüße - und mehr\r\n".encode())
    assert text_of(f"@{path}") == "Grüße - und mehr"
    assert parse(f"0.5 * @{path} - 'b'") == [Term(0.5, "Grüße - und mehr"), Term(-1, "b")]
    path.write_bytes(b"\xff")
    for name, says in ((path, "not UTF-8 at byte 0"), (tmp_path / "no.txt", "no such file; a text that begins with @")):
        with pytest.raises(UserError, match=says):
            text_of(f"@{name}")

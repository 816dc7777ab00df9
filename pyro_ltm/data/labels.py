"""Texts with labels, such as a review and its stars, from one file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_ltm.data.files import check_text, read_file
from pyro_ltm.errors import UserError

SUFFIXES = (".jsonl", ".csv", ".parquet")


def read_labelled(
    path: Path, columns: Sequence[str], *, text_column: str = "text", limit: int | None = None
) -> tuple[list[str], dict[str, list[str]]]:
    """The first `limit` texts of a file, and their labels by column.

    Raises:
        UserError: the file cannot be read, has no such columns, or holds something else in them than a text with a
            word, a number or a truth value as its label.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: expected a .jsonl, .csv or .parquet file, with a column for each label")
    texts = [document.text for document in itertools.islice(read_file(path, text_column), limit)]
    labels = {
        name: [document.text for document in itertools.islice(read_file(path, name, check_label), limit)]
        for name in columns
    }
    return texts, labels


def check_label(value: Any, where: str, column: str) -> str:
    """`value` as a label. Raises UserError naming `where`."""
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return check_text(value, where, column)
    kind = "empty (null)" if value is None else f"a {type(value).__name__}"
    raise UserError(f"{where}: '{column}' is {kind}; a label is a word, a number or a truth value")

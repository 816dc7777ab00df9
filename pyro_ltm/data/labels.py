"""Texts with labels, such as a review and its stars, from one file."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_ltm.data.readers import Fields, Reading, has_columns, read_file
from pyro_ltm.data.readers.fields import check_text
from pyro_ltm.errors import UserError


def read_labelled(
    path: Path, columns: Sequence[str], *, reading: Reading | None = None, limit: int | None = None
) -> tuple[list[str], dict[str, list[str]]]:
    """The first `limit` texts of a file, and their labels by column.

    Raises:
        UserError: the file cannot be read, has no such columns, or holds something else in them than a text with a
            word, a number or a truth value as its label.
    """
    if not has_columns(path):
        raise UserError(f"{path}: expected a .jsonl, .csv or .parquet file, with a column for each label")
    reading = reading or Reading()
    texts = [document.text for document in itertools.islice(read_file(path, reading), limit)]

    def labels(name: str) -> list[str]:
        fields = Fields(dataclasses.replace(reading, text_column=name, skip_empty=False), check_label)
        return [document.text for document in itertools.islice(read_file(path, reading, fields), limit)]

    return texts, {name: labels(name) for name in columns}


def check_label(value: Any, where: str, column: str) -> str:
    """`value` as a label. Raises UserError naming `where`."""
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return check_text(value, where, column)
    kind = "empty (null)" if value is None else f"a {type(value).__name__}"
    raise UserError(f"{where}: '{column}' is {kind}; a label is a word, a number or a truth value")

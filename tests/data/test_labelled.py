"""Texts with labels from one file."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from pyro_ltm.data import Reading
from pyro_ltm.data.sources import read_labelled

ROWS = [
    {"body": "A good day.", "stars": 5, "kind": "day", "kept": True},
    {"body": "", "stars": 1, "kind": "", "kept": False},
    {"body": "A long\nnight.", "stars": 3, "kind": "night, dark", "kept": True},
]


def write(path):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.suffix == ".csv":
        cells = [[f'"{value}"' for value in row.values()] for row in ROWS]
        path.write_text("".join(",".join(row) + "\n" for row in [ROWS[0].keys(), *cells]))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_texts_and_labels_stay_together(suffix, tmp_path):
    path = write(tmp_path / f"reviews{suffix}")
    texts, labels = read_labelled(path, ["stars", "kind", "kept"], reading=Reading(text_column="body"))
    assert texts == ["A good day.", "", "A long\nnight."]
    assert labels == {
        "stars": ["5", "1", "3"],
        "kind": ["day", "", "night, dark"],
        "kept": ["True", "False", "True"],
    }
    assert read_labelled(path, ["stars"], reading=Reading(text_column="body"), limit=2) == (
        texts[:2],
        {"stars": ["5", "1"]},
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a", "stars": None}, ":2: 'stars' is empty (null); a label is"),
        ({"text": "a", "stars": [1]}, ":2: 'stars' is a list; a label is"),
        ({"text": "a", "star": 1}, ":2: no column 'stars' (did you mean 'star'?)"),
        ({"text": 3, "stars": 1}, ":2: 'text' is int; expected a string"),
    ],
)
def test_bad_rows(row, says, tmp_path, refused):
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [{"text": "a", "stars": 1}, row]))
    assert f"{path}{says}" in refused(read_labelled, path, ["stars"])


def test_plain_text_has_no_labels(tmp_path, refused):
    assert "with a column for each label" in refused(read_labelled, tmp_path / "reviews.txt", ["stars"])

"""Texts with labels from one file."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from pyro_ltm.data import Reading
from pyro_ltm.data.sources import read_labelled, read_source

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


def test_columns_are_carried_along_with_documents(tmp_path, refused):
    asked = Reading(text_column="body", columns=("stars", "kept"))
    carried = [document.columns for document in read_source(str(write(tmp_path / "reviews.parquet")), asked)]
    assert carried == [{"stars": row["stars"], "kept": row["kept"]} for row in ROWS]
    first = next(iter(read_source("worlds:length=2", Reading(columns=("mood", "subject")))))
    assert list(first.columns) == ["mood", "subject"]
    assert not next(iter(read_source("worlds:length=2"))).columns
    (tmp_path / "a.txt").write_text("No columns.")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "b": [1]}\n')
    for source, column, says in (
        ("worlds:length=2", "moood", "no column 'moood' (did you mean 'mood'?): its columns are subject"),
        ("python-docs", "kind", "no column 'kind': its columns are none"),
        (str(tmp_path / "a.txt"), "kind", "plain text, which has no column 'kind'"),
        (str(tmp_path / "a.jsonl"), "b", "a.jsonl:1: 'b' is list; what is carried along is a word, a number"),
    ):
        assert says in refused(lambda *given: list(read_source(*given)), source, Reading(columns=(column,)))

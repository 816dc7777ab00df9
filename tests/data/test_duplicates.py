"""What prepare says of its sources: files read or not, documents without text, documents that are there twice."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pyro_ltm.data import Reading, TokenFolder, Tokenizer, prepare
from pyro_ltm.data.duplicates import Digests


def write_jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_what_was_read_and_what_not(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("some text of its own\n" * 9)
    (folder / "b.jsonl").write_text(json.dumps({"text": "a record"}) + "\n")
    (folder / "c.png").touch()
    meta = prepare([str(folder)], tmp_path / "out", tokenizer=small_tokenizer, validation_fraction=0).meta
    assert meta["files_read"] == {"count": 2, "first": [str(folder / "a.txt"), str(folder / "b.jsonl")]}
    assert meta["files_skipped"]["count"] == 1
    assert meta["files_skipped"]["first"][0]["path"] == str(folder / "c.png")
    assert meta["text_column"] == "text"
    meta = prepare([str(folder / "a.txt")], tmp_path / "plain", tokenizer=small_tokenizer).meta
    assert meta["text_column"] is None, "plain text has no column, so none was read"


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.lists(st.sampled_from(["c", "d", "e", ""]), max_size=30))
def test_duplicates_are_counted(train: list[str], validation: list[str]) -> None:
    texts = {"train": train, "validation": validation}
    found = {split: Digests() for split in texts}
    for split, documents in texts.items():
        for text in documents:  # each in two pieces
            found[split].add(text, continues=False)
            found[split].add("more", continues=True)
        assert found[split].duplicates() == len(documents) - len(set(documents))
    assert found["validation"].also_in(found["train"]) == sum(text in train for text in validation)


def test_duplicates_and_empty_documents_are_said(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", ["one line", "two lines", "one line", ""])
    with open(train, "a") as file:
        file.write('{"text": null}\n')
    validation = write_jsonl(tmp_path / "validation.jsonl", ["two lines", "three lines"])
    folder = prepare(
        [train],
        tmp_path / "out",
        tokenizer=small_tokenizer,
        validation_sources=[validation],
        reading=Reading(skip_empty=True),
    )
    assert folder.meta["duplicate_documents"] == {"train": 1, "validation": 0}
    assert folder.meta["validation_documents_in_training"] == 1
    assert folder.meta["documents_without_text"] == 2
    assert folder.meta["splits"]["train"]["documents"] == 3


def test_a_folder_of_an_earlier_release_is_still_read(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"text {number}" for number in range(9)])
    path = prepare([source], tmp_path / "out", tokenizer=small_tokenizer).path / "meta.json"
    meta = json.loads(path.read_text())
    for key in ("files_read", "files_skipped", "documents_without_text", "duplicate_documents"):
        del meta[key]
    del meta["validation_documents_in_training"]
    path.write_text(json.dumps(meta))
    assert TokenFolder.open(path.parent).splits == ("train", "validation")

"""Which preset trains given data where none is named."""

from __future__ import annotations

import json

import pytest

from pyro_ltm.data import World, prepare
from pyro_ltm.data.presets import DOCUMENT, FILE, LONG, SENTENCES, TEXT, preset_for
from pyro_ltm.data.worlds import words_of
from pyro_ltm.errors import UserError
from pyro_ltm.presets import PRESETS, preset


def write(path, size: int):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"word " * (size // 5))
    return str(path)


def test_plain_text_of_a_megabyte_is_long(tmp_path):
    book, leaf = write(tmp_path / "book.txt", TEXT), write(tmp_path / "leaf.txt", TEXT // 2)
    assert preset_for(book) == preset_for([book, leaf]) == "nano-long"
    assert preset_for(leaf) == "nano"
    assert preset_for([leaf, leaf]) == "nano-long", "together"
    assert preset_for([book, "python-docs"]) == preset_for([book, str(tmp_path / "missing.txt")]) == "nano"
    assert preset_for(None) == preset_for([]) == preset_for("hf:org/name") == "nano"


def test_a_folder_of_many_short_files_is_short(tmp_path):
    for number in range(4 * TEXT // FILE):
        write(tmp_path / "notes" / f"{number}.md", FILE // 2)
    write(tmp_path / "chapters" / "one.txt", TEXT)
    write(tmp_path / "chapters" / "two.txt", FILE)
    assert preset_for(tmp_path / "notes") == "nano"
    assert preset_for(tmp_path / "chapters") == preset_for(str(tmp_path / "chapters" / "*.txt")) == "nano-long"


def test_rows_and_records_are_short(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "word " * TEXT}) + "\n")
    assert preset_for(path) == "nano"


def test_worlds_go_by_their_length():
    assert preset_for("worlds") == preset_for(["worlds:length=3", "worlds:length=15"]) == "nano-worlds"
    assert preset_for("worlds:length=16") == preset_for(["worlds:length=240", "worlds"]) == "nano-long"
    assert preset_for(["worlds", "python-docs"]) == "nano"


@pytest.mark.parametrize(
    ("length", "packing", "name"),
    [(128, "document", "nano-worlds"), (129, "document", "nano-long"), (128, "contiguous", "nano")],
)
def test_a_prepared_world_goes_by_its_sequences(tmp_path, length, packing, name):
    source = "worlds:size=2,length=2,documents=200"
    assert preset_for(prepare([source], tmp_path / "data", sequence_length=length, packing=packing).path) == name


@pytest.mark.parametrize("length", [1024, 1025])
def test_prepared_sequences_go_by_their_length(tmp_path, length):
    text = write(tmp_path / "text.txt", 20_000)
    folder = prepare([text], tmp_path / "data", vocab_size=257, sequence_length=length)
    assert preset_for(folder.path) == ("nano-long" if length > 1024 else "nano")


def test_what_cannot_be_read_is_no_long_text(tmp_path):
    assert preset_for(str(tmp_path / "*.txt")) == preset_for(tmp_path) == preset_for("x" * 5000) == "nano"
    with pytest.raises(UserError, match="unknown option"):
        preset_for("worlds:size=2,lenght=240")


def test_what_is_named_is_there():
    assert {"nano", "nano-long", "nano-worlds"} <= set(PRESETS)
    longest = preset("nano-long").data.sequence_length
    assert preset("nano").data.sequence_length <= LONG < longest
    assert preset("nano-worlds").data.sequence_length == preset("nano-worlds").model.max_length == DOCUMENT
    words = World(length=SENTENCES).stories(seed=0, count=300)
    assert 100 < max(len(words_of(story.text)) + 1 for story in words) <= DOCUMENT

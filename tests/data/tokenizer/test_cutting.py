"""However a text is cut and read, its tokens are those that the tokenizer gives the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.tokenizer_kinds import byte_level, kinds, split
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_ltm.data import Document, Tokenizer, prepare
from pyro_ltm.data.tokenizer import cutting
from pyro_ltm.data.tokenizer.cutting import encodable_pieces, last_cut_point

PARTS = ["a", "Bc", "'ll", "o'", " ", " ", "  ", "\n", "\n\n", "\n ", "\t", "\r\n", ".", "?!", "/", "12", "3", "é"]
PARTS += ["e\u0301", "\u0301", "你好", "。", "ー", "」", "\u00a0", "\x1c", "\u2028", "<x>", "🙂"]
texts = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
CUTTABLE = {"bytes", "bytes, NFC", *(name for name in kinds() if name.startswith("expression"))}


def cut_at(text: str, places: list[int]) -> list[Document]:
    """A document in pieces, cut anywhere."""
    ends = sorted(({place % (len(text) + 1) for place in places} | {len(text)}) - {0})
    return [Document(text[start:end], "here", start > 0) for start, end in zip([0, *ends], ends, strict=False)]


def test_which_kinds_may_be_cut() -> None:
    assert {name for name, tokenizer in kinds().items() if tokenizer.pipeline.has_cut_points} == CUTTABLE
    for token, cuttable in (("<x>", True), ("a b", False), ("好。", False)):
        backend = byte_level()
        backend.add_tokens([token])
        assert Tokenizer(backend).pipeline.has_cut_points is cuttable
    assert not Tokenizer(byte_level(split(" ", "removed"), regex=False)).pipeline.has_cut_points


@pytest.mark.parametrize("name", kinds())
@settings(max_examples=40)
@given(pieces=st.lists(st.tuples(texts, st.lists(st.integers(0, 50), max_size=4)), max_size=4))
def test_tokens_are_those_of_the_whole(name: str, pieces: list[tuple[str, list[int]]]) -> None:
    """Documents cut anywhere, in pieces of three characters where there may be pieces at all."""
    tokenizer, cut = kinds()[name], kinds()[name].pipeline.has_cut_points
    documents = [text for text, _ in pieces if text]
    read = [("train", piece) for text, places in pieces for piece in cut_at(text, places) if text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "PIECE", 3)
        found = list(encodable_pieces(read, cut=cut))
    joined: list[list[int]] = []
    for split_name, piece in found:
        assert split_name == "train"
        if not piece.continues:
            joined.append([])
        joined[-1] += tokenizer.encode(piece.text)
    assert joined == [tokenizer.encode(text) for text in documents]


@given(texts)
def test_every_cut_point_is_one(text: str) -> None:
    """Each place that is ever taken, under every expression."""
    places = {last_cut_point(text[:end]) for end in range(len(text) + 1)} - {0}
    for name in CUTTABLE:
        encode = kinds()[name].encode
        for place in places:
            assert encode(text[:place]) + encode(text[place:]) == encode(text), name


def test_a_long_text_without_line_ends_comes_in_small_pieces() -> None:
    word = "lorem " * 100
    pieces = [Document(word, "here", number > 0) for number in range(3000)]
    found = [piece for _, piece in encodable_pieces((("train", piece) for piece in pieces), cut=True)]
    assert max(len(piece.text) for piece in found) <= 2 * cutting.PIECE
    assert "".join(piece.text for piece in found) == word * 3000
    whole = [("train", Document(word * 3000, "here"))]
    assert max(len(piece.text) for _, piece in encodable_pieces(whole, cut=True)) <= 2 * cutting.PIECE


def test_a_text_without_a_seam_is_read_in_time_and_refused_where_it_is_too_long(refused, monkeypatch) -> None:
    monkeypatch.setattr(cutting, "LONGEST", 1 << 20)
    pieces = [Document("x" * 1000, "book.txt", number > 0) for number in range(1100)]
    pairs = [("train", piece) for piece in pieces]
    assert len(list(encodable_pieces(pairs[:1000], cut=True))) == 1
    assert "book.txt: a text of over 1 Mi characters has no space" in refused(encodable_pieces, pairs, cut=True)
    assert "has to be read whole" in refused(encodable_pieces, pairs, cut=False)


@pytest.mark.parametrize("name", ["llama", "unigram", "wordpiece", "bytes with a space before", "bytes, NFKC", "bytes"])
def test_a_prepared_stream_is_the_tokenizers_own(name: str, tmp_path: Path, monkeypatch) -> None:
    """From a file that is read in pieces, and on both sides of the cut between the splits."""
    tokenizer = kinds()[name]
    text = "".join(f"{number} Hello World, it's  text\n\tand more of it\n\n" for number in range(1000))
    (tmp_path / "book.txt").write_text(text)
    prepared = prepare([str(tmp_path / "book.txt")], tmp_path / "out", tokenizer=tokenizer)
    train, validation = (prepared.stream(split_name)[1:-1].tolist() for split_name in ("train", "validation"))
    near = [at + 1 for at in range(int(0.89 * len(text)), int(0.91 * len(text))) if text[at] == "\n"]
    place = next(at for at in near if tokenizer.encode(text[at:]) == validation)
    assert train == tokenizer.encode(text[:place])
    if name == "bytes":
        assert train + validation == tokenizer.encode(text)


def test_training_a_tokenizer_does_not_depend_on_pieces(tmp_path: Path, monkeypatch) -> None:
    lines = "".join(f"line {number} tells of cats and dogs\n" for number in range(2000))
    (tmp_path / "a.txt").write_text(lines)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": lines}))
    made = [prepare([str(tmp_path / name)], tmp_path / f"out-{name}", vocab_size=300) for name in ("a.txt", "b.jsonl")]
    assert made[0].fingerprint == made[1].fingerprint

"""Tokens that do not determine their text are found out, and then there are no figures by the byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from helpers.tokenizer_kinds import END, byte_level, kinds, split
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers

from pyro_ltm.data import TokenDataset, Tokenizer, prepare
from pyro_ltm.data.dataset import count_bytes
from pyro_ltm.data.tokenizer.round_trip import NOT_KNOWN, RoundTrip
from pyro_ltm.types import Batch

PROVED = {"bytes", *(name for name in kinds() if name.startswith(("expression", "bytes, two", "bytes in")))}
some_text = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from(["Hello", "hello", " ", "\n", "?", "12", "é", "e\u0301", "ﬁ"])).map("".join),
)


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_what_is_proved() -> None:
    assert {name for name, tokenizer in kinds().items() if tokenizer.pipeline.is_lossless} == PROVED


def altered(**model: object) -> Tokenizer:
    content = json.loads(byte_level().to_str())
    content["model"] |= model
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))


def test_what_is_not_proved() -> None:
    """Each of these loses or changes some text, and is not taken on trust."""
    assert altered().pipeline.is_lossless
    vocab = json.loads(byte_level().to_str())["model"]["vocab"]
    merges = json.loads(byte_level().to_str())["model"]["merges"]
    lossy = {"x": altered(vocab={name: at for name, at in vocab.items() if name != "x"}, merges=[])}
    with_special = byte_level()
    with_special.add_special_tokens(["".join(merges[0])])
    lossy["".join(merges[0]).replace("Ġ", " ")] = Tokenizer(with_special)
    added = byte_level()
    added.add_tokens(["ü"])
    lossy["ü"] = Tokenizer(added)
    lossy["a b"] = Tokenizer(byte_level(split(" ", "removed"), regex=False))
    lossy["H"] = Tokenizer(byte_level(normalizer=normalizers.Lowercase()))
    for text, tokenizer in lossy.items():
        assert tokenizer.decode(tokenizer.encode(text)) != text
        assert not tokenizer.pipeline.is_lossless
        assert not tokenizer.gives_back(text, tokenizer.encode(text))


@settings(max_examples=60)
@pytest.mark.parametrize("name", kinds())
@given(text=some_text)
def test_the_check_is_whether_the_text_comes_back(name: str, text: str) -> None:
    """And where it does, the bytes of its tokens are its own, the space that a decoder drops not among them."""
    tokenizer = kinds()[name]
    ids = tokenizer.encode(text)
    same = tokenizer.decode(ids) == text
    assert tokenizer.gives_back(text, ids) is same
    assert same or name not in PROVED
    if same:
        batch = Batch.from_lists([[tokenizer.end_of_text, *ids, tokenizer.end_of_text]], pad=0)
        assert count_bytes(tokenizer, batch) == len(text.encode())


@pytest.mark.parametrize("name", ["llama", "unigram, first", "bytes", "bytes, NFC"])
def test_a_tokenizer_that_gives_the_text_back_has_its_bytes(name: str, tmp_path: Path) -> None:
    """Whether it puts a space before each text or not; and any part of the sequences has its part of the bytes."""
    texts = [f"Hello World,{number * ' hello'} words" for number in range(40)]
    folder = prepare([write(tmp_path / "a.jsonl", texts)], tmp_path / "out", tokenizer=kinds()[name], sequence_length=7)
    for part in ("train", "validation"):
        data = TokenDataset(folder, part)
        assert data.why_no_bytes == ""
        assert data.meta["splits"][part]["changed_documents"] == 0
        assert data.bytes == data.meta["splits"][part]["text_bytes"]
        assert sum(data.count_bytes(data.batch([row])) for row in range(len(data))) == data.bytes


def test_case_folded_text_has_no_bytes_though_the_totals_agree(tmp_path: Path) -> None:
    for name, texts, changed in (("a", ["Hello", "hello you"], 1), ("b", ["hello", "you"], 0)):
        source, tokenizer = write(tmp_path / f"{name}.jsonl", texts), kinds()["bytes, case folded"]
        data = TokenDataset(prepare([source], tmp_path / name, tokenizer=tokenizer, validation_fraction=0))
        assert data.bytes == data.meta["splits"]["train"]["text_bytes"]
        assert data.bytes_are_exact is (changed == 0)
        assert data.meta["splits"]["train"]["changed_documents"] == changed
    assert RoundTrip(texts=2, changed=1).why_no_bytes == (
        "the tokens do not determine the text: 1 of 2 texts come back changed"
    )


def test_unknown_words_are_counted(tmp_path: Path) -> None:
    tokenizer = kinds()["words"]
    texts = ["some text and xyzzy", "some of it, Hello", "nothing known or"]
    expected = [tokenizer.encode(text).count(0) for text in texts]
    assert sum(expected) >= 3
    folder = prepare([write(tmp_path / "a.jsonl", texts)], tmp_path / "out", tokenizer=tokenizer, validation_fraction=0)
    counts = folder.meta["splits"]["train"]
    assert counts["unknown_tokens"] == sum(expected)
    assert counts["changed_documents"] == sum(count > 0 for count in expected)
    assert f"({sum(expected) / 11:.1%} of tokens are unknown)" in TokenDataset(folder).why_no_bytes
    whole = RoundTrip.of(tokenizer, texts, [tokenizer.encode(text) for text in texts])
    assert (whole.texts, whole.changed, whole.unknown, whole.tokens) == (3, 2, sum(expected), 11)


def test_a_document_in_pieces_is_counted_once() -> None:
    tokenizer, found = kinds()["bytes, case folded"], RoundTrip()
    for text, continues in (("A", False), ("b", True), ("C", True), ("d", False)):
        found.add(tokenizer, text, tokenizer.encode(text), continues=continues)
    assert (found.texts, found.changed) == (2, 1)


def test_a_text_whose_tokens_are_none_is_changed(tmp_path: Path) -> None:
    """It leaves no document; the rest is as it was."""
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, END: 1}, []))
    source = write(tmp_path / "a.jsonl", ["a", "b", "aa"])
    data = TokenDataset(prepare([source], tmp_path / "out", tokenizer=Tokenizer(backend), validation_fraction=0))
    assert (data.meta["splits"]["train"]["documents"], data.bytes_are_exact) == (2, False)


@pytest.mark.parametrize(("name", "why"), [("bytes", ""), ("llama", NOT_KNOWN), ("bytes, case folded", NOT_KNOWN)])
def test_folders_of_earlier_releases(name: str, why: str, tmp_path: Path) -> None:
    """They are exact where the tokenizer proves it alone."""
    folder = prepare(
        [write(tmp_path / "a.jsonl", ["hello world"])], tmp_path / "out", tokenizer=kinds()[name], validation_fraction=0
    )
    path = folder.path / "meta.json"
    meta = json.loads(path.read_text())
    for key in ("changed_documents", "unknown_tokens"):
        del meta["splits"]["train"][key]
    path.write_text(json.dumps(meta))
    assert TokenDataset(folder.path).why_no_bytes == why


def test_half_a_record_is_damage(refused, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ["hello world"])
    folder = prepare([source], tmp_path / "out", tokenizer=kinds()["bytes"], validation_fraction=0)
    meta = json.loads((folder.path / "meta.json").read_text())
    del meta["splits"]["train"]["unknown_tokens"]
    (folder.path / "meta.json").write_text(json.dumps(meta))
    assert "damaged" in refused(TokenDataset, folder.path)

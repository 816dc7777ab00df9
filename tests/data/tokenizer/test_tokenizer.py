"""Training, loading and saving tokenizers, and what each token weighs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from pyro_ltm.data import Tokenizer
from pyro_ltm.data.tokenizer import END_OF_TEXT
from pyro_ltm.errors import UserError

TEXT = ["hello world, this is some text\nand more of it, indeed; words make a world"] * 50


def metaspace() -> Tokenizer:
    """A SentencePiece kind of tokenizer."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "</s>"]
    backend.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    return Tokenizer(backend)


def wordpiece() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    return backend


def test_trained_tokenizer(small_tokenizer: Tokenizer) -> None:
    assert small_tokenizer.vocab_size == 300
    assert small_tokenizer.end_of_text == 0
    assert len(small_tokenizer.encode("line 7 tells of dogs")) < 15
    assert not small_tokenizer.encode("")


@given(st.text())
def test_byte_level_gives_back_every_text_and_its_bytes(small_tokenizer: Tokenizer, text: str) -> None:
    ids = small_tokenizer.encode(text)
    assert small_tokenizer.decode(ids) == text
    assert small_tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert small_tokenizer.encode_batch([text, "a"]) == [ids, small_tokenizer.encode("a")]


def test_training_is_deterministic(small_tokenizer: Tokenizer) -> None:
    first, second = (Tokenizer.train(iter(TEXT), 290) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != small_tokenizer.fingerprint
    assert len(first.fingerprint) == 64


def test_forged_end_of_text_is_ordinary_text(small_tokenizer: Tokenizer) -> None:
    ids = small_tokenizer.encode(f"a{END_OF_TEXT}b")
    assert small_tokenizer.end_of_text not in ids
    assert small_tokenizer.decode(ids) == f"a{END_OF_TEXT}b"


def test_decode_leaves_special_tokens_out(small_tokenizer: Tokenizer) -> None:
    ids = np.array([0, *small_tokenizer.encode("a b"), 0], dtype=np.uint16)
    assert small_tokenizer.decode(ids) == "a b"


def test_training_refuses(refused) -> None:
    assert refused(Tokenizer.train, TEXT, 256).startswith("vocab_size = 256: must be at least 257")
    assert refused(Tokenizer.train, TEXT, 10**11).endswith("and at most 16777216"), "the trainer aborts the process"
    message = refused(Tokenizer.train, ["ab ab ab"], 2048)
    assert message.startswith("vocab_size = 2048: the text is too small, it gives only 259 tokens")
    assert Tokenizer.train([], 257).vocab_size == 257


@pytest.mark.parametrize("error", [UserError("inner"), KeyboardInterrupt()])
def test_what_goes_wrong_while_reading_is_passed_on(error: BaseException) -> None:
    def broken():
        yield "text"
        raise error

    with pytest.raises(type(error)):
        Tokenizer.train(broken(), 257)


def test_save_and_load(small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    small_tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint == small_tokenizer.fingerprint
        assert loaded.encode("line 3 tells of mice") == small_tokenizer.encode("line 3 tells of mice")
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_save_leaves_the_old_file_when_it_fails(small_tokenizer: Tokenizer, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="no space left"):
        small_tokenizer.save(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["tokenizer.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": "1.0", ', b"\xff\xfe", b"[1, 2]"])
def test_damaged_file(refused, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    assert refused(Tokenizer.load, path).startswith(f"{path}: not a readable tokenizer.json: ")


def test_missing_file(refused, tmp_path: Path) -> None:
    assert "no such tokenizer; expected a tokenizer.json" in refused(Tokenizer.load, tmp_path / "a.json")
    assert "no such tokenizer; expected a tokenizer.json" in refused(Tokenizer.load, tmp_path)


def test_gpt2(gpt2: Tokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.token_bytes.dtype == np.int64
    assert gpt2.token_bytes.shape == (50257,)
    assert gpt2.token_bytes[50256] == 0
    assert gpt2.token_bytes[:50256].min() == 1
    text = f"héllo 😀 {END_OF_TEXT} 你好\n\n x"
    assert gpt2.token_bytes[gpt2.encode(text)].sum() == len(text.encode())


def test_bytes_of_other_tokenizers() -> None:
    text = "hello world, this is text"
    for tokenizer in (metaspace(), Tokenizer(wordpiece())):
        ids = tokenizer.encode(text)
        # One more: the space in front, which decoding drops.
        assert tokenizer.token_bytes[ids].sum() in (len(text), len(text) + 1, len(text) + 2)
        assert tokenizer.token_bytes[tokenizer.end_of_text] == 0


def test_truncation_and_padding_in_a_file_are_ignored(tmp_path: Path) -> None:
    backend = wordpiece()
    whole = backend.encode("hello world this is text").ids
    backend.enable_truncation(3)
    backend.enable_padding(length=40)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("hello world this is text") == whole


def test_added_tokens_count(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    small_tokenizer.save(tmp_path / "tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_tokens(["ünï"])
    backend.add_special_tokens(["<pad>"])
    tokenizer = Tokenizer(backend)
    assert tokenizer.vocab_size == 302
    assert tokenizer.token_bytes[300:].tolist() == [5, 0]


def test_no_end_of_text(refused) -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    message = refused(lambda: tokenizer.end_of_text)
    assert message.startswith("the tokenizer has no end-of-text token: expected one of <|endoftext|>")


@pytest.mark.parametrize("score", [-1.8325814637483102, -9.223372036854775e-5, -2.302585092994046, -0.1 - 0.2])
def test_fingerprint_survives_saving(tmp_path: Path, score: float) -> None:
    """The library's reader of JSON does not give every number back."""
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((f"a{n}", score * (1 + n / 7)) for n in range(300))]
    first = Tokenizer(tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0)))
    first.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).fingerprint == first.fingerprint


def test_fingerprint_ignores_the_layout_of_the_file(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    small_tokenizer.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).fingerprint == small_tokenizer.fingerprint


@pytest.mark.parametrize("name", ["<stop here>", "a:1", "$A", "[SEP]", "é"])
def test_an_end_of_text_may_be_named(refused, tmp_path: Path, small_tokenizer: Tokenizer, name: str) -> None:
    backend = tokenizers.Tokenizer.from_str(small_tokenizer.to_json())
    backend.add_special_tokens(["<pad>", name])
    plain = Tokenizer(backend)
    assert plain.end_of_text == 0
    tokenizer = plain.ending(name)
    assert tokenizer.end_of_text == backend.token_to_id(name)
    assert tokenizer.fingerprint != plain.fingerprint
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path)
    assert (again.end_of_text, again.fingerprint) == (tokenizer.end_of_text, tokenizer.fingerprint)
    assert again.token_bytes[again.end_of_text] == 0
    text = f"line 7 {name} of dogs<|endoftext|>"
    assert again.encode(text) == plain.encode(text), "nothing is put after a text that is encoded"
    assert again.decode([*plain.encode("dogs"), again.end_of_text]) == "dogs"
    message = refused(plain.ending, "<padd>")
    assert message.startswith("the tokenizer has no token '<padd>' (did you mean '<pad>'?)")


def test_an_end_of_text_that_was_an_ordinary_token(small_tokenizer: Tokenizer) -> None:
    word = next(name for name in small_tokenizer._backend.get_vocab() if name.isalpha() and len(name) > 2)
    tokenizer = small_tokenizer.ending(word)
    assert tokenizer.end_of_text == small_tokenizer._backend.token_to_id(word)
    assert tokenizer.vocab_size == small_tokenizer.vocab_size
    assert tokenizer.token_bytes[tokenizer.end_of_text] == 0


def test_a_models_folder_names_its_end_of_text(tmp_path):
    """In tokenizer_config.json, as a word or with its properties; the tokenizer's own file comes first."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.add_special_tokens(["<start>", "<stop>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="has no end-of-text token"):
        Tokenizer.load(tmp_path).end_of_text  # noqa: B018 - raises
    for named in ("<stop>", {"content": "<stop>", "lstrip": False}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": named, "bos_token": "<start>"}))
        assert Tokenizer.load(tmp_path).end_of_text == 1
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<other>"}')
    with pytest.raises(UserError, match="has no end-of-text token"):
        Tokenizer.load(tmp_path).end_of_text  # noqa: B018 - raises
    Tokenizer.load(tmp_path / "tokenizer.json").ending("<start>").save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).end_of_text == 0

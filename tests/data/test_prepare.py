"""Preparing a folder: packing, the split, and leaving nothing behind."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_ltm import files
from pyro_ltm.data import TokenFolder, Tokenizer, filling, prepare
from pyro_ltm.data.documents import Document
from pyro_ltm.data.encoding import Encoded
from pyro_ltm.data.folder import is_token_folder
from pyro_ltm.data.packing import SplitWriter
from pyro_ltm.data.splits import MANY, plan_split
from pyro_ltm.locks import locked

# Enough lines to train 300 tokens on.
LINES = "".join(f"line {number} tells of cats, dogs, mice and numbers.\n" for number in range(400))

words = st.text(st.sampled_from("ab \n"), min_size=1, max_size=30)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "book.txt"
    path.parent.mkdir()
    path.write_text(LINES)
    return path


def write_jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def decoded(folder: TokenFolder, split: str) -> list[str]:
    """The documents of a split, read back."""
    tokens, tokenizer = folder.stream(split), folder.tokenizer()
    ends = np.flatnonzero(tokens == folder.end_of_text)
    assert ends[0] == 0
    assert ends[-1] == len(tokens) - 1
    return [tokenizer.decode(tokens[start + 1 : end]) for start, end in itertools.pairwise(ends)]


# What is written


def test_folder(book: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = prepare([str(book)], tmp_path / "out", vocab_size=300, progress=lambda *args: seen.append(args))
    assert sorted(os.listdir(folder.path)) == ["meta.json", "tokenizer.json", "train.bin", "validation.bin"]
    assert os.listdir(tmp_path) == ["in", "out"] or sorted(os.listdir(tmp_path)) == ["in", "out"]
    meta = folder.meta
    assert meta["sources"] == [str(book)]
    assert (meta["vocab_size"], meta["sequence_length"], meta["packing"]) == (300, 128, "contiguous")
    assert meta["tokenizer"] == folder.tokenizer().fingerprint
    assert meta["python"] is None
    assert "last 0.1 of each document's characters" in meta["split_rule"]
    for split in folder.splits:
        tokens = folder.stream(split)
        assert tokens.dtype == np.dtype("<u2")
        counts = meta["splits"][split]
        assert counts["tokens"] == len(tokens) - 1
        assert counts["sequences"] == -(-counts["tokens"] // 128)
        assert counts["documents"] == 1
        assert counts["bytes"] == folder.tokenizer().token_bytes[tokens].sum()
    assert decoded(folder, "train")[0] + decoded(folder, "validation")[0] == LINES
    assert seen[-1] == ("encode", 2, len(LINES)), "a piece for each split, however the file was read"
    folder.verify()


def test_the_tokenizer_is_trained_on_the_training_split_alone(book: Path, tmp_path: Path) -> None:
    folder = prepare([str(book)], tmp_path / "out", vocab_size=300)
    assert Tokenizer.train(decoded(folder, "train"), 300).fingerprint == folder.meta["tokenizer"]


def test_same_input_same_folder(book: Path, tmp_path: Path) -> None:
    first, second = (prepare([str(book)], tmp_path / name, vocab_size=280) for name in ("a", "deep/er/b"))
    assert (first.path / "meta.json").read_bytes() == (second.path / "meta.json").read_bytes()
    assert first.fingerprint == second.fingerprint
    assert prepare([str(book)], tmp_path / "c", vocab_size=280, sequence_length=64).fingerprint != first.fingerprint


def test_given_tokenizer(book: Path, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    small_tokenizer.save(tmp_path / "tokenizer.json")
    for number, tokenizer in enumerate([small_tokenizer, tmp_path, str(tmp_path / "tokenizer.json")]):
        folder = prepare([str(book)], tmp_path / str(number), tokenizer=tokenizer)
        assert folder.meta["tokenizer"] == small_tokenizer.fingerprint


def test_a_large_vocabulary_takes_four_bytes(book: Path, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    small_tokenizer.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["rare"] = 65536
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    folder = prepare([str(book)], tmp_path / "out", tokenizer=tmp_path)
    assert folder.stream("train").dtype == np.dtype("<u4")
    assert decoded(folder, "train")[0] + decoded(folder, "validation")[0] == LINES


def test_pieces_of_a_long_file_are_one_document(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    text = LINES * 20
    (tmp_path / "long.txt").write_text(text)
    folder = prepare([str(tmp_path / "long.txt")], tmp_path / "out", tokenizer=small_tokenizer, validation_fraction=0.6)
    train, validation = decoded(folder, "train"), decoded(folder, "validation")
    assert (len(train), len(validation)) == (1, 1)
    assert train[0] + validation[0] == text
    assert abs(len(validation[0]) - 0.6 * len(text)) < 100


def test_forged_end_of_text(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["evil <|endoftext|> text", "next"])
    folder = prepare([source], tmp_path / "out", tokenizer=small_tokenizer, validation_fraction=0)
    assert decoded(folder, "train") == ["evil <|endoftext|> text", "next"]
    assert folder.splits == ("train",)
    assert not (folder.path / "validation.bin").exists()


def test_a_text_that_would_end_documents_is_refused(refused, book: Path, tmp_path: Path, small_tokenizer) -> None:
    # The library gives its tokens in another order each time, and some only ever become parts of longer ones.
    written = set(small_tokenizer.encode(book.read_text()))
    names = sorted(name for name, token in small_tokenizer._backend.get_vocab().items() if token in written)
    word = next(name for name in names if name in LINES and len(name) > 2)
    message = refused(prepare, [str(book)], tmp_path / "out", tokenizer=small_tokenizer.ending(word))
    assert message.startswith(f"{book}: a text may become the token that ends documents")


# Packing


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=25), min_size=1, max_size=6), st.integers(1, 9))
def test_every_token_but_the_first_is_a_target_once(documents: list[list[int]], length: int) -> None:
    stream = [0, *(token for document in documents for token in [*document, 0])]
    with tempfile.TemporaryDirectory() as name:
        for packing in ("contiguous", "document"):
            sizes = {"token_bytes": np.arange(10), "first_token_bytes": np.arange(10), "vocab_size": 10}
            tokenizer = SimpleNamespace(end_of_text=0, unknown=None, gives_back=lambda text, ids: True, **sizes)
            encoded = functools.partial(Encoded.of, tokenizer, "text")
            with SplitWriter(Path(name), "train", tokenizer, length=length, packing=packing) as writer:
                for document in documents:
                    writer.add(Document("text", "here"), encoded(document[:3]))
                    writer.add(Document("text", "here", continues=True), encoded(document[3:]))
            assert np.fromfile(Path(name) / "train.bin", dtype="<u2").tolist() == stream
            assert (writer.tokens, writer.written.documents, writer.written.bytes) == (
                len(stream) - 1,
                len(documents),
                sum(stream),
            )
            assert writer.text_tokens == sum(map(len, documents))
            if packing == "contiguous":
                assert writer.sequences == -(-(len(stream) - 1) // length)
        index = np.load(Path(name) / "train.index.npy")
    assert writer.sequences == len(index)
    assert index.dtype == np.int64
    targets = [place for start, count in index.tolist() for place in range(start + 1, start + 1 + count)]
    assert targets == list(range(1, len(stream)))
    assert index[:, 1].min() >= 1
    assert index[:, 1].max() <= length
    # No sequence holds two documents: an end-of-text inside it is its first input or its last target.
    for start, count in index.tolist():
        assert 0 not in stream[start + 1 : start + count]


# The split


def parts(texts: list[str], fraction: float, seed: int = 0, pieces: int = 1) -> tuple[list[str], list[str]]:
    documents = []
    for text in texts:
        size = -(-len(text) // pieces)
        for start in range(0, len(text), size):
            documents.append(Document(text[start : start + size], "test", start > 0))
    rule = plan_split(documents, fraction, seed)
    split: dict[str, list[str]] = {"train": [], "validation": []}
    for name, document in rule.assign(documents):
        assert document.text
        if document.continues:
            split[name][-1] += document.text
        else:
            split[name].append(document.text)
    return split["train"], split["validation"]


@given(st.lists(words, min_size=1, max_size=MANY - 1), st.floats(0.01, 0.9), st.integers(1, 4))
def test_tails_lose_nothing(texts: list[str], fraction: float, pieces: int) -> None:
    train, validation = parts(texts, fraction, pieces=pieces)
    assert sorted("".join(train + validation)) == sorted("".join(texts))
    assert len(train) <= len(texts)
    assert len(validation) <= len(texts)


@given(st.lists(words, min_size=MANY, max_size=60), st.floats(0.01, 0.9), st.integers(0, 100), st.integers(1, 3))
def test_documents_lose_nothing(texts: list[str], fraction: float, seed: int, pieces: int) -> None:
    train, validation = parts(texts, fraction, seed, pieces)
    assert sorted(train + validation) == sorted(texts)
    assert train
    assert validation


def test_share_of_documents() -> None:
    texts = [f"{number}" for number in range(5000)]
    train, validation = parts(texts, 0.1)
    assert 400 < len(validation) < 600
    assert parts(texts, 0.1) == (train, validation)
    assert parts(texts, 0.1, seed=1)[1] != validation


@pytest.mark.parametrize(
    ("text", "tail"),
    [("a\nb\nc\nd\n", "d\n"), ("one two three four", " four"), ("abcdefgh", "gh"), ("a\n" + "b" * 20, "b" * 20)],
)
def test_the_tail_starts_where_a_line_does(text: str, tail: str) -> None:
    assert parts([text], 0.25) == ([text[: -len(tail)]], [tail])


def test_validation_sources(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [f"train {number}" for number in range(30)])
    validation = write_jsonl(tmp_path / "validation.jsonl", ["validation"])
    folder = prepare([train], tmp_path / "out", tokenizer=small_tokenizer, validation_sources=[validation])
    assert len(decoded(folder, "train")) == 30
    assert decoded(folder, "validation") == ["validation"]
    assert folder.meta["split_rule"] == "validation has its own sources"


# What is refused, and what is left behind


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sources": []}, "sources: expected at least one source"),
        ({"sources": "python-docs"}, "sources: expected at least one source, in a list"),
        ({"sequence_length": 0}, "sequence_length = 0: must be at least 1"),
        (
            {"packing": "documents"},
            "packing = 'documents' (did you mean 'document'?): choose from auto, contiguous, document",
        ),
        ({"validation_fraction": 1.0}, "validation_fraction = 1.0: must be at least 0 and at most 0.9"),
        ({"validation_fraction": float("nan")}, "validation_fraction = nan: must be"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"vocab_size": 100}, "vocab_size = 100: must be at least 257"),
        ({"vocab_size": 5000}, "vocab_size = 5000: the text is too small"),
        ({"sources": ["missing.txt"]}, "missing.txt: no such file"),
        ({"validation_sources": ["missing.txt"]}, "missing.txt: no such file"),
        ({"tokenizer": "missing.json"}, "missing.json: no such tokenizer"),
    ],
)
def test_bad_arguments(refused, book: Path, tmp_path: Path, options: dict, expected: str) -> None:
    arguments = {"sources": [str(book)], "out": tmp_path / "new" / "out", **options}
    assert refused(prepare, **arguments).startswith(expected)
    assert os.listdir(tmp_path) == ["in"]


def test_too_little_text(refused, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["a"])
    message = refused(prepare, [source], tmp_path / "out", tokenizer=small_tokenizer)
    assert "at least 2 are needed: add text or change validation_fraction" in message
    message = refused(prepare, [source], tmp_path / "out", tokenizer=small_tokenizer, validation_fraction=0)
    assert message == "the train split has 1 tokens of text, at least 2 are needed: add text"
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_bad_text_halfway_leaves_nothing(refused, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["good text"] * 50)
    with open(source, "a") as file:
        file.write("bad\n")
    assert refused(prepare, [source], tmp_path / "out", vocab_size=257).startswith(f"{source}:51: not valid JSON")
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("stage", ["tokenizer", "encode"])
def test_interrupted(book: Path, tmp_path: Path, monkeypatch, stage: str) -> None:
    monkeypatch.setattr(filling, "GROUP", 1000)

    def interrupt(at: str, pieces: int, characters: int) -> None:
        if at == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([str(book)], tmp_path / "new" / "out", vocab_size=280, progress=interrupt)
    assert os.listdir(tmp_path) == ["in"]


def test_no_space_left(refused, book: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SplitWriter, "_write", full)
    message = refused(prepare, [str(book)], tmp_path / "out", vocab_size=280)
    assert (
        message == f"{tmp_path / 'out'}: no space left to write it; nothing was changed: free some or name another disk"
    )
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits here")
@pytest.mark.parametrize("limit", [500, 50_000])
def test_a_real_limit_on_the_size_of_files(book: Path, tmp_path: Path, limit: int) -> None:
    book.write_text(LINES * 20)
    script = (
        "import resource, sys; from pyro_ltm.data import prepare\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try: prepare([sys.argv[1]], sys.argv[2], vocab_size=280, packing='document', sequence_length=1)\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-B", "-W", "error", "-c", script, str(book), str(tmp_path / "out")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (
        output
        == f"{tmp_path / 'out'}: no space left to write it; nothing was changed: free some or name another disk\n"
    )
    assert os.listdir(tmp_path) == ["in"]


def test_out_in_the_way(refused, book: Path, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    def run(out: Path, **options: object) -> TokenFolder:
        return prepare([str(book)], out, tokenizer=small_tokenizer, **options)

    assert "exists and is no prepared folder" in refused(run, book)
    assert "exists and is no prepared folder" in refused(run, book.parent, overwrite=True)
    assert "cannot be written: not a directory" in refused(run, book / "out")
    assert book.read_text() == LINES
    (tmp_path / "out").mkdir()
    first = run(tmp_path / "out")
    assert "was prepared before" in refused(run, tmp_path / "out")
    assert run(tmp_path / "out", overwrite=True, sequence_length=16).fingerprint != first.fingerprint
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_a_file_that_somebody_put_among_the_tokens_is_not_deleted(refused, book: Path, tmp_path: Path) -> None:
    prepare([str(book)], tmp_path / "out", vocab_size=280)
    (tmp_path / "out/notes.txt").write_text("keep me")
    assert "also holds notes.txt" in refused(prepare, [str(book)], tmp_path / "out", vocab_size=290, overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text() == "keep me"


def test_an_overwrite_killed_between_two_renamings_is_mended_by_whoever_reads(
    refused, book: Path, tmp_path: Path
) -> None:
    old = prepare([str(book)], tmp_path / "out", vocab_size=280)
    os.rename(tmp_path / "out", tmp_path / ".out.0123456789ab.old")
    shutil.copytree(tmp_path / ".out.0123456789ab.old", tmp_path / ".out.0123456789ab.partial")
    with locked(tmp_path / "out"):  # which puts it back
        pass
    os.rename(tmp_path / "out", tmp_path / ".out.0123456789ab.old")
    assert is_token_folder(tmp_path / "out")
    assert TokenFolder.open(tmp_path / "out").fingerprint == old.fingerprint
    prepare([str(book)], tmp_path / "out", vocab_size=290, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


@pytest.mark.parametrize("exchanges", [True, False], ids=["at once", "in two steps"])
def test_a_failed_overwrite_keeps_the_old_folder(
    refused, book: Path, tmp_path: Path, monkeypatch, exchanges: bool
) -> None:
    old = prepare([str(book)], tmp_path / "out", vocab_size=280)
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    def exchange(one: Path, other: Path) -> bool:
        if exchanges:
            raise OSError(errno.EIO, "Input/output error")
        return False

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr(files, "_exchange", exchange)
    message = refused(prepare, [str(book)], tmp_path / "out", vocab_size=290, overwrite=True)
    assert "cannot be written: input/output error" in message
    assert TokenFolder.open(tmp_path / "out").fingerprint == old.fingerprint
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]

"""Reading a prepared folder back as batches, and noticing damage."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_ltm.data import DataOrder, TokenDataset, TokenFolder, Tokenizer, folder, prepare, shards, unigram_nats
from pyro_ltm.runs.batches import dataset_batches

TEXTS = ["the cat sat on the mat", "a", "dogs and cats and mice and more", "tell me"] * 8


@pytest.fixture(params=["contiguous", "document"])
def prepared(request, tmp_path: Path, small_tokenizer: Tokenizer) -> TokenFolder:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return prepare([str(source)], tmp_path / "out", tokenizer=small_tokenizer, sequence_length=7, packing=request.param)


def test_batches_hold_every_target_once(prepared: TokenFolder) -> None:
    for split in prepared.splits:
        data = TokenDataset(prepared.path, split)
        batch = data.batch(range(len(data)))
        assert batch.targets is not None
        assert batch.inputs.shape == batch.targets.shape == batch.mask.shape == (len(data), 7)
        assert batch.inputs.dtype == batch.targets.dtype == batch.ids.dtype == torch.int64
        assert batch.mask.dtype == torch.bool
        stream = prepared.stream(split).astype(np.int64)
        assert batch.targets[batch.mask].tolist() == stream[1:].tolist()
        assert batch.inputs[batch.mask].tolist() == stream[:-1].tolist()
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        assert (batch.targets[~batch.mask] == prepared.end_of_text).all()
        assert batch.tokens() == data.tokens
        assert data.token_bytes[batch.targets[batch.mask].numpy()].sum() == data.bytes
        assert (data.sequence_length, data.vocab_size) == (7, 300)


def test_document_packing(prepared: TokenFolder) -> None:
    if prepared.meta["packing"] == "contiguous":
        pytest.skip("about documents")
    data = TokenDataset(prepared)
    batch = data.batch(np.arange(len(data)))
    assert batch.targets is not None
    texts = []
    for inputs, targets, mask in zip(batch.inputs, batch.targets, batch.mask, strict=True):
        if inputs[0] == prepared.end_of_text:
            texts.append("")
        texts[-1] += data.tokenizer.decode(targets[mask].numpy())
        assert prepared.end_of_text not in inputs[1:][mask[1:]]
    assert set(texts) == set(TEXTS)
    assert len(texts) == data.meta["splits"]["train"]["documents"]


def test_ids_are_stable_and_never_shared(prepared: TokenFolder) -> None:
    train, validation = TokenDataset(prepared), TokenDataset(prepared, "validation")
    rows = torch.tensor([3, 0, 3])
    assert train.batch(rows).ids.tolist() == [3, 0, 3]
    assert validation.batch([1, 0]).ids.tolist() == [len(train) + 1, len(train)]
    assert torch.equal(train.batch([3]).inputs[0], train.batch([0, 3]).inputs[1])
    assert train.batch(DataOrder(len(train), 5, 0).indices(0)).size == 5


def test_a_sequence_is_of_the_document_in_which_it_begins(prepared: TokenFolder, monkeypatch) -> None:
    monkeypatch.setattr(shards, "CHUNK", 5)
    for split in prepared.splits:
        data = TokenDataset(prepared, split)
        owner, document = [], 0  # of each target: every document ends with its end-of-text
        for target in prepared.stream(split)[1:].tolist():
            owner.append(document)
            document += target == prepared.end_of_text
        assert document == data.meta["splits"][split]["documents"]
        firsts = np.cumsum([0, *data.lengths])[:-1]  # every target is in one sequence, in order
        assert data.documents().tolist() == [owner[first] for first in firsts]
        assert data.documents(3).tolist() == data.documents().tolist()[:3]
        assert data.documents(10_000).tolist() == data.documents().tolist()
        assert data.documents(0).tolist() == []


def test_batches_in_order_know_their_documents(prepared: TokenFolder) -> None:
    data = TokenDataset(prepared)
    batches = list(dataset_batches(data, 4, "cpu", limit=10))
    assert [batch.size for batch in batches] == [4, 4, 2]
    assert torch.cat([batch.documents for batch in batches]).tolist() == data.documents(10).tolist()
    picked = batches[0].beginning(3).select(torch.tensor([2, 0]))
    assert picked.documents.tolist() == data.documents()[[2, 0]].tolist()
    assert data.batch([0]).documents is None


def test_indices_out_of_range(prepared: TokenFolder) -> None:
    data = TokenDataset(prepared)
    for bad in ([-1], [len(data)], 0):
        with pytest.raises(IndexError):
            data.batch(bad)
    assert data.batch([]).size == 0


def test_unigram_nats(prepared: TokenFolder, monkeypatch) -> None:
    monkeypatch.setattr(shards, "CHUNK", 5)
    train, validation = TokenDataset(prepared), TokenDataset(prepared, "validation")
    seen = prepared.stream("train")[1:].tolist()
    total = sum(
        -math.log((seen.count(token) + 1) / (len(seen) + 300)) for token in prepared.stream("validation")[1:].tolist()
    )
    assert unigram_nats(train, validation) == pytest.approx(total / validation.tokens, rel=1e-12)


def test_unigram_nats_refuses_two_tokenizers(refused, prepared: TokenFolder, tmp_path: Path) -> None:
    other = prepare([str(tmp_path / "a.jsonl")], tmp_path / "other", vocab_size=257)
    assert "different tokenizers" in refused(unigram_nats, TokenDataset(prepared), TokenDataset(other))


# What is refused


def test_no_such_split(refused, prepared: TokenFolder, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    assert "no split 'test', it has train, validation" in refused(TokenDataset, prepared, "test")
    options = {"tokenizer": small_tokenizer, "validation_fraction": 0}
    without = prepare([str(tmp_path / "a.jsonl")], tmp_path / "other", **options)
    assert "no split 'validation', it has train; prepare it with" in refused(TokenDataset, without, "validation")


def test_no_prepared_folder(refused, tmp_path: Path) -> None:
    assert refused(TokenDataset, tmp_path / "missing").startswith(f"{tmp_path / 'missing'}: no such folder")
    assert "has no meta.json, so it is no prepared folder" in refused(TokenDataset, tmp_path)
    (tmp_path / "file").touch()
    assert "has no meta.json" in refused(TokenDataset, tmp_path / "file")
    for content, expected in (
        ("{", "not valid JSON"),
        ("[]", "expected object, got array"),
        ('{"format": "x"}', "does not"),
    ):
        (tmp_path / "meta.json").write_text(content)
        assert expected in refused(TokenDataset, tmp_path)


def test_every_kind_of_damage_is_noticed(refused, prepared: TokenFolder) -> None:
    kept = prepared.path.with_name("kept")
    shutil.copytree(prepared.path, kept)
    for name in prepared.meta["files"]:
        path, content = prepared.path / name, (kept / name).read_bytes()
        for damaged in (content[:-1], b"", content + b"\0", bytes([content[0] ^ 1]) + content[1:]):
            path.write_bytes(damaged)
            assert f"{prepared.path}: damaged: {name} " in refused(TokenDataset, prepared.path)
        path.unlink()
        assert f"damaged: {name} is missing" in refused(TokenDataset, prepared.path)
        path.write_bytes(content)
    TokenDataset(prepared.path)


def test_damaged_meta(refused, prepared: TokenFolder) -> None:
    path = prepared.path / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "version": 99}))
    assert "format version 99, this release reads 1 and 2" in refused(TokenDataset, prepared.path)
    for key in ("splits", "files", "packing", "sequence_length", "vocab_size", "end_of_text", "tokenizer", "sources"):
        path.write_text(json.dumps({name: value for name, value in meta.items() if name != key}))
        assert f"damaged: {key} is missing" in refused(TokenDataset, prepared.path)
    for changes, says in (
        ({"vocab_size": 70_000}, "do not take"),
        ({"vocab_size": 0}, "vocab_size: expected int >= 1"),
        ({"end_of_text": 300}, "no token of a vocabulary"),
        ({"splits": {}}, "train is missing"),
        ({"splits": {**meta["splits"], "test": meta["splits"]["train"]}}, "splits"),
        ({"splits": []}, "splits: expected object, got array"),
        ({"files": {}}, "files: tokenizer.json is missing"),
        ({"files": {**meta["files"], "../elsewhere": meta["files"]["train.bin"]}}, "files"),
        ({"sequence_length": "7"}, "sequence_length: expected int, got str"),
        ({"sequence_length": 1 << 40}, "sequence_length: expected int <="),
    ):
        path.write_text(json.dumps({**meta, **changes}))
        assert says in refused(TokenDataset, prepared.path)
    path.write_text(json.dumps(meta)[:-100])
    assert "damaged: not valid JSON" in refused(TokenDataset, prepared.path)


@pytest.mark.parametrize("name", ["train.bin", "train.index.npy"])
def test_large_files_are_read_in_full_before_they_are_looked_into(name, refused, documents, monkeypatch) -> None:
    """And once only: not again until somebody writes them."""
    monkeypatch.setattr(folder, "CHECKED", 10)
    read: list[str] = []
    digest = folder.sha256
    monkeypatch.setattr(folder, "sha256", lambda path: read.append(path.name) or digest(path))
    for _ in range(2):
        TokenDataset(documents.path).batch([0, 1])
    documents.verify()
    assert sorted(read) == ["tokenizer.json", "train.bin", "train.index.npy"]
    content = bytearray((documents.path / name).read_bytes())
    content[-1] ^= 1
    (documents.path / name).write_bytes(content)
    opened = TokenFolder.open(documents.path)
    assert f"{name} is not what was written" in refused(TokenDataset(opened).batch, [0])
    assert f"{name} is not what was written" in refused(opened.verify)


def test_a_bit_of_a_file_that_is_large(refused, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("cats and dogs")
    options = {"tokenizer": small_tokenizer, "validation_fraction": 0, "sequence_length": 8}
    small, tokens = prepare([str(tmp_path / "a.txt")], tmp_path / "small", **options), folder.CHECKED // 2
    path = lie(small, tmp_path / "large", ids=np.zeros(tokens + 1, "<u2"), sequences=tokens // 8, tokens=tokens)
    assert TokenDataset(path).batch([0]).inputs.sum() == 0
    with open(path / "train.bin", "r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"\x01")
    assert "train.bin is not what was written" in refused(TokenDataset(path).batch, [0])


def test_stored_tokens_cannot_be_written(prepared: TokenFolder) -> None:
    with pytest.raises(ValueError, match="read-only"):
        prepared.stream("train")[0] = 1


@pytest.mark.parametrize("prefix", [False, True])
def test_bytes_are_exact_or_said_not_to_be(tmp_path: Path, prefix: bool) -> None:
    """A tokenizer that adds a space before each text counts more bytes than there are."""
    text = "".join(f"{i} birds sang, and 'one' went home.\n" for i in range(300))
    (tmp_path / "text.txt").write_text(text)
    Tokenizer.train([text], 280).save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = prefix
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    prepare([str(tmp_path / "text.txt")], tmp_path / "out", tokenizer=tmp_path / "tokenizer.json", sequence_length=16)
    for split in ("train", "validation"):
        assert TokenDataset(tmp_path / "out", split).bytes_are_exact is not prefix


def lie(honest: TokenFolder, path: Path, *, index: object = None, ids: object = None, **counts: int) -> Path:
    """A copy of a folder whose index, ids or counts are not true, and whose sizes and digests are those of the lie."""
    shutil.copytree(honest.path, path)
    meta = json.loads((path / "meta.json").read_text())
    meta["splits"]["train"] |= counts
    if index is not None:
        np.save(path / "train.index.npy", index)
    if ids is not None:
        np.asarray(ids, dtype="<u2").tofile(path / "train.bin")
    for name in meta["files"]:
        content = (path / name).read_bytes()
        meta["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "meta.json").write_text(json.dumps(meta))
    return path


@pytest.fixture
def documents(tmp_path: Path, small_tokenizer: Tokenizer) -> TokenFolder:
    """Of a train split alone, packed by documents."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "cats and dogs " * n}) + "\n" for n in range(1, 9)))
    options = {"sequence_length": 8, "packing": "document", "validation_fraction": 0}
    return prepare([str(tmp_path / "a.jsonl")], tmp_path / "document", tokenizer=small_tokenizer, **options)


def test_a_folder_that_lies(refused, documents: TokenFolder, tmp_path: Path, small_tokenizer, monkeypatch) -> None:
    """When it is opened; of files that are too large for that, when the sequences are read."""
    options = {"tokenizer": small_tokenizer, "sequence_length": 8, "validation_fraction": 0}
    streams = prepare([str(tmp_path / "a.jsonl")], tmp_path / "contiguous", packing="contiguous", **options)
    counts, index, ids = (
        documents.meta["splits"]["train"],
        np.array(documents.index("train")),
        documents.stream("train").copy(),
    )
    documents.check_contents()
    beyond, far, long, gap, swapped = ids.copy(), index.copy(), index.copy(), index.copy(), index[::-1].copy()
    beyond[-3] = 300
    far[-1, 0], long[0, 1], gap[1:, 0] = 1 << 40, 9, gap[1:, 0] + 1
    lies = [
        ({"ids": beyond}, "train.bin has the token id 300, and the vocabulary 300 tokens"),
        ({"index": far}, "train.index.npy does not go through"),
        ({"index": -index}, "targets, where 1 to 8 are possible"),
        ({"index": long}, "of 9 targets, where 1 to 8 are possible"),
        ({"index": gap}, "does not go through"),
        ({"index": swapped}, "does not go through"),
        ({"index": index[:-1], "sequences": len(index) - 1}, "of its"),
        ({"index": index.astype(np.int32)}, "is no index"),
        ({"index": index[:, :1]}, "is no index"),
        ({"sequences": 10 * counts["sequences"]}, "is no index"),
        ({"tokens": 10 * counts["tokens"]}, "do not take"),
    ]
    for number, (changes, says) in enumerate(lies):
        assert says in refused(TokenDataset, lie(documents, tmp_path / f"lie-{number}", **changes))
    sequences = 10 * streams.meta["splits"]["train"]["sequences"]
    assert "do not make" in refused(TokenDataset, lie(streams, tmp_path / "ten-times", sequences=sequences))
    monkeypatch.setattr("pyro_ltm.data.folder.CHECKED", 0)
    for number, says in ((0, "token id 300"), (1, "index points outside"), (2, "index points outside")):
        data = TokenDataset(tmp_path / f"lie-{number}")
        assert says in refused(data.batch, range(len(data)))
    assert "token id 300" in refused(unigram_nats, TokenDataset(tmp_path / "lie-0"), TokenDataset(tmp_path / "lie-0"))

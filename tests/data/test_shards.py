"""Prepared folders of many shards, and those that were appended to."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pyro_ltm.data import TokenDataset, TokenFolder, Tokenizer, append, check, packing, prepare, shards, unigram_nats
from pyro_ltm.data.manifest import strangers, stream_names
from pyro_ltm.data.shards import Shards
from pyro_ltm.files import unfinished


def write_jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "a.jsonl", [f"cats and {n} dogs " * (1 + n % 5) for n in range(40)])


@pytest.fixture
def more(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "b.jsonl", [f"{n} mice and a line " * (1 + n % 3) for n in range(9)])


@pytest.fixture(params=["contiguous", "document"])
def options(request, small_tokenizer: Tokenizer) -> dict:
    return {"tokenizer": small_tokenizer, "sequence_length": 7, "packing": request.param}


def everything(data: TokenDataset) -> list[list[list[int]]]:
    batch = data.batch(range(len(data)))
    return [tensor.tolist() for tensor in (batch.inputs, batch.targets, batch.mask, batch.ids)]


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# Many shards


def test_many_shards_are_read_as_one(source: str, options: dict, tmp_path: Path, monkeypatch) -> None:
    one = prepare([source], tmp_path / "one", **options)
    monkeypatch.setattr(packing, "SHARD", 100)
    many = prepare([source], tmp_path / "many", **options)
    assert (one.meta["version"], many.meta["version"]) == (1, 2)
    assert not strangers(many.path)
    for split in one.splits:
        names = stream_names(split, many.meta["files"])
        assert len(names) > (split == "train")
        assert len(names) == sum(name.startswith(split) and name.endswith(".bin") for name in many.meta["files"])
        sizes = [many.meta["files"][name]["bytes"] for name in names]
        assert set(sizes[:-1]) <= {200}
        assert 0 < sizes[-1] <= 200
        np.testing.assert_array_equal(one.stream(split), many.stream(split))
        datasets = TokenDataset(one, split), TokenDataset(many, split)
        assert everything(datasets[0]) == everything(datasets[1])
        monkeypatch.setattr(shards, "CHUNK", 33)
        assert datasets[0].documents().tolist() == datasets[1].documents().tolist()
        assert {**one.meta["splits"][split]} == {**many.meta["splits"][split]}
    assert unigram_nats(TokenDataset(one), TokenDataset(one, "validation")) == unigram_nats(
        TokenDataset(many), TokenDataset(many, "validation")
    )
    with pytest.raises(ValueError, match="read-only"):
        many.stream("train")[0] = 1


def test_any_places_of_shards(tmp_path: Path) -> None:
    ids, paths, draw = np.arange(50, dtype="<u2"), [], np.random.default_rng(0)
    for number, part in enumerate(np.split(ids, [1, 20, 21, 40])):
        paths.append(tmp_path / f"{number}.bin")
        part.tofile(paths[-1])
    joined = Shards(paths, ids.dtype)
    assert len(joined) == 50
    for shape in ((7,), (3, 4), (0,)):
        places = draw.integers(0, 50, shape)
        np.testing.assert_array_equal(joined[places], ids[places])
    for start in range(50):
        for end in (start, start + 1, 21, 50):
            np.testing.assert_array_equal(joined[start:end], ids[start:end])
    assert joined[:].dtype == ids.dtype


def test_a_damaged_shard_is_named(refused, source: str, options: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(packing, "SHARD", 100)
    folder = prepare([source], tmp_path / "many", **options)
    shard = folder.path / "train.0002.bin"
    content = shard.read_bytes()
    for wrong, says in (
        (content[:-2], "train.0002.bin has 198 bytes, meta.json says 200"),
        (content[:40] + bytes([content[40] ^ 4]) + content[41:], "train.0002.bin is not what was written"),
    ):
        shard.write_bytes(wrong)
        assert f"damaged: {says}" in refused(TokenFolder.open, folder.path)
    monkeypatch.setattr("pyro_ltm.data.folder.CHECKED", 10)
    monkeypatch.setattr("pyro_ltm.data.preparation.CHECKED", 10)
    data = TokenDataset(folder.path)  # too large to be read when it is opened
    for read in (lambda: list(data.target_chunks()), lambda: data.batch(range(len(data)))):
        assert "train.0002.bin is not what was written" in refused(read)
    assert "train.0002.bin is not what was written" in refused(check, folder.path)
    shard.write_bytes(content)
    everything(data)
    shard.write_bytes(content[:40])
    assert "train.0002.bin was cut short while it was read" in refused(list, data.target_chunks())
    shard.unlink()
    assert "train.0002.bin cannot be read: no such file" in refused(list, data.target_chunks())
    assert "train.0002.bin is missing" in refused(TokenFolder.open, folder.path)


@pytest.mark.parametrize("shard", [100, 1 << 20])
def test_a_file_cut_short_while_it_is_mapped(
    shard: int, refused, source: str, options: dict, tmp_path: Path, monkeypatch
) -> None:
    """By so little that its last page stays, which nothing tells of, or by all, of which SIGBUS does."""
    monkeypatch.setattr(packing, "SHARD", shard)
    folder = prepare([source], tmp_path / "tokens", **options)
    data = TokenDataset(folder.path)
    whole = everything(data)
    for name in ("train.bin", *(("train.index.npy",) if options["packing"] == "document" else ())):
        content = (folder.path / name).read_bytes()
        for left in (len(content) - 2, 0):
            os.truncate(folder.path / name, left)
            assert f"damaged: {name} was cut short while it was read" in refused(data.batch, [0, len(data) - 1])
            with open(folder.path / name, "r+b") as file:
                file.write(content)
    assert everything(data) == whole


def test_a_manifest_without_one_of_its_shards(refused, source: str, options: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(packing, "SHARD", 100)
    folder = prepare([source], tmp_path / "many", **options)
    path = folder.path / "meta.json"
    meta = json.loads(path.read_text())
    del meta["files"]["train.0001.bin"]
    path.write_text(json.dumps(meta))
    assert "tokens in train do not take" in refused(TokenFolder.open, folder.path)


# What is appended


def test_append(source: str, more: str, options: dict, tmp_path: Path) -> None:
    before = prepare([source], tmp_path / "out", **options)
    whole = [everything(TokenDataset(before, split)) for split in before.splits]
    files = files_of(before.path)
    alone = prepare([more], tmp_path / "alone", **{**options, "validation_fraction": 0})
    after = append([more], before.path)
    assert {name: content for name, content in files_of(before.path).items() if name in files} == files
    assert sorted(set(os.listdir(before.path)) - set(files)) == ["appended-0001"]
    assert not strangers(before.path)
    data, added = TokenDataset(after), TokenDataset(alone)
    first = len(whole[0][0])
    assert len(data) == first + len(added)
    assert [rows[:first] for rows in everything(data)] == whole[0]
    assert [rows[first:] for rows in everything(data)][:3] == everything(added)[:3]
    assert data.batch([first + 1, 0]).inputs.tolist() == [everything(added)[0][1], whole[0][0][0]]
    assert everything(TokenDataset(after, "validation"))[:3] == whole[1][:3]
    assert data.tokens == TokenDataset(before).tokens + added.tokens == sum(map(len, data.target_chunks()))
    owners, old = data.documents().tolist(), TokenDataset(before)
    count = before.meta["splits"]["train"]["documents"]
    assert owners == old.documents().tolist() + [count + owner for owner in added.documents().tolist()]
    assert data.documents(first + 2).tolist() == owners[: first + 2]
    assert after.meta["sources"] == [source, more]
    assert after.meta["splits"]["train"]["documents"] == count + 9
    assert after.meta["splits"]["validation"] == before.meta["splits"]["validation"]
    assert data.bytes_are_exact
    # As it was before, and after more.
    assert len({before.fingerprint, after.fingerprint}) == 2
    last = append([more], before.path)
    for state in (before, after, last):
        assert last.as_of(state.fingerprint).fingerprint == state.fingerprint
        assert len(TokenDataset(last.as_of(state.fingerprint))) == len(TokenDataset(state))
    assert last.as_of(alone.fingerprint) is None
    assert check(last.path).fingerprint == last.fingerprint


def test_what_was_held_out_and_is_appended_is_counted(source: str, options: dict, tmp_path: Path) -> None:
    before = prepare([source], tmp_path / "out", **options)
    held_out = before.meta["splits"]["validation"]["documents"]
    assert before.meta["validation_documents_in_training"] == 0
    assert append([source], before.path).meta["validation_documents_in_training"] == held_out


def test_damage_of_what_was_appended(refused, source: str, more: str, options: dict, tmp_path: Path) -> None:
    before = prepare([source], tmp_path / "out", **options)
    append([more], before.path)
    append([more], before.path)
    path = before.path / "appended-0001"
    stream = path / "train.bin"
    content = stream.read_bytes()
    stream.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{path}: damaged: train.bin is not what was written" in refused(TokenFolder.open, before.path)
    stream.write_bytes(content)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "end_of_text": 1}))
    assert "its end_of_text is another than that of" in refused(TokenFolder.open, before.path)
    os.rename(path, tmp_path / "away")
    assert "appended-0001 is missing" in refused(TokenFolder.open, before.path)


def test_what_cannot_be_appended(refused, source: str, options: dict, tmp_path: Path) -> None:
    assert "no such folder" in refused(append, [source], tmp_path / "out")
    prepare([source], tmp_path / "out", **options)
    files = files_of(tmp_path / "out")
    assert "no such file" in refused(append, [str(tmp_path / "missing")], tmp_path / "out")
    empty = write_jsonl(tmp_path / "empty.jsonl", [""])
    assert "empty" in refused(append, [empty], tmp_path / "out")
    assert files_of(tmp_path / "out") == files
    assert not unfinished(tmp_path / "out").exists()


# The first sequences


def test_only_the_first_sequences(source: str, refused, options: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pyro_ltm.data.filling.GROUP", 200)
    whole = prepare([source], tmp_path / "whole", **options)
    folders = [
        prepare([source], tmp_path / f"{workers}", overwrite=True, sequences=20, workers=workers, **options)
        for workers in ((1, 2) if options["packing"] == "contiguous" else (1, 1))
    ]
    assert files_of(folders[0].path) == files_of(folders[1].path), "read ahead or not"
    assert 20 <= len(TokenDataset(folders[0])) < 40 < len(TokenDataset(whole))
    tokens = len(folders[0].stream("train"))
    np.testing.assert_array_equal(folders[0].stream("train"), whole.stream("train")[:tokens])
    # Text to validate on is read whole.
    first = prepare([source], tmp_path / "first", sequences=20, validation_sources=[source], **options)
    assert first.meta["splits"]["validation"]["documents"] == 40
    assert first.meta["splits"]["train"]["documents"] < 40
    few = write_jsonl(tmp_path / "few.jsonl", ["a text of some words"] * 5)
    message = refused(prepare, [few], tmp_path / "few", sequences=2, **options)
    assert message.startswith("sequences = 2: of fewer than twenty documents the ends are held out")
    assert "not read whole (--stream, --sequences)" in message
    assert refused(prepare, [few], tmp_path / "few", sequences=-1, **options) == "sequences = -1: must be at least 0"


def test_a_folder_of_an_earlier_release_is_read_and_appended_to(more: str, tmp_path: Path) -> None:
    """It counts neither the texts that change nor unknown tokens, nor names the files that were read."""
    release = Path(__file__).parents[1] / "fixtures/release-0.1.0/tokens"
    old = TokenFolder.open(shutil.copytree(release, tmp_path / "tokens"))
    after = append([more], old.path)
    whole, before = everything(TokenDataset(after)), everything(TokenDataset(old))
    assert [rows[: len(before[0])] for rows in whole] == before
    assert len(whole[0]) == len(before[0]) + len(TokenDataset(after.appended[0]))
    assert after.meta["splits"]["train"].keys() == old.meta["splits"]["train"].keys()
    assert after.as_of(old.fingerprint) == old
    assert check(after.path).fingerprint == after.fingerprint

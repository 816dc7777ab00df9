"""Training on data that grow, are damaged, or are more than a run will read."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import BIRDS, configure

import pyro_ltm as ltm
from pyro_ltm.comparison.posteriors import compare_run
from pyro_ltm.data import Reading, TokenDataset, TokenFolder, Tokenizer, append, prepare
from pyro_ltm.errors import UserError
from pyro_ltm.runs.data import open_data
from pyro_ltm.runs.run import Run

SETTINGS = {"vocab_size": 280, "sequence_length": 16}


def write_jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def text(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "a.jsonl", BIRDS.splitlines())


def assert_same(one: Run, other: Run) -> None:
    for (name, first), second in zip(
        one.trainable.state_dict().items(), other.trainable.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second), name


def test_a_run_goes_on_with_the_data_that_it_began_with(text: str, tmp_path: Path) -> None:
    folders = [prepare([text], tmp_path / name, **SETTINGS).path for name in ("kept", "grown")]
    for folder in folders:
        ltm.train(configure("slow.steps=2"), data=folder, out=tmp_path / f"run-{folder.name}")
    append([text], folders[1])
    assert open_data(tmp_path / "run-grown", "train").folder.appended == ()
    runs = [
        ltm.train(configure("slow.steps=4"), data=data, out=tmp_path / f"run-{folder.name}", resume=True)
        for folder, data in zip(folders, (None, folders[1]), strict=True)
    ]
    assert_same(*runs)
    for split in ("train", "validation"):
        assert len(runs[0].dataset(split)) == len(runs[1].dataset(split))
        assert runs[0].dataset(split).batch([3]).ids == runs[1].dataset(split).batch([3]).ids
    new = ltm.train(configure("slow.steps=1"), data=folders[1], out=tmp_path / "new")
    assert len(new.dataset("train")) == len(TokenDataset(folders[1])) > len(runs[1].dataset("train"))


def test_large_files_are_read_in_full_before_training(text: str, tmp_path: Path, monkeypatch) -> None:
    folder = prepare([text], tmp_path / "tokens", **SETTINGS)
    for module in ("data.folder", "training.launch"):
        monkeypatch.setattr(f"pyro_ltm.{module}.CHECKED", 100)
    told: list[tuple[str, int, int]] = []
    options = {"data": folder.path, "out": tmp_path / "run", "on_prepare": lambda *said: told.append(said)}
    ltm.train(configure("slow.steps=1"), **options)
    sizes = [entry["bytes"] for entry in folder.meta["files"].values()]
    assert told[-1] == ("check", len(sizes), sum(sizes))
    content = bytearray((folder.path / "train.bin").read_bytes())
    content[30] ^= 1
    (folder.path / "train.bin").write_bytes(content)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"tokens: damaged: train\.bin is not what was written; prepare the data again"):
        ltm.train(configure("slow.steps=3"), resume=True, **options)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


def test_large_files_are_read_in_full_before_they_are_scored(text: str, tmp_path: Path, monkeypatch) -> None:
    folder = prepare([text], tmp_path / "tokens", **SETTINGS)
    run = ltm.train(configure("slow.steps=1"), data=folder.path, out=tmp_path / "run")
    monkeypatch.setattr("pyro_ltm.data.folder.CHECKED", 100)
    (folder.path / "train.bin").write_bytes(bytes((folder.path / "train.bin").stat().st_size))  # which no score reads
    run.evaluate(sequences=2, particles=2)
    content = bytearray((folder.path / "validation.bin").read_bytes())
    content[-1] ^= 1
    (folder.path / "validation.bin").write_bytes(content)
    run = Run.load(tmp_path / "run")
    for score in (
        run.evaluate,
        run.evaluate_prefix,
        partial(compare_run, run, guides=["mean-field"], objectives=["elbo"]),
    ):
        with pytest.raises(UserError, match=r"tokens: damaged: validation\.bin is not what was written; prepare the"):
            score(sequences=2, particles=2)


def test_a_stream_is_read_as_far_as_the_run_goes(text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pyro_ltm.data.filling.GROUP", 1000)
    steps, size = 5, 3
    config = configure(f"slow.steps={steps}", f"slow.batch_size={size}", "slow.accumulate=2")
    run = ltm.train(config, data=text, out=tmp_path / "run", stream=True)
    again = ltm.train(None, data=text, out=tmp_path / "run", stream=True, resume=True, tokenizer=run.tokenizer)
    assert_same(run, again)
    needed = steps * size * 2
    assert needed <= len(run.dataset("train")) < len(TokenDataset(prepare([text], tmp_path / "all", **SETTINGS))) / 2
    prepared = prepare([text], tmp_path / "first", sequences=needed, **SETTINGS)
    assert TokenFolder.open(tmp_path / "run/data").fingerprint == prepared.fingerprint
    assert_same(run, ltm.train(config, data=prepared.path, out=tmp_path / "again"))
    with pytest.raises(UserError, match="--stream is of use only for text that is prepared now"):
        ltm.train(config, data=prepared.path, out=tmp_path / "other", stream=True)
    for options, says in (
        ({"tokenizer": Tokenizer.train(["other words, other words"], 260)}, "learns by another tokenizer than this"),
        ({"reading": Reading(text_column="body")}, "learns from the column text, not from body"),
    ):
        with pytest.raises(UserError, match=says):
            ltm.train(None, data=text, out=tmp_path / "run", resume=True, **options)

"""Checkpoints that are damaged: an earlier one stands in, in so many words, and the run ends as one left alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading

import pytest
from helpers.tiny_run import configure

import pyro_ltm as ltm
from pyro_ltm.errors import UserError
from pyro_ltm.runs.metrics import MetricsLog, read_metrics
from pyro_ltm.training import checkpoint as module
from pyro_ltm.training.background import Background
from pyro_ltm.training.kept import kept

LAST, EARLIER = "trainer.safetensors", "trainer-2.safetensors"


@pytest.fixture
def run(tiny_run, tmp_path):
    """Four steps, saved after two and after four."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def go_on(run):
    said = []
    ltm.train(None, data=None, out=run, resume=True, on_note=said.append)
    return said


def rows(run):
    return [{**row, "seconds": None} for row in read_metrics(run / "metrics.jsonl")]


def flip(path, share=0.5):
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {"flipped": flip, "cut short": cut, "empty": lambda path: path.write_bytes(b""), "gone": os.unlink}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_earlier_one_stands_in_for_the_last(name, run, tiny_run):
    DAMAGES[name](run / LAST)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')
    said = go_on(run)
    assert len(said) == 1
    assert str(run / LAST) in said[0]
    assert ("missing" if name == "gone" else "damaged") in said[0]
    assert said[0].endswith(f"goes on from {EARLIER}, the checkpoint of step 2")
    assert (run / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()
    assert rows(run) == rows(tiny_run)
    assert go_on(run) == []
    assert (run / "trainer-damaged.safetensors").exists() == (name != "gone")


def test_what_a_kill_left_of_the_last_write_is_removed(run):
    """The new file was in its place, and no write follows that would sweep: the run is done."""
    (run / f".{LAST}.{2**22 + 1}.tmp").mkdir()  # of no process
    go_on(run)
    assert list(run.glob(".*")) == []


def test_a_run_whose_weights_are_gone_does_not_begin_anew(run):
    for path in (run / "model.safetensors", *kept(run)):
        path.unlink()
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"metrics\.jsonl has its steps, but its weights are gone"):
        go_on(run)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert not (run / "model.safetensors").exists()


def test_none_that_is_good(run):
    flip(run / LAST)
    cut(run / EARLIER)
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"trainer\.safetensors: damaged.*trainer-2\.safetensors: damaged.*no other"):
        go_on(run)
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("damage", [cut, os.unlink])
def test_a_tokenizer_is_written_again(damage, run, tiny_run):
    damage(run / "tokenizer.json")
    said = go_on(run)
    assert len(said) == 1
    assert said[0].startswith(f"{run / 'tokenizer.json'}: ")
    assert said[0].endswith("; written again from the run's data")
    assert (run / "tokenizer.json").read_bytes() == (tiny_run / "tokenizer.json").read_bytes()
    assert go_on(run) == []


def test_a_run_that_lost_the_name_of_its_data(run, tiny_run):
    (run / "data.json").unlink()
    with pytest.raises(UserError, match=r"data\.json: missing; name the data with --data"):
        go_on(run)
    ltm.train(None, data=tiny_run / "data", out=run, resume=True)


def test_nobody_who_listens_is_warned_all_the_same(run):
    flip(run / LAST)
    with pytest.warns(UserWarning, match="goes on from trainer-2"):
        ltm.train(None, data=None, out=run, resume=True)


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_are_kept(count, tiny_run, tmp_path):
    settings = ("slow.steps=6", "slow.save_every=1", f"slow.keep_checkpoints={count}")
    out = ltm.train(configure(*settings), data=tiny_run / "data", out=tmp_path / "run").folder
    assert [path.name for path in kept(out)] == [LAST, "trainer-5.safetensors", "trainer-4.safetensors"][:count]


def test_where_no_file_can_have_two_names(tiny_run, tmp_path, monkeypatch):
    def refuse(*names):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    out = ltm.train(configure(), data=tiny_run / "data", out=tmp_path / "run").folder
    assert [path.name for path in kept(out)] == [LAST, EARLIER]
    assert (out / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()


def test_a_branch_of_a_damaged_one_is_refused(run, tmp_path):
    flip(run / LAST)
    with pytest.raises(UserError, match=r"run/trainer\.safetensors: damaged.*--resume --out"):
        ltm.train(configure("slow.steps=6"), data=None, out=tmp_path / "new", branch_from=run)
    assert not (tmp_path / "new").exists()


def test_an_error_in_the_background_ends_the_next_step(tiny_run, tmp_path, monkeypatch):
    """And the last good checkpoint is kept."""
    write, shown = module.write_tensors, []

    def full(path, tensors, meta):
        if meta["step"] == 2:
            raise UserError(f"{path}: no space left")
        write(path, tensors, meta)

    monkeypatch.setattr(module, "write_tensors", full)
    monkeypatch.setattr(Background, "start", lambda self, work, start=Background.start: (start(self, work), idle(self)))
    with pytest.raises(UserError, match="no space left"):
        ltm.train(
            configure("slow.save_every=1", "slow.steps=9"),
            data=tiny_run / "data",
            out=tmp_path / "run",
            on_progress=lambda progress: shown.append(progress.step),
        )
    assert max(shown) == 2
    assert [path.name for path in kept(tmp_path / "run")] == [LAST, "trainer-1.safetensors"]
    monkeypatch.undo()
    assert go_on(tmp_path / "run") == []


def idle(background):
    """Waits until what it does is done, without asking how it ended."""
    background._work.exception()


def test_training_goes_on_while_a_checkpoint_is_written(tiny_run, tmp_path, monkeypatch):
    """The first is not written before the second step is done, and holds what was there after the first."""
    write, go, seen = module.write_tensors, threading.Event(), []

    def slowly(path, tensors, meta):
        assert go.wait(60)
        write(path, tensors, meta)

    def watch(progress):
        if progress.step == 2:
            seen.append((tmp_path / "run" / LAST).exists())
            go.set()

    monkeypatch.setattr(module, "write_tensors", slowly)
    settings = configure("slow.save_every=1", "slow.steps=2", "slow.keep_checkpoints=9")
    out = ltm.train(settings, data=tiny_run / "data", out=tmp_path / "run", on_progress=watch).folder
    assert seen[0] is False
    monkeypatch.undo()
    (out / LAST).unlink()
    assert "step 1" in go_on(out)[0]
    one = ltm.train(configure("slow.steps=2"), data=tiny_run / "data", out=tmp_path / "one").folder
    assert (out / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), cut, lambda path: path.write_bytes(b"")])
def test_metrics_that_lost_rows_are_named(damage, run):
    damage(run / "metrics.jsonl")
    said = go_on(run)
    assert len(said) == 1
    assert "metrics.jsonl: not as it was when step 4 was saved" in said[0]


def test_metrics_whose_figure_changed_are_named(run):
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 3', '"step": 1'))
    assert "metrics.jsonl: not as it was" in go_on(run)[0]


def test_metrics_that_were_taken_away_are_put_back(tmp_path):
    log, other = (MetricsLog(tmp_path / name) for name in ("taken.jsonl", "left.jsonl"))
    for step in range(3):
        for one in (log, other):
            one.write("start", {"step": step, "unigram_nats_per_token": 1.0})
        if step == 1:
            log.path.unlink()
            assert log.mark() == other.mark()
    assert log.path.read_bytes() == other.path.read_bytes()
    assert log.begins_with(other.mark())
    for one in (log, other):
        one.close()


def test_rows_before_the_first_step_are_written_once(tiny_run, tmp_path):
    """Of a run that begins with another's weights, and so is saved before its first step, and killed then."""
    out = tmp_path / "run"

    def die(progress):
        if progress.step == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ltm.train(configure(), data=tiny_run / "data", out=out, init_from=tiny_run, on_progress=die)
    go_on(out)
    kinds = [(row["kind"], row["step"]) for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]
    assert len(set(kinds)) == len(kinds)

"""Weights of another run of the same shape are refused in a line; copies of a folder, and what goes on, are not."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers.tiny_run import BIRDS, configure
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pyro_ltm as ltm
from pyro_ltm.errors import UserError
from pyro_ltm.runs.folder import FORMAT, WEIGHTS

ALL = ("slow.average=0.9", "slow.keep_best=true", "slow.eval_every=2")


@pytest.fixture(scope="module")
def runs(birds, tmp_path_factory):
    """Runs of one shape: one, and others that differ from it in a seed, in data, or in the weights they began with."""
    folder = tmp_path_factory.mktemp("runs")
    other = folder / "other.txt"
    other.write_text(BIRDS.replace("bird", "frog"))
    one = ltm.train(configure(*ALL), data=str(birds), out=folder / "one")
    ltm.train(configure(*ALL, "seed=1"), data=str(folder / "one/data"), out=folder / "seed")
    tokens = ltm.prepare(
        [str(other)], folder / "tokens", tokenizer=one.folder / "tokenizer.json", sequence_length=16, seed=0
    )
    ltm.train(configure(*ALL), data=str(tokens.path), out=folder / "data")
    ltm.train(configure(*ALL), data=str(folder / "one/data"), out=folder / "weights", init_from=folder / "seed")
    return folder


SAID = {
    "seed": r"weights of another run, by seed = 1, where .*config.toml says 0: put its own file back",
    "data": r"weights of another run, which learned from other data than .*data.json says",
    "weights": r"weights of another run, which began with other weights than .*init.json says",
}


@pytest.mark.parametrize("other", SAID)
def test_weights_of_another_run_are_refused(other, runs, tmp_path):
    for kind, name in WEIGHTS.items():
        run = shutil.copytree(runs / "one", tmp_path / kind)
        shutil.copyfile(runs / other / name, run / name)
        with pytest.raises(UserError, match=f"{name}: {SAID[other]}"):
            ltm.Run.load(run, weights=kind)
    with pytest.raises(UserError, match=r"model.safetensors: weights of another run"):
        ltm.train(configure(), data=str(runs / "one/data"), out=tmp_path / "new", init_from=tmp_path / "last")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("seed", r"its checkpoint was made by another configuration than its config.toml is now: seed was 1"),
        ("data", r"trainer.safetensors: of another run, which learned from other data"),
        ("weights", r"trainer.safetensors: of another run, which began with other weights"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(other, said, runs, tmp_path):
    run = shutil.copytree(runs / "one", tmp_path / "run")
    shutil.copyfile(runs / other / "trainer.safetensors", run / "trainer.safetensors")
    before = {path.name: path.read_bytes() for path in run.glob("*.*")}
    with pytest.raises(UserError, match=said):
        ltm.train(None, out=run, resume=True)
    assert {path.name: path.read_bytes() for path in run.glob("*.*")} == before


def test_its_own_weights_are_taken(runs, tmp_path):
    """In a copy, in a few files of it, in a branch, extended and split otherwise; and what has no header is."""
    run = shutil.copytree(runs / "weights", runs / "copy")  # which names its data from where it lies
    ltm.Run.load(run, weights="best")
    few = tmp_path / "few"
    few.mkdir()
    for name in ("config.toml", "tokenizer.json", "model.safetensors"):
        shutil.copyfile(run / name, few / name)
    assert ltm.Run.load(few).fingerprint == ltm.Run.load(run).fingerprint
    config = configure(*ALL, "slow.steps=6", "slow.batch_size=1", "slow.accumulate=3", "slow.save_every=1")
    ltm.train(config, data=None, out=run, resume=True)
    shutil.copyfile(runs / "weights/model.safetensors", run / "model.safetensors")
    assert ltm.Run.load(run).step == 4
    ltm.train(configure(*ALL, "slow.steps=8"), out=tmp_path / "branch", branch_from=run)
    assert ltm.Run.load(tmp_path / "branch", weights="average").step == 8
    path = runs / "seed/model.safetensors"
    with safe_open(path, framework="pt") as file:
        meta = json.loads(file.metadata()[FORMAT])
    save_file(load_file(path), run / "model.safetensors", metadata={FORMAT: json.dumps({"step": meta["step"]})})
    assert ltm.Run.load(run).step == 4, "of an earlier release"


def test_runs_that_are_alike_write_alike(runs, tmp_path):
    shutil.copytree(runs / "one/data", tmp_path / "data")
    ltm.train(configure(*ALL), data=str(tmp_path / "data"), out=tmp_path / "again")
    for name in WEIGHTS.values():
        assert (tmp_path / "again" / name).read_bytes() == (runs / "one" / name).read_bytes()

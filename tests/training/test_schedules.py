"""The learning rate of each schedule at its corners, a decay that is begun from a checkpoint, and branches of a run."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
from helpers.processes import train_until_killed

import pyro_ltm as ltm
from pyro_ltm.config import SlowConfig, load_toml
from pyro_ltm.errors import UserError
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.runs.run import Run
from pyro_ltm.training.schedule import decay_begin, extended, learning_rate

TINY = [
    *("model.dim=16", "model.layers=1", "model.heads=2", "model.thoughts=2", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=2", "slow.steps=4", "slow.batch_size=3"),
    *("slow.eval_every=0", "slow.eval_sequences=4", "slow.save_every=2", "slow.warmup=1", "objective.warmup=0.0"),
    *("slow.schedule=wsd", "slow.decay=0.0", "slow.lr_final=0.0"),
]


def configure(*settings):
    return ltm.apply_settings(ltm.preset("nano"), [*TINY, *settings])


def model(folder):
    return (folder / "model.safetensors").read_bytes()


def rates(folder):
    return [row["lr"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]


@pytest.fixture(scope="module")
def stable(tokens):
    """A run whose rate never falls."""
    return ltm.train(configure(), data=tokens, out=tokens.parent / "stable").folder


@pytest.fixture
def run(stable, tmp_path):
    """A copy of it that lies where the tokens are found from it."""
    copy = stable.parent / f"copy-{tmp_path.name}"
    yield shutil.copytree(stable, copy)
    shutil.rmtree(copy)


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_a_line_falls_from_the_peak_to_its_end(final):
    slow = SlowConfig(steps=110, warmup=10, lr=2.0, lr_final=final, schedule="linear")
    assert [learning_rate(step, slow) for step in (0, 4, 9, 10)] == [0.2, 1.0, 2.0, 2.0]
    assert learning_rate(60, slow) == pytest.approx(1 + final, rel=1e-15)
    assert learning_rate(109, slow) == pytest.approx(2 * (final + (1 - final) / 100), rel=1e-13)
    assert learning_rate(110, slow) == pytest.approx(2 * final, abs=1e-15)


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_wsd_is_stable_and_falls_by_a_root_at_the_end(final):
    slow = SlowConfig(steps=110, warmup=10, lr=2.0, lr_final=final, schedule="wsd", decay=0.2)
    assert decay_begin(slow) == 88
    assert [learning_rate(step, slow) for step in (0, 9)] == [0.2, 2.0]
    assert {learning_rate(step, slow) for step in range(10, 89)} == {2.0}
    for done in range(23):
        left = 1 - math.sqrt(done / 22)
        assert learning_rate(88 + done, slow) == pytest.approx(2 * (final + (1 - final) * left), abs=1e-15)
    assert learning_rate(110, slow) == pytest.approx(2 * final, abs=1e-15)


def test_wsd_at_the_ends_of_its_share():
    slow = SlowConfig(steps=110, warmup=10, lr=1.0, lr_final=0.0, schedule="wsd", decay=0.0)
    assert {learning_rate(step, slow) for step in range(10, 110)} == {1.0}
    whole = dataclasses.replace(slow, decay=1.0)
    assert decay_begin(whole) == 10
    assert learning_rate(60, whole) == pytest.approx(1 - math.sqrt(0.5))
    assert learning_rate(1, SlowConfig(steps=2, warmup=1, schedule="wsd", decay=1.0, lr=1.0)) == 1.0


def test_the_cosine_is_as_it_was_to_the_bit():
    slow = SlowConfig(steps=97, warmup=7, lr=0.013, lr_final=0.1)
    for step in range(7, 98):
        share = (step - 7) / 90
        assert learning_rate(step, slow) == 0.013 * (0.1 + (1 - 0.1) * 0.5 * (1 + math.cos(math.pi * share)))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_an_extended_run_has_the_rate_of_the_longer_plan(schedule):
    config = configure("slow.steps=40", "slow.warmup=4", f"slow.schedule={schedule}", "slow.decay=0.25")
    longer = dataclasses.replace(config.slow, steps=100)
    for at in (20, 40):
        after = extended(config, steps=100, at=at, rewarm=5).slow
        for step in range(at, 100):
            share = min(1.0, (step - at + 1) / 5)
            assert learning_rate(step, after) == pytest.approx(share * learning_rate(step, longer), rel=1e-15)
    decayed = extended(config, steps=30, at=20, decay=10)
    again = extended(decayed, steps=200, at=30).slow
    assert (again.planned, again.decay_steps, decay_begin(again)) == (40, 0, 150)


def test_a_decay_that_branches_is_that_of_a_run_planned_so(tokens, stable):
    before = {path.name: path.read_bytes() for path in stable.iterdir() if path.is_file()}
    planned = ltm.train(configure("slow.steps=7", f"slow.decay={3 / 7}"), data=tokens, out=stable.parent / "planned")
    branch = ltm.train(None, data=None, out=stable.parent / "branch", branch_from=stable, decay=3)
    assert model(branch.folder) == model(planned.folder)
    assert rates(branch.folder) == rates(planned.folder)
    assert rates(branch.folder)[4:] == [configure().slow.lr * (1 - math.sqrt(share / 3)) for share in range(3)]
    assert branch.step == Run.load(branch.folder).step == 7
    row = {"kind": "plan", "step": 4, "steps": 7, "steps_before": 4, "rewarm": 0, "decay": 3, "branch_of": "../stable"}
    assert row in read_metrics(branch.folder / "metrics.jsonl")
    slow = load_toml(branch.folder / "config.toml", whole=True).slow
    assert (slow.steps, slow.planned, slow.changed_at, slow.decay_steps, slow.decay) == (7, 4, 4, 3, 0.0)
    assert branch.dataset("train").folder.path.resolve() == tokens

    shorter = ltm.train(None, data=None, out=stable.parent / "shorter", branch_from=stable, decay=2)
    assert shorter.step == 6
    assert {path.name: path.read_bytes() for path in stable.iterdir() if path.is_file()} == before
    assert ltm.train(configure("slow.steps=5"), data=None, out=stable.parent / "on", branch_from=stable).step == 5


def test_a_decay_that_is_killed_ends_as_one_left_alone(stable, run):
    whole = ltm.train(None, data=None, out=stable.parent / "whole", branch_from=stable, decay=5).folder
    killed = stable.parent / "killed"
    train_until_killed(7, config=None, data=None, out=killed, branch_from=stable, decay=5)
    ltm.train(None, data=None, out=killed, resume=True)
    assert model(killed) == model(whole)
    assert rates(killed) == rates(whole)

    train_until_killed(5, config=None, data=None, out=run, resume=True, decay=5)  # before a checkpoint of the new plan
    ltm.train(None, data=None, out=run, resume=True, decay=5)  # the same command once more
    assert model(run) == model(whole)
    assert ltm.train(None, data=None, out=run, resume=True, decay=5).step == 9


def test_a_decay_begins_only_at_the_peak(tokens, run):
    def refuse(says, out=run, **options):
        before = model(run)
        with pytest.raises(UserError, match=says):
            ltm.train(None, data=None, out=out, **options)
        assert model(run) == before
        assert not (run.parent / "new").exists()

    again = {"resume": True}
    ltm.train(None, data=None, out=run, decay=2, **again)
    refuse("its rate falls since step 4", decay=3, **again)
    for steps in (3, 2):  # another decay, and one of as many steps as that which it ended
        refuse("its rate falls since step 4", out=run.parent / "new", branch_from=run, decay=steps)
    refuse("--at goes with --branch-from", at=4, **again)
    refuse("keeps no checkpoint of step 3, only of 6, 4:", out=run.parent / "new", branch_from=run, at=3, decay=2)
    refuse("without --rewarm", decay=3, rewarm=2, **again)
    refuse("goes with --resume or --branch-from", decay=3)
    refuse("leave --data, --init-from and --resume out", out=run.parent / "new", branch_from=run, **again)
    refuse("is there already", branch_from=run)
    refuse("has done 6 slow steps already", out=run.parent / "new", branch_from=run, rewarm=3)
    refuse("no config.toml with a trainer", out=run.parent / "new", branch_from=tokens)
    config = dataclasses.replace(load_toml(run / "config.toml", whole=True), seed=3)
    with pytest.raises(UserError, match="seed = 0 became 3"):
        ltm.train(config, data=None, out=run.parent / "new", branch_from=run, decay=3)
    early = tokens.parent / "early"
    ltm.train(configure("slow.steps=2", "slow.warmup=9"), data=tokens, out=early)
    with pytest.raises(UserError, match="at step 2 its rate rises still"):
        ltm.train(None, data=None, out=early, resume=True, decay=3)
    other = tokens.parent / "cosine"
    ltm.train(configure("slow.schedule=cosine"), data=tokens, out=other)
    with pytest.raises(UserError, match=r"of slow\.schedule = wsd, and this run's is cosine"):
        ltm.train(None, data=None, out=other, resume=True, decay=3)


def test_a_decay_from_an_earlier_checkpoint_is_that_of_a_run_stopped_there(tokens, stable, run):
    stopped = ltm.train(configure("slow.steps=2"), data=tokens, out=stable.parent / "stopped").folder
    expected = ltm.train(None, data=None, out=stable.parent / "its-decay", branch_from=stopped, decay=3).folder
    early = ltm.train(None, data=None, out=stable.parent / "from-2", branch_from=stable, at=2, decay=3).folder
    assert model(early) == model(expected)
    assert rates(early) == rates(expected)
    last = ltm.train(None, data=None, out=stable.parent / "last", branch_from=stable, at=4, decay=3).folder
    assert model(last) == model(ltm.train(None, data=None, out=stable.parent / "3", branch_from=stable, decay=3).folder)

    # A run that decays since keeps the checkpoint at its peak: other decays begin there, and it goes on without one.
    ltm.train(None, data=None, out=run, resume=True, decay=2)
    peak = ltm.train(None, data=None, out=run.parent / "peak", branch_from=run, at=4, decay=3).folder
    assert model(peak) == model(last)
    longer = {"branch_from": run, "at": 4}
    found = ltm.train(configure("slow.steps=5"), data=None, out=run.parent / "longer", **longer)
    whole = ltm.train(configure("slow.steps=5"), data=tokens, out=run.parent / "five")
    assert model(found.folder) == model(whole.folder)


def test_a_branch_of_a_run_that_began_with_anothers_weights(tokens, stable):
    begun, out = stable.parent / "begun", stable.parent / "below" / "branch"
    ltm.train(configure(), data=tokens, out=begun, init_from=stable)
    ltm.train(None, data=None, out=out, branch_from=begun, decay=2)
    note = json.loads((out / "init.json").read_text())
    assert note == {**json.loads((begun / "init.json").read_text()), "run": "../../stable"}

"""Thoughts that nobody reads, and thoughts that run away: said once, in the metrics too, and of no sound training."""

from __future__ import annotations

import dataclasses
import math

import pytest
from helpers.tiny_run import configure

import pyro_ltm as ltm
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.training import health as module
from pyro_ltm.training.health import GROWTH, RUNAWAY_STEPS, UNUSED_STEPS, Health
from pyro_ltm.training.kept import Counters

HEALTH = Health(tokens=16.0, vocab_size=256)
GUESSING = 16 * math.log(256)


def remarks(rates, health=HEALTH):
    """What is said after each step: numbers of the steps, from 1, and what the line has to do with."""
    counters, found = Counters(), []
    for step, rate in enumerate(rates, 1):
        if said := health.remark(rate, counters):
            found.append(
                (step, "without them" if "without them" in said else "run away" if "run away" in said else said)
            )
    return found


def test_a_rate_near_zero_for_long_is_said_once():
    assert remarks([0.0] * (UNUSED_STEPS - 1)) == []
    assert remarks([0.0] * (UNUSED_STEPS - 1) + [0.2] + [0.0] * (UNUSED_STEPS - 1)) == []
    assert remarks([5.0] + [0.05] * 3 * UNUSED_STEPS) == [(UNUSED_STEPS + 1, "without them")]
    assert remarks([0.05] * UNUSED_STEPS + [5.0] + [0.05] * UNUSED_STEPS) == [(UNUSED_STEPS, "without them")]
    assert remarks([0.0] * 999, dataclasses.replace(HEALTH, has_density=False)) == []


def test_a_rate_that_grows_without_bound_is_said_once():
    high = 1.01 * GUESSING
    assert remarks([2.0] + [high] * RUNAWAY_STEPS * 3) == [(RUNAWAY_STEPS + 1, "run away")]
    assert remarks([2.0] + [0.99 * GUESSING] * 999) == [], "dear, but it may pay"
    assert remarks([high / GROWTH] + [high] * 999) == [], "it was as high when it began"
    assert remarks([2.0] + ([high] * (RUNAWAY_STEPS - 1) + [2.0]) * 9) == [], "it came back"
    assert remarks([2.0] + [math.nan, high] * RUNAWAY_STEPS) == [(2 * RUNAWAY_STEPS + 1, "run away")], "not finite"


@pytest.fixture
def brief(monkeypatch):
    """Two steps are long."""
    monkeypatch.setattr(module, "UNUSED_STEPS", 2)
    monkeypatch.setattr(module, "RUNAWAY_STEPS", 2)


def trained(config, data, out, **more):
    """What was said of a training, and the notes in its metrics by step."""
    said = []
    ltm.train(config, data=data, out=out, on_note=said.append, **more)
    rows = read_metrics(out / "metrics.jsonl")
    return said, {row["step"]: row["note"] for row in rows if "note" in row}


def test_a_collapse_is_said_where_it_is_seen_and_kept(brief, tiny_run, tmp_path):
    """Under a KL that counts a thousandfold; a run that was killed says it no second time."""
    config = configure("objective.name=beta", "objective.beta=1000", "optimizer.lr=0.001", "slow.save_every=1")

    def die(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(config, tiny_run / "data", tmp_path / "run", on_progress=die)
    said, notes = trained(None, None, tmp_path / "run", resume=True)
    assert said == []
    assert list(notes) == [2]
    assert "--rate NATS" in notes[2]
    assert "slow.decoder_warmup" in notes[2]


def test_an_explosion_is_said(brief, tiny_run, tmp_path):
    """Of plain descent at ten times the rate that it bears, under a KL that counts for little."""
    rates = ["optimizer.name=sgd", "optimizer.lr=10", "slow.lr=0.1"]
    config = configure("slow.steps=8", "objective.name=beta", "objective.beta=0.001", "objective.warmup=0.0", *rates)
    said, notes = trained(config, tiny_run / "data", tmp_path / "run")
    ((step, note),) = notes.items()
    assert said == [f"step {step}: {note}"]
    assert note.startswith("thoughts cost ")
    assert note.endswith("they run away; lower optimizer.lr or slow.lr in a new run")


def test_figures_of_an_explosion_are_read_again(tiny_run, tmp_path):
    """Though the perplexity is beyond what a file may hold: it was written, and then the run could not go on."""
    wild = configure("optimizer.name=sgd", "optimizer.lr=50", "slow.eval_every=1", "slow.steps=1")
    folder = ltm.train(wild, data=tiny_run / "data", out=tmp_path / "run").folder
    first = next(row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "validation")
    assert first["nats_per_token"] > 240
    assert first["perplexity"] is None


@pytest.mark.parametrize("settings", [["slow.decoder_warmup=0.5"], ["model.thoughts=0"], ["objective.warmup=1.0"]])
def test_nothing_is_said_while_thoughts_need_not_pay(settings, brief, tiny_run, tmp_path):
    """Without thoughts, and while the KL counts less than it will."""
    config = configure(*settings, "slow.steps=3", "optimizer.lr=0.0001")
    assert trained(config, tiny_run / "data", tmp_path / "run") == ([], {})

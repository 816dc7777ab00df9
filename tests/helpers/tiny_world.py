"""Worlds of three sentences in place of a benchmark's text, for a decoder of one layer."""

from __future__ import annotations

from benchmarks import claim, texts, trained

TINY = ["model.dim=16", "model.layers=1", "model.thoughts=2", "slow.batch_size=2", "slow.warmup=1"]
WORLD = "worlds-15"


def use_tiny_world(monkeypatch):
    """Puts them in the place of `WORLD`, with few fast steps and draws."""
    one = texts.Text(
        label="tiny worlds",
        train="worlds:documents=60,length=3",
        test="worlds:documents=6,length=3",
        length=32,
        batch_size=2,
        test_sequences=4,
    )
    monkeypatch.setitem(texts.TEXTS, WORLD, one)
    monkeypatch.setattr(trained, "FIT_STEPS", 4)
    few = {"FAST": [*claim.FAST, "fast.steps=2"], "PREFIX_STEPS": 2, "PREFIX_PARTICLES": 2, "PARTICLES": 2}
    for name, value in {**few, "TEXTS_WRITTEN": 2, "WRITTEN": 8}.items():
        monkeypatch.setattr(claim, name, value)

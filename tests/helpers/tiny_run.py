"""The tiny trained run that tests share, `tiny_run` of conftest.py: its text, and configurations near its own."""

from __future__ import annotations

import pyro_ltm as ltm
from pyro_ltm.config import Config

TINY = [
    *("model.dim=16", "model.layers=1", "model.heads=2", "model.thoughts=2", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=2", "slow.steps=4", "slow.batch_size=3"),
    *("slow.eval_every=0", "slow.eval_sequences=4", "slow.save_every=2", "slow.warmup=0"),
]
BIRDS = "".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(400))


def configure(*settings: str) -> Config:
    return ltm.apply_settings(ltm.preset("nano"), [*TINY, *settings])

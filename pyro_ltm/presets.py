"""Presets: configurations by name."""

from __future__ import annotations

import dataclasses

from pyro_ltm.config import Component, Config, DataConfig, FastConfig, ModelConfig, SlowConfig, suggest
from pyro_ltm.errors import UserError

# The paper's three (arXiv:2502.01567) and the one for a laptop. What a preset does not name keeps its default.
PAPER_SLOW = SlowConfig(steps=60000, batch_size=8, accumulate=64, warmup=1000, eval_every=1000, save_every=500)
PAPER_DATA = DataConfig(vocab_size=50257, sequence_length=1024)

NANO = ModelConfig(dim=64, layers=2, heads=2, thoughts=4, max_length=128, window=32, embedding_scale=8.0, init_std=0.06)
# Texts long enough, and a window short enough, that thoughts have something to say: docs/results.md. The decoder
# learns to write first, and what thoughts are for then.
NANO_LONG = Config(
    model=dataclasses.replace(NANO, max_length=2048, window=8),
    data=DataConfig(vocab_size=1024, sequence_length=2048),
    objective=Component(name="analytic-elbo", options={"warmup": 0.3}),
    optimizer=Component(name="adam", options={"lr": 0.3, "eps": 0.01}),
    fast=FastConfig(steps=32, subsample=8),
    slow=SlowConfig(
        steps=2000,
        batch_size=2,
        lr=1e-2,
        lr_final=0.0,
        warmup=20,
        decoder_warmup=0.1,
        eval_every=500,
        eval_sequences=32,
    ),
)

# Between a laptop's and the paper's: 5 million parameters, its twin 4 million. Its slow optimizer is the one that
# served both sides best at `nano` (benchmarks/claim.py), its fast loop that of long texts in half the steps; neither
# was searched at this size.
MINI = Config(
    model=ModelConfig(
        dim=256,
        layers=4,
        heads=4,
        thoughts=16,
        max_length=1024,
        window=256,
        hidden=512,
        embedding_scale=16.0,
        init_std=0.03,
    ),
    data=DataConfig(vocab_size=4096, sequence_length=1024),
    objective=Component(name="analytic-elbo", options={"warmup": 0.3}),
    optimizer=Component(name="adam", options={"lr": 0.3, "eps": 0.01}),
    slow_optimizer=Component(name="muon"),
    fast=FastConfig(steps=16, subsample=8),
    slow=SlowConfig(
        steps=4000,
        batch_size=4,
        lr=0.06,
        lr_final=0.0,
        warmup=50,
        decoder_warmup=0.1,
        eval_every=500,
        eval_sequences=32,
        save_every=200,
    ),
)

PRESETS: dict[str, Config] = {
    "nano": Config(
        model=NANO,
        data=DataConfig(vocab_size=1024, sequence_length=128),
        optimizer=Component(name="adam"),
        fast=FastConfig(steps=4),
        slow=SlowConfig(steps=300, batch_size=16, lr=1e-2, warmup=20, eval_every=100, eval_sequences=128),
    ),
    # For what thoughts are worth as features (docs/rate.md): so many nats a text, and a decoder that can read them.
    "nano-thoughts": Config(
        model=dataclasses.replace(NANO, thought_dim=8),
        data=DataConfig(vocab_size=1024, sequence_length=128, packing="document"),
        objective=Component(name="mean-rate", options={"nats": 40.0}),
        optimizer=Component(name="adam", options={"eps": 0.01}),
        fast=FastConfig(steps=16),
        slow=SlowConfig(steps=300, batch_size=16, lr=1e-2, warmup=20, eval_every=100, eval_sequences=128),
    ),
    "nano-long": NANO_LONG,
    "nano-worlds": dataclasses.replace(  # the same for documents of 15 sentences
        NANO_LONG,
        model=dataclasses.replace(NANO_LONG.model, max_length=128),
        data=DataConfig(vocab_size=1024, sequence_length=128),
        fast=FastConfig(steps=32, subsample=4),
        slow=dataclasses.replace(NANO_LONG.slow, steps=4000, batch_size=16, eval_sequences=128),
    ),
    "mini": MINI,
    "small": Config(model=ModelConfig(layers=3), data=PAPER_DATA, slow=PAPER_SLOW, dtype="auto"),
    "medium": Config(model=ModelConfig(layers=6), data=PAPER_DATA, slow=PAPER_SLOW, dtype="auto"),
    "large": Config(
        model=ModelConfig(layers=12, thoughts=96),
        data=PAPER_DATA,
        fast=FastConfig(steps=64),
        slow=PAPER_SLOW,
        dtype="auto",
    ),
}


def preset(name: str) -> Config:
    """The configuration called `name`. Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"unknown preset '{name}'{suggest(name, PRESETS)}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]

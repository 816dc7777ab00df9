"""A source whose entropy is known: no honest figure lies below it, however the model was trained."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_ltm.config import Component, FastConfig, ModelConfig, apply_settings
from pyro_ltm.inference.build import build
from pyro_ltm.presets import preset
from pyro_ltm.scores import evaluate_bound
from pyro_ltm.training import train_step
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch

V, T, TOPICS, WORDS = 16, 24, 4, 4
SHARP = apply_settings(preset("nano"), ["slow.lr=0.01"]).slow


def topics(size: int, seed: int) -> Batch:
    """Each sequence has one of 4 topics; each token is drawn evenly from its topic's 4 words, after a common start."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.randint(TOPICS, (size, 1), generator=generator)
    words = topic * WORDS + torch.randint(WORDS, (size, T), generator=generator)
    return Batch.from_tokens(torch.cat([torch.zeros(size, 1, dtype=torch.int64), words], 1), ids=torch.arange(size))


ENTROPY = (math.log(TOPICS) + T * math.log(WORDS)) / T
"""Nats a token, exactly: the first word tells the topic, and each word costs log 4 besides."""


@pytest.mark.parametrize(
    ("fixed", "steps", "size"),
    [
        (False, 60, 16),
        *(pytest.param(*row, marks=pytest.mark.long) for row in ((True, 60, 16), (False, 150, 32), (True, 150, 32))),
    ],
)
def test_no_bound_falls_below_the_entropy(fixed, steps, size):
    """Also for a model trained the reference's way, whose score on its own noise would flatter it."""
    config = apply_settings(preset("nano"), [])
    shape = ModelConfig(vocab_size=V, dim=16, layers=1, heads=2, thoughts=2, max_length=T, window=2, init_std=0.1)
    guide = {"init_log_variance": -5.0, "init_noise": 0.1} if fixed else {}
    changes = {
        "model": shape,
        "guide": Component(name="mean-field", options=guide),
        "objective": Component(name="analytic-elbo"),
        "fast": FastConfig(steps=8, noise="fixed" if fixed else "fresh"),
    }
    model, loop = build(type(config)(**{**vars(config), **changes}))
    optimizer = slow_optimizer(model, loop.guide, SHARP)
    for step in range(steps):
        report = train_step(model, [topics(size, seed=step)], loop, optimizer, clip=1.0, seed=step)
    assert bool(report.finite)
    held_out = topics(8 * size, seed=10**6)
    for fast_steps, seed in ((8, 0), (2 * size, 1)):
        found = evaluate_bound(model, [held_out], loop.with_steps(fast_steps), particles=8, seed=seed)
        assert found.nats_per_token > ENTROPY - 3 * found.nats_per_token_stderr
        # The importance-weighted figure is a bound as well; its draws are shared, so its error is of the same size.
        assert found.iwae_nats_per_token > ENTROPY - 3 * found.nats_per_token_stderr
    if not fixed:
        assert found.nats_per_token < math.log(V) - 0.5, "it learned: well below even odds over all words"

"""The mean rate is reached, by one multiplier, and a text that has more to tell gets more of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers.stand_ins import LinearGaussian
from helpers.tiny import tiny_batch, tiny_config

from pyro_ltm.config import Component, Config, FastConfig, SlowConfig
from pyro_ltm.data import Tokenizer
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop, build
from pyro_ltm.objectives import MeanRate
from pyro_ltm.optimizers import Adam
from pyro_ltm.runs import Run
from pyro_ltm.runs.folder import trainable
from pyro_ltm.training.step import train_step

NATS = 2.0


def rates(state):
    return 0.5 * (state["loc"].square() + state["log_variance"].exp() - 1 - state["log_variance"]).sum((1, 2))


def exact(model, batch, multiplier):
    """The q that prior times likelihood^(1 / multiplier) is."""
    information = (model.loading.square().sum(0) / model.noise**2).view(2, 2).detach() / multiplier
    data = ((batch.targets - model.offset) @ model.loading / model.noise**2).unflatten(-1, (2, 2)).detach() / multiplier
    return {"loc": data / (1 + information), "log_variance": -(1 + information).log().expand_as(data)}


def test_the_mean_rate_is_reached_and_stays():
    """With the q that is best under each multiplier, in closed form: the ascent by itself."""
    model = LinearGaussian()
    batch, objective, seen = model.data(8), MeanRate(NATS), []
    for _ in range(80):
        seen.append(rates(exact(model, batch, float(objective.learned()))).mean())
        objective.after_step(seen[-1])
    assert seen[0] > 1.5 * NATS
    assert (torch.stack(seen[-20:]) / NATS - 1).abs().max() < 0.01


def test_a_fit_is_the_least_distortion_at_its_mean_rate():
    """One multiplier for all, found by bisection: each text's rate is its share of the mean."""
    model = LinearGaussian()
    batch = model.data(8)
    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        above = rates(exact(model, batch, math.exp(middle))).mean() > NATS
        low, high = (middle, high) if above else (low, middle)
    best = exact(model, batch, math.exp(middle))
    assert rates(best).max() > 1.2 * rates(best).min(), "texts that differ in what they tell"
    objective = MeanRate(NATS, particles=4, multiplier=math.exp(middle))
    loop = FastLoop(MeanField(2, 2), objective, Adam(lr_final=0.0), steps=80)
    posterior = loop.fit(model, batch, seed=0)
    assert abs(rates(posterior.state).mean() / NATS - 1) < 0.05
    torch.testing.assert_close(rates(posterior.state), rates(best), rtol=0.15, atol=0.1)


def test_limits_and_steps_that_were_not_taken():
    objective = MeanRate(NATS)
    objective.after_step(torch.tensor(torch.nan))
    assert float(objective.learned()) == pytest.approx(0.1)
    for _ in range(100):
        objective.after_step(torch.tensor(0.0))
    assert float(objective.learned()) == pytest.approx(1e-2)
    for _ in range(200):
        objective.after_step(torch.tensor(1e9))
    assert float(objective.learned()) == pytest.approx(1e2)


@pytest.mark.parametrize("guide", ["mean-field", "amortized"])
def test_training_moves_it_and_a_run_keeps_it(guide, tmp_path):
    """Under an encoder as well, which takes no fast steps."""
    tokenizer = Tokenizer.train(["the cat sat on the mat, and the dog ran"], 300, at_most=True)
    config = Config(
        model=tiny_config(vocab_size=tokenizer.vocab_size),
        guide=Component(name=guide),
        objective=Component(name="mean-rate", options={"nats": 3.0}),
        fast=FastConfig(steps=1),
        slow=SlowConfig(steps=2),
    )
    model, loop = build(config)
    assert set(trainable(model, loop.guide, loop.objective)) == {"model", "guide", "objective"}
    run = Run.create(tmp_path / "run", config, model, loop, tokenizer)
    before, mark = float(loop.objective.learned.log), run.fingerprint
    optimizer = torch.optim.SGD(run.trainable.parameters(), lr=0.0)
    report = train_step(model, [tiny_batch(3)], loop, optimizer, clip=1.0, seed=0)
    after = float(loop.objective.learned.log)
    assert after - before == pytest.approx(0.2 * max(float(report.rate) / 3.0 - 1, -1), abs=1e-6)
    assert after != before
    assert run.fingerprint != mark
    run.save_weights(1)
    assert float(Run.load(run.folder).loop.objective.learned.log) == after
    other = dataclasses.replace(run.loop, objective=run.loop.objective.at(1.0))
    assert other.objective.learned is run.loop.objective.learned

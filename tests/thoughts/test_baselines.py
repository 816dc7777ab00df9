"""Features that thoughts are compared with, against what is known of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.tiny import D, N, V, tiny_batch, tiny_config

from pyro_ltm.config import Component, Config
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop, build
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.runs import Run
from pyro_ltm.thoughts.baselines import bag_of_words, baselines, mean_embeddings
from pyro_ltm.thoughts.diagnostics import Thoughts
from pyro_ltm.thoughts.probes import Probe, verdict


def uneven(batch):
    lengths = torch.arange(batch.size) % batch.length + 1
    return dataclasses.replace(batch, mask=torch.arange(batch.length) < lengths[:, None])


@pytest.fixture
def run(tmp_path):
    """A run whose decoder has moved since its first weights; nothing here reads its folder or its tokenizer."""
    config = Config(model=tiny_config(), seed=3)
    model, loop = build(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    return Run(tmp_path, config, model, loop, None, 1)


def test_a_bag_of_words_is_that_of_another_library():
    from sklearn.feature_extraction.text import TfidfTransformer

    batches = [uneven(tiny_batch(7)), uneven(tiny_batch(5, seed=1))]
    rows = [row[mask] for one in batches for row, mask in zip(one.targets, one.mask, strict=True)]
    counts = np.stack([np.bincount(row, minlength=V) for row in rows])
    theirs = TfidfTransformer(sublinear_tf=True).fit_transform(counts).toarray()
    ours = bag_of_words(batches, V).numpy()
    assert ours.shape == (12, 12)  # as many axes as texts
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-12)


def test_mean_embeddings_by_hand(run):
    batch = uneven(tiny_batch(3))
    weight = run.model.decoder.tok_embeddings.weight.detach().double()
    by_hand = torch.stack([weight[row[mask]].mean(0) for row, mask in zip(batch.targets, batch.mask, strict=True)])
    torch.testing.assert_close(mean_embeddings(run.model.decoder.tok_embeddings, [batch]), by_hand)


def test_the_untrained_decoder_is_the_runs_own_before_training(run):
    loop = FastLoop(MeanField(N, D), AnalyticELBO(), steps=2)
    thoughts = Thoughts.fit(run.model, [tiny_batch(4)], loop, seed=5)
    found = baselines(run, thoughts)
    first, _ = build(run.config)
    torch.testing.assert_close(
        found["untrained decoder"], Thoughts.fit(first, [tiny_batch(4)], loop, seed=5).means, rtol=0, atol=0
    )
    assert not torch.equal(found["untrained decoder"], thoughts.means)
    shuffled = found["shuffled"]
    assert not torch.equal(shuffled, thoughts.means)
    assert sorted(shuffled.flatten(1).sum(1).tolist()) == sorted(thoughts.means.flatten(1).sum(1).tolist())


def test_an_encoder_is_untrained_too(run):
    config = dataclasses.replace(run.config, guide=Component(name="amortized"))
    model, loop = build(config)
    with torch.no_grad():
        for weight in loop.guide.parameters():
            weight.add_(0.3)
    own = dataclasses.replace(run, config=config, model=model, loop=loop)
    thoughts = Thoughts.fit(model, [tiny_batch(4)], loop)
    first, fresh = build(config)
    expected = Thoughts.fit(first, [tiny_batch(4)], fresh).means
    torch.testing.assert_close(baselines(own, thoughts)["untrained decoder"], expected, rtol=0, atol=0)


def test_a_probe_below_a_baseline_is_said_in_words():
    def probe(accuracy, stderr=0.01):
        return Probe("kind", 2, accuracy, stderr, 0.5, 0.5, 100)

    others = {"bag of words": probe(0.9), "mean token embedding": probe(0.71), "shuffled": probe(0.5)}
    assert verdict(probe(0.95), others) == ""
    assert verdict(probe(0.7), others) == (
        "The thoughts' 0.700 on kind is below bag of words (0.900), "
        "mean token embedding (0.710, within two standard errors)."
    )

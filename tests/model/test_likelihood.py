"""TokenSequence is a normalized distribution that ignores what the mask leaves out."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.plain import plain_logits
from helpers.tiny import tiny_batch, tiny_config, tiny_decoder

from pyro_ltm.model import TokenSequence


@pytest.fixture
def small():
    """V = 3, T = 3, two sequences: every sequence of tokens can be listed."""
    torch.set_default_dtype(torch.float64)
    config = tiny_config(vocab_size=3, max_length=4, window=2, thoughts=2)
    decoder = tiny_decoder(config)
    return TokenSequence(decoder, torch.randn(2, 2, 16), tiny_batch(2, 3, vocab=3))


def every_sequence():
    return torch.tensor(list(itertools.product(range(3), repeat=3)))


def test_sums_to_one_over_all_sequences(small):
    every = every_sequence()[:, None].expand(27, 2, 3)
    total = small.log_prob(every).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(2), atol=1e-12, rtol=0)  # 27 terms, double precision


def test_frequencies_of_samples_agree_with_probabilities(small):
    every, draws = every_sequence(), 4000
    probabilities = small.log_prob(every[:, None].expand(27, 2, 3)).exp()
    samples = small.sample((draws,))
    assert samples.shape == (draws, 2, 3)
    counts = (samples[:, None] == every[:, None]).all(-1).double().sum(0)
    expected = draws * probabilities
    # Pearson's chi-square, two tables of 26 degrees of freedom: mean 52, standard deviation sqrt(2 * 52); cells that
    # are hardly ever expected would break the approximation and are pooled into one.
    rare = expected < 5
    pooled = torch.stack([(counts * rare).sum(0), (expected * rare).sum(0)])
    chi2 = ((counts - expected).square() / expected)[~rare].sum()
    chi2 += ((pooled[0] - pooled[1]).square() / pooled[1].clamp(min=1e-9))[pooled[1] > 0].sum()
    freedom = float((~rare).sum() + (pooled[1] > 0).sum() - 2)
    assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5


def test_log_prob_is_minus_cross_entropy_of_the_plain_decoder():
    torch.set_default_dtype(torch.float64)
    config = tiny_config()
    decoder, batch, thoughts = tiny_decoder(config), tiny_batch(), torch.randn(3, 4, 16)
    logits = plain_logits(
        decoder.state_dict(),
        batch.inputs,
        thoughts,
        layers=2,
        heads=2,
        window=5,
        max_length=12,
        turns=torch.complex(*decoder.table.double()),
    )
    nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view(3, 12)
    likelihood = TokenSequence(decoder, thoughts, batch)
    # As the logits agree to 1e-10 (tests/model/test_decoder.py); then a sum of twelve.
    torch.testing.assert_close(likelihood.token_log_probs(batch.targets), -nats, atol=1e-10, rtol=0)
    torch.testing.assert_close(likelihood.log_prob(batch.targets), -nats.sum(-1), atol=1e-9, rtol=0)


def test_masked_tokens_count_nothing():
    torch.set_default_dtype(torch.float64)
    decoder, batch, thoughts = tiny_decoder(), tiny_batch(), torch.randn(3, 4, 16).requires_grad_()
    lengths = torch.tensor([12, 7, 1])
    mask = torch.arange(12) < lengths[:, None]
    padded = dataclasses.replace(batch, mask=mask)
    got = TokenSequence(decoder, thoughts, padded).log_prob(batch.targets)
    junk = torch.where(mask, batch.targets, 0)
    other = TokenSequence(decoder, thoughts, dataclasses.replace(padded, targets=junk)).log_prob(junk)
    torch.testing.assert_close(got, other, atol=0, rtol=0)  # nothing after a target can reach it: the same operations
    for i, length in enumerate(lengths.tolist()):
        short = dataclasses.replace(
            batch.select(torch.tensor([i])),
            inputs=batch.inputs[i : i + 1, :length],
            targets=batch.targets[i : i + 1, :length],
            mask=batch.mask[i : i + 1, :length],
        )
        alone = TokenSequence(decoder, thoughts[i : i + 1], short).log_prob(short.targets)
        torch.testing.assert_close(got[i : i + 1], alone, atol=1e-11, rtol=0)  # other shapes, other order of sums
    assert batch.tokens() == 36
    assert padded.tokens() == 20


def test_shapes_with_particles_and_samples():
    decoder, batch = tiny_decoder(), tiny_batch()
    thoughts = torch.randn(5, 3, 4, 16)
    likelihood = TokenSequence(decoder, thoughts, batch)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((5, 3), (12,))
    assert likelihood.log_prob(batch.targets).shape == (5, 3)
    samples = likelihood.sample((2,))
    assert samples.shape == (2, 5, 3, 12)
    assert likelihood.log_prob(samples).shape == (2, 5, 3)
    alone = TokenSequence(decoder, thoughts[4], batch)
    together, by_itself = likelihood.log_prob(batch.targets)[4], alone.log_prob(batch.targets)
    torch.testing.assert_close(together, by_itself, atol=1e-4, rtol=0)  # single precision: sums of twelve logs
    wide = alone.expand((7, 3))
    assert wide.batch_shape == (7, 3)
    assert wide.log_prob(batch.targets).shape == (7, 3)


def test_samples_continue_the_first_input_and_are_scored_after_it():
    """With logits times a thousand the sample is the greedy text of its own first input."""
    torch.set_default_dtype(torch.float64)
    decoder, batch = tiny_decoder(), tiny_batch()
    with torch.no_grad():
        decoder.norm.weight.mul_(1000)
    likelihood = TokenSequence(decoder, torch.randn(3, 4, 16), batch)
    sample = likelihood.sample()
    assert (likelihood.log_prob(sample) > -1e-3).all()
    inputs = torch.cat([batch.inputs[:, :1], sample[:, :-1]], 1)
    logits = decoder.logits(decoder(decoder.context(inputs), likelihood.thoughts))
    assert torch.equal(sample, logits.argmax(-1))

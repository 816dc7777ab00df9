"""The figures of `evaluate_bound`, where they are known."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.loops import fit_posterior, take_loop
from helpers.stand_ins import NoClosedForm
from helpers.tiny import D, N, T, V, telling_model, tiny_batch, tiny_config, tiny_model
from torch.distributions import kl_divergence

from pyro_ltm.guides import MeanField
from pyro_ltm.model import TokenSequence
from pyro_ltm.noise import DrawFrom, Noise, fold
from pyro_ltm.objectives import AnalyticELBO, MonteCarloELBO
from pyro_ltm.optimizers import Adam
from pyro_ltm.scores import evaluate_bound
from pyro_ltm.scores.estimate import ratio_error

ROUNDOFF = 1e-10
"""Double precision: a few hundred nats summed in another order, divided by tokens."""


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def uneven(batch, lengths):
    mask = torch.arange(batch.length) < torch.tensor(lengths)[:, None]
    return dataclasses.replace(batch, mask=mask)


def pieces(batch, size):
    return [batch.select(rows) for rows in torch.arange(batch.size).split(size)]


def evaluate(model, batches, **options):
    options = {"guide": MeanField(model.config.thoughts, D), "objective": AnalyticELBO(), "steps": 5} | options
    return evaluate_bound(model, batches, take_loop(options), **options)


def test_the_twin_costs_its_cross_entropy():
    model, batch = tiny_model(tiny_config(thoughts=0)), uneven(tiny_batch(6), [12, 12, 3, 7, 1, 12])
    found = evaluate(model, pieces(batch, 4), steps=0)
    logits = model.decoder.logits(model.decoder(model.decoder.context(batch.inputs), torch.zeros(6, 0, D))).detach()
    each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view(6, T) * batch.mask
    nats, tokens = each.sum(-1), batch.mask.sum(-1).double()
    per_token = float(nats.sum() / tokens.sum())
    for name in ("nats_per_token", "distortion_nats_per_token", "iwae_nats_per_token"):
        assert getattr(found, name) == pytest.approx(per_token, abs=ROUNDOFF), name
    for name in ("distortion_from_prior", "distortion_zeroed", "distortion_shuffled"):
        assert getattr(found, name) == pytest.approx(per_token, abs=ROUNDOFF), name
    assert found.kl_nats_per_sequence == 0
    assert found.active_fraction_by_layer == []
    assert found.perplexity == pytest.approx(math.exp(per_token), rel=ROUNDOFF)
    assert (found.tokens, found.sequences) == (47, 6)
    # The ratio's standard error, written out: how far it moves without each sequence (the jackknife).
    without = [float((nats.sum() - n) / (47 - t)) for n, t in zip(nats, tokens, strict=True)]
    by_hand = math.sqrt(sum((one - per_token) ** 2 for one in without) * 5 / 6)
    assert found.nats_per_token_stderr == pytest.approx(by_hand, rel=1e-9)


def test_the_twin_is_read_once():
    model, passes = tiny_model(tiny_config(thoughts=0)), []
    model.decoder.register_forward_hook(lambda *_: passes.append(1))
    evaluate(model, pieces(tiny_batch(6), 3), steps=0, particles=5)
    assert len(passes) == 2


def test_a_decoder_that_cannot_see_its_thoughts():
    model, batch = tiny_model(), tiny_batch(5)
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.cross_attention.wo.weight.zero_()
    far = MeanField(N, D, init_loc=1.0, init_log_variance=-2.0)
    start = evaluate(model, [batch], guide=far, steps=0)
    found = evaluate(model, [batch], guide=far, steps=300, optimizer=Adam(lr=0.1, lr_final=0.0))
    exact = found.distortion_nats_per_token
    # Sums over sequences and four particles in one order or another: a few roundings of 2^-53 each.
    for other in (found.distortion_zeroed, found.distortion_from_prior, found.distortion_shuffled):
        assert exact == pytest.approx(other, rel=1e-15)
    # At the start KL = (mu^2 + e^-2 - 1 + 2) / 2 in each of 64 dimensions; mu^2 has mean 1, variance 2 (320 draws).
    expected = N * D * (1 + math.exp(-2) - 1 + 2) / 2
    assert start.kl_nats_per_sequence == pytest.approx(expected, abs=4 * N * D / 2 * (2 / 320) ** 0.5)
    # Without any noise in the gradient the fit runs into the prior.
    assert 0 <= found.kl_nats_per_sequence < 1e-3 * start.kl_nats_per_sequence
    assert found.nats_per_token == pytest.approx(exact + found.kl_nats_per_sequence / T, abs=ROUNDOFF)
    assert found.active_fraction_by_layer == [0.0, 0.0]
    assert start.active_fraction_by_layer == pytest.approx([1.0, 1.0], abs=0.1)


def test_every_figure_by_hand():
    model, batch = telling_model(4)
    batch = uneven(dataclasses.replace(batch, ids=torch.tensor([3, 9, 4, 0])), [12, 5, 9, 12])
    particles, seed = 3, 17
    found = evaluate(model, [batch], particles=particles, seed=seed)
    options = {"guide": MeanField(N, D), "objective": AnalyticELBO(), "steps": 5}
    posterior = fit_posterior(model, batch, **options, seed=fold(seed, "fit"))
    q, prior = posterior.distribution, model.prior().expand((4,))
    stream = posterior.with_noise(fold(seed, "score"))

    def draw():
        return stream.sample()[0]

    def score(z):
        return TokenSequence(model.decoder, z, batch).log_prob(batch.targets).detach()

    draws = [draw() for _ in range(particles)]
    likelihoods = torch.stack([score(z) for z in draws])
    ratios = torch.stack([prior.log_prob(z) - q.log_prob(z) for z in draws])
    rate, tokens = kl_divergence(q, prior), batch.mask.sum()
    nats = rate - likelihoods.mean(0)
    assert found.nats_per_token == pytest.approx(float(nats.sum() / tokens), abs=ROUNDOFF)
    assert found.distortion_nats_per_token == pytest.approx(float(-likelihoods.mean(0).sum() / tokens), abs=ROUNDOFF)
    assert found.kl_nats_per_sequence == pytest.approx(float(rate.mean()), abs=ROUNDOFF)
    assert found.kl_nats_per_sequence_stderr == pytest.approx(float(rate.std()) / len(rate) ** 0.5, abs=ROUNDOFF)
    iwae = math.log(particles) - torch.logsumexp(likelihoods + ratios, 0)
    assert found.iwae_nats_per_token == pytest.approx(float(iwae.sum() / tokens), abs=ROUNDOFF)
    assert found.perplexity == pytest.approx(math.exp(float(nats.sum()) / 38), rel=1e-9)
    assert found.nats_per_token_stderr == pytest.approx(ratio_error(nats, batch.mask.sum(-1), None).stderr, rel=1e-9)
    another = draw()
    assert found.distortion_zeroed == pytest.approx(float(-score(torch.zeros_like(another)).sum() / tokens))
    assert found.distortion_shuffled == pytest.approx(float(-score(another.roll(1, 0)).sum() / tokens))
    active = (q.mean.var(0, correction=0) > 0.01).double()
    assert found.active_fraction_by_layer == pytest.approx([float(active[:2].mean()), float(active[2:].mean())])


@pytest.mark.parametrize("guide", [MeanField(N, D), NoClosedForm(N, D)], ids=lambda guide: type(guide).__name__)
def test_figures_do_not_depend_on_the_batches(guide):
    model, batch = telling_model(6)
    batch = uneven(batch, [12, 5, 9, 12, 1, 12])
    options = {
        "guide": guide,
        "objective": MonteCarloELBO(),
        "count_bytes": lambda read: int((read.targets * read.mask).sum()),
    }
    whole, *others = (evaluate(model, pieces(batch, size), **options).to_dict() for size in (6, 4, 1))
    turned = evaluate(model, [batch.select(torch.tensor([5, 2, 0, 1, 4, 3]))], **options).to_dict()
    for other in (*others, turned):
        for name, value in whole.items():
            if name != "distortion_shuffled":  # it takes the next sequence of the batch, as documented
                # Fits agree to 1e-10 (tests/inference/test_posterior.py); the figures follow them.
                if name in ("blocks", "pareto_k"):
                    assert value == other[name]
                    continue
                if name == "exchange_rate":
                    pairs = [(value[key], other[name][key]) for key in ("nats_per_nat", "stderr")]
                elif name == "iwae_curve":
                    pairs = [(a[key], b[key]) for a, b in zip(value, other[name], strict=True) for key in a]
                else:
                    pairs = [(value, other[name])]
                for one, same in pairs:
                    assert same == (one if isinstance(one, str) else pytest.approx(one, abs=1e-9, rel=1e-9)), name
    assert evaluate(model, [batch], **options, seed=1).nats_per_token != whole["nats_per_token"]


def test_thoughts_that_matter_show():
    model, batch = telling_model(8)
    found = evaluate(model, [batch], steps=60, particles=8)
    assert found.distortion_nats_per_token < found.distortion_from_prior
    assert found.distortion_nats_per_token < found.distortion_zeroed
    assert found.distortion_nats_per_token < found.distortion_shuffled
    # Jensen: the importance-weighted bound is the better one (the exact KL in the ELBO moves it within its noise).
    assert found.iwae_nats_per_token < found.nats_per_token + found.nats_per_token_stderr
    assert found.nats_per_token < evaluate(model, [batch], steps=0, particles=8).nats_per_token
    one = evaluate(model, [batch], particles=1, guide=NoClosedForm(N, D), objective=MonteCarloELBO())
    assert one.iwae_nats_per_token == pytest.approx(one.nats_per_token, abs=ROUNDOFF)


def test_what_was_fitted_on_one_draw_is_scored_on_others():
    """The reference scores a fit on the very draw that it was fitted to. That flatters it; we do not report it."""
    model, batch = telling_model(8)
    # As the reference has it: exact KL, a narrow start.
    options = {"guide": MeanField(N, D, init_loc=0.01, init_log_variance=-5.0), "objective": AnalyticELBO()}
    steps, seed = 50, 4
    fitted = fit_posterior(model, batch, **options, steps=steps, noise="fixed", seed=fold(seed, "fit"))
    draw = Noise(batch.ids, seed=fold(seed, "fit")).normal(torch.Size([8, N, D]), event_dims=2, dtype=torch.float64)
    z = fitted.state["loc"] + (fitted.state["log_variance"] / 2).exp() * draw
    with DrawFrom(fitted.noise), torch.no_grad():
        own = options["objective"].terms(model, options["guide"], batch, fitted.state)
    own_nats = own.distortion + own.rate
    by_hand = -TokenSequence(model.decoder, z, batch).log_prob(batch.targets).detach()
    torch.testing.assert_close(own.distortion, by_hand, atol=1e-9, rtol=0)  # the stream repeats the fit's draw
    found = evaluate(model, [batch], **options, steps=steps, noise="fixed", seed=seed, particles=32)
    flattery = found.nats_per_token - float(own_nats.sum() / batch.tokens())
    assert flattery > 4 * found.nats_per_token_stderr
    fresh = evaluate(model, [batch], **options, steps=steps, seed=seed, particles=32)
    assert fresh.nats_per_token < found.nats_per_token


def test_bits_per_byte():
    model, batch = tiny_model(), uneven(tiny_batch(3), [12, 4, 7])
    sizes = torch.arange(V) % 5
    found = evaluate(model, pieces(batch, 2), count_bytes=lambda read: int((sizes[read.targets] * read.mask).sum()))
    total = sum(int(sizes[t]) for row, m in zip(batch.targets, batch.mask, strict=True) for t in row[m])
    assert found.bits_per_byte == pytest.approx(found.nats_per_token * 23 / math.log(2) / total)
    assert found.bits_per_byte_stderr == pytest.approx(found.nats_per_token_stderr * 23 / math.log(2) / total)
    assert math.isnan(evaluate(model, [batch]).bits_per_byte)


def test_perplexity_is_of_totals_and_not_a_mean_over_sequences():
    model, batch = tiny_model(), uneven(tiny_batch(4), [12, 1, 2, 5])
    found = evaluate(model, [batch])
    singles = [evaluate(model, [batch.select(torch.tensor([i]))]) for i in range(4)]
    total = sum(single.nats_per_token * single.tokens for single in singles)
    assert found.perplexity == pytest.approx(math.exp(total / 20), rel=1e-9)
    assert found.perplexity != pytest.approx(sum(single.perplexity for single in singles) / 4, rel=1e-3)


def test_plain_dictionary():
    model, batch = tiny_model(), tiny_batch(1)
    figures = evaluate(model, [batch], steps=2, particles=3, seed=7).to_dict()
    assert list(figures) == [
        "nats_per_token",
        "nats_per_token_stderr",
        "blocks",
        "perplexity",
        "bits_per_byte",
        "bits_per_byte_stderr",
        "distortion_nats_per_token",
        "kl_nats_per_sequence",
        "kl_nats_per_sequence_stderr",
        "exchange_rate",
        "no_exchange_rate",
        "iwae_nats_per_token",
        "iwae_nats_per_token_stderr",
        "iwae_curve",
        "effective_sample_size",
        "effective_sample_size_stderr",
        "pareto_k",
        "no_pareto_k",
        "distortion_from_prior",
        "distortion_zeroed",
        "distortion_shuffled",
        "active_fraction_by_layer",
        "guide",
        "tokens",
        "sequences",
        "particles",
        "fast_steps",
        "seed",
    ]
    assert (figures["particles"], figures["fast_steps"], figures["seed"]) == (3, 2, 7)
    # Not known: one sequence has no standard error, and nobody said how long the tokens are.
    assert figures["nats_per_token_stderr"] is None
    assert figures["bits_per_byte"] is figures["bits_per_byte_stderr"] is None
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_leaves_the_model_as_it_was_and_reports_progress():
    model, batch = tiny_model().train(), tiny_batch(5)
    seen = []
    found = evaluate(model, pieces(batch, 2), progress=lambda done, nats: seen.append((done, nats)))
    assert [done for done, _ in seen] == [2, 4, 5]
    assert seen[-1][1] == pytest.approx(found.nats_per_token, abs=ROUNDOFF)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_works_in_single_precision():
    double = evaluate(tiny_model(), [tiny_batch(3)])
    torch.set_default_dtype(torch.float32)
    single = evaluate(tiny_model(), [tiny_batch(3)])
    # Not comparable draw by draw (torch draws other numbers in single precision): within both standard errors.
    assert abs(single.nats_per_token - double.nats_per_token) < 4 * double.nats_per_token_stderr


@pytest.mark.parametrize("uneven_lengths", [False, True])
def test_standard_error_of_a_ratio(uneven_lengths):
    """Against the scatter of the ratio over corpora drawn anew (1,000 of 200 sequences each)."""
    generator = torch.Generator().manual_seed(0)
    shape = (1000, 200)
    tokens = torch.randint(1, 20, shape, generator=generator).double() if uneven_lengths else torch.full(shape, 10.0)
    nats = 3 * tokens + tokens.sqrt() * torch.randn(shape, generator=generator)
    scatter = float((nats.sum(1) / tokens.sum(1)).std())
    errors = torch.tensor([ratio_error(n, t, None).stderr for n, t in zip(nats, tokens, strict=True)])
    # The scatter of 1,000 corpora is known to 1 / sqrt(2000); the linearization is good to 1/200.
    assert float(errors.mean()) == pytest.approx(scatter, rel=4 / 2000**0.5 + 1 / 200)
    if not uneven_lengths:
        assert errors[0] == pytest.approx(float(nats[0].std() / 200**0.5 / 10), rel=1e-12)


def test_standard_error_of_one_sequence_is_not_known():
    assert math.isnan(ratio_error(torch.ones(1), torch.ones(1), None).stderr)

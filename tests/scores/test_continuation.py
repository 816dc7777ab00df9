"""Scores of continuations: against direct computations, as distributions, and against leaks."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from helpers.tiny import D, N, T, V, telling_model, tiny_config, tiny_model, tiny_tokens

from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.objectives import MMD, AnalyticELBO
from pyro_ltm.scores import continuation as predictive
from pyro_ltm.scores.continuation import Context, Piece, Predictor, windows


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def predictor(model=None, *, objective=None, **options):
    model = model or tiny_model()
    guide = MeanField(model.config.thoughts, D)
    steps = options.pop("steps", 4 if model.config.thoughts else 0)
    loop = FastLoop(guide, objective or AnalyticELBO(), steps=steps)
    return Predictor(model, loop, **({"particles": 5, "batch_size": 4} | options))


def some_pieces(count=7, *, vocab=V, name=0):
    """Contexts of 1 to 6 tokens, continuations of 1 to 4."""
    rows = tiny_tokens(count, vocab=vocab).tolist()
    return [
        Piece(Context(tuple(row[: 1 + place % 6]), name + place), tuple(row[6 : 7 + place % 4]))
        for place, row in enumerate(rows)
    ]


def next_log_probs(model, tokens, z):
    """[K, V] log p(next token | tokens, z) for thoughts [K, N, D], each computed by itself and without a cache."""
    inputs = torch.tensor([tokens]).expand(len(z), -1)
    hidden = model.decoder(model.decoder.context(inputs), z)
    return model.decoder.logits(hidden[:, -1]).log_softmax(-1)


@torch.no_grad()
def by_hand(model, piece, z):
    """log mean_k p(continuation | context, z_k), and the likeliest tokens of the mixture, token by token."""
    tokens, weights, likeliest = list(piece.context.tokens), torch.zeros(len(z)), []
    for token in piece.continuation:
        step = next_log_probs(model, tokens, z)
        likeliest.append(int(torch.logsumexp(weights[:, None] + step, 0).argmax()))
        weights = weights + step[:, token]
        tokens.append(token)
    return float(torch.logsumexp(weights, 0)) - math.log(len(z)), tuple(likeliest)


@pytest.mark.parametrize("thoughts", [N, 0])
def test_scores_are_those_of_the_mixture(thoughts, monkeypatch):
    monkeypatch.setattr(predictive, "LOGITS", 5 * V * 2)  # two positions at a time
    scores = predictor(tiny_model(tiny_config(thoughts=thoughts)))
    pieces = some_pieces()
    for piece, found in zip(pieces, scores.score(pieces), strict=True):
        z = scores.thoughts([piece.context])[:, 0]
        assert z.shape == (5 if thoughts else 1, thoughts, D)
        log_likelihood, likeliest = by_hand(scores.model, piece, z)
        assert found.log_likelihood == pytest.approx(log_likelihood, abs=1e-9)
        assert found.is_greedy == (likeliest == piece.continuation)


def test_greedy_follows_the_mixture_token_by_token():
    model, batch = telling_model(1)
    scores = predictor(model, particles=3)
    context = Context(tuple(batch.inputs[0, :4].tolist()), 3)
    z, written = scores.thoughts([context])[:, 0], ()
    for _ in range(5):
        _, likeliest = by_hand(model, Piece(context, (*written, 0)), z)
        written = (*written, likeliest[-1])
    wrong = [(*written[:place], (written[place] + 1) % V, *written[place + 1 :]) for place in range(5)]
    found = scores.score([Piece(context, tokens) for tokens in (written, *wrong, ())])
    assert [one.is_greedy for one in found] == [True, False, False, False, False, False, True]
    assert found[-1].log_likelihood == 0


@pytest.mark.parametrize("read", [1, 4])
def test_it_is_a_distribution_over_continuations(read):
    model = tiny_model(tiny_config(vocab_size=6))
    scores = predictor(model)
    context = Context(tuple(tiny_tokens(1, vocab=6)[0, :read].tolist()), 1)
    pairs = list(itertools.product(range(6), repeat=2))
    both = torch.tensor([one.log_likelihood for one in scores.score([Piece(context, pair) for pair in pairs])])
    first = torch.tensor([one.log_likelihood for one in scores.score([Piece(context, (token,)) for token in range(6)])])
    assert float(both.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert torch.allclose(both.view(6, 6).logsumexp(-1), first, atol=1e-9)


def test_before_any_text_thoughts_come_from_the_prior_and_later_from_a_fit():
    model, batch = telling_model(1)
    start, more = Context((int(batch.inputs[0, 0]),), 5), Context(tuple(batch.inputs[0, :8].tolist()), 5)
    many = predictor(model, particles=4000).thoughts([start])
    assert many.shape == (4000, 1, N, D)
    assert float(many.mean().abs()) < 4 / many.numel() ** 0.5
    assert float(many.var() - 1) == pytest.approx(0, abs=4 * (2 / many.numel()) ** 0.5)
    few, fits = predictor(model, steps=1), predictor(model, steps=6)
    assert torch.equal(few.thoughts([start]), fits.thoughts([start]))
    assert not torch.allclose(few.thoughts([more]), fits.thoughts([more]), atol=1e-3)


def test_reading_helps_a_model_whose_thoughts_matter():
    """The fit must take something from the context that is worth nats after it, beyond what the decoder itself sees."""
    model, batch = telling_model(24)
    rows = torch.cat([batch.inputs, batch.targets[:, -1:]], 1).tolist()
    pieces = [Piece(Context(tuple(row[:10]), place), tuple(row[10:])) for place, row in enumerate(rows)]

    def nats(**options):
        return torch.tensor(
            [-one.log_likelihood for one in predictor(model, particles=32, batch_size=24, **options).score(pieces)]
        )

    gain = nats(steps=0) - nats(steps=24)  # no steps: q is where it starts, at the prior
    assert float(gain.mean()) > 2 * float(gain.std()) / len(gain) ** 0.5


def test_neither_batch_size_nor_order_nor_company_matters():
    pieces = some_pieces(9)
    first = predictor(batch_size=9).score(pieces)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = predictor(batch_size=2).score([pieces[place] for place in order])
    for place, found in zip(order, shuffled, strict=True):
        assert found.log_likelihood == pytest.approx(first[place].log_likelihood, abs=1e-8)
    alone = predictor().score(pieces[4:5])[0]
    assert alone.log_likelihood == pytest.approx(first[4].log_likelihood, abs=1e-8)


def test_noise_is_keyed_by_name_and_seed():
    model, _ = telling_model()
    tokens = tuple(tiny_tokens(1)[0, :6].tolist())

    def score(name, seed):
        return predictor(model, seed=seed).score([Piece(Context(tokens, name), (1, 2))])[0].log_likelihood

    assert score(1, 0) == score(1, 0)
    assert len({score(1, 0), score(2, 0), score(1, 1)}) == 3


def test_an_objective_that_compares_sequences_gets_them_one_at_a_time():
    """Otherwise a context's thoughts would depend on the other questions."""
    pieces = some_pieces()
    together = predictor(objective=MMD()).score(pieces)
    alone = [predictor(objective=MMD()).score([piece])[0] for piece in pieces]
    assert [one.log_likelihood for one in together] == pytest.approx([one.log_likelihood for one in alone], abs=1e-9)


def test_progress_counts_pieces_and_nats():
    seen = []
    pieces = some_pieces()
    found = predictor().score(pieces, progress=lambda done, nats: seen.append((done, nats)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    total, tokens = -sum(one.log_likelihood for one in found), sum(len(piece.continuation) for piece in pieces)
    assert seen[-1] == (len(pieces), pytest.approx(total / tokens))


@pytest.mark.parametrize(("length", "given", "stride"), [(1, 1, 3), (9, 1, 3), (40, 1, 5), (40, 7, T), (30, 29, 1)])
def test_windows_score_every_token_once(length, given, stride):
    tokens = tuple(range(length))
    blocks = windows(tokens, lambda start: start, given=given, length=T, stride=stride)
    assert sum((block.continuation for block in blocks), ()) == tokens[given:]
    for block in blocks:
        at = block.context.name
        assert block.context.tokens == tokens[:at][-len(block.context.tokens) :]
        assert tokens[at : at + len(block.continuation)] == block.continuation
        whole = len(block.context.tokens) + len(block.continuation)
        assert whole == min(T + 1, at + len(block.continuation))  # as much as fits
        assert len(block.continuation) <= stride


def test_windows_of_the_twin_sum_to_its_likelihood():
    scores = predictor(tiny_model(tiny_config(thoughts=0)))
    tokens = tuple(tiny_tokens(1)[0].tolist())
    blocks = windows(tokens, lambda start: start, given=1, length=T, stride=5)
    whole = by_hand(scores.model, Piece(Context(tokens[:1], 0), tokens[1:]), torch.zeros(1, 0, D))[0]
    assert sum(one.log_likelihood for one in scores.score(blocks)) == pytest.approx(whole, abs=1e-9)


def test_leaves_no_trace_in_the_model():
    scores = predictor()
    before = {name: value.clone() for name, value in scores.model.state_dict().items()}
    scores.score(some_pieces())
    assert all(torch.equal(value, before[name]) for name, value in scores.model.state_dict().items())
    assert all(parameter.grad is None for parameter in scores.model.parameters())
    assert dataclasses.replace(scores, seed=1).loop is scores.loop

"""The protocol `prefix`: against models whose predictive distribution is known, and against leaks."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.loops import take_loop
from helpers.tiny import D, N, T, telling_model, tiny_batch, tiny_config, tiny_model

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Amortized, FullRank, MeanField
from pyro_ltm.inference.samplers import Langevin
from pyro_ltm.objectives import MAP, AnalyticELBO
from pyro_ltm.scores import evaluate_prefix
from pyro_ltm.types import Batch


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def evaluate(model, batches, **options):
    options = {"guide": MeanField(model.config.thoughts, D), "objective": AnalyticELBO(), "steps": 3} | options
    loop = take_loop(options)
    return evaluate_prefix(model, batches, loop, **({"particles": 4, "prefixes": [3, 8], "stride": 4} | options))


def pieces(batch, size):
    return [batch.select(rows) for rows in torch.arange(batch.size).split(size)]


def test_the_twin_costs_its_own_conditionals():
    model, batch = tiny_model(tiny_config(thoughts=0)), tiny_batch(5)
    batch = dataclasses.replace(batch, mask=torch.arange(T) < torch.tensor([12, 5, 9, 12, 1])[:, None])
    found = evaluate(model, pieces(batch, 2), steps=0)
    logits = model.decoder.logits(model.decoder(model.decoder.context(batch.inputs), torch.zeros(5, 0, D))).detach()
    each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view(5, T) * batch.mask
    assert torch.allclose(found.sequence_nats, each.sum(-1).detach(), atol=1e-9)
    assert found.nats_per_token == pytest.approx(float(each.sum()) / 39)
    for after in found.by_prefix:
        assert torch.allclose(after.sequence_nats, each[:, after.prefix :].sum(-1), atol=1e-9)
        assert after.tokens == int(batch.mask[:, after.prefix :].sum())


class Switch(torch.nn.Module):
    """Stands for a decoder: the sign of the first thought says which of two coins writes every token, 0 or 1."""

    def __init__(self):
        super().__init__()
        self.heads = torch.nn.Parameter(torch.tensor([0.9, 0.2]))

    def context(self, inputs):
        return F.one_hot(inputs, 2).double()

    def forward(self, context, thoughts):
        coin = torch.where(thoughts[:, 0, 0] > 0, self.heads[0], self.heads[1])
        return torch.stack([coin, 1 - coin], -1).log()[:, None].expand(*context.shape[:2], 2)

    def forward_slice(self, context, thoughts, where):
        return self(context, thoughts)[:, where]

    def logits(self, hidden):
        return hidden

    def fused_weights(self):
        return contextlib.nullcontext()

    def token_log_probs(self, hidden, tokens):
        return hidden.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def coin_model():
    model = tiny_model(tiny_config(vocab_size=2))
    model.decoder = Switch()
    return model


def exact_predictive(batch: Batch, start: int) -> torch.Tensor:
    """[B] -log p(tokens from `start` on | those before), summing out the coin."""
    joint = []
    for heads in (0.9, 0.2):
        each = torch.where(batch.targets == 0, math.log(heads), math.log(1 - heads))
        joint.append((each[:, :start].sum(-1), each.sum(-1)))
    before, whole = (torch.logsumexp(torch.stack(part), 0) for part in zip(*joint, strict=True))
    return before - whole


def test_under_the_prior_it_is_the_exact_predictive():
    """With one block q is the prior: many draws come to the exact mixture, to the error of as many coins."""
    batch = tiny_batch(4, vocab=2)
    particles = 5_000
    found = evaluate(coin_model(), [batch], stride=T, particles=particles, steps=0, prefixes=[T - 1])
    exact = exact_predictive(batch, 0)
    # Half the draws have the better coin: the share's relative error is 1 / sqrt(K).
    assert torch.allclose(found.sequence_nats, exact, atol=4 / math.sqrt(particles))


def test_it_is_a_distribution_over_the_next_tokens():
    """Over all continuations the probabilities sum to one: whatever q is, the same draws score each of them."""
    model = coin_model()
    start = tiny_batch(1, length=4, vocab=2)
    total = 0.0
    for code in range(2**3):
        bits = torch.tensor([[code >> shift & 1 for shift in range(3)]])
        tokens = torch.cat([start.inputs[:, :1], start.targets, bits], 1)
        found = evaluate(model, [Batch.from_tokens(tokens)], prefixes=[4], stride=4)
        total += math.exp(-found.by_prefix[0].sequence_nats.item())
    assert total == pytest.approx(1, abs=1e-9)


def total_over_next_tokens():
    """The sum of the fifth token's probabilities over all words, each given with the same four before it."""
    model, batch = telling_model(1)
    before = torch.cat([batch.inputs[:, :1], batch.targets[:, :4]], 1)
    tokens = torch.cat([before.expand(30, -1), torch.arange(30)[:, None]], 1)
    whole = Batch.from_tokens(tokens, ids=torch.zeros(30, dtype=torch.long))  # the same noise for every word
    found = evaluate(model, [whole], prefixes=[4], stride=4, steps=20)
    return float((-found.by_prefix[0].sequence_nats).exp().sum())


def test_a_leak_would_show(monkeypatch):
    """A fit that looks at what it is to predict gives the words more than one in all; ours gives them one."""
    assert total_over_next_tokens() == pytest.approx(1, abs=1e-9)
    monkeypatch.setattr(Batch, "beginning", lambda batch, length: batch)
    assert total_over_next_tokens() > 1.05


@pytest.mark.parametrize(
    ("guide", "objective"),
    [
        (lambda: MeanField(N, D), AnalyticELBO()),
        (lambda: FullRank(N, D), AnalyticELBO()),
        (lambda: Amortized(N, D, vocab_size=30, max_length=T, width=16, encoder_layers=1, heads=2), AnalyticELBO()),
        (lambda: Langevin(N, D), MAP()),
    ],
    ids=["mean-field", "full-rank", "amortized", "langevin"],
)
def test_nothing_of_the_rest_leaks_into_the_fit(guide, objective):
    """Changing tokens after a block leaves that block's figure as it was, to the last bit."""
    model, batch, guide = *telling_model(3), guide()
    other = batch.targets.clone()
    other[:, 8:] = (other[:, 8:] + 7) % 30
    changed = Batch.from_tokens(torch.cat([batch.inputs[:, :1], other], 1))
    known = torch.arange(T).expand(3, T) < 8
    first, second = (
        evaluate(model, [dataclasses.replace(b, mask=known)], guide=guide, objective=objective)
        for b in (batch, changed)
    )
    assert torch.equal(first.sequence_nats, second.sequence_nats)
    assert torch.equal(first.by_prefix[0].sequence_nats, second.by_prefix[0].sequence_nats)


def test_reading_more_predicts_better_and_batches_do_not_matter():
    model, batch = telling_model(6)
    whole, parts = (evaluate(model, pieces(batch, size), steps=8, particles=4) for size in (6, 4))
    assert torch.allclose(whole.sequence_nats, parts.sequence_nats, atol=1e-8)
    blind = evaluate(model, [batch], steps=8, particles=4, stride=T)
    assert whole.nats_per_token < blind.nats_per_token
    assert evaluate(model, [batch], seed=1).nats_per_token != evaluate(model, [batch]).nats_per_token


def test_defaults_and_bad_arguments():
    model, batch = tiny_model(), tiny_batch(2)
    found = evaluate(model, [batch], prefixes=(), stride=0)
    assert [after.prefix for after in found.by_prefix] == [3, 6, 9]
    assert found.stride == 1
    alone = evaluate(model, pieces(batch, 1), prefixes=None, stride=0)
    assert alone.by_prefix == []
    assert alone.sequence_nats.tolist() == pytest.approx(found.sequence_nats.tolist(), abs=1e-9)
    for options, says in (({"prefixes": [T]}, "leave something"), ({"stride": -1}, "at least 1")):
        with pytest.raises(UserError, match=says):
            evaluate(model, [batch], **options)
    with pytest.raises(UserError, match="no sequences"):
        evaluate(model, [])

"""Answers filled in by a masked diffusion: their bound against all orders written out, and the likeliest of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.tiny import enlarge, tiny_config

from pyro_ltm.model.masked_diffusion import MaskedDiffusion
from pyro_ltm.scores.continuation import Context, Piece
from pyro_ltm.scores.filling import Filler

VOCAB, ROOM = 5, 9


@pytest.fixture(scope="module")
def model():
    shape = {"vocab_size": VOCAB, "dim": 8, "heads": 2, "layers": 2, "max_length": ROOM, "window": 16, "thoughts": 0}
    model = MaskedDiffusion(tiny_config(**shape, kind="masked-diffusion"))
    enlarge(model.decoder, seed=3)
    return model.eval()


@torch.no_grad()
def log_probs(model, tokens, hidden):
    """[T, V] at all places behind the first token, those in `hidden` and all behind the known ones unseen."""
    seen = [VOCAB if at in hidden else token for at, token in enumerate(tokens)]
    read = torch.tensor([seen + [VOCAB] * (ROOM + 1 - len(seen))])
    decoder = model.decoder
    return decoder.logits(decoder(decoder.context(read), None))[0].log_softmax(-1)


def over_orders(model, context, answer):
    tokens, places = (*context, *answer), range(len(context), len(context) + len(answer))
    found = []
    for order in itertools.permutations(places):
        each = (log_probs(model, tokens, set(order[at:]))[place, tokens[place]] for at, place in enumerate(order))
        found.append(float(sum(each)))
    return sum(found) / len(found)


def greedy(model, context, count):
    tokens = list(context)
    for _ in range(count):
        tokens.append(int(log_probs(model, tokens, set())[len(tokens)].argmax()))
    return tuple(tokens[len(context) :])


def test_the_score_is_the_bound_over_orders_of_filling_in(model):
    for context, answer in (((0,), (1,)), ((0, 1, 2), (3,)), ((0, 1, 2, 3), (4, 1)), ((0, 2), (1, 1, 3))):
        pieces = [Piece(Context(context, name), answer) for name in range(40)]  # each with noise of its own
        found = Filler(model, ROOM, particles=8, batch_size=30).score(pieces)
        nats = torch.tensor([one.log_likelihood for one in found], dtype=torch.float64)
        stderr = float(nats.std()) / len(nats) ** 0.5
        assert float(nats.mean()) == pytest.approx(over_orders(model, context, answer), abs=4 * stderr + 1e-5)
        assert (stderr > 1e-5) == (len(answer) > 1), "of one token the bound is exact"
        assert {one.is_greedy for one in found} == {answer == greedy(model, context, len(answer))}


def test_what_is_greedy_is_found_and_no_score_depends_on_its_batch(model):
    contexts = [Context((0, *rest), name) for name, rest in enumerate(((), (1,), (2, 3), (4, 4)))]
    pieces = [Piece(context, greedy(model, context.tokens, 3)) for context in contexts]
    pieces += [Piece(contexts[2], (1, 2)), Piece(contexts[3], (1, 2))]
    whole = Filler(model, ROOM, particles=4).score(pieces)
    assert [one.is_greedy for one in whole[:4]] == [True] * 4
    alone = [Filler(model, ROOM, particles=4).score([piece])[0] for piece in pieces]
    for one, other in zip(whole, alone, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-5)
        assert one.is_greedy == other.is_greedy

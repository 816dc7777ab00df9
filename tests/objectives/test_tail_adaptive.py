"""Draws count by the rank of their weight."""

from __future__ import annotations

import torch

from pyro_ltm.objectives import MonteCarloELBO, TailAdaptive
from pyro_ltm.objectives.tail_adaptive import rank_weights


def test_ranks_by_hand():
    """Draws that weigh at least as much: 1, 4, 3, 3 in the first sequence; in the second all alike."""
    log_weight = torch.tensor([[3.0, 7.0], [1.0, 7.0], [2.0, 7.0], [2.0, 7.0]])
    expected = torch.tensor([[12 / 23, 1 / 4], [3 / 23, 1 / 4], [4 / 23, 1 / 4], [4 / 23, 1 / 4]])
    torch.testing.assert_close(rank_weights(log_weight), expected)


def test_only_the_order_matters():
    log_weight = torch.randn(9, 4)
    for other in (10 * log_weight - 300, log_weight.exp(), log_weight**3):
        assert torch.equal(rank_weights(log_weight), rank_weights(other))
    assert torch.equal(rank_weights(log_weight).argsort(0), log_weight.argsort(0))
    torch.testing.assert_close(rank_weights(log_weight).sum(0), torch.ones(4))


def test_for_value_and_decoder_it_is_the_elbo(place):
    here = place()
    ours, elbo = TailAdaptive(particles=6), MonteCarloELBO(particles=6)
    assert torch.equal(here.value(ours), here.value(elbo))
    for mine, other in zip(here.decoder_gradients(ours), here.decoder_gradients(elbo), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)


def test_takes_a_narrow_q_less_seriously_than_the_elbo(place):
    """It covers: where q is too narrow it asks for more width than the ELBO does, where too wide for less."""
    for widen, sign in ((-1.0, 1), (1.0, -1)):
        here = place(500, copies=True, shift=0.0, widen=widen)
        _, mine = here.gradients(TailAdaptive(particles=16))
        _, other = here.gradients(MonteCarloELBO(particles=16))
        assert (-sign * mine.mean(0) > 0).all(), "both lead back to the posterior"
        assert (-sign * other.mean(0) > 0).all()
        if widen < 0:
            assert (-mine.mean(0) > -other.mean(0)).all()

"""The jackknife estimate is what leaving draws out makes of the importance-weighted bound, and has less bias."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_ltm.objectives import IWAE, Jackknife, Terms

COPIES = 20_000


def by_leaving_out(log_weights):
    """The estimate from a list of log weights, one mean at a time."""

    def bound(some):
        top = max(some)
        return top + math.log(math.fsum(math.exp(value - top) for value in some) / len(some))

    count = len(log_weights)
    rest = [bound(log_weights[:k] + log_weights[k + 1 :]) for k in range(count)]
    return count * bound(log_weights) - (count - 1) / count * math.fsum(rest)


def estimate(log_weight):
    zero = torch.zeros_like(log_weight)
    return Jackknife(particles=len(log_weight)).value(Terms(log_weight, zero, zero))


@pytest.mark.parametrize("particles", [2, 3, 16])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_is_what_leaving_each_draw_out_says(particles, spread):
    log_weight = spread * torch.randn(particles, 5) - 700
    wanted = torch.tensor([by_leaving_out(column) for column in log_weight.T.tolist()])
    # Rounding of some hundred nats, times the number of draws.
    torch.testing.assert_close(estimate(log_weight), wanted, atol=1e-12 * particles, rtol=1e-13)


def test_by_hand_where_one_draw_outweighs_the_other():
    """exp(900) is more than a double holds, and exp(-900) less; value and gradient are plain numbers."""
    log_weight = torch.tensor([[0.0], [900.0]], requires_grad=True)
    value = estimate(log_weight)
    # 2 log((1 + w) / 2) - (log 1 + log w) / 2, and its slopes.
    torch.testing.assert_close(value, torch.tensor([1800 - 2 * math.log(2) - 450]), atol=1e-11, rtol=0)
    value.sum().backward()
    torch.testing.assert_close(log_weight.grad, torch.tensor([[-0.5], [1.5]]), atol=1e-12, rtol=0)


def test_weight_of_the_divergence_counts_as_everywhere(place):
    here = place()
    assert not torch.allclose(here.value(Jackknife(beta=0.3)), here.value(Jackknife()))


def test_at_the_posterior_it_is_the_evidence_from_any_draws(place):
    here = place(5, shift=0.0, widen=0.0)
    for particles in (2, 8):
        value = here.value(Jackknife(particles=particles)).detach()
        # An identity: double precision, some ten nats, times the number of draws.
        torch.testing.assert_close(value, here.model.log_evidence(here.batch), atol=1e-10, rtol=0)


@pytest.mark.parametrize("particles", [4, 8, 16])
def test_has_less_bias_than_the_bound_of_as_many_draws(place, particles):
    here = place(COPIES, copies=True, widen=0.5)
    evidence = here.model.log_evidence(here.batch)[0]
    errors = []
    for kind in (IWAE, Jackknife):
        off = here.value(kind(particles=particles)).detach() - evidence
        errors.append((abs(float(off.mean())), float(off.std()) / COPIES**0.5))
    (plain, plain_error), (ours, error) = errors
    assert plain > 10 * plain_error, "there is a bias to take away"
    assert ours + 4 * error < plain / 2


def test_is_no_bound(place):
    """Two draws of a q that is right but for one number, of which it is too wide: the wider, the further above."""
    for widen in (4.0, 6.0):
        here = place(COPIES, copies=True, shift=0.0, widen=0.0)
        with torch.no_grad():
            here.state["log_variance"][:, 0, 0] += widen
        over = here.value(Jackknife(particles=2)).detach() - here.model.log_evidence(here.batch)
        error = over.std() / COPIES**0.5
        # With s the ratio of widths, log w is log s - (s^2 - 1) e^2 / 2 above the evidence, and of two squares the
        # smaller is 1 - 2/pi on average and the larger 1 + 2/pi: log s - 2 log 2 + (4/pi - 1) (s^2 - 1) / 2 and more.
        least = widen / 2 - 2 * math.log(2) + (4 / math.pi - 1) * (math.exp(widen) - 1) / 2
        assert least > 4 * error
        assert over.mean() > least - 4 * error

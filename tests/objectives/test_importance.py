"""The importance-weighted bound rises from the ELBO to the evidence; its better gradient has the same mean."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_ltm.objectives import IWAE, DReG, MonteCarloELBO, Terms

COPIES = 2000


@pytest.mark.parametrize("kind", [IWAE, DReG])
def test_of_one_draw_is_the_elbo(place, kind):
    here = place()
    for beta in (1.0, 0.3):
        assert torch.equal(here.value(kind(particles=1, beta=beta)), here.value(MonteCarloELBO(beta=beta)))


def test_by_hand():
    weights = torch.tensor([[0.0, 700.0], [math.log(3.0), 703.0]])
    bound = IWAE(particles=2).value(Terms(weights, torch.zeros(2, 2), torch.zeros(2, 2)))
    expected = [math.log(2), 703 + math.log((1 + math.exp(-3)) / 2)]  # exp(703) is close to the largest double
    torch.testing.assert_close(bound, torch.tensor(expected), atol=1e-12, rtol=0)


def test_rises_with_the_draws_to_the_evidence(place):
    here = place(COPIES, copies=True, widen=0.5)
    evidence = here.model.log_evidence(here.batch)[0]
    means, errors = [], []
    for particles in (1, 4, 16, 64, 256):
        bound = here.value(IWAE(particles=particles)).detach()
        means.append(bound.mean())
        errors.append(bound.std() / COPIES**0.5)
    for index in range(4):
        joint = (errors[index] ** 2 + errors[index + 1] ** 2) ** 0.5
        # The last steps are smaller than their errors.
        assert means[index + 1] - means[index] > (4 if index < 2 else -4) * joint
    for mean, error in zip(means, errors, strict=True):
        assert mean < evidence + 4 * error
    # The gap is var(w / p(x)) / 2K to first order (arXiv:1509.00519); here that is about 0.01.
    assert evidence - means[-1] < 0.02 + 4 * errors[-1]


@pytest.mark.parametrize("particles", [2, 8])
@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_both_gradients_have_one_mean(place, particles, beta):
    here = place(4000, copies=True)
    options = {"particles": particles, "beta": beta}
    for mine, other in zip(
        here.gradients(DReG(**options), seed=1), here.gradients(IWAE(**options), seed=2), strict=True
    ):
        error = ((mine.var(0) + other.var(0)) / len(mine)).sqrt()
        assert ((mine.mean(0) - other.mean(0)).abs() < 4.5 * error).all()


def test_the_signal_grows_with_the_draws_where_the_plain_one_fades(place):
    """Over K = 1 to 64: in theory by a factor of 8, and down to 1/8 (arXiv:1802.04537, arXiv:1810.04152)."""
    here = place(COPIES, copies=True, shift=0.1, widen=0.1)

    def signal(kind, particles):
        gradients = torch.cat([gradient.flatten(1) for gradient in here.gradients(kind(particles=particles))], 1)
        return float(gradients.mean(0).norm() / gradients.var(0).sum().sqrt())

    ours = [signal(DReG, particles) for particles in (1, 4, 16, 64)]
    assert ours == sorted(ours)
    assert ours[-1] > 4 * ours[0]
    plain = [signal(IWAE, particles) for particles in (1, 64)]
    assert plain[1] < plain[0] / 2, "noise adds 1 / sqrt(2000) = 0.02 to the smaller"

"""Weights of the KL: their numbers, and when they hold."""

from __future__ import annotations

import pytest
import torch
from helpers.stand_ins import LinearGaussian, NoClosedForm

from pyro_ltm.config import Component
from pyro_ltm.objectives import OBJECTIVES, AnalyticELBO, BetaELBO, Cyclical, KLAnnealing, MonteCarloELBO


def test_weighs_the_exact_kl(place):
    here = place()
    for beta in (0.0, 0.5, 1.0, 4.0):
        ours = here.value(BetaELBO(particles=3, beta=beta))
        torch.testing.assert_close(ours, here.value(AnalyticELBO(particles=3, beta=beta)), atol=1e-12, rtol=0)


def test_weighs_the_estimated_kl_where_there_is_no_other():
    model = LinearGaussian()
    batch, guide = model.data(3), NoClosedForm(2, 2)
    terms = BetaELBO(particles=5, beta=0.3).terms(model, guide, batch, guide.init(batch))
    assert terms.kl is None
    for beta in (0.3, 1.0):
        wanted = MonteCarloELBO(particles=5, beta=beta).value(terms)
        torch.testing.assert_close(BetaELBO(particles=5, beta=beta).value(terms), wanted, atol=1e-12, rtol=0)


def test_by_name():
    objective = OBJECTIVES.build(Component(name="beta:2:3"))
    assert (objective.beta, objective.num_particles) == (2.0, 3)
    assert OBJECTIVES["beta"](beta=0.8, warmup=0.5).at(0.25).beta == pytest.approx(0.4)


SCHEDULES = [
    (KLAnnealing, {"warmup": 0.5}, {0.0: 0, 0.125: 0.25, 0.25: 0.5, 0.5: 1, 0.75: 1, 1.0: 1}),
    (KLAnnealing, {"warmup": 1.0}, {0.0: 0, 0.3: 0.3, 0.99: 0.99, 1.0: 1}),
    (KLAnnealing, {"warmup": 0.0}, {0.0: 1, 0.5: 1, 1.0: 1}),
    (Cyclical, {}, {0.0: 0, 0.0625: 0.5, 0.125: 1, 0.2: 1, 0.25: 0, 0.28125: 0.25, 0.4: 1, 0.75: 0, 0.99: 1, 1.0: 1}),
    (Cyclical, {"cycles": 1, "rise": 1.0}, {0.0: 0, 0.5: 0.5, 0.9: 0.9, 1.0: 1}),
    (Cyclical, {"cycles": 2, "rise": 0.25}, {0.0: 0, 0.0625: 0.5, 0.125: 1, 0.49: 1, 0.5: 0, 0.53125: 0.25, 1.0: 1}),
    (Cyclical, {"rise": 0.0}, {0.0: 1, 0.25: 1, 1.0: 1}),
]


@pytest.mark.parametrize("over", ["training", "fit"])
@pytest.mark.parametrize(("kind", "options", "numbers"), SCHEDULES)
def test_schedules(kind, options, numbers, over):
    objective = kind(beta=0.8, particles=2, over=over, **options)
    moves, holds = (objective.at, objective.within) if over == "training" else (objective.within, objective.at)
    for progress, share in numbers.items():
        standing = moves(progress)
        assert standing.beta == pytest.approx(0.8 * share)
        assert standing.num_particles == 2
        assert standing.at(0.0).within(0.0).beta == standing.beta, "a weight that stands does not move again"
        assert holds(progress) is objective
    assert objective.beta == 0.8


@pytest.mark.parametrize("kind", [KLAnnealing, Cyclical])
def test_the_decoder_of_a_schedule_over_the_fit_learns_at_the_full_weight(kind):
    objective = kind(beta=0.8, over="fit")
    assert objective.at(0.1).beta == 0.8
    assert objective.at(1.0).within(0.0).beta == 0


@pytest.mark.parametrize("kind", [KLAnnealing, Cyclical])
def test_a_schedule_stands_for_the_bound_with_its_weight(place, kind):
    here = place()
    standing = kind(particles=2).at(0.05)
    assert 0 < standing.beta < 1
    assert torch.equal(here.value(standing), here.value(BetaELBO(particles=2, beta=standing.beta)))

"""Some nats of KL for free: arithmetic of the groups, and no gradient below the floor."""

from __future__ import annotations

import pytest
import torch
from helpers.stand_ins import LinearGaussian, NoClosedForm
from helpers.tiny import L, tiny_batch, tiny_model

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.objectives import OBJECTIVES, AnalyticELBO, FreeBits, Terms

BY_THOUGHT = torch.tensor([[0.5, 3.0, 1.0, 0.25], [4.0, 4.0, 0.0, 2.5]])


@pytest.mark.parametrize(
    ("per", "layers", "charged"),
    [
        ("total", 1, [4.75, 10.5]),
        ("total", 2, [4.75, 10.5]),
        ("layer", 1, [4.75, 10.5]),
        ("layer", 2, [3.5 + 2.0, 8.0 + 2.5]),
        ("layer", 4, [2 + 3.0 + 2 + 2, 4.0 + 4.0 + 2 + 2.5]),
        ("thought", 1, [2 + 3.0 + 2 + 2, 4.0 + 4.0 + 2 + 2.5]),
    ],
)
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_groups_by_hand(per, layers, charged, beta):
    likelihood = torch.tensor([[-10.0, -20.0], [-12.0, -22.0]])
    terms = Terms(likelihood, torch.zeros(2, 2), torch.zeros(2, 2), BY_THOUGHT.sum(1), BY_THOUGHT)
    bound = FreeBits(nats=2.0, per=per, layers=layers, particles=2, beta=beta).value(terms)
    torch.testing.assert_close(bound, torch.tensor([-11.0, -21.0]) - beta * torch.tensor(charged))


@pytest.mark.parametrize("per", ["total", "layer", "thought"])
def test_the_kl_has_no_gradient_below_the_floor_and_all_of_it_above(place, per):
    here = place()
    below, above = FreeBits(nats=1e3, per=per, layers=2), FreeBits(nats=0.0, per=per, layers=2)
    for other, ours in ((AnalyticELBO(beta=0.0), below), (AnalyticELBO(), above)):
        for mine, wanted in zip(here.gradients(ours), here.gradients(other), strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-12, rtol=0)
    groups = {"total": 1, "layer": 2, "thought": 2}[per]
    free = here.value(AnalyticELBO(beta=0.0))
    torch.testing.assert_close(here.value(below), free - groups * 1e3, atol=1e-9, rtol=0)


def test_each_sequence_has_a_floor_of_its_own(place):
    here = place(6)
    terms = AnalyticELBO().terms(*here.arguments)
    floor = float(terms.kl.detach().median()) + 1e-6
    gradients = torch.autograd.grad(terms.kl.clamp(min=floor).sum(), here.leaves, retain_graph=True)
    mine = torch.autograd.grad(FreeBits(nats=floor).value(terms).sum(), here.leaves, retain_graph=True)
    plain = torch.autograd.grad(terms.log_likelihood.sum(), here.leaves)
    charged = terms.kl > floor
    assert 0 < charged.sum() < 6
    for ours, likelihood, kl in zip(mine, plain, gradients, strict=True):
        torch.testing.assert_close(ours, likelihood - kl, atol=1e-12, rtol=0)
        assert ((ours - likelihood).abs().amax((1, 2)) > 1e-3).equal(charged)


def test_layers_are_those_of_the_model():
    """Thoughts of one layer stand together; the registry hands the number over, and TOML cannot."""
    model, batch = tiny_model(), tiny_batch()
    objective = OBJECTIVES.build(Component(name="free-bits:3:layer"), layers=L)
    assert (objective.nats, objective.per, objective.layers) == (3.0, "layer", L)
    guide = MeanField(4, 16, init_loc=0.5)
    terms = objective.terms(model, guide, batch, guide.init(batch))
    by_layer = terms.kl_by_thought.view(3, L, 2).sum(-1)
    torch.testing.assert_close(by_layer.sum(-1), terms.kl, atol=1e-9, rtol=0)
    wanted = terms.log_likelihood[0] - by_layer.clamp(min=3.0).sum(-1)
    torch.testing.assert_close(objective.value(terms), wanted, atol=1e-9, rtol=0)
    with pytest.raises(UserError, match=r"objective\.layers"):
        OBJECTIVES.build(Component(name="free-bits", options={"layers": 2}), layers=L)


def test_what_it_needs_of_the_guide():
    model = LinearGaussian()
    batch, guide = model.data(3), NoClosedForm(2, 2)
    terms = FreeBits(nats=0.1).terms(model, guide, batch, guide.init(batch))
    assert terms.kl is None
    wanted = terms.log_likelihood[0] - (terms.log_guide - terms.log_prior)[0].clamp(min=0.1)
    assert torch.equal(FreeBits(nats=0.1).value(terms), wanted)
    for per in ("layer", "thought"):
        with pytest.raises(UserError, match="NoClosedForm has no KL of single thoughts, which FreeBits needs"):
            FreeBits(per=per).check(guide)
    with pytest.raises(UserError, match="2 thoughts, which 4 layers do not share"):
        FreeBits(per="layer", layers=4).check(MeanField(2, 2))

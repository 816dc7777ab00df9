"""Every objective's gradients against its estimator written out: to local and shared parameters, and to the model.

The terms are computed here from the draws and the model's closed forms, without traces. What is shared with the library
is each guide's own distribution, and how noise makes a draw of it.
"""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from helpers.loops import fit_posterior
from helpers.stand_ins import LinearGaussian

from pyro_ltm.guides import Amortized, Delta, Flow, FullRank, MeanField, Mixture, SemiAmortized
from pyro_ltm.inference import FastLoop
from pyro_ltm.noise import Noise, draw
from pyro_ltm.objectives import OBJECTIVES
from pyro_ltm.optimizers import SGD
from pyro_ltm.training import train_step

N, D, B, T, SEED = 2, 2, 3, 8, 5


def dreg(t):
    return (t.log_weight.softmax(0).square().detach() * t.pathwise).sum(0)


def jackknife(t):
    count = len(t.log_weight)
    rest = [t.log_weight[[j for j in range(count) if j != k]] for k in range(count)]
    without = torch.stack([w.exp().mean(0).log() for w in rest]).mean(0)
    return count * t.log_weight.exp().mean(0).log() - (count - 1) * without


def ranked(t):
    above = torch.stack([(t.log_weight >= one).sum(0) for one in t.log_weight]).double()
    return (above.reciprocal() / above.reciprocal().sum(0) * t.pathwise).sum(0)


def target_rate(t):
    pull = t.state["log_multiplier"] * ((t.rate - 4) / 4).detach()
    return t.log_likelihood - t.state["log_multiplier"].exp().detach() * (t.rate - 4) + pull


def mmd(t):
    (z,) = t.z
    shares = []
    for b in range(B):
        others = sum((-(z[b] - z[c]).square().sum(-1) / (2 * D)).exp() for c in range(B) if c != b) / (B - 1)
        to_prior = (D / (D + 1)) ** (D / 2) * (-z[b].square().sum(-1) / (2 * (D + 1))).exp()
        shares.append((others - 2 * to_prior + (D / (D + 2)) ** (D / 2)).sum())
    return t.log_likelihood - 100 * torch.stack(shares)


def elbo(t):
    return t.log_weight.mean(0)


def iwae(t):
    return t.log_weight.exp().mean(0).log()


# What is raised for q, and where that differs for the model. None: the same.
ESTIMATORS = {
    "elbo": (elbo, None),
    "analytic-elbo": (lambda t: t.log_likelihood - t.rate, None),
    "stl": (lambda t: t.pathwise.mean(0), elbo),
    "iwae": (iwae, None),
    "dreg": (dreg, iwae),
    "jackknife": (dreg, jackknife),
    "renyi": (lambda t: 2 * (t.log_weight / 2).exp().mean(0).log(), None),
    "vr-max": (lambda t: t.log_weight.amax(0), None),
    "beta": (lambda t: t.log_likelihood - 0.5 * t.rate, None),
    "annealed": (lambda t: t.log_likelihood - t.rate, None),
    "cyclical": (lambda t: t.log_likelihood - t.rate, None),
    "free-bits": (lambda t: t.log_likelihood - t.rate.clamp(min=2), None),
    "target-rate": (target_rate, None),
    "mean-rate": (lambda t: t.log_likelihood - 0.1 * (t.rate - 4), None),
    "tail-adaptive": (ranked, elbo),
    "mmd": (mmd, None),
    "chi": (lambda t: ((2 * t.log_weight).softmax(0).detach() * t.pathwise).sum(0), elbo),
    "map": (lambda t: t.joint.mean(0), None),
}
APART = {"dreg", "tail-adaptive", "jackknife", "chi"}
"""Shared parameters learn from draws of their own, after the decoder's."""


class Linear(torch.nn.Module):
    """In an encoder's place: a line from the targets to means and log variances."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(T, 2 * N * D)

    def forward(self, batch):
        loc, log_variance = (0.3 * self.line(batch.targets)).unflatten(-1, (2, N, D)).unbind(1)
        return {"loc": loc, "log_variance": log_variance}


def encoded(kind, **options):
    guide = kind(N, D, vocab_size=5, max_length=T, width=8, heads=2, encoder_layers=1, **options)
    guide.encoder = Linear()
    return guide


GUIDES = {
    "mean-field": lambda: MeanField(N, D),
    "full-rank": lambda: FullRank(N, D, block="all"),
    "flow": lambda: Flow(N, D, context=3, hidden=4),
    "mixture": lambda: Mixture(N, D),
    "delta": lambda: Delta(N, D),
    "amortized": lambda: encoded(Amortized),
    "semi-amortized": lambda: encoded(SemiAmortized),
    "unrolled": lambda: encoded(SemiAmortized, unrolled=True),
}
FAST = [(g, o) for o in OBJECTIVES for g in ("mean-field", "full-rank", "flow", "mixture", "delta")]
SLOW = [(g, o) for o in OBJECTIVES for g in ("mean-field", "flow", "amortized", "semi-amortized", "unrolled", "delta")]


def fitting(pairs):
    known = [(guide, name) for guide, name in pairs if name in ESTIMATORS]
    return [pytest.param(g, o, id=f"{g}-{o}") for g, o in known if not OBJECTIVES[o]().refusal(GUIDES[g]())]


def test_every_objective_is_written_out():
    missing = [name for name in OBJECTIVES if name not in ESTIMATORS]
    assert not missing, f"give ESTIMATORS, in this file, what q and the decoder raise under {', '.join(missing)}"


def test_those_with_two_losses_learn_apart():
    two = {name for name, kind in OBJECTIVES.items() if not kind().has_one_loss}
    assert two == APART, "APART, in this file, names the objectives whose q and decoder have a loss each"


def closed_form(guide, state):
    """[B] KL to N(0, I) of a Gaussian, None of the others."""
    if isinstance(guide, Flow | Mixture | Delta):
        return None
    log_variance = state["log_variance"].reshape(B, -1)
    factor = torch.diag_embed((log_variance / 2).exp())
    if "lower" in state:
        rows, columns = torch.tril_indices(N * D, N * D, -1)
        factor[:, rows, columns] = state["lower"][:, 0] / (2 * math.sqrt(N * D))
    return 0.5 * (factor.square().sum((1, 2)) + state["loc"].square().sum((1, 2)) - N * D - log_variance.sum(-1))


def terms_of(model, guide, batch, state, particles, noise):
    """The parts of a bound from one draw of `noise`, as the fast and the slow step take it."""
    q = guide.distribution(state)
    still = copy.deepcopy(guide).distribution({name: value.detach() for name, value in state.items()})
    z = draw(q.expand(torch.Size([particles, B])) if particles > 1 else q, noise).reshape(particles, B, N, D)
    mean = torch.einsum("kbp,tp->kbt", z.flatten(2), model.loading) + model.offset
    misfit = ((batch.targets - mean) / model.noise).square() + math.log(2 * math.pi * model.noise**2)
    log_likelihood = -0.5 * misfit.sum(-1)
    log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum((-2, -1))
    log_guide, stopped = q.log_prob(z), still.log_prob(z)
    kl = closed_form(guide, state)
    joint = log_likelihood + log_prior
    return SimpleNamespace(
        log_likelihood=log_likelihood.mean(0),
        joint=joint,
        log_weight=joint - log_guide,
        pathwise=joint - stopped,
        rate=(log_guide - log_prior).mean(0) if kl is None else kl,
        z=z,
        state=state,
    )


def place(guide_name):
    torch.manual_seed(1)
    guide, model = GUIDES[guide_name](), LinearGaussian()
    batch = model.data(B)
    state = {name: value.detach() + 0.3 * torch.randn_like(value) for name, value in guide.init(batch).items()}
    return model, guide, batch, state


def assert_equal(found, wanted):
    # Some hundred nats in float64, summed in another order.
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, torch.zeros_like(got) if expected is None else expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("guide_name", "name"), fitting(FAST))
def test_the_fast_step_descends_this_gradient(guide_name, name):
    model, guide, batch, state = place(guide_name)
    objective = OBJECTIVES[name]()
    step = SGD(lr=1.0, momentum=0.0, schedule="constant")
    posterior = fit_posterior(
        model, batch, guide=guide, objective=objective, optimizer=step, steps=1, seed=SEED, start=state
    )
    leaves = {name: value.requires_grad_() for name, value in (state | objective.local(batch)).items()}
    terms = terms_of(model, guide, batch, leaves, objective.num_particles, Noise(batch.ids, seed=SEED))
    wanted = torch.autograd.grad(ESTIMATORS[name][0](terms).sum(), list(leaves.values()), allow_unused=True)
    assert_equal([posterior.state[name] - value.detach() for name, value in leaves.items()], wanted)
    assert any(gradient is not None and gradient.abs().max() > 1e-3 for gradient in wanted)


@pytest.mark.parametrize(("guide_name", "name"), fitting(SLOW))
def test_the_slow_step_descends_these_gradients(guide_name, name, monkeypatch):
    model, guide, batch, state = place(guide_name)
    objective, amortized = OBJECTIVES[name](), isinstance(guide, Amortized | SemiAmortized)
    weights = [*guide.parameters(), *model.parameters()]
    if not amortized:
        monkeypatch.setattr(guide, "init", lambda batch: state)
    loop = FastLoop(guide, objective, SGD(), steps=0)
    train_step(model, [batch], loop, torch.optim.SGD(weights, lr=0.0), clip=0.0, seed=SEED)
    to_q, to_model = ESTIMATORS[name]
    noise = Noise(batch.ids, seed=SEED)

    def terms():
        begun = guide.init(batch) if amortized else state
        return terms_of(model, guide, batch, begun | objective.local(batch), objective.num_particles, noise)

    first = terms()
    second = terms() if guide_name == "semi-amortized" or name in APART else first
    wanted = torch.autograd.grad(
        (to_model or to_q)(first).sum(), list(model.parameters()), retain_graph=True, allow_unused=True
    )
    shared = list(guide.parameters())
    if shared:
        wanted = torch.autograd.grad(to_q(second).sum(), shared, allow_unused=True) + wanted
    tokens = batch.tokens()
    found = [torch.zeros_like(weight) if weight.grad is None else -weight.grad * tokens for weight in weights]
    assert_equal(found, wanted)
    assert max(float(gradient.abs().max()) for gradient in found) > 1e-3

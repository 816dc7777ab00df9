"""A trace's density is that of the program as it ran: by the weights that it used, whatever the modules hold later."""

from __future__ import annotations

import contextlib

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from helpers.loops import fit_posterior
from helpers.plain import plain_logits
from helpers.tiny import D, N, tiny_batch, tiny_config, tiny_model
from pyro import poutine
from pyro.infer import Predictive
from pyro.nn.module import PyroParam, PyroSample, to_pyro_module_
from torch import nn
from torch.func import functional_call

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Flow, MeanField
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.weights import Weights

NORM = "decoder.norm.weight"


@pytest.fixture
def case():
    torch.set_default_dtype(torch.float64)
    return tiny_model(), tiny_batch(), torch.randn(3, N, D)


def nats(model, weights, batch, z):
    """[B] log p(tokens | z) of the independent decoder, by `weights` in place of the model's own."""
    own = dict(model.named_parameters()) | weights
    own = {name.removeprefix("decoder."): weight for name, weight in own.items()}
    turns = torch.complex(*model.decoder.table)
    logits = plain_logits(own, batch.inputs, z, layers=2, heads=2, window=5, max_length=12, turns=turns)
    losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return -losses.view_as(batch.targets).sum(-1)


def traced(program, batch, z):
    return poutine.trace(poutine.condition(program, data={"thoughts": z})).get_trace(batch)


def log_prob(trace):
    trace.compute_log_prob()
    return trace.nodes["tokens"]["log_prob"]


def other_weights(model):
    return {name: (1.5 * weight).detach().requires_grad_() for name, weight in model.named_parameters()}


def bayesian(model, name="weight"):
    to_pyro_module_(model)
    setattr(model.decoder.norm, name, PyroSample(dist.Normal(torch.ones(D), 0.5).to_event(1)))
    return model


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("precomputed", [False, True])
def test_weights_of_a_functional_call(case, held, precomputed):
    model, batch, z = case
    weights = other_weights(model)
    given = model.precompute(batch) if precomputed else batch
    with model.fused_weights() if held else contextlib.nullcontext():
        trace = traced(lambda batch: functional_call(model, weights, (batch,)), given, z)
        found = log_prob(trace)
    expected = nats(model, weights, batch, z)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert not torch.allclose(found, nats(model, {}, batch, z), atol=0.1)
    ours, theirs = (torch.autograd.grad(sums.sum(), list(weights.values())) for sums in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    # Other tokens than those of the run have its density, too.
    tokens = trace.nodes["tokens"]["fn"].sample()
    assert torch.isfinite(trace.nodes["tokens"]["fn"].log_prob(tokens)).all()


def test_samples_are_written_by_the_weights_of_the_run(case):
    """By weights that make it certain of its words; its own do not."""
    model, batch, z = case
    sure = {NORM: 1000 * model.decoder.norm.weight.detach()}
    likelihood = traced(lambda batch: functional_call(model, sure, (batch,)), batch.unobserved(), z).nodes["tokens"][
        "fn"
    ]
    assert (likelihood.log_prob(likelihood.sample()) > -1e-3).all()
    wide = likelihood.expand((2, 3))
    assert (wide.log_prob(wide.sample()) > -1e-3).all()


def test_a_drawn_weight_is_a_site_and_the_densitys_own(case):
    model, batch, z = case
    bayesian(model)
    trace = traced(model, batch, z)
    drawn = trace.nodes[NORM]["value"]
    torch.testing.assert_close(log_prob(trace), nats(model, {NORM: drawn}, batch, z), rtol=1e-9, atol=0)
    torch.testing.assert_close(log_prob(trace), nats(model, {NORM: drawn}, batch, z), rtol=1e-9, atol=0)  # each time
    assert list(trace.nodes).index(NORM) < list(trace.nodes).index("tokens")
    free = poutine.trace(model).get_trace(batch)
    assert torch.equal(log_prob(poutine.trace(poutine.replay(model, trace=free)).get_trace(batch)), log_prob(free))
    assert not torch.equal(traced(model, batch, z).nodes[NORM]["value"], drawn)


def test_a_weight_that_pyro_was_given_gets_its_gradient(case):
    model, batch, z = case
    bayesian(model)
    given = torch.linspace(0.5, 2, D).requires_grad_()
    program = poutine.condition(model, data={NORM: given})
    found, expected = log_prob(traced(program, batch, z)), nats(model, {NORM: given}, batch, z)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    slopes = [torch.autograd.grad(sums.sum(), given)[0] for sums in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-9)


def test_a_constrained_weight_and_plain_ones_become_parameters_of_the_program(case):
    model, batch, z = case
    to_pyro_module_(model)
    model.decoder.norm.weight = PyroParam(torch.linspace(0.5, 2, D), constraint=dist.constraints.positive)
    trace = traced(model, batch, z)
    torch.testing.assert_close(
        log_prob(trace), nats(model, {NORM: torch.linspace(0.5, 2, D)}, batch, z), rtol=1e-9, atol=0
    )
    assert {NORM, "decoder.layers.1.feed_forward.w2.weight"} <= {
        name for name, site in trace.nodes.items() if site["type"] == "param"
    }
    pyro.clear_param_store()


def test_one_layer_may_be_drawn_in_a_plain_model(case):
    model, batch, z = case
    to_pyro_module_(model.decoder.norm)
    model.decoder.norm.weight = PyroSample(dist.Normal(torch.ones(D), 0.5).to_event(1))
    trace = traced(model, batch, z)
    drawn = trace.nodes["weight"]["value"]
    torch.testing.assert_close(log_prob(trace), nats(model, {NORM: drawn}, batch, z), rtol=1e-9, atol=0)


def test_a_bayesian_decoder_is_fitted_by_the_weights_of_each_step(case):
    """Neither the context of the first layer nor what is laid out for many passes is kept from one draw to the next."""
    model, batch, _ = case
    to_pyro_module_(model)
    first = model.decoder.layers[0].attention.wq
    name, shape = "decoder.layers.0.attention.wq.weight", first.weight.shape
    first.weight = PyroSample(dist.Normal(torch.zeros(shape), 1.0).to_event(2))
    traces = []

    class Noted(AnalyticELBO):
        def terms(self, program, *inputs):
            noted = poutine.trace(program)
            found = super().terms(noted, *inputs)
            expected = nats(model, {name: noted.trace.nodes[name]["value"]}, batch, found.thoughts[0])
            torch.testing.assert_close(found.log_likelihood[0], expected, rtol=1e-9, atol=0)
            traces.append(noted.trace)
            return found

    fit_posterior(model, batch, guide=MeanField(N, D), objective=Noted(), steps=3)
    assert len(traces) == 3
    assert not torch.equal(*(trace.nodes[name]["value"] for trace in traces[:2]))


def test_predictive_writes_by_each_draw_of_the_weights(case):
    model, batch, _ = case
    bayesian(model)
    drawn = Predictive(model, num_samples=3)(batch.unobserved())
    assert drawn[NORM].shape == (3, 1, D)
    assert drawn["tokens"].shape == (3, 3, 12)


@pytest.mark.parametrize("whole", [False, True])
def test_a_weight_or_part_that_was_exchanged_after_the_run(case, whole):
    model, batch, z = case
    expected = nats(model, {}, batch, z)
    trace = traced(model, batch, z)
    if whole:
        model.decoder.layers[1] = tiny_model(seed=1).decoder.layers[1]
    else:
        model.decoder.norm.weight = nn.Parameter(torch.full((D,), 5.0))
    torch.testing.assert_close(log_prob(trace), expected, rtol=1e-9, atol=0)
    assert not torch.allclose(log_prob(traced(model, batch, z)), expected, atol=0.1)


def test_a_weight_that_was_changed_in_place_is_gone(case):
    model, batch, z = case
    trace = traced(model, batch, z)
    log_prob(trace)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trace.log_prob_sum().neg().backward()
    optimizer.step()
    with pytest.raises(UserError, match=r"changed in place.*before the optimizer's step"):
        log_prob(traced(model, batch, z)) + trace.nodes["tokens"]["fn"].log_prob(batch.targets)


def test_a_context_is_of_the_weights_that_computed_it(case):
    model, batch, z = case
    before = model.precompute(batch)
    with torch.no_grad():
        model.decoder.layers[0].attention.wo.weight.mul_(3)
    torch.testing.assert_close(log_prob(traced(model, before, z)), nats(model, {}, batch, z), rtol=1e-9, atol=0)


def test_what_was_compiled_is_compiled_with_its_own_weights(case):
    model, batch, z = case
    calls = []
    model.decoder._compiled_call_impl = lambda *inputs: calls.append(1) or model.decoder._call_impl(*inputs)
    weights = other_weights(model)
    found = log_prob(traced(lambda batch: functional_call(model, weights, (batch,)), batch, z))
    torch.testing.assert_close(found, nats(model, weights, batch, z), rtol=1e-9, atol=0)
    assert not calls
    log_prob(traced(model, batch, z))
    assert calls == [1]


def test_the_flows_density_is_by_its_weights_at_the_run():
    torch.set_default_dtype(torch.float64)
    guide, batch = Flow(N, D), tiny_batch()
    state = {name: torch.randn_like(value) for name, value in guide.init(batch).items()}
    weights = {name: (2 * weight).detach().requires_grad_() for name, weight in guide.named_parameters()}
    trace = poutine.trace(lambda: functional_call(guide, weights, (batch, state))).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["thoughts"]
    twice = Flow(N, D)
    twice.load_state_dict(weights)
    torch.testing.assert_close(site["log_prob"], twice.distribution(state).log_prob(site["value"]))
    assert not torch.allclose(site["log_prob"], guide.distribution(state).log_prob(site["value"]), atol=0.1)
    slopes = torch.autograd.grad(site["log_prob"].sum(), list(weights.values()))
    assert any(slope.abs().max() > 0 for slope in slopes)


def test_a_module_that_is_unchanged_is_itself():
    model = tiny_model(tiny_config())
    weights = Weights(model.decoder)
    assert weights.module() is model.decoder
    assert weights.same_as(Weights(model.decoder))
    model.decoder.norm.weight.requires_grad_(False)
    assert weights.module() is model.decoder
    like = model.decoder.layers
    model.decoder.layers = nn.ModuleList(like)
    assert weights.module() is not model.decoder
    assert not weights.same_as(Weights(model.decoder))

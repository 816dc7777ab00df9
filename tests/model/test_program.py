"""The model is an ordinary Pyro program: stock Pyro runs on it unchanged."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.tiny import D, N, T, tiny_batch, tiny_config, tiny_model
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO, TraceMeanField_ELBO

from pyro_ltm.guides import MeanField
from pyro_ltm.model import TokenSequence

ELBOS = [
    Trace_ELBO(),
    TraceMeanField_ELBO(),
    Trace_ELBO(num_particles=3),
    Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    TraceMeanField_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
]


@pytest.fixture(autouse=True)
def _store_stays_empty():
    yield
    assert not dict(pyro.get_param_store())


@pytest.fixture
def parts():
    batch = tiny_batch()
    guide = MeanField(N, D, init_loc=0.5, init_log_variance=-1.0, init_noise=0.5)
    state = {name: value.requires_grad_() for name, value in guide.init(batch).items()}
    return tiny_model(), guide, batch, state


def sites(trace):
    return {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}


def test_has_two_sites_and_a_plate(parts):
    model, guide, batch, state = parts
    trace = poutine.trace(model).get_trace(batch)
    assert list(sites(trace)) == ["sequences", "thoughts", "tokens"]
    assert list(sites(poutine.trace(guide).get_trace(batch, state))) == ["sequences", "thoughts"]
    thoughts, tokens = trace.nodes["thoughts"], trace.nodes["tokens"]
    assert (thoughts["fn"].batch_shape, thoughts["fn"].event_shape) == ((3,), (N, D))
    assert (tokens["fn"].batch_shape, tokens["fn"].event_shape) == ((3,), (T,))
    assert isinstance(tokens["fn"], TokenSequence)
    assert (thoughts["is_observed"], tokens["is_observed"]) == (False, True)
    free = poutine.trace(model).get_trace(batch.unobserved())
    assert not free.nodes["tokens"]["is_observed"]
    assert free.nodes["tokens"]["value"].shape == (3, T)
    assert not [n for trace in (trace, free) for n in trace.nodes.values() if n["type"] == "param"]


def test_the_log_joint_is_prior_plus_likelihood(parts):
    model, _, batch, _ = parts
    z = torch.randn(3, N, D)
    trace = poutine.trace(poutine.condition(model, data={"thoughts": z})).get_trace(batch)
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum()
    likelihood = TokenSequence(model.decoder, z, batch).log_prob(batch.targets).sum()
    # Two single-precision sums of 192 terms of order one in another order.
    torch.testing.assert_close(trace.log_prob_sum(), prior + likelihood, atol=1e-3, rtol=0)


@pytest.mark.parametrize("elbo", ELBOS, ids=lambda elbo: f"{type(elbo).__name__}-{elbo.num_particles}")
def test_stock_elbos_give_gradients_to_decoder_and_state(parts, elbo):
    model, guide, batch, state = parts
    loss = elbo(model, guide)(batch, state)
    loss.backward()
    assert all(value.grad.isfinite().all() and value.grad.abs().max() > 0 for value in state.values())
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_writes_text_from_the_prior(parts, parallel):
    model, _, batch, _ = parts
    drawn = Predictive(model, num_samples=4, parallel=parallel)(batch.unobserved())
    assert drawn["thoughts"].shape == (4, 3, N, D)
    assert drawn["tokens"].shape == (4, 3, T)
    assert int(drawn["tokens"].min()) >= 0
    assert int(drawn["tokens"].max()) < 30
    # 4 * 3 * 64 standard normals: their mean has standard error 1 / sqrt(768).
    assert abs(float(drawn["thoughts"].mean())) < 4 / 768**0.5


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_writes_text_from_the_guide(parts, parallel):
    model, guide, batch, state = parts
    fixed = {name: value.detach() for name, value in state.items()}
    fixed["log_variance"] = torch.full_like(fixed["log_variance"], -40.0)
    drawn = Predictive(model, guide=guide, num_samples=4, parallel=parallel)(batch.unobserved(), fixed)
    assert drawn["tokens"].shape == (4, 3, T)
    samples = Predictive(guide, num_samples=4, parallel=parallel)(batch, fixed)["thoughts"]
    # Standard deviation exp(-20).
    torch.testing.assert_close(samples, fixed["loc"].expand(4, 3, N, D), atol=1e-6, rtol=0)


def test_predictive_scores_posterior_samples(parts):
    model, _, batch, _ = parts
    z = torch.randn(4, 3, N, D)
    drawn = Predictive(model, posterior_samples={"thoughts": z}, return_sites=["tokens"])(batch)
    assert torch.equal(drawn["tokens"], batch.targets.expand(4, 3, T))


def test_nuts_runs(parts):
    batch = tiny_batch(2, 4)
    model = tiny_model(tiny_config(dim=4, heads=1, thoughts=2, max_length=4))
    # A step that is small beside the prior's scale of one, so that a chain of three samples is sure to move.
    kernel = NUTS(model, step_size=0.05, adapt_step_size=False, max_tree_depth=2)
    mcmc = MCMC(kernel, num_samples=3, warmup_steps=0, disable_progbar=True)
    mcmc.run(batch)
    samples = mcmc.get_samples()
    assert {name: value.shape for name, value in samples.items()} == {"thoughts": (3, 2, 2, 4)}
    assert samples["thoughts"].isfinite().all()
    assert len(samples["thoughts"].flatten(1).unique(dim=0)) > 1, "the chain never moved"
    drawn = Predictive(model, samples)(batch.unobserved())
    assert drawn["tokens"].shape == (3, 2, 4)


def test_shapes_are_printed(parts):
    model, _, batch, _ = parts
    trace = poutine.trace(model).get_trace(batch)
    trace.compute_log_prob()
    lines = [line.split() for line in trace.format_shapes().splitlines()]
    assert ["thoughts", "dist", "3", "|", str(N), str(D)] in lines
    assert ["tokens", "dist", "3", "|", str(T)] in lines
    assert lines.count(["log_prob", "3", "|"]) == 2


def test_the_model_is_drawn(parts):
    model, _, batch, _ = parts
    source = pyro.render_model(model, model_args=(batch,), render_distributions=True).source
    assert "cluster_sequences" in source
    assert "thoughts -> tokens" in source
    assert "TokenSequence" in source


def test_the_twin_has_an_empty_site():
    model, batch = tiny_model(tiny_config(thoughts=0)), tiny_batch()
    trace = poutine.trace(model).get_trace(batch)
    trace.compute_log_prob()
    assert trace.nodes["thoughts"]["value"].shape == (3, 0, D)
    assert torch.equal(trace.nodes["thoughts"]["log_prob"], torch.zeros(3))
    guide = MeanField(0, D)
    loss = TraceMeanField_ELBO()(model, guide)(batch, guide.init(batch))
    assert torch.equal(loss, -trace.nodes["tokens"]["log_prob"].sum())
    assert Predictive(model, num_samples=2)(batch.unobserved())["tokens"].shape == (2, 3, T)


def test_precomputed_context_changes_no_value(parts):
    torch.set_default_dtype(torch.float64)
    model, batch, z = tiny_model(), tiny_batch(), torch.randn(3, N, D).requires_grad_()
    values, gradients = [], []
    for given in (batch, model.precompute(batch)):
        value = TokenSequence(model.decoder, z, given).log_prob(batch.targets).sum()
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, z)[0])
    assert torch.equal(*values)  # the very same operations
    assert torch.equal(*gradients)
    # Other tokens than the batch's are read anew.
    other = tiny_batch(seed=1).targets
    given = model.precompute(batch)
    scores = [TokenSequence(model.decoder, z, b).log_prob(other) for b in (batch, given)]
    assert torch.equal(*scores)
    assert not given.context.requires_grad

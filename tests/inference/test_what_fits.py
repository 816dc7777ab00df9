"""Models in double precision, and Pyro's own ELBOs: fitted, or refused in a line that says what fits."""

from __future__ import annotations

import pytest
import torch
from helpers.loops import fit_posterior
from helpers.tiny import D, N, T, V, telling_model
from pyro.infer import RenyiELBO, TraceGraph_ELBO

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Amortized, MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.samplers import SAMPLERS
from pyro_ltm.objectives import MAP, AnalyticELBO
from pyro_ltm.scores import evaluate_bound


def test_a_model_in_double_precision_is_fitted_and_scored_in_it():
    model, batch = telling_model()
    fitting = {"guide": MeanField(N, D), "objective": AnalyticELBO()}
    single = fit_posterior(model, batch, **fitting, steps=2)
    model.double()
    double = fit_posterior(model, batch, **fitting, steps=2)
    assert {value.dtype for value in double.state.values()} == {torch.float64}
    # The same noise would be the same fit, but noise is drawn in the precision of q.
    assert (double.history[0] - single.history[0]).abs().max() < 60
    assert evaluate_bound(model, [batch], FastLoop(**fitting, steps=2)).nats_per_token > 0
    still = {"noise": "fixed", "objective": AnalyticELBO()}
    assert fit_posterior(model, batch, guide=MeanField(N, D), **still, steps=2).history.dtype == torch.float64


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_too(name):
    model, batch = telling_model()
    posterior = fit_posterior(model.double(), batch, guide=SAMPLERS[name](N, D), objective=MAP(), steps=2)
    assert posterior.state["particles"].dtype == torch.float64


def test_an_encoder_of_another_precision_is_refused():
    model, batch = telling_model()
    guide = Amortized(N, D, vocab_size=V, max_length=T)
    with pytest.raises(UserError, match=r"Amortized.*double precision.*guide\.to"):
        fit_posterior(model.double(), batch, guide=guide, objective=AnalyticELBO(), steps=0)
    posterior = fit_posterior(model, batch, guide=guide.double(), objective=AnalyticELBO(), steps=0)
    assert posterior.state["loc"].dtype == torch.float64


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (RenyiELBO(alpha=0.5, num_particles=2), r"RenyiELBO has no differentiable_loss.*'renyi:ALPHA:K'"),
        (TraceGraph_ELBO(), r"TraceGraph_ELBO has no differentiable_loss.*'elbo' or 'iwae', or Pyro's Trace_ELBO"),
    ],
)
def test_pyros_elbos_without_a_loss_to_differentiate_are_refused(objective, says):
    model, batch = telling_model()
    with pytest.raises(UserError, match=says):
        fit_posterior(model, batch, guide=MeanField(N, D), objective=objective)

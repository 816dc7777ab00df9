"""Weights fused and cast once for many passes: values and gradients are those of the weights themselves."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from helpers.loops import fit_posterior
from helpers.tiny import enlarge, tiny_batch, tiny_config

from pyro_ltm.guides import MeanField
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.model.sampling import sample_tokens
from pyro_ltm.objectives import AnalyticELBO

HALF = torch.bfloat16


def model_in(dtype):
    model = LatentThoughtModel(tiny_config(), dtype)
    enlarge(model.decoder, seed=0)
    return model


def fit(model):
    config = model.config
    guide = MeanField(config.thoughts, config.dim)
    return fit_posterior(model, tiny_batch(), guide=guide, objective=AnalyticELBO(), steps=3)


# Products of joined weights add up in another order: what is left is the precision of what they give.
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (HALF, 2**-6)])
def test_changes_no_number(monkeypatch, dtype, atol):
    model = model_in(dtype)
    once = fit(model)
    monkeypatch.setattr(LatentThoughtModel, "fused_weights", lambda self: contextlib.nullcontext())
    each_time = fit(model)
    torch.testing.assert_close(once.state, each_time.state, atol=atol, rtol=0)
    torch.testing.assert_close(once.history, each_time.history, atol=atol, rtol=atol)


def test_one_product_for_weights_that_read_the_same(monkeypatch):
    rows = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight, *bias: (rows.append(len(weight)), linear(x, weight, *bias))[1])
    model = model_in(torch.float32)
    fit(model)
    config = model.config
    assert rows.count(3 * config.dim) == 1 + 3  # the first layer's once for all steps, the second's in each
    assert rows.count(2 * config.hidden_width) == 3 * config.layers


def pointers(model):
    return {name: (value.data_ptr(), value.dtype) for name, value in model.named_parameters()}


def has_copies(model):
    names = ("fused_weight", "cast_weight")
    return any(getattr(module, name, None) is not None for module in model.modules() for name in names)


@pytest.mark.parametrize("fails", [False, True])
def test_weights_stay_and_the_copies_go(fails):
    model = model_in(HALF)
    before = pointers(model)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext(), model.fused_weights():
        assert pointers(model) == before
        assert model.decoder.layers[0].attention.fused_weight.dtype == HALF
        assert model.decoder.layers[0].cross_attention.wo.cast_weight.dtype == HALF
        if fails:
            raise ZeroDivisionError
    assert pointers(model) == before
    assert not has_copies(model.decoder)


def test_the_last_one_to_leave_drops_the_copies():
    model = model_in(HALF)
    first, second = model.fused_weights(), model.fused_weights()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert has_copies(model.decoder)
    second.__exit__(None, None, None)
    assert not has_copies(model.decoder)


def test_a_graph_from_before_a_fit_still_has_its_weights():
    model = model_in(HALF)
    batch = tiny_batch()
    hidden = model.decoder(model.decoder.context(batch.inputs), torch.zeros(batch.size, 4, 16))
    fit(model)
    slopes = torch.autograd.grad(hidden.sum(), [layer.feed_forward.w2.weight for layer in model.decoder.layers])
    assert all(bool(slope.any()) for slope in slopes)


def test_text_can_be_written_while_a_posterior_is_fitted():
    model = model_in(HALF)
    written = []

    def watch(step, state):
        written.append(sample_tokens(model.decoder, state["loc"], torch.zeros(len(state["loc"]), 1).long(), 6).shape)

    guide = MeanField(model.config.thoughts, model.config.dim)
    fit_posterior(model, tiny_batch(), guide=guide, objective=AnalyticELBO(), steps=1, watch=watch)
    assert len(written) == 2


def test_a_fit_without_fast_steps_lays_nothing_out(monkeypatch):
    model = model_in(HALF)
    monkeypatch.setattr(model.decoder, "_fuse", lambda: pytest.fail("laid out for no pass"))
    guide = MeanField(model.config.thoughts, model.config.dim)
    fit_posterior(model, tiny_batch(), guide=guide, objective=AnalyticELBO(), steps=0)


def test_single_precision_stays():
    model = LatentThoughtModel(tiny_config())
    with model.fused_weights():
        assert model.decoder.layers[0].attention.fused_weight.dtype == torch.float32
        assert model.decoder.layers[0].attention.wo.cast_weight is None

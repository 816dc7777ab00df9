"""A decoder that is held still: its weights are joined and converted once, and come back whole."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import enlarge, tiny_batch, tiny_config

from pyro_ltm.guides import MeanField
from pyro_ltm.inference import fit_posterior
from pyro_ltm.model import LatentThoughtModel
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
    monkeypatch.setattr(LatentThoughtModel, "held", lambda self: contextlib.nullcontext())
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


@pytest.mark.parametrize("fails", [False, True])
def test_gives_the_weights_back(fails):
    model = model_in(HALF)
    before = {name: (value.data_ptr(), value.dtype) for name, value in model.named_parameters()}
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext(), model.held():
        linear = {name: value.dtype for name, value in model.named_parameters() if value.dim() == 2}
        assert linear.pop("decoder.tok_embeddings.weight") == torch.float32
        assert set(linear.values()) == {HALF}
        if fails:
            raise ZeroDivisionError
    assert {name: (value.data_ptr(), value.dtype) for name, value in model.named_parameters()} == before
    assert all(layer.attention.joined is None for layer in model.decoder.layers)


def test_single_precision_stays():
    model = LatentThoughtModel(tiny_config())
    with model.held():
        assert {value.dtype for value in model.parameters()} == {torch.float32}
        assert model.decoder.layers[0].attention.joined.dtype == torch.float32

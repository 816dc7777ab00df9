"""A fit with products in half precision: its weights are converted once, and come back whole."""

from __future__ import annotations

import contextlib

import pytest
import torch
from helpers.tiny import enlarge, tiny_batch, tiny_config

from pyro_ltm.guides import MeanField
from pyro_ltm.inference import fit_posterior
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.objectives import AnalyticELBO

HALF = torch.bfloat16


def low_model():
    model = LatentThoughtModel(tiny_config(), HALF)
    enlarge(model.decoder, seed=0)
    return model


def fit(model):
    config = model.config
    return fit_posterior(
        model,
        tiny_batch(),
        guide=MeanField(config.thoughts, config.dim),
        objective=AnalyticELBO(),
        steps=3,
    )


def test_changes_no_number(monkeypatch):
    model = low_model()
    once = fit(model)
    monkeypatch.setattr(LatentThoughtModel, "rounded", lambda self: contextlib.nullcontext())
    each_time = fit(model)
    torch.testing.assert_close(once.state, each_time.state, atol=0, rtol=0)
    torch.testing.assert_close(once.history, each_time.history, atol=0, rtol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_gives_the_weights_back(fails):
    model = low_model()
    before = {name: (value.data_ptr(), value.dtype) for name, value in model.named_parameters()}
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext(), model.rounded():
        linear = {name: value.dtype for name, value in model.named_parameters() if value.dim() == 2}
        assert linear.pop("decoder.tok_embeddings.weight") == torch.float32
        assert set(linear.values()) == {HALF}
        if fails:
            raise ZeroDivisionError
    assert {name: (value.data_ptr(), value.dtype) for name, value in model.named_parameters()} == before


def test_does_nothing_in_single_precision():
    model = LatentThoughtModel(tiny_config())
    with model.rounded():
        assert {value.dtype for value in model.parameters()} == {torch.float32}

"""Products in bfloat16 give what single precision gives, gradients and fits too, but for their rounding.

bfloat16 keeps 8 bits: one rounding is off by up to 2^-9 of what it rounds. Dozens of them, on the way up and down
again, each of its own sign, leave a gradient off by some 8 * 2^-9 (7 to 9 measured, to the thoughts). Twice that is
allowed, which is a cosine of 0.9995.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

import pytest
import torch
from helpers.devices import as_on_a_gpu
from helpers.loops import fit_posterior
from helpers.tiny import enlarge, telling_model, tiny_batch, tiny_config

from pyro_ltm.guides import MeanField
from pyro_ltm.model import LatentThoughtModel, TokenSequence
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.types import frozen

NEAR = 16 * 2**-9
FAR = 48 * 2**-9  # of one weight's gradient, where little of what is summed is left (up to 25 * 2^-9 measured)


@pytest.fixture(params=["cpu", "gpu"], autouse=True)
def _ways(request, monkeypatch):
    """On a CPU attention is in single precision up to the mixing of projected thoughts; on a GPU it is rounded, too."""
    if request.param == "gpu":
        as_on_a_gpu(monkeypatch)


def gradients(dtype, learns, token_slice):
    """Of log p(x | z): to the thoughts and, where the decoder learns, to each of its weights."""
    model, batch = LatentThoughtModel(tiny_config(layers=3, thoughts=6, max_length=24), dtype), tiny_batch(3, 24)
    enlarge(model.decoder, seed=0)
    thoughts = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    leaves = {"thoughts": thoughts} | (dict(model.decoder.named_parameters()) if learns else {})
    with ExitStack() as stack:
        if not learns:
            stack.enter_context(frozen(model))
            stack.enter_context(model.fused_weights())
            batch = model.precompute(batch)
        batch = dataclasses.replace(batch, token_slice=token_slice)
        nats = TokenSequence(model.decoder, thoughts, batch).log_prob(batch.targets)
        return dict(zip(leaves, torch.autograd.grad(nats.sum(), list(leaves.values())), strict=True))


def error(rough, exact):
    return float((rough - exact).norm() / exact.norm())


@pytest.mark.parametrize("token_slice", [None, slice(9, 15)], ids=["whole", "token_slice"])
@pytest.mark.parametrize("learns", [False, True], ids=["fast", "slow"])
def test_gradients_are_those_of_single_precision(learns, token_slice):
    exact, rough = (gradients(dtype, learns, token_slice) for dtype in (torch.float32, torch.bfloat16))
    assert {gradient.dtype for gradient in rough.values()} == {torch.float32}
    assert 2**-9 < error(rough.pop("thoughts"), exact.pop("thoughts")) < NEAR  # rounded, and no more than that
    if learns:
        assert error(*(torch.cat([each.flatten() for each in weights.values()]) for weights in (rough, exact))) < NEAR
    for name, gradient in rough.items():
        assert error(gradient, exact[name]) < FAR, name


def test_a_fit_comes_as_far_as_in_single_precision():
    """Scored in single precision, both: a rounded fit loses less than a hundredth of what a fit gains."""
    full, batch = telling_model()
    half = LatentThoughtModel(full.config, torch.bfloat16)
    half.load_state_dict(full.state_dict())
    bounds = []
    for model, steps in ((full, 0), (full, 8), (half, 8)):
        posterior = fit_posterior(model, batch, guide=MeanField(4, 16), objective=AnalyticELBO(), steps=steps)
        terms = posterior.with_noise(1).score(full, batch, particles=16)
        bounds.append(float((terms.log_likelihood.mean(0) - terms.kl).sum()))
    start, exact, rough = bounds
    assert exact - start > 40, "nats of four sequences"
    assert abs(rough - exact) < 0.01 * (exact - start)

"""Packed weights: the same decoder, read faster, and only where it gains."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.tiny import D, N, enlarge, tiny_config, tiny_decoder, tiny_tokens

from pyro_ltm.model import Decoder, DecodingOptions, sample_tokens
from pyro_ltm.model.kernels import packed

ROWS, STEPS = 5, 6


@pytest.fixture
def eager(monkeypatch):
    """Every size gains."""
    monkeypatch.setattr("pyro_ltm.model.kernels.packed.WEIGHTS", 0)
    monkeypatch.setattr("pyro_ltm.model.kernels.packed.TOKENS", 0)


@pytest.mark.skipif(not packed.packs(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("thoughts", [N, 0])
def test_the_same_hidden_states_and_logits(eager, thoughts):
    decoder = tiny_decoder(tiny_config(thoughts=thoughts))
    z = torch.randn(ROWS, thoughts, D)
    faster = packed.packed(decoder, ROWS, STEPS)
    assert faster is not decoder
    assert sum(isinstance(each, packed.Packed) for each in faster.modules()) > 8
    tokens = tiny_tokens(ROWS, STEPS)
    exact = copy.deepcopy(decoder).double()
    with torch.no_grad():
        whole = exact.logits(exact(exact.context(tokens), z.double()))
        _, cache = decoder.prefill(tokens[:, :1], z)
        errors = {"usual": 0.0, "packed": 0.0}
        for index in range(1, STEPS):
            for name, each in (("usual", decoder), ("packed", faster)):
                logits = each.logits(each.step(tokens[:, index], copy.deepcopy(cache)))
                errors[name] = max(errors[name], float((logits - whole[:, index]).abs().max()))
            faster.step(tokens[:, index], cache)
        torch.testing.assert_close(faster.prefill(tokens, z)[0], decoder.prefill(tokens, z)[0])
    assert 0 < errors["packed"] < 4 * errors["usual"], "single precision, in another order"
    # The weights are there once, and the decoder is as it was.
    assert {each.data_ptr() for each in faster.parameters()} == {each.data_ptr() for each in decoder.parameters()}
    assert not any(isinstance(each, packed.Packed) for each in decoder.modules())


@pytest.mark.skipif(not packed.packs(), reason="this torch has no oneDNN")
def test_generation_packs_and_writes_the_same(eager, monkeypatch):
    decoder, z, prompt = tiny_decoder(), torch.randn(ROWS, N, D), tiny_tokens(ROWS, 3)
    made = []
    pack = packed.Packed.__init__
    monkeypatch.setattr(packed.Packed, "__init__", lambda self, *given: (made.append(given), pack(self, *given))[1])
    fast = sample_tokens(decoder, z, prompt, STEPS, sampler=DecodingOptions(temperature=0))
    assert made
    monkeypatch.setattr("pyro_ltm.model.kernels.packed.TOKENS", STEPS + 1)
    assert torch.equal(fast, sample_tokens(decoder, z, prompt, STEPS, sampler=DecodingOptions(temperature=0)))


@pytest.mark.skipif(not packed.packs(), reason="this torch has no oneDNN")
def test_other_rows_come_out_right_too():
    weight = torch.randn(7, 16)
    faster = packed.Packed(weight, ROWS, torch.float32)
    for rows in (1, ROWS, 9):
        x = torch.randn(rows, 1, 16)
        torch.testing.assert_close(faster(x), x @ weight.T)


def test_a_decoder_that_gains_nothing_stays_itself(eager, monkeypatch):
    decoder = tiny_decoder()
    for each, rows in ((decoder, packed.ROWS + 1), (copy.deepcopy(decoder).double(), ROWS)):
        assert packed.packed(each, rows, STEPS) is each
    low = Decoder(tiny_config(), compute_dtype=torch.bfloat16)
    assert packed.packed(low, ROWS, packed.HALF_TOKENS - 1) is low
    monkeypatch.setattr("pyro_ltm.model.kernels.packed.packs_half", lambda: False)  # a processor without bfloat16
    assert packed.packed(low, ROWS, STEPS) is low
    monkeypatch.setattr("pyro_ltm.model.kernels.packed.packs", lambda: False)  # a torch without oneDNN
    assert packed.packed(decoder, ROWS, STEPS) is decoder
    monkeypatch.undo()
    assert packed.packed(decoder, ROWS, 10_000) is decoder, "small"


@pytest.mark.skipif(not packed.packs_half(), reason="this processor does not multiply in bfloat16")
@pytest.mark.parametrize("rows", [1, ROWS])
def test_half_precision_gives_what_autocast_gives(rows):
    low = Decoder(tiny_config(), compute_dtype=torch.bfloat16)
    enlarge(low, seed=0)
    z, prompt = torch.randn(rows, N, D), tiny_tokens(rows, 3)
    faster = packed.packed(low, rows, STEPS)
    assert sum(isinstance(each, packed.Packed) for each in faster.modules()) > 8
    with torch.no_grad():
        _, cache = low.prefill(prompt, z)
        for token in prompt.T:
            theirs, ours = (each.logits(each.step(token, copy.deepcopy(cache))) for each in (low, faster))
            # Equal products, but for the order of sums: a unit or two in the last of bfloat16's 8 bits.
            torch.testing.assert_close(ours, theirs, atol=2**-6 * float(theirs.abs().max()), rtol=0)
            low.step(token, cache)
    written = sample_tokens(low, z, prompt, STEPS)
    assert written.shape == (rows, prompt.shape[1] + STEPS)

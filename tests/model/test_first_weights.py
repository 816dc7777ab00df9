"""What a decoder begins with: outputs of zero, and cross-attention by which it begins as its own twin."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers.tiny import D, N, tiny_batch, tiny_config

from pyro_ltm.config import Config
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.build import build, check_config
from pyro_ltm.model import Decoder, TokenSequence
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.optimizers import Adam
from pyro_ltm.training import train_step
from pyro_ltm.types import Batch


def first_weights(**options):
    torch.manual_seed(0)
    return Decoder(tiny_config(**options)).state_dict()


@pytest.mark.parametrize("feed_forward", ["swiglu", "relu2"])
def test_zero_init_makes_outputs_zero_and_leaves_the_others_as_they_are(feed_forward):
    usual, zeros = (first_weights(zero_init=on, feed_forward=feed_forward) for on in (False, True))
    for name, weight in zeros.items():
        if name.endswith(("wo.weight", "w2.weight")):
            assert not weight.any()
            assert usual[name].any()
        else:
            assert torch.equal(weight, usual[name])
    assert sum(not weight.any() for weight in zeros.values()) == 2 * 3


def test_zero_init_leaves_the_embedding_alone_to_speak():
    decoder = Decoder(tiny_config(zero_init=True))
    tokens = tiny_batch().inputs
    hidden = decoder(decoder.context(tokens), torch.randn(3, N, D))
    assert torch.equal(hidden, decoder.norm(decoder.tok_embeddings(tokens)))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("options", [{}, {"value_embeddings": True, "tied": False, "qk_norm": True}])
@pytest.mark.parametrize("thoughts", [N, 16])
def test_zero_cross_attention_begins_as_the_twin_to_the_bit(seed, options, thoughts):
    """Of the same seed, whatever the thoughts, in single precision and in half."""
    shape = tiny_config(zero_cross_attention=True, thoughts=thoughts, max_length=16, **options)
    for dtype in ("float32", "bfloat16"):
        config = Config(model=shape, seed=seed, dtype=dtype)
        model, _ = build(config)
        twin, _ = build(dataclasses.replace(config, model=shape.twin))
        kept = {name: w for name, w in model.decoder.state_dict().items() if "cross_attention" not in name}
        assert kept.keys() == twin.decoder.state_dict().keys()
        assert all(torch.equal(w, twin.decoder.state_dict()[name]) for name, w in kept.items())
        batch = tiny_batch()
        with torch.no_grad():
            alone, its = (each.log_prob_without_thoughts(batch) for each in (model, twin))
            given = TokenSequence(model.decoder, 100 * torch.randn(3, thoughts, D), batch).log_prob(batch.targets)
        assert torch.equal(alone, its)
        assert torch.equal(given, alone)


def test_without_the_option_a_twin_of_the_same_seed_has_other_weights():
    """As in releases before it: an LTM draws its cross-attention in between."""
    weights, twins = first_weights(), first_weights(thoughts=0)
    assert not torch.equal(weights["layers.1.attention.wq.weight"], twins["layers.1.attention.wq.weight"])


def test_first_weights_of_zero_cross_attention_have_their_sizes_and_their_own_seeds():
    torch.manual_seed(0)
    config = tiny_config(dim=64, zero_cross_attention=True, init_std=0.03)
    first, second = Decoder(config), Decoder(config)
    for (name, weight), other in zip(first.named_parameters(), second.parameters(), strict=True):
        if weight.dim() == 1 or name.endswith("cross_attention.wo.weight"):
            continue
        assert not torch.equal(weight, other), "two decoders made in turn"
        std = 0.03 / (2 if name.endswith(("wo.weight", "w3.weight")) else 1)
        assert abs(float(weight.detach().std()) - std) < 4 * std / (2 * weight.numel()) ** 0.5, name
    check_config(Config(model=config))  # on the meta device, where nothing is drawn


def test_thoughts_begin_to_matter_all_the_same():
    """In the first slow step z has no gradient, and q stays at the prior; but `wo` has one, and z from then on."""
    model, _ = build(Config(model=tiny_config(zero_cross_attention=True, init_std=0.2, window=1, layers=1, thoughts=2)))
    loop = FastLoop(MeanField(2, D), AnalyticELBO(), Adam(lr=0.3, eps=0.01), steps=3)
    # 0 k 0 k ... of 8 kinds k: after 0 nothing but the thoughts says which, and they save 6 log 8 = 12 nats.
    tokens = torch.zeros(16, 13, dtype=torch.int64)
    tokens[:, 1::2] = 1 + torch.arange(16)[:, None] % 8
    batch = Batch.from_tokens(tokens)
    assert not loop.fit(model, batch).state["loc"].any()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    reports = []
    for step in range(40):
        reports.append(train_step(model, [batch], loop, optimizer, clip=1.0, seed=step))
        if step == 0:
            crossing = [layer.cross_attention for layer in model.decoder.layers]
            assert all(each.wo.weight.grad.abs().max() > 0 for each in crossing)
            assert all(each.wv.weight.grad.abs().max() == 0 for each in crossing)
    assert reports[0].rate == 0
    assert reports[-1].rate > 1
    late = sum(float(report.distortion) for report in reports[-10:]) / 10
    assert late < 0.8 * math.log(8) / 2, "nats a token: below what can be said without thoughts"

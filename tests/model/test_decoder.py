"""The decoder against an independent one, in logits and gradients."""

from __future__ import annotations

import pytest
import torch
from helpers.plain import plain_logits
from helpers.tiny import tiny_config, tiny_decoder, tiny_tokens

from benchmarks.plain import unit_turns
from pyro_ltm.model import Decoder
from pyro_ltm.model.attention import rotary_table

# T shorter than, equal to and longer than the window; T no multiple of a block (16 queries); a window of one token;
# several thoughts a layer, one, none; one layer and three; another number of heads; T below the longest.
SHAPES = {
    "T < W": ({"window": 9}, 6),
    "T = W": ({"window": 12}, 12),
    "T > W": ({"window": 5}, 12),
    "T = W + 1": ({"window": 11}, 12),
    "several blocks": ({"window": 7, "max_length": 48}, 43),
    "whole blocks": ({"window": 32, "max_length": 48}, 48),
    "window of one": ({"window": 1}, 12),
    "window of one, several blocks": ({"window": 1, "max_length": 40}, 40),
    "one thought a layer": ({"thoughts": 2}, 12),
    "as many thoughts as positions": ({"thoughts": 12}, 12),
    "as many thoughts in a layer as a head is wide": ({"thoughts": 16, "max_length": 16}, 12),
    "three layers": ({"layers": 3, "thoughts": 6}, 12),
    "one layer": ({"layers": 1, "thoughts": 3}, 12),
    "four heads": ({"heads": 4}, 12),
    "one token": ({}, 1),
    "twin": ({"thoughts": 0}, 12),
    "own hidden width, theta and epsilon": ({"hidden": 24, "rope_theta": 100.0, "norm_eps": 1e-2}, 12),
}


def both(changes, length, *, turns=True):
    """Our logits and the plain ones, with everything that they depend on as leaves."""
    config = tiny_config(**changes)
    decoder = tiny_decoder(config)
    tokens = tiny_tokens(3, length)[:, :-1]
    thoughts = torch.randn(3, config.thoughts, config.dim).requires_grad_()
    ours = decoder.logits(decoder(decoder.context(tokens), thoughts))
    plain = plain_logits(
        dict(decoder.named_parameters()),
        tokens,
        thoughts if config.thoughts else None,
        layers=config.layers,
        heads=config.heads,
        window=config.window,
        max_length=config.max_length,
        theta=config.rope_theta,
        eps=config.norm_eps,
        turns=torch.complex(*decoder.table.double()) if turns else None,
    )
    return decoder, thoughts, ours, plain


@pytest.mark.parametrize(("changes", "length"), SHAPES.values(), ids=SHAPES)
def test_logits_agree_with_the_plain_decoder(changes, length):
    _, _, ours, plain = both(changes, length, turns=False)
    # Single precision: sums of at most 64 terms of order one in each of some ten products, logits of order one.
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("changes", "length"), SHAPES.values(), ids=SHAPES)
def test_logits_and_gradients_agree_in_double_precision(changes, length):
    """On the decoder's own rotary table, which is in single precision and is checked by itself below."""
    torch.set_default_dtype(torch.float64)
    decoder, thoughts, ours, plain = both(changes, length)
    torch.testing.assert_close(ours, plain, atol=1e-10, rtol=0)
    leaves = {**dict(decoder.named_parameters()), **({"thoughts": thoughts} if thoughts.numel() else {})}
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((logits * weight).sum(), list(leaves.values())) for logits in (ours, plain)]
    for name, mine, theirs in zip(leaves, *gradients, strict=True):
        # Gradients are larger than logits: sums over B * T positions, so relative to the largest.
        torch.testing.assert_close(mine, theirs, atol=1e-10 * max(1, float(theirs.abs().max())), rtol=0, msg=name)
        # A window of one, or one thought, leaves queries and keys nothing to choose from; else no weight may be idle.
        alone = decoder.config.thoughts == decoder.config.layers and "cross_attention_norm" in name
        idle = name.endswith(("wq.weight", "wk.weight")) or alone
        assert idle or mine.abs().max() > 0, f"{name} has no effect"


def test_rotary_table_agrees_with_complex_numbers():
    positions, width, theta = 1024, 64, 10000.0
    table = rotary_table(torch.arange(positions), width, theta)
    exact = unit_turns(positions, width, theta)
    # An angle has gone through at most three roundings (exponent and power, product) of 2^-24 each; the exponent's
    # counts log(theta) times. Cosine and sine lie within the angle's error and a rounding of their own.
    angle = exact.angle().new_tensor([[p * theta ** (-2 * k / width) for k in range(32)] for p in range(positions)])
    allowed = 2**-24 * (angle * (3 + 9.3) + 2)
    assert ((torch.complex(*table.double()) - exact).abs() < 2 * allowed).all()


def test_nothing_looks_ahead_or_beyond_what_the_layers_windows_reach():
    torch.set_default_dtype(torch.float64)
    config = tiny_config(window=3, max_length=24, thoughts=4)
    decoder, thoughts = tiny_decoder(config), torch.randn(1, 4, config.dim)
    tokens = tiny_tokens(1, 24)[:, :-1]
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % config.vocab_size
    before, after = (decoder(decoder.context(x), thoughts)[0] for x in (tokens, changed))
    moved = (before != after).any(-1).nonzero()[:, 0].tolist()
    # Each of the L layers carries a token W - 1 positions further.
    assert moved == list(range(10, 10 + config.layers * (config.window - 1) + 1))


def test_each_layer_reads_its_own_thoughts():
    """With the cross-attention of a layer cut off, exactly the thoughts of that layer lose their effect."""
    torch.set_default_dtype(torch.float64)
    for cut in range(2):
        decoder = tiny_decoder(tiny_config(thoughts=4))
        torch.nn.init.zeros_(decoder.layers[cut].cross_attention.wo.weight)
        thoughts = torch.randn(2, 4, 16).requires_grad_()
        decoder(decoder.context(tiny_tokens(2)[:, :-1]), thoughts).square().sum().backward()
        live = thoughts.grad.abs().amax((0, 2)) > 0
        assert live.tolist() == [layer != cut for layer in (0, 0, 1, 1)]


def test_initial_weights_have_their_sizes():
    config = tiny_config(dim=64, heads=4, vocab_size=400, layers=2, thoughts=4, init_std=0.03)
    decoder = Decoder(config)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == 1).all()
            continue
        std = config.init_std / (2 if name.endswith(("wo.weight", "w3.weight")) else 1)  # sqrt(2L) = 2
        # The standard deviation of n draws has standard error std / sqrt(2n).
        assert abs(float(parameter.detach().std()) - std) < 4 * std / (2 * parameter.numel()) ** 0.5, name


@pytest.mark.parametrize("length", [12, 4])
def test_bfloat16_stays_near(length):
    config = tiny_config()
    full = tiny_decoder(config)
    half = Decoder(config, torch.bfloat16)
    half.load_state_dict(full.state_dict())
    tokens, thoughts = tiny_tokens(3, length)[:, :-1], torch.randn(3, 4, 16)
    exact, rough = (d.logits(d(d.context(tokens), thoughts)) for d in (full, half))
    assert rough.dtype == torch.float32
    # bfloat16 keeps 8 bits. A dozen roundings in a row, each of half a unit in the last place relative to what it
    # rounds (2^-9), give about sqrt(12) * 2^-9 of the logits' spread as root mean square; three times that is allowed.
    error = (rough - exact).square().mean().sqrt() / exact.std()
    assert 2**-12 < error < 3 * 12**0.5 * 2**-9


def test_layers_computed_again_give_the_same_gradients_in_less_memory():
    from pyro_ltm.profiling.memory import peak_memory

    config = tiny_config(layers=6, thoughts=6, max_length=32)
    decoder, tokens = tiny_decoder(config), tiny_tokens(4, 32)[:, :-1]
    thoughts = torch.randn(4, 6, config.dim)

    def gradients():
        decoder.zero_grad(set_to_none=True)
        hidden = decoder(decoder.context(tokens), thoughts)
        hidden.square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in decoder.named_parameters()}

    kept, memory = gradients(), peak_memory(gradients)
    decoder.recompute = True
    again, less = gradients(), peak_memory(gradients)
    for name, gradient in kept.items():
        assert torch.equal(again[name], gradient), name
    assert less < 0.6 * memory
    with torch.no_grad():
        decoder(decoder.context(tokens), thoughts)  # and nothing is recomputed where nothing learns

"""What one prior alone promises."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import D, L, N, T, V, enlarge, tiny_batch, tiny_config, tiny_model
from torch import nn

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import GUIDES
from pyro_ltm.inference.generation import sample_tokens
from pyro_ltm.model import Decoder, LatentThoughtModel, TokenSequence
from pyro_ltm.model.protocol import TokenDecoder
from pyro_ltm.model.sampling import DecodingOptions
from pyro_ltm.priors import Layered, Transport, Vamp


def transported():
    """A model whose map is far from the identity."""
    model = LatentThoughtModel(tiny_config(), prior=Transport(N, D, hidden=8))
    enlarge(model.decoder, seed=0)
    return model


def test_the_decoder_reads_what_the_map_gives_wherever_thoughts_enter():
    model, plain, batch = transported(), tiny_model(), tiny_batch(2)
    weights = model.decoder.state_dict()
    plain.decoder.load_state_dict({name: weights[name] for name in plain.decoder.state_dict()})
    z0 = torch.randn(2, N, D)
    z = model.decoder.transport(z0)
    assert (z - z0).abs().max() > 0.1
    read = [TokenSequence(of.decoder, x, batch).log_prob(batch.targets) for of, x in ((model, z0), (plain, z))]
    torch.testing.assert_close(*read)
    likeliest = DecodingOptions(temperature=0)
    written = [
        sample_tokens(of.decoder, x, batch.inputs[:, :2], 4, sampler=likeliest) for of, x in ((model, z0), (plain, z))
    ]
    assert torch.equal(*written)


def test_a_map_begins_as_the_identity_to_the_bit_and_belongs_to_the_decoder_alone():
    model, z0 = LatentThoughtModel(tiny_config(), prior=Transport(N, D)), torch.randn(2, N, D)
    assert torch.equal(model.decoder.transport(z0), z0)
    assert not list(model.prior.parameters())
    assert [name for name, _ in model.named_parameters() if name.startswith("decoder.transport.")]


def test_a_decoder_without_a_place_for_a_map_refuses_it():
    class Foreign(TokenDecoder):
        pass

    with pytest.raises(UserError, match=r"Foreign reads thoughts as they are.*'gaussian'"):
        LatentThoughtModel(tiny_config(), decoder=Foreign(), prior=Transport(N, D))
    LatentThoughtModel(tiny_config(), decoder=Foreign())
    assert Decoder(tiny_config()).transport is None


def test_pseudo_texts_are_read_by_the_guides_own_encoder():
    shape = {"thoughts": N, "dim": D, "layers": L, "vocab_size": V, "max_length": T, "seed": 0}
    guide = GUIDES.build(Component(name="semi-amortized", options={"width": 8, "heads": 2}), **shape)
    nn.init.normal_(guide.encoder.head.weight)
    prior = Vamp(N, D, components=3, length=5)
    prior.join(guide)
    assert list(prior.state_dict()) == ["texts"]
    tokens = torch.randint(V, (1, 5))
    with torch.no_grad():
        prior.texts[1] = guide.encoder.tokens(tokens[0])
    batch = tiny_batch(1, 5)
    batch = type(batch)(inputs=tokens, targets=tokens, mask=torch.ones_like(tokens, dtype=torch.bool), ids=batch.ids)
    q, component = guide.distribution(guide.init(batch)), prior().component_distribution
    torch.testing.assert_close(component.mean[1], q.mean[0])
    torch.testing.assert_close(component.variance[1], q.variance[0])
    prior().log_prob(torch.randn(N, D)).backward()
    assert prior.texts.grad.abs().sum() > 0
    assert guide.encoder.head.weight.grad.abs().sum() > 0


def test_without_an_encoder_there_are_pseudo_posteriors():
    prior = Vamp(N, D, components=3)
    prior.join(GUIDES["mean-field"](N, D))
    assert set(prior.state_dict()) == {"loc", "log_scale"}


def test_a_layer_depends_on_those_below_and_on_no_other():
    prior = Layered(N, D, layers=L, hidden=8)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    below, above = torch.randn(2, N // L, D), torch.randn(2, N // L, D)

    def log_prob(lower, upper):
        return prior().log_prob(torch.cat([lower, upper]))

    upper_changed = log_prob(below[0], above[0]) - log_prob(below[0], above[1])
    assert not torch.isclose(upper_changed, log_prob(below[1], above[0]) - log_prob(below[1], above[1]))
    with pytest.raises(UserError, match=r"layers = 3: at least 1, and a divisor of the 4 thoughts"):
        Layered(N, D, layers=3)

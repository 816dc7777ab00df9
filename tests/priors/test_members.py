"""What one prior alone promises."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers.tiny import D, L, N, T, V, enlarge, tiny_batch, tiny_config, tiny_model
from torch import nn

from pyro_ltm.config import Component, Config, FastConfig
from pyro_ltm.errors import UserError
from pyro_ltm.guides import GUIDES, MeanField
from pyro_ltm.inference import Annealing, FastLoop, build, generate
from pyro_ltm.inference.generation import sample_tokens
from pyro_ltm.model import Decoder, LatentThoughtModel, TokenSequence
from pyro_ltm.model.protocol import TokenDecoder
from pyro_ltm.model.sampling import DecodingOptions
from pyro_ltm.objectives import AnalyticELBO, StickingTheLanding
from pyro_ltm.priors import Conditional, Diffusion, Layered, Transport, Vamp
from pyro_ltm.priors.diffusion import path_noise
from pyro_ltm.scores import evaluate_annealed, evaluate_bound


class Letters:
    """A token for each letter."""

    end_of_text = 0

    def encode(self, text):
        return [ord(letter) % 26 + 1 for letter in text]

    def decode(self, ids):
        return "".join(chr(96 + token) for token in ids)


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


@torch.no_grad()
def test_diffusion_begins_as_the_standard_normal_exactly_and_noises_each_draw_by_itself():
    prior = Diffusion(N, D, steps=3, hidden=8).double()
    z = torch.randn(2, 3, N, D, dtype=torch.float64)
    exact = torch.distributions.Normal(0, 1).log_prob(z).sum((-2, -1))
    torch.testing.assert_close(prior().log_prob(z), exact)
    noise = path_noise(z, 3)
    assert torch.equal(noise[:, 1, 2], path_noise(z[1, 2], 3))
    assert not torch.equal(noise[:, 1, 2], path_noise(z[1, 2] + 1e-9, 3))
    assert (noise.mean().abs(), (noise.std() - 1).abs()) < (0.2, 0.2)


@torch.no_grad()
def test_the_estimate_of_a_diffusion_prior_is_on_average_below_its_log_density():
    """Of two numbers, the density by averaging many paths: points that differ in their last bits have others."""
    prior = Diffusion(1, 2, steps=3, hidden=8).double()
    for parameter in prior.parameters():
        parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    point = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    each = prior().log_prob(point + 1e-9 * torch.randn(4000, 1, 2, dtype=torch.float64))
    log_density = each.logsumexp(0) - math.log(len(each))
    assert each.mean() < log_density - 3 * each.std() / len(each) ** 0.5


@pytest.mark.parametrize("guide", ["delta", "langevin", "laplace"])
def test_what_follows_the_joint_density_is_refused_under_diffusion(guide):
    config = Config(model=tiny_config(), guide=Component(name=guide), objective=Component(name="map"))
    config = dataclasses.replace(config, prior=Component(name="diffusion"))
    with pytest.raises(UserError, match=r"of which the prior Diffusion has estimates.*mean-field"):
        build(config)
    model = LatentThoughtModel(tiny_config(), prior=Diffusion(N, D))
    with pytest.raises(UserError, match="annealing follows a density"):
        evaluate_annealed(model, [tiny_batch(1)], FastLoop(MeanField(N, D), StickingTheLanding()), start="q")


def test_the_prior_of_a_prompt_learns_what_texts_that_begin_so_think():
    """Sequences that begin with one of two tokens, whose thoughts lie at 2 and at -2."""
    model = LatentThoughtModel(tiny_config(), prior=Conditional(N, D, hidden=16))
    enlarge(model.decoder, seed=0)
    optimizer = torch.optim.Adam(model.prior.parameters(), lr=0.02)
    batch = tiny_batch(16)
    kinds = torch.arange(16) % 2
    batch = dataclasses.replace(batch, targets=(kinds + 3)[:, None].expand(16, T))
    thoughts = (4.0 * kinds - 2)[:, None, None] + 0.3 * torch.randn(16, N, D)
    for step in range(60):
        loss = model.prompt_loss(batch, thoughts, seed=step)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert not list(filter(lambda p: p.grad is not None, model.decoder.parameters()))
    with torch.no_grad():
        given = model.prior_given(batch.targets[:2, :3], batch.mask[:2, :3])
        assert (given.mean.mean((-2, -1)) - torch.tensor([-2.0, 2.0])).abs().max() < 0.5
        lengths = [model.prompt_loss(batch, thoughts, seed=seed) for seed in (1, 1, 2)]
        assert torch.equal(lengths[0], lengths[1])
        part = model.prompt_loss(batch.select(torch.arange(3, 5)), thoughts[3:5], seed=1)
        torch.testing.assert_close(part, lengths[0][3:5])


def test_generate_draws_from_the_prior_of_the_prompt():
    model = tiny_model()
    model.prior = Conditional(N, D, hidden=8)
    for parameter in model.prior.parameters():
        nn.init.normal_(parameter)
    loop = FastLoop(MeanField(N, D), AnalyticELBO(), steps=1)
    given = model.prior.given(torch.zeros(1, D))
    assert not torch.allclose(given.mean[0], model.prior().mean)
    asked = []
    prior_given = model.prior_given
    model.prior_given = lambda *prompt: asked.append(prompt) or prior_given(*prompt)
    generate(model, loop, Letters(), prompt="abc", num=2, max_new_tokens=2)
    ((tokens, mask),) = asked
    assert tokens[mask].tolist() == Letters().encode("abc")
    generate(model, loop, Letters(), num=2, max_new_tokens=2)
    several = generate(model, loop, Letters(), prompts=["ab", "b"], max_new_tokens=2)
    assert len(several) == 2
    assert len(asked) > 1


@pytest.mark.parametrize(
    ("guide", "objective", "optimizer", "prior"),
    [
        ("laplace", "map", "adam", "mixture:3"),
        ("langevin", "map", "adam", "flow"),
        ("hmc", "map", "adam", "layered"),
        ("full-rank", "stl", "natural", "layered"),
        ("flow", "stl", "adam", "vamp:3"),
        ("mean-field", "target-rate", "adam", "diffusion:3"),
        ("low-rank", "free-bits", "adam", "transport"),
        ("mean-field", "free-bits:1:thought", "natural", "conditional"),
    ],
)
def test_guides_objectives_and_optimizers_work_under_learned_priors(guide, objective, optimizer, prior):
    names = {"guide": guide, "objective": objective, "optimizer": optimizer, "prior": prior}
    components = {axis: Component(name=name) for axis, name in names.items()}
    model, loop = build(Config(model=tiny_config(), fast=FastConfig(steps=2), **components))
    batch = tiny_batch(2)
    found = evaluate_bound(model, [batch], loop.with_density(), particles=2)
    assert math.isfinite(found.nats_per_token)
    assert loop.fit(model, batch, seed=0).sample(2).isfinite().all()


@pytest.mark.parametrize("prior", ["mixture:3", "flow", "layered", "transport"])
def test_chains_are_annealed_from_a_learned_prior(prior):
    config = Config(model=tiny_config(), prior=Component(name=prior), objective=Component(name="stl"))
    model, loop = build(config)
    how = Annealing(temperatures=2, chains=2, leapfrogs=1)
    found = evaluate_annealed(model, [tiny_batch(2)], loop, start="prior", annealing=how)
    assert math.isfinite(found.nats_per_token)

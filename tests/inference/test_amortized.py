"""Encoders: what the slow step teaches them, to first order and, unrolled, to second."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.loops import fit_posterior
from helpers.tiny import D, L, N, T, V, telling_model, tiny_batch, tiny_config, tiny_model

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Amortized, MeanField, SemiAmortized
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.build import build_guide
from pyro_ltm.noise import DrawFrom, Noise
from pyro_ltm.objectives import OBJECTIVES, AnalyticELBO, MonteCarloELBO
from pyro_ltm.optimizers import SGD, Adam
from pyro_ltm.training import train_step
from pyro_ltm.training.step import slow_loss

SHAPE = {"vocab_size": V, "max_length": T, "width": 8, "heads": 2, "encoder_layers": 1}


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def awake(guide):
    """The encoder with a head that says something: at its start it says the prior, whatever it reads."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        guide.encoder.head.weight.copy_(0.3 * torch.randn(guide.encoder.head.weight.shape, generator=generator))
    return guide


def test_starts_at_the_prior_and_reads_only_what_counts():
    guide = Amortized(N, D, **SHAPE)
    batch = tiny_batch(3)
    assert all((value == 0).all() for value in guide.init(batch).values())
    awake(guide)
    mask = batch.mask.clone()
    mask[:, 8:] = False
    short = tiny_batch(3)
    targets = batch.targets.clone()
    targets[:, 8:] = 0
    first = guide.init(type(batch)(inputs=batch.inputs, targets=batch.targets, mask=mask, ids=batch.ids))
    other = guide.init(type(batch)(inputs=batch.inputs, targets=targets, mask=mask, ids=batch.ids))
    assert torch.equal(first["loc"], other["loc"]), "padding is not read"
    assert not torch.equal(first["loc"], guide.init(short)["loc"])
    with pytest.raises(UserError, match="no targets"):
        guide.init(batch.unobserved())


@pytest.mark.parametrize("width", [{"width": 9}, {"heads": 0}, {"encoder_layers": 0}])
def test_refuses_a_shape_that_is_none(width):
    with pytest.raises(UserError, match="multiple of heads"):
        Amortized(N, D, **(SHAPE | width))


def loss_of(model, guide, batch, steps, keep):
    optimizer = SGD(lr=0.05, momentum=0.5)
    posterior = fit_posterior(
        model, batch, guide=guide, objective=AnalyticELBO(), optimizer=optimizer, steps=steps, seed=3, keep_graph=keep
    )
    with DrawFrom(posterior.noise):
        loss, _ = slow_loss(model, batch, posterior, AnalyticELBO())
    return loss


@pytest.mark.parametrize("optimizer", [SGD(lr=0.05, momentum=0.5), Adam(lr=0.1, eps=0.1)], ids=["sgd", "adam"])
def test_the_unrolled_gradient_is_that_of_the_whole_computation(optimizer):
    """Finite differences of the refined bound in weights of the encoder and of the decoder (float64)."""
    model, batch = telling_model(2)
    guide = awake(SemiAmortized(N, D, unrolled=True, **SHAPE))

    def whole():
        posterior = fit_posterior(
            model,
            batch,
            guide=guide,
            objective=AnalyticELBO(),
            optimizer=optimizer,
            steps=3,
            seed=3,
            keep_graph=True,
        )
        with DrawFrom(posterior.noise):
            return slow_loss(model, batch, posterior, AnalyticELBO())[0]

    watched = [guide.encoder.head.weight, guide.encoder.queries, model.decoder.layers[1].cross_attention.wv.weight]
    gradients = torch.autograd.grad(whole(), watched)
    step = 1e-5
    for parameter, gradient in zip(watched, gradients, strict=True):
        where = gradient.abs().flatten().argmax()
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[where] += sign * step
            sides.append(float(whole().detach()))
            with torch.no_grad():
                parameter.view(-1)[where] -= sign * step
        numeric = (sides[0] - sides[1]) / (2 * step)
        # Central differences: error of the order step^2 times the third derivative, and roundoff / step.
        assert float(gradient.flatten()[where]) == pytest.approx(numeric, rel=1e-4)
        assert abs(numeric) > 1e-3


def test_the_second_order_part_is_there():
    """Cutting the graph at the start of the fast steps gives another gradient."""
    model, batch = telling_model(2)
    guide = awake(SemiAmortized(N, D, unrolled=True, **SHAPE))
    weight = guide.encoder.head.weight
    (whole,) = torch.autograd.grad(loss_of(model, guide, batch, 3, True), weight)
    (none,) = torch.autograd.grad(loss_of(model, guide, batch, 0, True), weight)
    assert (whole - none).norm() > 0.1 * none.norm()


def test_detached_the_encoder_learns_where_it_starts_and_the_decoder_where_it_ends():
    model, batch = telling_model(2)
    guide = awake(SemiAmortized(N, D, **SHAPE))
    posterior = fit_posterior(model, batch, guide=guide, objective=AnalyticELBO(), steps=4, seed=3)
    assert not any(value.requires_grad for value in posterior.state.values())
    stream = Noise(batch.ids, seed=9)
    with DrawFrom(stream):
        loss, terms = slow_loss(
            model, batch, type(posterior)(guide, posterior.state, batch.ids, stream, None), AnalyticELBO()
        )
    decoder, encoder = [*model.parameters()], [*guide.parameters()]
    found = torch.autograd.grad(loss, decoder + encoder, allow_unused=True)
    again = Noise(batch.ids, seed=9)
    with DrawFrom(again):
        refined = AnalyticELBO().differentiable_loss(model, guide, batch, posterior.state)
        start = AnalyticELBO().differentiable_loss(model, guide, batch, guide.init(batch))
    wanted = torch.autograd.grad(refined, decoder) + torch.autograd.grad(start, encoder, allow_unused=True)
    for got, expected in zip(found, wanted, strict=True):
        if expected is None:
            assert got is None
        else:
            torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(terms.rate.sum() + terms.distortion.sum(), refined, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["amortized", "semi-amortized", "semi-amortized:true", "flow"])
def test_a_slow_step_teaches_decoder_and_guide(name):
    model, batch = telling_model(2)
    guide = build_guide(Component(name=name), tiny_config()).double()
    before = {key: value.clone() for key, value in guide.state_dict().items()}
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-3)
    loop = FastLoop(guide, AnalyticELBO() if guide.has_analytic_kl else MonteCarloELBO(), steps=2)
    for step in range(3):
        report = train_step(model, [batch], loop, optimizer, clip=1.0, seed=step)
    assert bool(report.finite)
    moved = [key for key, value in guide.state_dict().items() if not torch.equal(value, before[key])]
    assert moved


def test_amortized_takes_no_fast_steps_and_keeps_no_graph_unless_asked():
    model, batch = tiny_model(), tiny_batch(2)
    guide = awake(Amortized(N, D, **SHAPE))
    fit = fit_posterior(model, batch, guide=guide, objective=AnalyticELBO(), steps=50)
    assert fit.history.shape == (0, 2)
    # torch has another path through its encoder layers where no gradient is asked for.
    torch.testing.assert_close(fit.state["loc"], guide.init(batch)["loc"], atol=1e-12, rtol=0)
    assert not fit.state["loc"].requires_grad
    kept = fit_posterior(model, batch, guide=guide, objective=AnalyticELBO(), keep_graph=True)
    assert kept.state["loc"].requires_grad
    assert fit.steps_taken.tolist() == [0, 0]


def test_semi_amortized_without_an_encoders_word_is_mean_field():
    model, batch = telling_model(2)
    options = {"objective": AnalyticELBO(), "steps": 5}
    refined = fit_posterior(model, batch, guide=SemiAmortized(N, D, **SHAPE), **options)
    plain = fit_posterior(model, batch, guide=MeanField(N, D), **options)
    assert L == 2
    torch.testing.assert_close(refined.state["loc"], plain.state["loc"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["stl", "dreg", "tail-adaptive", "chi", "jackknife", "target-rate"])
def test_unrolled_refuses_gradients_that_are_not_those_of_the_bound(name):
    objective = OBJECTIVES[name]()
    assert "unrolled" in objective.refusal(SemiAmortized(N, D, unrolled=True, **SHAPE))
    assert not objective.refusal(SemiAmortized(N, D, **SHAPE))


@pytest.mark.parametrize("name", ["chi", "jackknife", "dreg", "tail-adaptive"])
@pytest.mark.parametrize("kind", [Amortized, SemiAmortized])
def test_encoder_and_decoder_each_learn_by_their_own_loss(name, kind):
    model, batch = telling_model(2)
    guide, objective = awake(kind(N, D, **SHAPE)), OBJECTIVES[name](particles=4)
    posterior = fit_posterior(
        model, batch, guide=guide, objective=objective, steps=2, seed=3, keep_graph=guide.keeps_graph
    )
    stream = Noise(batch.ids, seed=9)
    with DrawFrom(stream):
        loss, _ = slow_loss(model, batch, dataclasses.replace(posterior, noise=stream), objective)
    decoder, encoder = [*model.parameters()], [*guide.parameters()]
    found = torch.autograd.grad(loss, decoder + encoder, allow_unused=True, retain_graph=True)
    with DrawFrom(Noise(batch.ids, seed=9)):
        still = {key: value.detach() for key, value in posterior.state.items()}
        of_decoder = objective.decoder_loss(objective.terms(model, guide, batch, still)).sum()
        of_encoder = objective.guide_loss(objective.terms(model, guide, batch, guide.init(batch))).sum()
    wanted = torch.autograd.grad(of_decoder, decoder) + torch.autograd.grad(of_encoder, encoder, allow_unused=True)
    for got, expected in zip(found, wanted, strict=True):
        if expected is not None:
            torch.testing.assert_close(got, expected, atol=1e-8, rtol=1e-8)

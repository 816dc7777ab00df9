"""A sample of the tokens: its bound and gradient have the right expectation, taken over every sample there is."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from helpers.tiny import tiny_batch, tiny_config, tiny_model

from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import LBFGS, fit_posterior
from pyro_ltm.inference.families import FAMILIES
from pyro_ltm.inference.posterior import sequence_bounds
from pyro_ltm.inference.subsample import subsampled
from pyro_ltm.noise import DrawFrom, Noise
from pyro_ltm.objectives import IWAE, OBJECTIVES, AnalyticELBO

LENGTH, EVERY = 5, 2  # stretches of 2, 2 and 1 tokens
LINEAR = [name for name, kind in OBJECTIVES.items() if kind.is_linear]


def every_sample(batch):
    """The batch with each of the samples that can be drawn, all alike likely: in the cut stretch there may be none."""
    for offsets in itertools.product(range(EVERY), repeat=3):
        positions = torch.tensor([EVERY * stretch + offset for stretch, offset in enumerate(offsets)])
        weights = EVERY * (positions < LENGTH).double()
        whole = (positions.clamp(max=LENGTH - 1).expand(batch.size, -1), weights.expand(batch.size, -1))
        yield dataclasses.replace(batch, positions=whole[0], weights=whole[1])


def test_the_decoder_gives_the_same_at_named_positions():
    """One layer, whose thoughts come first and last at once, and two; values and gradients, over a window."""
    torch.set_default_dtype(torch.float64)
    for layers in (1, 2):
        model = tiny_model(tiny_config(layers=layers, window=3)).double()
        batch = model.precompute(tiny_batch(3, 11))
        thoughts = torch.randn(3, 4, 16, requires_grad=True)
        positions = torch.tensor([[0, 4, 10], [1, 1, 2], [9, 3, 0]])
        index = positions[..., None].expand(-1, -1, 16)
        weights = torch.randn(3, 3, 16)
        whole = model.decoder(batch.context, thoughts).gather(1, index)
        some = model.decoder(batch.context, thoughts, positions)
        torch.testing.assert_close(some, whole)
        slopes = [torch.autograd.grad((hidden * weights).sum(), thoughts)[0] for hidden in (whole, some)]
        torch.testing.assert_close(*slopes)


def guide_for(objective):
    if objective.refuses_density:
        return FAMILIES["delta"](thoughts=4, dim=16)
    return MeanField(4, 16)


def bound_and_slope(objective, model, guide, batch):
    state = {name: value.double().requires_grad_() for name, value in guide.init(batch).items()}
    with DrawFrom(Noise(batch.ids, seed=3)):
        bounds = sequence_bounds(objective, model, guide, batch, state)
    return [bounds.detach(), *torch.autograd.grad(bounds.sum(), list(state.values()), allow_unused=True)]


def mean_error(objective):
    """The largest error of the mean over all samples, of bound and gradients."""
    torch.set_default_dtype(torch.float64)
    model, guide = tiny_model(), guide_for(objective)
    batch = tiny_batch(3, LENGTH)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 1, 1]], dtype=torch.bool)
    batch = dataclasses.replace(batch, mask=mask)
    exact = bound_and_slope(objective, model, guide, batch)
    samples = [bound_and_slope(objective, model, guide, sample) for sample in every_sample(batch)]
    assert any((one[0] - exact[0]).abs().max() > 0.1 for one in samples), "the samples differ from the whole"
    means = [torch.stack(parts).mean(0) for parts in zip(*samples, strict=True)]
    return max(float((mean - right).abs().max()) for mean, right in zip(means, exact, strict=True))


@pytest.mark.parametrize("name", LINEAR)
def test_the_mean_over_all_samples_is_exact(name):
    assert mean_error(OBJECTIVES[name]()) < 1e-10


def test_it_would_not_be_for_a_bound_that_is_not_linear():
    assert mean_error(IWAE(particles=4)) > 0.1


def test_each_token_has_the_same_chance_in_stretches_of_its_own():
    batch = tiny_batch(2, LENGTH)
    drawn = torch.zeros(LENGTH)
    noise = Noise(batch.ids, seed=0)
    draws = 2000
    for _ in range(draws):
        sample = subsampled(batch, EVERY, noise)
        assert sample.positions.shape == (2, 3)
        assert (sample.positions // EVERY == torch.tensor([0, 1, 2])).all()
        for positions, weights in zip(sample.positions, sample.weights, strict=True):
            drawn.index_add_(0, positions, weights / EVERY)
    # A token's count is binomial with chance 1/2.
    assert ((drawn - draws).abs() < 4 * (2 * draws * 0.25) ** 0.5).all(), drawn


def test_what_a_sequence_draws_does_not_depend_on_the_others():
    model, batch = tiny_model(), tiny_batch(4)
    options = {"guide": MeanField(4, 16), "objective": AnalyticELBO(), "steps": 5, "subsample": 4}
    together = fit_posterior(model, batch, **options).state["loc"]
    alone = fit_posterior(model, batch.select(torch.tensor([2])), **options).state["loc"]
    torch.testing.assert_close(together[2:3], alone, atol=1e-5, rtol=0)  # single precision, five steps


def test_a_fit_on_samples_comes_near_to_one_on_all_tokens():
    from helpers.tiny import telling_model

    model, batch = telling_model()
    options = {"guide": MeanField(4, 16), "objective": AnalyticELBO(), "steps": 60}
    scores = {}
    for every in (1, 3):
        posterior = fit_posterior(model, batch, subsample=every, **options)
        terms = posterior.with_noise(1).score(model, batch, particles=200)
        scores[every] = float((terms.distortion + terms.rate).sum())
    start = fit_posterior(model, batch, **(options | {"steps": 0})).with_noise(1).score(model, batch, particles=200)
    first = float((start.distortion + start.rate).sum())
    assert first - scores[3] > 0.8 * (first - scores[1]), (first, scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": IWAE(particles=4)}, r"subsample = 2: IWAE is not linear .* 'elbo'"),
        ({"noise": "fixed"}, "subsample = 2: Adam on fixed noise"),
        ({"guide": FAMILIES["delta"](4, 16), "objective": OBJECTIVES["map"](), "optimizer": LBFGS()}, "LBFGS on fresh"),
        ({"guide": FAMILIES["langevin"](4, 16), "objective": OBJECTIVES["map"]()}, "chains of Langevin"),
        ({"tolerance": 0.1}, "whole bound"),
    ],
    ids=["iwae", "fixed", "lbfgs", "sampler", "tolerance"],
)
def test_what_needs_all_tokens_is_refused(options, message):
    options = {"guide": MeanField(4, 16), "objective": AnalyticELBO()} | options
    with pytest.raises(UserError, match=message):
        fit_posterior(tiny_model(), tiny_batch(), subsample=2, **options)

"""A stretch of the tokens: its bound and gradient have the right expectation, taken over every stretch there is."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from helpers.covering import covered
from helpers.loops import fit_posterior
from helpers.tiny import tiny_batch, tiny_config, tiny_model

from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference.families import FAMILIES
from pyro_ltm.inference.token_subsample import subsampled
from pyro_ltm.model import attention
from pyro_ltm.model.decoder import Layer
from pyro_ltm.noise import DrawFrom, Noise
from pyro_ltm.objectives import IWAE, OBJECTIVES, AnalyticELBO
from pyro_ltm.optimizers import LBFGS
from pyro_ltm.types import frozen

LENGTH, EVERY = 5, 2  # stretches of 2 and 3 tokens
LINEAR = [name for name, kind in OBJECTIVES.items() if kind.is_linear]


def every_sample(batch):
    """The batch with each of the stretches that can be drawn, all alike likely."""
    return [subsampled(batch, EVERY, step=step, seed=0) for step in range(EVERY)]


@pytest.mark.parametrize(
    ("way", "layers", "window"), covered(itertools.product(("blocks", "bands", "held"), (1, 2, 4), (1, 3, 7, 20)))
)
def test_the_decoder_gives_the_same_for_a_stretch(layers, window, way, monkeypatch):
    """What no token of the stretch can see is left out, and nothing else; values and gradients."""
    torch.set_default_dtype(torch.float64)
    for choice in ("_has_blocks", "_are_few"):
        monkeypatch.setattr(attention, choice, lambda x: way != "bands")
    model = tiny_model(tiny_config(layers=layers, window=window)).double()
    batch = model.precompute(tiny_batch(3, 11))
    thoughts = torch.randn(3, 4, 16, requires_grad=True)
    with ExitStack() as stack:
        if way == "held":
            stack.enter_context(frozen(model))
            stack.enter_context(model.fused_weights())
        for first, last in ((0, 11), (0, 3), (3, 6), (8, 11), (5, 6)):
            weights = torch.randn(3, last - first, 16)
            whole = model.decoder(batch.context, thoughts)[:, first:last]
            some = model.decoder.forward_slice(batch.context, thoughts, slice(first, last))
            torch.testing.assert_close(some, whole)
            slopes = [torch.autograd.grad((hidden * weights).sum(), thoughts)[0] for hidden in (whole, some)]
            torch.testing.assert_close(*slopes)


def test_each_layer_works_at_what_the_ones_above_it_see_and_at_no_more(monkeypatch):
    rows = []
    think = Layer.think

    def counted(layer, h, *others):
        rows.append(h.shape[1])
        return think(layer, h, *others)

    monkeypatch.setattr(Layer, "think", counted)
    model = tiny_model(tiny_config(layers=4, window=3))
    batch = model.precompute(tiny_batch(2, 12))
    model.decoder.forward_slice(batch.context, torch.randn(2, 4, 16), slice(5, 8))
    assert rows == [3 + 5, 3 + 4, 3 + 2, 3]  # two tokens more for each layer above; five are all before the stretch


def guide_for(objective):
    if objective.is_joint:
        return FAMILIES["delta"](thoughts=4, dim=16)
    return MeanField(4, 16)


def bound_and_slope(objective, model, guide, batch):
    state = {name: value.double().requires_grad_() for name, value in guide.init(batch).items()}
    with DrawFrom(Noise(batch.ids, seed=3)):
        bounds = objective.value(objective.terms(model, guide, batch, state))
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


@pytest.mark.parametrize(("length", "every"), [(12, 4), (11, 4), (5, 2), (3, 8), (7, 1)])
def test_stretches_part_the_tokens_and_each_comes_once_in_a_round(length, every):
    batch = tiny_batch(2, length)
    parts = min(every, length)
    orders = set()
    for turn in range(40):
        samples = [subsampled(batch, every, step=turn * parts + place, seed=5) for place in range(parts)]
        assert {sample.token_scale for sample in samples} == {parts}
        read = [list(range(length))[sample.token_slice] for sample in samples]
        assert sorted(token for tokens in read for token in tokens) == list(range(length))
        assert max(map(len, read)) - min(map(len, read)) <= 1
        orders.add(tuple(tokens[0] for tokens in read))
    assert len(orders) > 1 or parts == 1, "always the same order"


def test_each_stretch_has_the_same_chance_at_each_step():
    batch, draws = tiny_batch(2, 12), 2000
    for step in (0, 2, 5):
        drawn = Counter(subsampled(batch, 4, step=step, seed=seed).token_slice.start for seed in range(draws))
        # A stretch's count is binomial with chance 1/4.
        assert all(abs(drawn[first] - draws / 4) < 4 * (draws * 3 / 16) ** 0.5 for first in (0, 3, 6, 9)), drawn


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

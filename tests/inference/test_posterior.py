"""The fast loop: leaves the decoder alone, treats every sequence by itself, and takes the gradient that is meant."""

from __future__ import annotations

import dataclasses
import itertools

import pyro
import pytest
import torch
import torch.nn.functional as F
from helpers.loops import fit_posterior
from helpers.tiny import D, N, T, telling_model, tiny_batch, tiny_config, tiny_model
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import GUIDES, MeanField
from pyro_ltm.inference.build import build_guide
from pyro_ltm.model import TokenSequence
from pyro_ltm.noise import DrawFrom, Noise
from pyro_ltm.objectives import AnalyticELBO, MonteCarloELBO
from pyro_ltm.optimizers import LBFGS, Adam, FastOptimizer
from pyro_ltm.types import frozen

B = 4


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    assert not dict(pyro.get_param_store())


@pytest.fixture
def model():
    return tiny_model()


def fit(model, batch, **options):
    options = {"guide": MeanField(N, D), "objective": AnalyticELBO(), "steps": 6} | options
    return fit_posterior(model, batch, **options)


class Recorder(FastOptimizer):
    """Goes nowhere, and keeps the gradients that it was given."""

    def __init__(self):
        self.seen = []

    def init(self, state):
        return {}

    def step(self, state, grads, memory, *, losses, step, steps):
        self.seen.append(({k: v.detach() for k, v in state.items()}, grads))
        return state, memory


def test_leaves_the_decoder_as_it_was(model):
    guide = MeanField(N, D)
    guide.shared = torch.nn.Parameter(torch.ones(2))
    model.decoder.norm.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    fit(model, tiny_batch(B), guide=guide)
    assert all(p.grad is None for p in [*model.parameters(), *guide.parameters()])
    assert {name: p.requires_grad for name, p in model.named_parameters()} == asked
    assert guide.shared.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # A gradient that is waiting for the slow step survives.
    model.decoder.tok_embeddings.weight.grad = torch.ones_like(model.decoder.tok_embeddings.weight)
    fit(model, tiny_batch(B))
    assert (model.decoder.tok_embeddings.weight.grad == 1).all()


def test_thaws_after_an_error(model):
    with pytest.raises(UserError), frozen(model):
        fit(model, tiny_batch(B), noise="fixd")
    assert all(p.requires_grad for p in model.parameters())
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_computes_no_gradient_of_the_decoder(model):
    """Weight gradients are a third of the work; none is asked for while the posterior is fitted."""
    guide, asked = MeanField(N, D), []

    class Watch(Recorder):
        def step(self, state, grads, memory, *, losses, step, steps):
            asked.append(any(p.requires_grad for p in model.parameters()))
            return super().step(state, grads, memory, losses=losses, step=step, steps=steps)

    fit(model, tiny_batch(B), guide=guide, optimizer=Watch(), steps=2)
    assert asked == [False, False]


def test_works_where_gradients_are_off(model):
    with torch.no_grad():
        off = fit(model, tiny_batch(B))
    assert torch.equal(off.state["loc"], fit(model, tiny_batch(B)).state["loc"])
    assert not off.state["loc"].requires_grad


@pytest.mark.parametrize(
    ("objective", "noise"),
    [
        *itertools.product([AnalyticELBO(), TraceMeanField_ELBO()], ["fresh", "fixed"]),
        (MonteCarloELBO(particles=2), "fresh"),
    ],
)
def test_a_sequence_does_not_know_its_batch(model, objective, noise):
    batch = dataclasses.replace(tiny_batch(B), ids=torch.tensor([11, 5, 8, 2]))
    mask = batch.mask.clone()
    mask[1, 7:] = False
    batch = dataclasses.replace(batch, mask=mask)
    guide = MeanField(N, D, init_loc=0.1)
    whole = fit(model, batch, objective=objective, noise=noise, guide=guide)
    order = torch.tensor([3, 1, 0, 2])
    turned = fit(model, batch.select(order), objective=objective, noise=noise, guide=guide)
    alone = [
        fit(model, batch.select(torch.tensor([i])), objective=objective, noise=noise, guide=guide) for i in range(B)
    ]
    for name, value in whole.state.items():
        # Roundoff of double precision in sums that batching reorders; Adam's division by the gradient's size can
        # raise it by the ratio of the largest gradient to the smallest, some thousands here.
        torch.testing.assert_close(turned.state[name], value[order], atol=1e-10, rtol=0)
        for i in range(B):
            torch.testing.assert_close(alone[i].state[name], value[i : i + 1], atol=1e-10, rtol=0)
    assert whole.state["loc"].abs().max() > 0.1, "it went somewhere"


def test_seed_and_id_name_the_noise(model):
    batch = tiny_batch(2)
    twice = dataclasses.replace(batch.select(torch.tensor([0, 0])), ids=torch.tensor([0, 9]))
    first, again, other = (fit(model, twice, seed=seed).state["loc"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1]), "equal sequences under other names draw other noise"


def test_does_not_touch_torchs_generator(model):
    before = torch.get_rng_state()
    fit(model, tiny_batch(B))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("particles", [1, 3])
def test_fixed_noise_is_one_draw_and_fresh_noise_is_not(model, particles):
    draws = {}
    for noise in ("fixed", "fresh"):
        recorder = Recorder()
        objective = AnalyticELBO(particles=particles)
        fit(model, tiny_batch(B), objective=objective, optimizer=recorder, noise=noise, steps=3)
        # The state stands still, so the gradient moves only with the noise.
        draws[noise] = torch.stack([grads["loc"] for _, grads in recorder.seen])
    assert torch.equal(draws["fixed"][0], draws["fixed"][1])
    assert torch.equal(draws["fixed"][0], draws["fixed"][2])
    assert torch.equal(draws["fixed"][0], draws["fresh"][0]), "the one draw is the first"
    assert not torch.equal(draws["fresh"][0], draws["fresh"][1])


def test_refuses_noise_of_an_unknown_kind(model):
    with pytest.raises(UserError, match=r"noise = 'fixd'.*fresh, antithetic, fixed"):
        fit(model, tiny_batch(B), noise="fixd")


def test_refuses_to_estimate_a_kl_on_one_draw(model):
    with pytest.raises(UserError, match=r"noise = 'fixed' with MonteCarloELBO.*'analytic-elbo'"):
        fit(model, tiny_batch(B), objective=MonteCarloELBO(particles=2), noise="fixed")


@pytest.mark.parametrize("objective", [AnalyticELBO(), MonteCarloELBO()])
def test_raises_the_bound_of_every_sequence(objective):
    model, batch = telling_model(B)
    start, end = (fit(model, batch, objective=objective, steps=steps) for steps in (0, 60))
    scores = []
    for posterior in (start, end):
        q, z = posterior.distribution, posterior.with_noise(99).sample(64)
        likelihood = TokenSequence(model.decoder, z, batch).log_prob(batch.targets)
        kl = torch.distributions.kl_divergence(q, model.prior().expand((B,)))
        scores.append((likelihood - kl).detach())
    gain, error = scores[1].mean(0) - scores[0].mean(0), (scores[0].var(0) + scores[1].var(0)).div(64).sqrt()
    assert (gain > 4 * error).all()


def test_history(model):
    batch = tiny_batch(B)
    posterior = fit(model, batch, steps=5)
    assert posterior.history.shape == (5, B)
    assert not posterior.history.requires_grad
    assert fit(model, batch, steps=5, objective=TraceMeanField_ELBO()).history.shape == (5, 1)
    nothing = fit(model, batch, steps=0)
    assert nothing.history.shape == (0, B)
    assert all(torch.equal(v, MeanField(N, D).init(batch)[k]) for k, v in nothing.state.items())
    # Before each step: the first row is the bound at the start.
    recorder = Recorder()
    still = fit(model, batch, steps=1, optimizer=recorder)
    assert torch.equal(still.history[0], posterior.history[0])


@pytest.mark.parametrize(("stock", "ours"), [(TraceMeanField_ELBO, AnalyticELBO), (Trace_ELBO, MonteCarloELBO)])
@pytest.mark.parametrize("vectorized", [False, True])
def test_stock_elbos_fit_in_place(model, stock, ours, vectorized):
    batch = tiny_batch(B)
    options = {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1} if vectorized else {}
    theirs = fit(model, batch, objective=stock(**options))
    mine = fit(model, batch, objective=ours(particles=2 if vectorized else 1))
    for name, value in mine.state.items():
        # The same noise and the same function; roundoff as in `test_a_sequence_does_not_know_its_batch`.
        torch.testing.assert_close(theirs.state[name], value, atol=1e-10, rtol=0)
    torch.testing.assert_close(theirs.history[:, 0], mine.history.sum(1), atol=1e-9, rtol=0)


def hand_written(model, batch, state, normals):
    """Cross-entropy + KL in nats, summed over the batch."""
    z = state["loc"] + normals * (state["log_variance"] / 2).exp()
    logits = model.decoder.logits(model.decoder(model.decoder.context(batch.inputs), z))
    kl = (state["loc"] ** 2 + state["log_variance"].exp() - 1 - state["log_variance"]).sum() / 2
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum") + kl


def test_the_fast_gradient_is_that_of_cross_entropy_plus_kl(model):
    batch, recorder = tiny_batch(B), Recorder()
    guide = MeanField(N, D, init_loc=0.5, init_log_variance=-1.0, init_noise=0.3)
    fit(model, batch, guide=guide, optimizer=recorder, steps=2, seed=3)
    stream = Noise(batch.ids, seed=3)
    for state, grads in recorder.seen:
        normals = stream.normal(torch.Size([B, N, D]), event_dims=2, dtype=torch.float64)
        leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
        expected = torch.autograd.grad(hand_written(model, batch, leaves, normals), list(leaves.values()))
        for name, gradient in zip(leaves, expected, strict=True):
            torch.testing.assert_close(grads[name], gradient, atol=1e-9, rtol=0)  # some hundred nats, double precision
            for place in [(0, 0, 0), (1, 2, 3), (B - 1, N - 1, D - 1)]:
                h, values = 1e-5, []
                for sign in (1, -1):
                    moved = {key: value.clone() for key, value in state.items()}
                    moved[name][place] += sign * h
                    with torch.no_grad():
                        values.append(hand_written(model, batch, moved, normals))
                slope = (values[0] - values[1]) / (2 * h)
                # Central differences: h^2 times a third derivative of at most hundreds, and 1e-13 * 100 nats / h.
                assert abs(float(slope - grads[name][place])) < 1e-6


def test_precomputing_the_context_changes_nothing(model):
    batch = tiny_batch(B)
    with_context = fit(model, batch)
    model.precompute = lambda batch: batch
    without = fit(model, batch)
    assert all(torch.equal(value, without.state[name]) for name, value in with_context.state.items())
    assert torch.equal(with_context.history, without.history)


def test_samples_follow_q_and_go_on_with_the_noise(model):
    posterior = fit(model, tiny_batch(B))
    z, again = posterior.sample(2000), posterior.sample(2000)
    assert z.shape == (2000, B, N, D)
    assert not torch.equal(z, again)
    q = posterior.distribution
    # 256 dimensions: five standard errors.
    assert ((z.mean(0) - q.mean).abs() < 5 * (q.variance / 2000).sqrt()).all()
    one, two = (posterior.with_noise(5).sample(3) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, posterior.with_noise(6).sample(3))


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("objective", [AnalyticELBO(), MonteCarloELBO(particles=2)])
def test_the_twin_has_nothing_to_fit(steps, objective):
    model, batch = tiny_model(tiny_config(thoughts=0)), tiny_batch(B)
    posterior = fit(model, batch, guide=MeanField(0, D), objective=objective, steps=steps)
    assert posterior.sample(2).shape == (2, B, 0, D)
    likelihood = TokenSequence(model.decoder, torch.zeros(B, 0, D), batch).log_prob(batch.targets)
    # Particles are averaged: roundoff.
    torch.testing.assert_close(posterior.history, likelihood.detach().expand(steps, B), atol=1e-10, rtol=0)


def test_default_optimizer_is_adam(model):
    batch = tiny_batch(B)
    assert torch.equal(fit(model, batch).state["loc"], fit(model, batch, optimizer=Adam()).state["loc"])
    assert fit(model, batch).state["loc"].shape == (B, N, D)
    assert batch.length == T


@pytest.fixture
def easy_and_hard():
    """Two sequences that the model wrote, and two of which no token counts: theirs is the prior at once."""
    model, batch = telling_model(4)
    mask = batch.mask.clone()
    mask[1], mask[3] = False, False
    return model, dataclasses.replace(batch, mask=mask)


def test_a_sequence_stops_when_its_bound_no_longer_moves(easy_and_hard):
    model, batch = easy_and_hard
    sizes = []

    class Counting(AnalyticELBO):
        def terms(self, model, guide, batch, state):
            sizes.append(batch.size)
            return super().terms(model, guide, batch, state)

    options = {"objective": Counting(), "steps": 40, "tolerance": 0.5, "patience": 3}
    stopped = fit(model, batch, **options)
    taken = stopped.steps_taken
    assert taken[1] == taken[3] == 6, "their bound is 0 at the prior, and cannot rise"
    assert (taken[[0, 2]] > 6).all()
    assert sizes[:6] == [4] * 6
    assert sizes[6] == 2, "the batch goes on without them"
    assert len(sizes) == int(taken.max())
    assert stopped.history[taken[1] :, 1].isnan().all()
    assert stopped.history[: taken[1], 1].isfinite().all()
    # Up to where it stopped a fit is the one that goes on.
    going_on = fit(model, batch, steps=40)
    assert torch.equal(going_on.history[:6], stopped.history[:6])
    first = int(taken[0])
    torch.testing.assert_close(going_on.history[:first, 0], stopped.history[:first, 0], atol=1e-9, rtol=0)
    alone = fit(model, batch.select(torch.tensor([0])), **options)
    torch.testing.assert_close(alone.state["loc"], stopped.state["loc"][:1], atol=1e-9, rtol=0)
    assert fit(model, batch, steps=40, tolerance=0.0).steps_taken.tolist() == [40] * 4


def test_an_upper_bound_stops_when_it_no_longer_falls(easy_and_hard):
    model, batch = easy_and_hard

    class Falling(AnalyticELBO):
        def value(self, terms):
            return -super().value(terms)

        def guide_loss(self, terms):
            return self.value(terms)

    options = {"steps": 40, "tolerance": 0.5, "patience": 3}
    rising, falling = (fit(model, batch, objective=kind(), **options) for kind in (AnalyticELBO, Falling))
    assert torch.equal(rising.steps_taken, falling.steps_taken)
    torch.testing.assert_close(rising.state["loc"], falling.state["loc"], atol=0, rtol=0)


def test_only_bounds_of_single_sequences_can_stop(model):
    with pytest.raises(UserError, match=r"tolerance = 0\.5: TraceMeanField_ELBO"):
        fit(model, tiny_batch(2), objective=TraceMeanField_ELBO(), tolerance=0.5)


def test_watching_sees_every_state(model):
    seen = []
    posterior = fit(model, tiny_batch(2), steps=3, watch=lambda step, state: seen.append((step, state)))
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert (seen[0][1]["loc"] == 0).all()
    assert torch.equal(seen[-1][1]["loc"], posterior.state["loc"])


def test_antithetic_noise_halves_what_is_odd_in_the_noise(model):
    """Two mirrored draws give the gradient of the mean with less variance than two fresh ones."""
    spreads = {}
    for noise in ("fresh", "antithetic"):
        gradients = []
        for seed in range(40):
            recorder = Recorder()
            options = {"objective": AnalyticELBO(particles=2), "optimizer": recorder, "steps": 1}
            fit(model, tiny_batch(2), noise=noise, seed=seed, **options)
            gradients.append(recorder.seen[0][1]["loc"])
        spreads[noise] = float(torch.stack(gradients).var(0).mean())
    assert spreads["antithetic"] < spreads["fresh"]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_draw_after_a_fit_mirrors_none_of_the_fits(model, steps):
    """Else it would be no draw of q, which the fit has moved away from it; a decoder would learn from it."""
    batch = tiny_batch(2)
    posterior = fit(model, batch, noise="antithetic", steps=steps, optimizer=Recorder())
    with DrawFrom(posterior.noise):  # as the slow step does
        drawn = posterior.guide(batch, posterior.state)
    noise = Noise(batch.ids, seed=0, kind="antithetic")
    seen = [noise.normal(drawn.shape, event_dims=2, dtype=drawn.dtype) for _ in range(steps)]
    assert torch.equal(posterior.state["loc"], torch.zeros_like(drawn)), "q is the prior, and a draw its noise"
    assert not any(torch.equal(drawn.abs(), one.abs()) for one in seen)


def test_the_noise_after_a_stop_is_that_of_a_fit_alone(easy_and_hard):
    model, batch = easy_and_hard
    options = {"objective": AnalyticELBO(), "steps": 15, "tolerance": 0.5, "patience": 3, "noise": "antithetic"}
    drawn = fit(model, batch, **options).noise.normal(torch.Size([4, N, D]), event_dims=2, dtype=torch.float64)
    for row in range(4):
        alone = fit(model, batch.select(torch.tensor([row])), **options)
        expected = alone.noise.normal(torch.Size([1, N, D]), event_dims=2, dtype=torch.float64)
        assert torch.equal(drawn[row : row + 1], expected)


def test_quasi_newton_steps_do_not_stop_early(model):
    with pytest.raises(UserError, match="LBFGS goes back"):
        fit(model, tiny_batch(2), noise="fixed", optimizer=LBFGS(), tolerance=0.5)


@pytest.mark.parametrize(
    "name", [name for name, kind in GUIDES.items() if kind.has_density and "amortized" not in kind.learning]
)
def test_a_sequence_that_has_run_away_leaves_the_others_alone(model, name):
    guide = build_guide(Component(name=name), tiny_config()).double()
    batch, objective = tiny_batch(3), MonteCarloELBO()
    state = {key: value.clone() for key, value in guide.init(batch).items()}
    with DrawFrom(Noise(batch.ids, seed=1)):
        sound = objective.value(objective.terms(model, guide, batch, state))
    for value in state.values():
        value[1] = torch.nan
    with DrawFrom(Noise(batch.ids, seed=1)), pyro.validation_enabled(False):
        found = objective.value(objective.terms(model, guide, batch, state))
    assert found[1].isnan()
    torch.testing.assert_close(found[[0, 2]], sound[[0, 2]], atol=1e-9, rtol=0)


def test_a_fit_begins_where_another_ended():
    model, batch = telling_model()
    options = {"guide": MeanField(4, 16), "objective": AnalyticELBO()}
    before = fit_posterior(model, batch, steps=60, **options)
    still = fit_posterior(model, batch, steps=0, start=before.state, **options)
    for name, value in before.state.items():
        assert torch.equal(still.state[name], value)

    def bound(posterior):
        terms = posterior.with_noise(9).score(model, batch, particles=50)
        return float((terms.distortion + terms.rate).sum())

    gently = Adam(lr=0.05)
    on = fit_posterior(model, batch, steps=3, start=before.state, optimizer=gently, **options)
    anew = fit_posterior(model, batch, steps=3, optimizer=gently, **options)
    assert bound(on) < bound(anew) - 1

"""`evaluate_annealed` on a model whose evidence is known."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from helpers.exact_guides import Exact, WithPrior, pieces
from helpers.loops import take_loop

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Delta, MeanField
from pyro_ltm.inference import ais
from pyro_ltm.inference.ais import Annealing
from pyro_ltm.objectives import MAP, AnalyticELBO
from pyro_ltm.optimizers import Adam
from pyro_ltm.scores import evaluate_annealed

COPIES = 200


class Known(WithPrior):
    """Nothing to prepare and nothing to hold still between decoder passes: there is no decoder."""

    def precompute(self, batch):
        return batch

    def fused_weights(self):
        return contextlib.nullcontext()


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def evaluate(model, batches, **options):
    options = {"guide": Exact(model), "objective": AnalyticELBO()} | options
    named = [field.name for field in dataclasses.fields(Annealing) if field.name in options]
    options["annealing"] = Annealing(**{name: options.pop(name) for name in named})
    return evaluate_annealed(model, batches, take_loop(options), **options)


def test_from_the_posterior_itself_it_is_the_evidence():
    """The fit takes no steps, so q is the posterior: every weight is p(tokens), along any path and in any batches."""
    model = Known()
    batch = model.data(5)
    exact = -model.log_evidence(batch)
    for sizes in ([5], [2, 3]):
        found = evaluate(model, pieces(batch, *sizes), start="q", steps=0, temperatures=3, chains=2, leapfrogs=2)
        assert torch.allclose(found.sequence_nats, exact, atol=1e-9)
        assert found.nats_per_token == pytest.approx(exact.sum().item() / batch.mask.sum().item(), abs=1e-10)
        assert found.effective_sample_size == pytest.approx(2)


@pytest.mark.parametrize("start", ["prior", "q"])
def test_an_upper_bound_that_tightens(start):
    """Copies of one sequence are replicates: above the exact nats on average, and near them with many temperatures."""
    model = Known()
    batch = model.data(COPIES, copies=True)
    exact = -model.log_evidence(batch)[0].item()
    fitted = {"guide": MeanField(2, 2), "optimizer": Adam(lr=0.1), "steps": 3}  # q is far from the posterior yet
    gaps = []
    for temperatures in (2, 8, 64):
        found = evaluate(model, [batch], start=start, **fitted, temperatures=temperatures, chains=1, seed=3)
        above = found.sequence_nats - exact
        error = above.std().item() / COPIES**0.5
        ratio = (-above).exp()
        assert above.mean().item() > -3 * error
        assert ratio.mean().item() == pytest.approx(1, abs=4 * ratio.std().item() / COPIES**0.5), "E[w] = p(tokens)"
        gaps.append(above.mean().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0] / 5


def test_chains_are_averaged_within_a_sequence():
    """The bound of several chains is log of the mean weight: tighter than the mean of the logs."""
    model = Known()
    batch = model.data(COPIES, copies=True)
    one, eight = (
        evaluate(model, [batch], start="prior", temperatures=2, chains=chains).sequence_nats.mean() for chains in (1, 8)
    )
    assert -model.log_evidence(batch)[0] < eight < one - 0.1


def test_fast_steps_bring_q_nearer():
    """From q with few temperatures, what was fitted shows; the share of transitions taken is one."""
    model = Known()
    batch = model.data(COPIES, copies=True)
    fitted = {"guide": MeanField(2, 2), "optimizer": Adam(lr=0.1), "temperatures": 1, "chains": 1}
    none, many = (evaluate(model, [batch], start="q", steps=steps, **fitted) for steps in (0, 100))
    assert many.nats_per_token < none.nats_per_token - 0.1
    assert 0 < many.acceptance <= 1


def test_what_counts_is_neither_tuned_nor_on_the_noise_that_was(monkeypatch):
    """Chains that tune themselves make the weights biased: a first run on other noise finds the sizes of the second."""
    model = Known()
    runs = []

    def watch(target, start, how, noise, sizes, *, tune):
        runs.append((tune, noise.seeds))
        before = sizes.clone()
        found = run(target, start, how, noise, sizes, tune=tune)
        assert torch.equal(before, sizes) is not tune
        return found

    run = ais._run
    monkeypatch.setattr(ais, "_run", watch)
    evaluate(model, [model.data(3)], start="prior", temperatures=3)
    (first, tuning), (second, noise) = runs
    assert (first, second) == (True, False)
    assert not set(tuning) & set(noise)


def test_what_cannot_be_annealed_is_refused():
    model = Known()
    batch = model.data(2)
    with pytest.raises(UserError, match="choose from prior, q"):
        evaluate(model, [batch], start="posterior")
    with pytest.raises(UserError, match="no sequences"):
        evaluate(model, [], start="prior")
    with pytest.raises(UserError, match="is a point"):
        evaluate(model, [batch], start="q", guide=Delta(2, 2), objective=MAP(), steps=0)

"""What every score promises: it does not know who shares a batch, and it leaves the model in the mode it found."""

from __future__ import annotations

import copy
import math
import sys

import pyro
import pytest
import torch
from helpers.tiny import D, N, T, telling_model, tiny_model
from pyro.infer import Trace_ELBO, TraceTailAdaptive_ELBO

from pyro_ltm.comparison.pair_score import score_pair
from pyro_ltm.comparison.train_guide import GuideTraining, train_guide
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Amortized, MeanField
from pyro_ltm.inference import Annealing, FastLoop
from pyro_ltm.objectives import MMD, OBJECTIVES, AnalyticELBO, as_objective
from pyro_ltm.optimizers import Adam
from pyro_ltm.scores import (
    evaluate_annealed,
    evaluate_bound,
    evaluate_prefix,
    evaluate_reference,
)
from pyro_ltm.scores.continuation import Context, Predictor
from pyro_ltm.thoughts.diagnostics import Thoughts, diagnose

COUPLING = [name for name, kind in OBJECTIVES.items() if kind.couples_batch]
OPTIMIZER = Adam(lr=0.5)


def loop(objective, steps=2):
    return FastLoop(MeanField(N, D), objective, OPTIMIZER, steps=steps)


def bound(model, batch, objective):
    return evaluate_bound(model, [batch], loop(objective)).sequence_nats


def prefix(model, batch, objective):
    found = evaluate_prefix(model, [batch], loop(objective), particles=2, stride=6)
    return found.sequence_nats


def annealed(model, batch, objective):
    how = Annealing(temperatures=2, chains=2, leapfrogs=1)
    return evaluate_annealed(model, [batch], loop(objective), start="q", annealing=how).sequence_nats


def reference(model, batch, objective):
    return evaluate_reference(model, [batch], fast_steps=2).sequence_nats


def compared(model, batch, objective):
    found = score_pair(model, [batch], loop(objective), particles=2)
    return torch.tensor(found.nats_by_sequence)


def diagnosed(model, batch, objective):
    return Thoughts.fit(model, [batch], loop(objective)).means


def predicted(model, batch, objective):
    contexts = [Context(tuple(row.tolist()), name) for name, row in zip(batch.ids.tolist(), batch.inputs, strict=True)]
    predictor = Predictor(model, loop(objective), particles=2, seed=0)
    return predictor.thoughts(contexts).transpose(0, 1)


def inferred(model, batch, objective):
    return loop(objective).fit_to_score(model, batch).mean()


SCORES = {
    each.__name__: each for each in (bound, prefix, annealed, reference, compared, diagnosed, predicted, inferred)
}


@pytest.fixture(scope="module")
def telling():
    return telling_model(4)


@pytest.mark.parametrize("name", COUPLING)
@pytest.mark.parametrize("score", SCORES)
def test_neighbours_change_no_score(score, name, telling):
    """The first sequence, beside two kinds of neighbours."""
    torch.set_default_dtype(torch.float32)
    model, batch = telling
    objective = OBJECTIVES[name]()
    here = batch.select(torch.tensor([0, 1]))
    there = batch.select(torch.tensor([0, 2, 3]))
    first, second = (SCORES[score](model, some, objective)[0] for some in (here, there))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_what_is_fitted_apart_is_put_together_again(telling):
    model, batch = telling
    for objective in (MMD(), AnalyticELBO()):
        whole = loop(objective, steps=3).fit_to_score(model, batch)
        alone = loop(objective, steps=3).fit_to_score(model, batch.select(torch.tensor([2])))
        torch.testing.assert_close(whole.state["loc"][2:3], alone.state["loc"], rtol=1e-3, atol=1e-3)
        assert whole.history.shape == (3, 4)
        assert whole.sample().shape == (1, 4, N, D)
    assert as_objective(TraceTailAdaptive_ELBO()).couples_batch
    assert not as_objective(Trace_ELBO()).couples_batch


class Broke(Exception):
    pass


class Breaks:
    """Gives one batch and then raises, as a disk does."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        yield self.batch
        raise Broke


def train(model, batches, objective):
    batches = iter(batches)
    guide = Amortized(N, D, vocab_size=30, max_length=T)
    train_guide(model, FastLoop(guide, objective), GuideTraining(batch=lambda step: next(batches), steps=3))


ENTRIES = {
    "bound": lambda model, batches, objective: evaluate_bound(model, batches, loop(objective)),
    "prefix": lambda model, batches, objective: evaluate_prefix(model, batches, loop(objective), particles=1, stride=6),
    "annealed": lambda model, batches, objective: evaluate_annealed(
        model, batches, loop(objective), start="q", annealing=Annealing(temperatures=2, chains=1, leapfrogs=1)
    ),
    "reference": lambda model, batches, objective: evaluate_reference(model, batches, fast_steps=1),
    "train_guide": train,
    "diagnostics": lambda model, batches, objective: Thoughts.fit(model, batches, loop(objective)),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_an_error_leaves_the_model_in_the_mode_that_it_found(entry, mode, telling):
    model, batch = tiny_model(), telling[1]
    model.train(mode != "eval")
    model.decoder.norm.train(mode == "train")
    before = [part.training for part in model.modules()]
    with pytest.raises(Broke):
        ENTRIES[entry](model, Breaks(batch), AnalyticELBO())
    assert [part.training for part in model.modules()] == before


def test_comparison_and_diagnosis_leave_the_mode_too(telling):
    model, batch = tiny_model(), telling[1]
    model.train()

    def count(done, level):
        raise Broke

    with pytest.raises(Broke):
        score_pair(model, [batch], loop(AnalyticELBO()), particles=1, progress=count)
    assert all(part.training for part in model.modules())
    diagnose(Thoughts.fit(model, [batch], loop(AnalyticELBO())), particles=1)
    assert all(part.training for part in model.modules())


AWAY = ["bound", "prefix", "annealed", "diagnosed", "predicted", "inferred"]


@pytest.mark.parametrize("score", AWAY)
def test_a_fit_that_has_run_away_is_said_in_a_line(score, telling, monkeypatch):
    """And in nothing else: no warning comes before it."""
    monkeypatch.setattr(sys.modules[__name__], "OPTIMIZER", Adam(lr=1e6))
    with pytest.raises(UserError, match=r"run away: 4 of 4 posteriors.*lower its rate \(optimizer\.lr\)"):
        SCORES[score](*telling, AnalyticELBO())


def test_no_sequences_and_weights_that_no_fit_can_use_are_said_in_a_line(telling):
    model, batch = telling
    with pytest.raises(UserError, match="nothing to score: no sequences"):
        evaluate_bound(model, [], loop(AnalyticELBO()))
    with pytest.raises(UserError, match="bfloat16: the fast loop needs them in float32 or float64"):
        loop(AnalyticELBO()).fit_to_score(copy.deepcopy(model).bfloat16(), batch)
    broken = copy.deepcopy(model)
    broken.decoder.norm.weight.data.fill_(math.nan)
    with pyro.validation_enabled(False), pytest.raises(UserError, match="the reference's figure is not finite"):
        reference(broken, batch, AnalyticELBO())

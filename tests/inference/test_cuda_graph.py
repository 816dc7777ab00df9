"""A recorded fast loop: replayed, it gives what the loop itself would give, for other tokens, noise and weights.

On a CPU `make_fx` stands in for a CUDA graph: it, too, notes operations on memory once and does them again, without
Python. Where it is about what is recorded when, the work itself is done again. On a GPU the graph is tested.
"""

from __future__ import annotations

import dataclasses
import warnings

import pyro
import pytest
import torch
from helpers.devices import needs_a_gpu
from helpers.loops import fit_posterior
from helpers.recording import Again
from helpers.tiny import tiny_batch, tiny_config, tiny_model
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ltm.config import apply_settings
from pyro_ltm.guides import FullRank, MeanField, StudentT
from pyro_ltm.inference import FastLoop, build
from pyro_ltm.inference.cuda_graph import CAPACITY, Recorder
from pyro_ltm.interruption import left_at
from pyro_ltm.objectives import AnalyticELBO, KLAnnealing, MonteCarloELBO, Renyi
from pyro_ltm.optimizers import Adam, Natural
from pyro_ltm.presets import preset
from pyro_ltm.scores import evaluate_bound


class Noted(Again):
    """Records by noting each operation and the memory that it reads, as a GPU does; takes seconds."""

    def record(self, work):
        return make_fx(work)()


@pytest.fixture(autouse=True)
def _as_in_training():
    with pyro.validation_enabled(False):  # which looks at values
        yield


GUIDE = MeanField(4, 16)


def fit(model, batch, recorder=None, **options):
    choices = {"guide": GUIDE, "objective": AnalyticELBO(), "steps": 2} | options
    return fit_posterior(model, batch, recorder=recorder, **choices)


def same(one, other):
    assert one.state.keys() == other.state.keys()
    for name, value in one.state.items():
        torch.testing.assert_close(value, other.state[name], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(one.history, other.history, atol=1e-4, rtol=1e-6)
    # Their streams stand at the same place.
    torch.testing.assert_close(one.sample(2), other.sample(2), atol=1e-5, rtol=1e-5)


CHOICES = [
    {"guide": MeanField(4, 16, init_loc=0.1, init_noise=0.1), "objective": Renyi(particles=2)},
    {"noise": "antithetic", "optimizer": Natural(lr=0.3)},
    {"noise": "fixed"},
]


@pytest.mark.parametrize("options", CHOICES, ids=lambda options: "-".join(options))
def test_a_replay_is_the_loop_itself(options):
    model, noted = tiny_model(tiny_config(layers=1)), Noted()
    recorder = Recorder(noted)
    for turn in range(4):
        batch = tiny_batch(seed=turn)
        batch = dataclasses.replace(batch, ids=batch.ids + 10 * turn)
        batch.mask[turn % 3, -turn - 1 :] = False
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(0.9)  # as a slow step moves them: where they lie
        same(fit(model, batch, recorder, seed=turn, **options), fit(model, batch, seed=turn, **options))
    assert (noted.recorded, noted.replayed) == (1, 3), "the first is run as it is, the second recorded"


class Once(Again):
    """Does the work when it is recorded, as a GPU does, and never again."""

    def record(self, work):
        made = work()
        return lambda: made


def test_what_is_being_recorded_is_not_left():
    """A signal that comes then ends the next fit."""
    model, recorder, asked = tiny_model(), Recorder(Once()), []
    with left_at(lambda: asked.append(1) or 0):
        for turn in range(3):
            fit(model, tiny_batch(seed=turn), recorder, seed=turn)
    assert len(asked) == (1 + 1 + 2) + 1 + 1, "before each fit, and in the first before the first step and after each"


def test_what_was_given_stays_as_it_was():
    """A replay writes over the recording's own memory, not over what an earlier one has handed out."""
    model, recorder = tiny_model(), Recorder(Again())
    found = [fit(model, tiny_batch(seed=turn), recorder, seed=turn) for turn in range(4)]
    for turn, posterior in enumerate(found):
        same(posterior, fit(model, tiny_batch(seed=turn), seed=turn))


def other_weights(model):
    for name, weight in list(model.decoder.norm.named_parameters()):
        setattr(model.decoder.norm, name, torch.nn.Parameter(weight.detach() * 2))


@pytest.mark.parametrize(
    "changed",
    [
        lambda model: {"batch": tiny_batch(2)},
        lambda model: {"batch": tiny_batch(3, 9)},
        lambda model: {"steps": 4},
        lambda model: {"noise": "antithetic"},
        lambda model: {"optimizer": Adam(lr=0.1)},
        lambda model: {"objective": KLAnnealing(warmup=0.5).at(0.25)},
        lambda model: {"guide": FullRank(4, 16)},
        lambda model: model.eval() and {},
        lambda model: other_weights(model) or {},
    ],
    ids=["size", "length", "steps", "noise", "optimizer", "objective", "guide", "mode", "weights"],
)
def test_what_asks_for_something_else_is_not_replayed(changed):
    model, kept = tiny_model(), Again()
    recorder = Recorder(kept)
    model.train()
    for _ in range(3):
        fit(model, tiny_batch(), recorder)
    assert (kept.recorded, kept.replayed) == (1, 2)
    options = changed(model)
    batch = options.pop("batch", tiny_batch())
    same(fit(model, batch, recorder, **options), fit(model, batch, **options))
    assert (kept.recorded, kept.replayed) == (1, 2)


def stretched(model):
    return {"batch": dataclasses.replace(tiny_batch(), token_slice=slice(0, 4), token_scale=3)}


def moved_prior(model):
    model.prior.loc = model.prior.loc + 1
    return {}


def recomputed(model):
    model.decoder.recompute = True
    return {}


class Weighted(AnalyticELBO):
    """An objective with a setting that is a tensor."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def value(self, terms):
        return super().value(terms) * self.weight.mean()


@pytest.mark.parametrize("changed", [stretched, moved_prior, recomputed], ids=["stretch", "buffer", "setting"])
def test_what_else_a_fit_reads_is_not_replayed_as_it_was(changed):
    model, kept = tiny_model(tiny_config(layers=1)), Noted()
    recorder = Recorder(kept)
    for _ in range(2):
        fit(model, tiny_batch(), recorder, steps=1)
    options = changed(model)
    batch = options.pop("batch", tiny_batch())
    same(fit(model, batch, recorder, steps=1), fit(model, batch, steps=1))
    assert (kept.recorded, kept.replayed) == (1, 1)


def held(model):
    return model.fused_weights()


def half(model):
    return pyro.poutine.scale(scale=0.5)


def checked(model):
    return pyro.validation_enabled(True)


@pytest.mark.parametrize("around", [held, half, checked])
def test_nothing_is_recorded_where_somebody_else_has_a_say(around):
    model, kept = tiny_model(), Again()
    recorder = Recorder(kept)
    for turn in range(3):
        with around(model):
            same(fit(model, tiny_batch(seed=turn), recorder), fit(model, tiny_batch(seed=turn)))
    assert kept.recorded == 0


@pytest.mark.parametrize(
    "options",
    [{"guide": StudentT(4, 16), "objective": MonteCarloELBO()}, {"objective": Weighted(torch.ones(3000))}],
    ids=["guide", "objective"],
)
def test_what_cannot_be_told_or_recorded_is_run_as_it_is(options):
    model, kept = tiny_model(), Again()
    recorder = Recorder(kept)
    for _ in range(3):
        fit(model, tiny_batch(), recorder, **options)
    assert kept.recorded == 0


def test_a_context_is_that_of_the_batch_and_of_the_weights():
    """Evaluation works it out before the fit, for the score as well."""
    model, recorder = tiny_model(tiny_config(layers=1)), Recorder(Noted())
    for turn in range(3):
        batch = tiny_batch(seed=turn)
        with torch.no_grad():
            model.decoder.tok_embeddings.weight.mul_(0.8)
        same(fit(model, model.precompute(batch), recorder, steps=1), fit(model, batch, steps=1))


def test_a_recorder_moves_no_figure():
    """Through an evaluation, whose last batch is smaller."""
    model, kept = tiny_model(), Again()
    batches = [tiny_batch(3 - turn // 4, seed=turn) for turn in range(6)]
    with_it, without = (
        evaluate_bound(model, batches, FastLoop(GUIDE, AnalyticELBO(), steps=3, recorder=recorder), particles=2)
        for recorder in (Recorder(kept), None)
    )
    assert with_it.nats_per_token == pytest.approx(without.nats_per_token, rel=1e-6)
    assert kept.recorded == 2


def test_the_weight_of_the_kl_is_part_of_what_is_asked():
    """Its warm-up gives each slow step another; the micro-batches of one share it."""
    model, kept = tiny_model(), Again()
    recorder = Recorder(kept)
    for share in (0.1, 0.2, 1.0):
        objective = KLAnnealing(warmup=0.5).at(share)
        for turn in range(3):
            batch = tiny_batch(seed=turn)
            same(fit(model, batch, recorder, objective=objective), fit(model, batch, objective=objective))
    assert (kept.recorded, kept.replayed) == (3, 6)


@pytest.mark.parametrize(
    "options",
    [{"tolerance": 0.1}, {"subsample": 3}, {"watch": lambda step, state: None}, {"steps": 0}],
    ids=lambda options: next(iter(options)),
)
def test_what_changes_from_fit_to_fit_is_run_as_it_is(options):
    model, kept = tiny_model(), Again()
    recorder = Recorder(kept)
    for turn in range(3):
        same(fit(model, tiny_batch(), recorder, seed=turn, **options), fit(model, tiny_batch(), seed=turn, **options))
    assert kept.recorded == 0


def test_what_cannot_be_recorded_is_run_as_it_is_and_said_once():
    def refuses(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    model, recorder = tiny_model(), Recorder(refuses)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for turn in range(6):
            batch = tiny_batch(1 + turn // 3)
            same(fit(model, batch, recorder, seed=turn), fit(model, batch, seed=turn))
    assert [str(each.message).split(":")[0] for each in said] == ["the fast loop cannot be recorded and runs as it is"]


def test_no_more_recordings_are_kept_than_are_used():
    model, kept = tiny_model(), Again()
    recorder = Recorder(kept)
    for size in range(1, CAPACITY + 3):
        for _ in range(2):
            fit(model, tiny_batch(size), recorder)
    assert len(recorder._recordings) == CAPACITY
    fit(model, tiny_batch(CAPACITY + 2), recorder)
    assert kept.recorded == CAPACITY + 2


def test_training_and_validation_in_turn_are_recorded_both():
    model, kept = tiny_model(), Again()
    recorder = Recorder(kept)
    for _ in range(3):
        for size in (3, 2):
            fit(model, tiny_batch(size), recorder)
    assert (kept.recorded, kept.replayed) == (2, 4)
    recorder.forget()
    fit(model, tiny_batch(3), recorder)
    assert (kept.recorded, kept.replayed) == (2, 4)


def test_loops_record_on_a_gpu_alone():
    config = apply_settings(preset("nano"), ["model.vocab_size=300"])
    assert build(config)[1].recorder is None


@needs_a_gpu
@pytest.mark.parametrize("recorded", [False, True])
def test_a_fit_on_a_gpu_is_that_on_a_cpu(recorded):
    """In single precision, on the same noise: the same but for the order of sums."""
    model, same_model, recorder = tiny_model(), tiny_model().cuda(), Recorder() if recorded else None
    for turn in range(3):
        batch = tiny_batch(seed=turn)
        here = fit(model, batch, seed=turn, steps=8)
        there = fit(same_model, batch.to("cuda"), recorder, seed=turn, steps=8)
        torch.testing.assert_close(there.history.cpu(), here.history, atol=1e-3, rtol=1e-4)
        for name, value in there.state.items():
            torch.testing.assert_close(value.cpu(), here.state[name], atol=2e-3, rtol=1e-3)


# A replay runs the loop's own kernels; what adds up in no fixed order on a GPU (a gradient to keys and values, or to an
# embedding) differs in the last places.
@needs_a_gpu
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.filterwarnings("ignore"))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cuda_graph_is_the_loop_itself(dtype, compiled):
    from pyro_ltm.model import LatentThoughtModel

    model = LatentThoughtModel(tiny_config(dim=64, max_length=64, window=16), dtype).cuda()
    model.train()
    if compiled:
        model.decoder.compile()
    recorder, guide = Recorder(), MeanField(4, 64)
    near = {"atol": 1e-4, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    for turn in range(4):
        batch = tiny_batch(5, 64, seed=turn).to("cuda")
        one, other = (fit(model, batch, each, seed=turn, guide=guide, steps=6) for each in (recorder, None))
        torch.testing.assert_close(one.history, other.history, **near)
        for name, value in one.state.items():
            torch.testing.assert_close(value, other.state[name], **near)
    assert recorder._recordings
    assert not recorder._refused


@needs_a_gpu
def test_what_was_forgotten_is_recorded_anew():
    model, recorder = tiny_model().cuda(), Recorder()
    for _ in range(2):
        for turn in range(3):
            batch = tiny_batch(seed=turn).to("cuda")
            same(fit(model, batch, recorder, seed=turn), fit(model, batch, seed=turn))
        assert len(recorder._recordings) == 1
        recorder.forget()
        torch.cuda.empty_cache()

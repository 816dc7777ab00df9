"""What `bench` tells users: tokens counted, seconds real, and the sums that it makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from helpers.clock import Clock
from helpers.tiny import tiny_batch, tiny_config

from pyro_ltm.config import Config, apply_settings
from pyro_ltm.data import TokenDataset, prepare
from pyro_ltm.distributed import World
from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference.build import build
from pyro_ltm.profiling import speed as module
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.profiling.speed import Speed, measure_speed
from pyro_ltm.runs.run import Run
from pyro_ltm.training.checkpoint import Counters
from pyro_ltm.training.step import train_step
from pyro_ltm.training.trainer import Trainer, slow_optimizer
from pyro_ltm.types import Batch

# Seconds on the fake clock. Powers of two, and other halves of them: sums and shares are exact, and no two are equal.
READ, MOVE, FAST, SLOW, DECODER_WARMUP, CHECK, CHECK_FAST = 0.5, 0.25, 4.0, 16.0, 8.0, 2.0, 32.0


def config(**changes):
    return apply_settings(Config(model=tiny_config()), [f"{key}={value}" for key, value in changes.items()])


@pytest.fixture
def clock(monkeypatch):
    """The clock of `measure_speed`, which reading, training and validating move by what they cost, times its pace."""
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    read, move = TokenDataset.batch, Batch.to
    monkeypatch.setattr(TokenDataset, "batch", lambda *a: clock.passes(READ, read(*a)))
    monkeypatch.setattr(Batch, "to", lambda *a: clock.passes(MOVE, move(*a)))

    def train(model, batches, loop, *_, decoder_only, **__):
        clock.passes(DECODER_WARMUP if decoder_only else loop.steps * FAST + SLOW)

    monkeypatch.setattr(module, "peak_memory", lambda *_, **__: None)  # which takes a while
    monkeypatch.setattr(module, "train_step", train)
    monkeypatch.setattr(
        module, "evaluate_bound", lambda model, batches, loop, **_: clock.passes(loop.steps * CHECK_FAST + CHECK)
    )
    return clock


def test_seconds_are_those_of_the_clock(clock):
    changes = {"slow.batch_size": 2, "slow.accumulate": 3, "fast.steps": 16, "slow.steps": 10, "slow.eval_every": 4}
    found = measure_speed(config(**changes, **{"slow.eval_sequences": 6}), rounds=1)
    assert found.data_seconds == MOVE
    assert found.fast_seconds == FAST
    assert found.slow_seconds == SLOW
    assert found.step_seconds == 3 * (MOVE + 16 * FAST + SLOW)
    assert found.fast_share == 3 * 16 * FAST / found.step_seconds
    assert (found.sequences, found.tokens, found.accumulate, found.fast_steps) == (2, 2 * 12, 3, 16)
    assert found.tokens_per_second == 3 * 2 * 12 / found.step_seconds
    assert found.validations == 4, "at steps 0, 4, 8 and 10"
    assert found.validation_seconds == 6 / 2 * (CHECK + 16 * CHECK_FAST)
    assert found.run_seconds == 10 * found.step_seconds + 4 * found.validation_seconds
    assert found.epoch_seconds is None


def test_each_time_is_a_median_over_rounds(clock):
    def after(done):
        clock.pace = {1: 8.0, 2: 2.0, 3: 1.0}[done]

    found = measure_speed(config(**{"slow.batch_size": 64, "slow.decoder_warmup": 0.5}), rounds=3, on_round=after)
    assert (found.data_seconds, found.fast_seconds, found.slow_seconds) == (2 * MOVE, 2 * FAST, 2 * SLOW)
    assert found.decoder_warmup_seconds == 2 * DECODER_WARMUP
    assert found.validation_seconds == 2 * (CHECK + 16 * CHECK_FAST)


def test_seconds_last_to_the_end_of_the_work_on_the_device(clock, monkeypatch):
    """Calls that only start work: what was started before is not counted, and what is started is, to its end."""
    queue = [1024.0]
    monkeypatch.setattr(module.torch.cuda, "synchronize", lambda: [clock.passes(queue.pop()) for _ in queue[:]])
    assert module._timed(lambda: clock.passes(1.0, queue.append(64.0)), "cuda")[0] == 65.0


def test_times_and_tokens_of_data(clock, tmp_path):
    """Tokens are those that count: sequences are of unlike lengths. Times of an epoch and of a run follow from them."""
    texts = [tmp_path / f"{number}.txt" for number in range(40)]
    for number, text in enumerate(texts):
        text.write_text("the cats sat on the mat"[: 5 + number % 17])
    prepare(
        [str(text) for text in texts], out=tmp_path / "tokens", vocab_size=260, sequence_length=12, packing="document"
    )
    data = TokenDataset(tmp_path / "tokens")
    held_out = len(TokenDataset(data.folder, "validation"))
    changes = {"model.vocab_size": data.vocab_size, "slow.batch_size": 4, "slow.accumulate": 2, "fast.steps": 2}
    found = measure_speed(config(**changes, **{"slow.steps": 10}), data, rounds=2)
    counted = [int(data.batch(range(4 * number, 4 * number + 4)).tokens()) for number in range(2)]
    assert counted[0] != counted[1]
    assert found.tokens == round(sum(counted) / 2)
    assert found.data_seconds == READ + MOVE
    assert found.step_seconds == 2 * (READ + MOVE + 2 * FAST + SLOW)
    assert found.tokens_per_second == 2 * found.tokens / found.step_seconds
    assert found.corpus_tokens == data.tokens
    assert found.epoch_seconds == pytest.approx(data.tokens / found.tokens * found.step_seconds / 2)
    assert 0 < held_out < 64, "or else the 64 that are asked for"
    assert found.validation_seconds == held_out / 4 * (CHECK + 2 * CHECK_FAST)
    assert found.run_seconds == 10 * found.step_seconds + 2 * found.validation_seconds


def test_sums():
    found = Speed(
        sequences=2,
        tokens=100,
        fast_seconds=0.5,
        slow_seconds=1.5,
        data_seconds=0.5,
        fast_steps=4,
        accumulate=5,
        rounds=1,
        steps=10,
        decoder_warmup_steps=4,
        decoder_warmup_seconds=1.0,
        validations=3,
        validation_seconds=7.0,
        weights_bytes=1,
        optimizer_bytes=2,
        peak_bytes=None,
        corpus_tokens=10_000,
    )
    assert found.step_seconds == 20.0
    assert found.tokens_per_second == 25.0
    assert found.fast_share == 0.5
    assert found.epoch_seconds == 400.0
    assert found.to_dict()["epoch_seconds"] == 400.0
    assert found.run_seconds == 6 * 20.0 + 4 * 5 * 1.5 + 3 * 7.0
    assert found.total_bytes is None
    assert replace(found, peak_bytes=4).to_dict()["total_bytes"] == 7


def test_steps_in_which_the_decoder_learns_alone_are_timed_by_themselves(clock):
    found = measure_speed(config(**{"fast.steps": 4, "slow.steps": 10, "slow.decoder_warmup": 0.3}), rounds=1)
    assert (found.steps, found.decoder_warmup_steps) == (10, 3)
    assert found.decoder_warmup_seconds == DECODER_WARMUP
    assert found.decoder_warmup_step_seconds == MOVE + DECODER_WARMUP
    checks = found.validations * found.validation_seconds
    assert found.run_seconds == 3 * (MOVE + DECODER_WARMUP) + 7 * (MOVE + 4 * FAST + SLOW) + checks
    twin = measure_speed(config(**{"model.thoughts": 0, "slow.decoder_warmup": 0.3}), rounds=1)
    assert (twin.decoder_warmup_steps, twin.decoder_warmup_seconds) == (0, None)


@pytest.mark.parametrize("every", [0, 2, 5])
def test_validations_are_as_many_as_training_makes(monkeypatch, every):
    """A trainer whose steps and validations are counted and not made."""
    made = []
    trainer = object.__new__(Trainer)
    trainer.counters, trainer.interrupted = Counters(), False
    trainer.slow = config(**{"slow.steps": 5, "slow.eval_every": every}).slow
    trainer.run, trainer.metrics = Run(Path(), Config(), MagicMock(), MagicMock(), MagicMock(), 0), MagicMock()
    trainer.train = trainer.validation = None
    trainer.background, trainer.world = MagicMock(), World()
    trainer.parallel = SimpleNamespace(whole_run=lambda run: run)

    def step():
        trainer.counters.step += 1

    monkeypatch.setattr(trainer, "_step", step)
    monkeypatch.setattr(trainer, "_validate", lambda: made.append(trainer.counters.step))
    monkeypatch.setattr(trainer, "_save_if_healthy", lambda done: True)
    trainer.fit()
    assert module._validations(trainer.slow, None) == (len(made), trainer.slow.eval_sequences)


def test_the_twin_takes_no_fast_steps():
    found = measure_speed(config(**{"model.thoughts": 0, "slow.batch_size": 2}), rounds=1)
    assert (found.fast_steps, found.fast_seconds, found.fast_share) == (0, 0.0, 0.0)
    assert found.step_seconds > 0
    assert found.validation_seconds > 0


@pytest.fixture
def seen(monkeypatch):
    """The loop of every step that is taken; validations are not."""
    monkeypatch.setattr(module, "evaluate_bound", lambda *_, **__: None)
    loops, real = [], module.train_step
    monkeypatch.setattr(module, "train_step", lambda *a, **k: (loops.append(a[2]), real(*a, **k))[1])
    return loops


def test_leaves_nothing_out_of_a_step_and_stops_none_early(seen):
    measure_speed(config(**{"slow.batch_size": 2, "fast.subsample": 3, "fast.noise": "antithetic"}), rounds=1)
    assert {(loop.subsample, loop.noise, loop.stopping) for loop in seen} == {(3, "antithetic", None)}
    assert {loop.steps for loop in seen} == {0, 2, 6}, "whole rounds of three stretches, of which some cost less"


def test_an_encoder_takes_no_fast_steps(seen):
    found = measure_speed(config(**{"slow.batch_size": 2, "guide.name": "amortized"}), rounds=1)
    assert (found.fast_steps, found.fast_seconds) == (0, 0.0)
    assert {loop.steps for loop in seen} == {0}


POINT = {"guide.name": "delta", "objective.name": "map"}


@pytest.mark.parametrize("changes", [{"fast.subsample": 3}, {"fast.tolerance": 0.1}, POINT])
def test_a_validation_fits_all_tokens_and_stops_no_sequence_early(monkeypatch, changes):
    """As validations do, but for the early end, which no price for a fast step can know."""
    loops, real = [], module.evaluate_bound
    monkeypatch.setattr(module, "evaluate_bound", lambda *a, **k: (loops.append(a[2]), real(*a, **k))[1])
    monkeypatch.setattr(module, "peak_memory", lambda *_, **__: None)
    measure_speed(config(**{"slow.batch_size": 2, **changes}), rounds=1)
    assert {(loop.for_scores().subsample, loop.stopping) for loop in loops} == {(1, None)}
    assert {loop.steps for loop in loops} == {0, module.FAST}
    assert {type(loop.guide) for loop in loops} == {MeanField}, "no point, which is no posterior to judge by"


def test_memory_is_counted_byte_by_byte(monkeypatch):
    """Steps that hold a known amount for each of their micro-batches, and of these two where there are more."""
    size = 1 << 20

    def train(model, batches, loop, slow_optimizer, **_):
        held = [torch.empty(size, dtype=torch.uint8) for _ in batches]
        slow_optimizer.state.setdefault(model, {"mean": torch.zeros(25), "count": torch.zeros(())})
        return held

    monkeypatch.setattr(module, "train_step", train)
    for accumulate, held in ((1, 1), (4, 2)):
        found = measure_speed(config(**{"slow.batch_size": 2, "slow.accumulate": accumulate}), rounds=1)
        assert found.peak_bytes == pytest.approx(held * size, abs=1000), accumulate
        assert found.optimizer_bytes == 100 + 4
        assert found.total_bytes == found.weights_bytes + found.optimizer_bytes + found.peak_bytes


def test_memory_is_that_of_training():
    """All of it, against the peak of training from nothing; gradients lie beside the later micro-batches."""
    shape = tiny_config(dim=32, layers=1, max_length=16)
    found = {}
    for accumulate in (1, 3):
        settings = ["slow.batch_size=2", f"slow.accumulate={accumulate}", "fast.steps=1"]
        setup = apply_settings(Config(model=shape), settings)

        def training(setup=setup):
            model, loop = build(setup)
            optimizer = slow_optimizer(model, loop.guide, setup.slow)
            for _ in range(2):  # the optimizer's state is there from the second step on
                train_step(
                    model,
                    [tiny_batch(2, 16, seed=number) for number in range(setup.slow.accumulate)],
                    loop,
                    optimizer,
                    clip=1.0,
                    seed=0,
                )

        found[accumulate] = measure_speed(setup, rounds=1)
        assert found[accumulate].total_bytes == pytest.approx(peak_memory(training), rel=0.05)
    model = build(setup)[0]
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    tables = sum(table.nbytes for table in model.buffers())
    one, more = found[1], found[3]
    assert one.weights_bytes == more.weights_bytes == parameters + tables
    counts = 4 * len(list(model.parameters()))  # AdamW also counts its steps, parameter by parameter
    assert one.optimizer_bytes == more.optimizer_bytes == 2 * parameters + counts
    assert more.peak_bytes > one.peak_bytes + parameters / 2


def test_memory_of_an_unrolled_step_is_that_of_all_its_fast_steps(seen):
    changes = {"slow.batch_size": 2, "guide.name": "semi-amortized", "guide.unrolled": "true", "fast.steps": 7}
    measure_speed(config(**changes), rounds=1)
    assert seen[-1].steps == 7


def test_refuses_fewer_sequences_than_a_batch(tmp_path):
    (tmp_path / "a.txt").write_text("a cat sat on the mat, a dog on the log. " * 20)
    prepare([str(tmp_path / "a.txt")], out=tmp_path / "tokens", vocab_size=260, sequence_length=12)
    data = TokenDataset(tmp_path / "tokens")
    with pytest.raises(UserError, match=r"tokens: \d+ sequences; a batch has 4000"):
        measure_speed(config(**{"model.vocab_size": data.vocab_size, "slow.batch_size": 4000}), data)

"""What `bench` tells users: tokens counted, seconds real, and the sums that it makes of them."""

from __future__ import annotations

import time

import pytest
from helpers.tiny import tiny_config

from pyro_ltm.config import Config, apply_settings
from pyro_ltm.data import TokenDataset, prepare
from pyro_ltm.errors import UserError
from pyro_ltm.training import speed as module
from pyro_ltm.training.speed import Speed, measure_speed

FAST, SLOW = 0.05, 0.12


def config(**changes):
    return apply_settings(Config(model=tiny_config()), [f"{key}={value}" for key, value in changes.items()])


def test_seconds_are_those_of_the_clock(monkeypatch):
    """Steps that sleep: a sleep takes its time at least."""
    monkeypatch.setattr(module, "train_step", lambda *_, fast_steps, **__: time.sleep(fast_steps * FAST + SLOW))
    began = time.perf_counter()
    found = measure_speed(config(**{"slow.batch_size": 2, "slow.accumulate": 3, "fast.steps": 16}), rounds=1)
    passed = time.perf_counter() - began
    assert found.slow_seconds >= SLOW
    with_fast_steps = module.FAST * found.fast_seconds + found.slow_seconds
    assert with_fast_steps >= module.FAST * FAST + SLOW
    assert found.slow_seconds + with_fast_steps <= passed
    assert found.step_seconds == 3 * (found.data_seconds + 16 * found.fast_seconds + found.slow_seconds)


def test_tokens_are_those_that_count(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"the {number} cats sat on the mat" for number in range(200)))
    prepare([str(text)], out=tmp_path / "tokens", vocab_size=260, sequence_length=12, packing="document")
    data = TokenDataset(tmp_path / "tokens")
    changes = {"model.vocab_size": data.vocab_size, "slow.batch_size": 4, "slow.accumulate": 2, "fast.steps": 2}
    found = measure_speed(config(**changes), data, rounds=2)
    counted = [int(data.batch(range(4 * number, 4 * number + 4)).tokens()) for number in range(2)]
    assert found.tokens == round(sum(counted) / 2)
    assert found.corpus_tokens == data.tokens
    assert found.tokens_per_second == 2 * found.tokens / found.step_seconds
    assert found.epoch_seconds == pytest.approx(data.tokens / found.tokens * found.step_seconds / 2)
    assert found.peak_bytes > 0


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
        alone_steps=4,
        alone_seconds=1.0,
        peak_bytes=None,
        corpus_tokens=10_000,
    )
    assert found.step_seconds == 20.0
    assert found.tokens_per_second == 25.0
    assert found.fast_share == 0.5
    assert found.epoch_seconds == 400.0
    assert found.to_dict()["epoch_seconds"] == 400.0
    assert found.run_seconds == 6 * 20.0 + 4 * 5 * 1.5


def test_steps_in_which_the_decoder_learns_alone_are_timed_by_themselves(monkeypatch):
    monkeypatch.setattr(
        module,
        "train_step",
        lambda *_, fast_steps, alone, **__: time.sleep(FAST if alone else fast_steps * FAST + SLOW),
    )
    found = measure_speed(config(**{"fast.steps": 4, "slow.steps": 10, "slow.alone": 0.3}), rounds=1)
    assert (found.steps, found.alone_steps) == (10, 3)
    assert found.alone_seconds >= FAST
    assert found.run_seconds == 3 * (found.data_seconds + found.alone_seconds) + 7 * found.step_seconds
    twin = measure_speed(config(**{"model.thoughts": 0, "slow.alone": 0.3}), rounds=1)
    assert (twin.alone_steps, twin.alone_seconds) == (0, None)


def test_the_twin_takes_no_fast_steps():
    found = measure_speed(config(**{"model.thoughts": 0, "slow.batch_size": 2}), rounds=1)
    assert (found.fast_steps, found.fast_seconds, found.fast_share) == (0, 0.0, 0.0)
    assert found.step_seconds > 0


@pytest.fixture
def seen(monkeypatch):
    """The options of every step that is timed."""
    options, real = [], module.train_step
    monkeypatch.setattr(module, "train_step", lambda *a, **k: (options.append(k), real(*a, **k))[1])
    return options


def test_leaves_nothing_out_of_a_step_and_stops_none_early(seen):
    measure_speed(config(**{"slow.batch_size": 2, "fast.subsample": 3, "fast.noise": "antithetic"}), rounds=1)
    assert {(k["subsample"], k["noise"], k["tolerance"]) for k in seen} == {(3, "antithetic", 0.0)}
    assert {k["fast_steps"] for k in seen} == {0, 2, 6}, "whole rounds of three stretches, of which some cost less"


def test_an_encoder_takes_no_fast_steps(seen):
    found = measure_speed(config(**{"slow.batch_size": 2, "guide.name": "amortized"}), rounds=1)
    assert (found.fast_steps, found.fast_seconds) == (0, 0.0)
    assert {k["fast_steps"] for k in seen} == {0}


def test_memory_of_an_unrolled_step_is_that_of_all_its_fast_steps(seen):
    changes = {"slow.batch_size": 2, "guide.name": "semi-amortized", "guide.unrolled": "true", "fast.steps": 7}
    measure_speed(config(**changes), rounds=1)
    assert seen[-1]["fast_steps"] == 7


def test_refuses_fewer_sequences_than_a_batch(tmp_path):
    (tmp_path / "a.txt").write_text("a cat sat on the mat, a dog on the log. " * 20)
    prepare([str(tmp_path / "a.txt")], out=tmp_path / "tokens", vocab_size=260, sequence_length=12)
    data = TokenDataset(tmp_path / "tokens")
    with pytest.raises(UserError, match=r"tokens: \d+ sequences; a batch has 4000"):
        measure_speed(config(**{"model.vocab_size": data.vocab_size, "slow.batch_size": 4000}), data)

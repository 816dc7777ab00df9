"""Sums of a plan, of a step whose figures are known; and which settings would fit."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.tiny import tiny_config

from pyro_ltm.config import Config, apply_settings
from pyro_ltm.errors import UserError
from pyro_ltm.profiling import plan as module
from pyro_ltm.profiling.devices import CARDS, Device, parse_devices
from pyro_ltm.profiling.plan import AVERAGE, COPY, GATHERED, RECORDED, USABLE, Pace, plan_training
from pyro_ltm.profiling.simulation import (
    COPIES,
    DATA,
    FAST,
    FIT,
    GRADIENTS,
    LEARN,
    OPTIMIZER,
    SLOW,
    STEP,
    WEIGHTS,
    Simulation,
)

KEPT = {WEIGHTS: 800, OPTIMIZER + "exp_avg": 800, OPTIMIZER + "exp_avg_sq": 800, DATA: 8}
DEVICE = Device(name="a", memory_bytes=100_000, half_flops=1000.0, single_flops=100.0, link_bytes=50.0)


def simulated(config: Config, device: str) -> Simulation:
    """Activations of 1,000 bytes a sequence, and of 100 where layers are computed again."""
    each = 100 if config.slow.recompute else 1000
    size = config.slow.batch_size
    return Simulation(
        parts={
            FAST: {**KEPT, COPIES: 400, FIT: 10 * size},
            SLOW: {**KEPT, GRADIENTS: 800, LEARN: each * size},
            STEP: {**KEPT, GRADIENTS: 800},
        },
        groups=(200, 200, 400),
        learned_bytes=800,
        fast_operations=10 * size,
        slow_operations=40 * size,
        fast_steps=4,
        is_recorded=True,
    )


@pytest.fixture(autouse=True)
def _simulated(monkeypatch):
    monkeypatch.setattr(module, "simulate", simulated)


def planned(*settings: str, count: int = 4, device: Device = DEVICE, **pace):
    config = apply_settings(Config(model=tiny_config()), ["slow.batch_size=8", "slow.accumulate=4", *settings])
    return plan_training(config, count, device, Pace(**pace))


def test_memory_of_each_kind_of_sharing():
    found = planned("slow.average=0.9", "dtype=bfloat16")
    fast = found.sharings["ddp"].phases[FAST]
    assert fast == {**KEPT, GRADIENTS: 800, COPIES: 400, FIT: 80, AVERAGE: 800}
    alone = planned("slow.average=0.9", count=1).sharing.phases[FAST]
    assert alone == {**KEPT, COPIES: 400, FIT: 80, AVERAGE: 800}
    slow = found.sharings["ddp"].phases[SLOW]
    assert slow == {**KEPT, GRADIENTS: 800, LEARN: 8000, AVERAGE: 800, RECORDED: 480}
    shares = {WEIGHTS: 200, OPTIMIZER + "exp_avg": 200, OPTIMIZER + "exp_avg_sq": 200, DATA: 8, AVERAGE: 200}
    phases = found.sharings["fsdp"].phases
    assert phases[FAST] == {**shares, GATHERED: 800, COPIES: 400, FIT: 80}
    assert phases[SLOW] == {**shares, GATHERED: 800, GRADIENTS: 200 + 400, LEARN: 8000}
    assert phases[STEP] == {**shares, GRADIENTS: 200}
    more = planned("slow.accumulate=8").sharings["fsdp"].phases
    assert more[SLOW][GRADIENTS] == 800, "whole until the last of its two micro-batches"
    assert found.sharing is found.sharings["ddp"]
    assert (found.sharing.peak, found.sharing.peak_bytes) == (SLOW, sum(slow.values()))


def test_the_copy_that_checkpoints_are_written_from():
    """Whole in the first process, however many there are: in main memory, where CPUs have all else."""
    for count in (1, 4):
        found = planned("slow.average=0.9", count=count)
        processors = planned("slow.average=0.9", count=count, device=dataclasses.replace(DEVICE, kind="cpu"))
        assert found.copy_bytes == processors.copy_bytes == 4 * 800
        for kind, sharing in processors.sharings.items():
            for phase, parts in sharing.phases.items():
                assert parts[COPY] == 3200
                assert COPY not in found.sharings[kind].phases[phase]


@pytest.mark.parametrize("setting", ["fast.record=false", "fast.subsample=2", "fast.tolerance=0.1"])
def test_what_is_not_recorded_holds_no_recording(setting):
    assert RECORDED not in planned(setting).sharing.phases[SLOW]


def test_what_is_sent():
    """A ring of four: each device sends three quarters of the gradients twice, or of weights and gradients once."""
    found = planned()
    assert [each.sent_bytes for each in found.sharings.values()] == [1200, 1200]
    assert found.sharing.send_seconds == 1200 / 50
    alone = planned("distributed.kind=fsdp", count=1)
    assert list(alone.sharings) == ["ddp"]
    assert (alone.sharing.sent_bytes, alone.sharing.send_seconds) == (0, 0.0)
    assert planned(device=Device(name="b", memory_bytes=10**6)).sharing.send_seconds is None


def test_time_from_operations():
    """32 sequences on 4 devices: a micro-batch of 8 each, of 4 fast steps of 80 operations and a slow one of 320."""
    found = planned("dtype=bfloat16", "slow.steps=10", utilisation=0.5, price=2.0)
    assert (found.micro_batch, found.micro_batches) == (8, 1)
    assert found.step_seconds == pytest.approx((4 * 80 + 320) / 500 + 24)
    assert found.step_tokens == 32 * 12
    assert found.tokens_per_second == found.step_tokens / found.step_seconds
    assert found.seconds == 10 * found.step_seconds
    assert found.cost == pytest.approx(2.0 * found.device_hours)
    assert found.device_hours == pytest.approx(4 * found.seconds / 3600)
    assert planned("dtype=float32", utilisation=0.5).step_seconds == pytest.approx(640 / 50 + 24)
    uneven = planned(count=3)
    assert (uneven.micro_batch, uneven.micro_batches) == (8, 2), "the busiest has 11 of 32"


def test_time_from_a_rate():
    """Steps without thoughts take the share of their operations."""
    found = planned("slow.steps=10", "slow.decoder_warmup=0.4", count=1, rate=48.0)
    assert found.step_seconds == 32 * 12 / 48
    assert found.seconds == pytest.approx((6 + 4 * 0.5) * found.step_seconds)
    assert planned(count=1, rate=48.0, tokens=3840).steps == 10
    unknown = planned(device=Device(name="b", memory_bytes=10**6), price=1.0)
    assert (unknown.step_seconds, unknown.seconds, unknown.cost, unknown.tokens_per_second) == (None,) * 4
    assert "operations a second of b are not known" in unknown.rate_from


@pytest.mark.parametrize(
    ("room", "count", "settings"),
    [
        (20_000, 1, ()),
        (9_000, 1, ("slow.batch_size=4", "slow.accumulate=8")),
        (4_300, 1, ("slow.batch_size=1", "slow.accumulate=32")),
        (4_100, 1, ("slow.recompute=true",)),
        (3_700, 1, ("slow.batch_size=4", "slow.accumulate=8", "slow.recompute=true")),
        (3_250, 4, ("slow.batch_size=1", "slow.accumulate=32", "distributed.kind=fsdp")),
        (2_650, 4, ("slow.batch_size=4", "slow.accumulate=8", "slow.recompute=true", "distributed.kind=fsdp")),
        (1_000, 4, None),
    ],
)
def test_settings_that_would_fit(room, count, settings):
    device = Device(name="a", memory_bytes=round(room / USABLE))
    found = planned("fast.record=false", count=count, device=device)
    assert found.fitting == settings
    if settings:
        assert not found.sharing.fits
        assert planned("fast.record=false", *settings, count=count, device=device).sharing.fits


def test_all_of_it_is_plain():
    found = json.loads(json.dumps(planned(price=1.0).to_dict()))
    assert found["sharings"]["fsdp"]["peak_bytes"] == planned().sharings["fsdp"].peak_bytes
    assert (found["kind"], found["device"]["name"], found["dtype"]) == ("ddp", "a", "float32")


def test_names_of_devices():
    assert parse_devices("8xH100") == (8, CARDS["h100"])
    assert parse_devices("h100") == (1, CARDS["h100"])
    assert parse_devices("2x4090")[1].name == "4090"
    count, cpu = parse_devices("2xcpu")
    assert (count, cpu.kind) == (2, "cpu")
    assert cpu.memory_bytes > 1 << 28
    count, other = parse_devices("3xMI300X", memory_bytes=192 * 10**9)
    assert (count, other.name, other.kind, other.memory_bytes, other.flops("bfloat16")) == (
        3,
        "MI300X",
        "cuda",
        192 * 10**9,
        None,
    )
    assert parse_devices("A100", memory_bytes=1)[1].half_flops == CARDS["a100"].half_flops


@pytest.mark.parametrize("text", ["", "x", "0xH100", "-1xH100", "8x", "8 H100x", "xxH100"])
def test_bad_names_of_devices(text):
    with pytest.raises(UserError, match=r"8xH100|unknown device"):
        parse_devices(text)


def test_unknown_device_says_which_are_known():
    with pytest.raises(UserError, match=r"unknown device 'H10'.*H100.*--device-memory"):
        parse_devices("8xH10")


def test_more_devices_than_sequences():
    with pytest.raises(UserError, match="33 processes for the 32 sequences"):
        planned(count=33)


def test_only_what_can_be_is_shared():
    assert list(planned("slow_optimizer.name=soap").sharings) == ["ddp"]
    with pytest.raises(UserError, match=r"soap needs whole matrices"):
        planned("slow_optimizer.name=soap", "distributed.kind=fsdp")
    with pytest.raises(UserError, match="compares the sequences of a batch"):
        planned("objective.name=mmd")

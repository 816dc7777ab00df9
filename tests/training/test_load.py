"""Ten thousand slow steps: memory, open files and the time of a step stay what they were."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest
from helpers.tiny_run import configure

import pyro_ltm as ltm

MEBIBYTE = 1 << 20


@dataclass
class Meter:
    """Called after each step, with checkpoints, validations and metrics in between.

    Attributes:
        every: steps of a reading. memory: MiB resident. handles: open files. seconds: of the processor, a step.
    """

    every: int
    memory: list[float] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    began: float = field(default_factory=time.process_time)

    def __call__(self, progress):
        if progress.validation is not None or progress.step % self.every:
            return
        with open("/proc/self/statm") as file:
            self.memory.append(int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / MEBIBYTE)
        self.handles.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(threading.active_count())
        now = time.process_time()
        self.seconds.append((now - self.began) / self.every)
        self.began = now


def run(steps, every, tiny_run, tmp_path):
    meter = Meter(every)
    settings = [f"slow.steps={steps}", "slow.save_every=50", "slow.eval_every=100", "slow.average=0.99"]
    config = configure(*settings, "slow.keep_best=true", "slow.lr=0.001")
    ltm.train(config, data=tiny_run / "data", out=tmp_path / "run", on_progress=meter, on_note=print)
    return meter


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
@pytest.mark.parametrize(
    ("steps", "every", "spare"), [(60, 10, 8.0), pytest.param(10_000, 500, 8.0, marks=pytest.mark.long)]
)
def test_memory_and_handles_stay_flat(steps, every, spare, tiny_run, tmp_path):
    meter = run(steps, every, tiny_run, tmp_path)
    half = len(meter.memory) // 2
    grown = statistics.median(meter.memory[half:]) - statistics.median(meter.memory[1:half])
    slower = statistics.median(meter.seconds[half:]) / statistics.median(meter.seconds[1:half])
    print(
        f"{steps} steps: memory {meter.memory[1]:.1f} to {meter.memory[-1]:.1f} MiB (halves {grown:+.2f}), handles "
        f"{min(meter.handles)} to {max(meter.handles)}, {1e3 * statistics.median(meter.seconds):.2f} ms of processor a "
        f"step (second half {slower:.2f} times the first)"
    )
    assert grown < spare
    assert max(meter.handles[1:]) - min(meter.handles[1:]) <= 2  # a checkpoint may be under way
    assert max(meter.threads[half:]) - min(meter.threads[half:]) <= 1  # likewise
    if steps >= 10_000:
        assert slower < 1.5

"""A plan's memory of two processes is that which each of them takes of the system."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
from helpers.ranks import on_ranks
from helpers.tiny import tiny_batch

from pyro_ltm.config import Config, apply_settings
from pyro_ltm.distributed import current
from pyro_ltm.inference.build import build
from pyro_ltm.presets import preset
from pyro_ltm.profiling.devices import parse_devices
from pyro_ltm.profiling.plan import plan_training
from pyro_ltm.runs.metrics import MetricsLog
from pyro_ltm.runs.run import Run
from pyro_ltm.training.checkpoint import Checkpoint
from pyro_ltm.training.kept import Counters
from pyro_ltm.training.parallel import parallel
from pyro_ltm.training.step import SlowPass, train_step
from pyro_ltm.training.trainer import slow_optimizer

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")]

SIZE = ("model.dim=512", "model.thoughts=6", "model.layers=6", "model.heads=8", "model.vocab_size=8192", "fast.steps=2")
"""25 million parameters."""
WAYS = {
    "ddp": ("slow.batch_size=4", "slow.accumulate=2"),
    "fsdp": ("slow.batch_size=4", "slow.accumulate=2", "distributed.kind=fsdp"),
    "fsdp, accumulated": ("slow.batch_size=4", "slow.accumulate=4", "distributed.kind=fsdp"),
    "fsdp, one sequence": ("slow.batch_size=1", "slow.accumulate=2", "distributed.kind=fsdp"),
}


def config(*settings: str) -> Config:
    return apply_settings(preset("nano"), ["slow.decoder_warmup=0", *settings])


def train(config: Config) -> None:
    """Three slow steps of this process's share of the sequences, each with a checkpoint, which is not written."""
    model, loop = build(config)
    shared = parallel(SlowPass(model, loop.guide), config.distributed.kind)
    optimizer = slow_optimizer(model, loop.guide, config.slow, config.slow_optimizer)
    loop = dataclasses.replace(loop, objective=loop.objective.at(1.0))
    batch = tiny_batch(config.slow.batch_size, config.model.max_length, vocab=config.model.vocab_size)
    batches = [batch] * (config.slow.accumulate // current().size)
    data: Any = SimpleNamespace(folder=SimpleNamespace(fingerprint=""))
    run = Run(Path("nowhere"), config, model, loop, None, 0)
    checkpoint = Checkpoint(run, optimizer, data, MetricsLog(run.folder / "metrics.jsonl", writes=False))
    with pyro.validation_enabled(False):
        for _ in range(3):
            train_step(model, batches, loop, optimizer, clip=config.slow.clip, seed=0, parallel=shared)
            checkpoint.snapshot(Counters())


def taken(settings: tuple[str, ...]) -> int:
    """Bytes that training takes of the system at its peak, beyond what Python and torch take.

    glibc gives back what is freed where it is told to; by itself it keeps up to a half more.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)
    train(config("model.vocab_size=512", *settings))  # libraries' own memory
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    train(config(*SIZE, *settings))
    return _status("VmHWM") - before


M_MMAP_THRESHOLD = -3
"""As in malloc.h."""


def _status(key: str) -> int:
    rows = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in rows if row.startswith(f"{key}:"))


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("way", WAYS)
def test_memory_of_each_of_two_processes(way):
    """The first alone keeps the copy that checkpoints are written from."""
    planned = plan_training(config(*SIZE, *WAYS[way]), *parse_devices("2xcpu"))
    peak = planned.sharing.peak_bytes
    found = on_ranks(2, taken, WAYS[way])
    assert found == pytest.approx([peak, peak - planned.copy_bytes], rel=0.15)

"""Steps without numbers hold what real ones hold: by torch's count of allocations, and by what processes take."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import sys
from pathlib import Path

import pyro
import pytest
import torch
from helpers.processes import FORKS
from helpers.tiny import tiny_batch, tiny_config

from pyro_ltm.config import Config, apply_settings
from pyro_ltm.inference.build import build
from pyro_ltm.model.decoder import Decoder
from pyro_ltm.model.kernels.device import device_type, planned_for
from pyro_ltm.presets import preset
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.profiling.simulation import (
    FAST,
    GRADIENTS,
    HEAD,
    LOCAL,
    OPTIMIZER,
    SLOW,
    STEP,
    WEIGHTS,
    Simulation,
    hidden_tokens,
    simulate,
)
from pyro_ltm.training.step import train_step
from pyro_ltm.training.trainer import slow_optimizer

ROOT = Path(__file__).resolve().parents[2]
CLOSE = 0.02
"""Share by which torch's count may differ: scalars on the way, counters, what Python holds on to."""


def config(*settings: str, name: str | None = None) -> Config:
    base = preset(name) if name else Config(model=tiny_config(dim=32, heads=2, thoughts=4, max_length=32, window=8))
    config = apply_settings(base, settings)
    return config if config.model.vocab_size else apply_settings(config, [f"model.vocab_size={config.data.vocab_size}"])


def train(config: Config, steps: tuple[tuple[int, int], ...] | None = None) -> None:
    """Slow steps of so many micro-batches with so many fast steps each, from nothing."""
    model, loop = build(config)
    optimizer = slow_optimizer(model, loop.guide, config.slow, config.slow_optimizer)
    loop = dataclasses.replace(loop, objective=loop.objective.at(1.0), stopping=None)
    if steps is None:
        enough = loop.steps if loop.guide.keeps_graph else min(loop.steps_taken, max(2, loop.subsample))
        steps = ((1, 0), (min(config.slow.accumulate, 2), enough))
    batch = tiny_batch(config.slow.batch_size, config.model.max_length, vocab=config.model.vocab_size)
    with pyro.validation_enabled(False):
        for count, fast in steps:
            loop = dataclasses.replace(loop, steps=fast)
            train_step(model, [batch] * count, loop, optimizer, clip=config.slow.clip, seed=0)


def total(config: Config, device: str = "cpu") -> int:
    return max(sum(parts.values()) for parts in simulate(config, device).parts.values())


SHAPES = {
    "paper": ("slow.batch_size=4", "slow.accumulate=2"),
    "half": (
        "slow.batch_size=6",
        "dtype=bfloat16",
        "slow_optimizer.name=muon",
        "fast.subsample=2",
    ),
}
MORE = {
    "again": ("slow.batch_size=4", "slow.recompute=true", "model.layers=4", "slow.clip=0", "model.dropout=0.1"),
    "nano": ("name=nano",),
    "mini": ("name=mini", "slow.batch_size=2"),
    "long": ("name=nano-long", "slow.batch_size=1"),
    "vocabulary": ("name=nano", "model.vocab_size=16384", "slow.batch_size=2"),
    "full-rank": ("guide.name=full-rank", "slow.batch_size=8"),
    "encoder": ("guide.name=amortized", "slow.batch_size=8"),
    "unrolled": ("guide.name=semi-amortized", "guide.unrolled=true", "fast.steps=5", "slow.batch_size=8"),
    "particles": ("objective.name=iwae:4", "slow.batch_size=8"),
    "rate": ("objective.name=mean-rate", "objective.nats=5", "slow.batch_size=8"),
    "prior": ("prior.name=flow", "slow.batch_size=8"),
    "twin": ("model.thoughts=0", "slow.batch_size=8"),
    "options": ("model.qk_norm=true", "model.logit_softcap=15", "model.tied=false", "model.feed_forward=relu2"),
}


@pytest.fixture(scope="module")
def paper() -> tuple[Config, Simulation]:
    setup = config(*SHAPES["paper"])
    return setup, simulate(setup)


one_process = pytest.mark.xdist_group("simulated once")


@one_process
def test_memory_of_the_paper_s_step(paper):
    setup, found = paper
    most = max(sum(parts.values()) for parts in found.parts.values())
    assert most == pytest.approx(peak_memory(lambda: train(setup)), rel=CLOSE)


@pytest.mark.parametrize(
    "settings", [SHAPES["half"], *(pytest.param(each, marks=pytest.mark.long) for each in MORE.values())], ids=str
)
def test_memory_is_that_of_a_real_step(settings):
    name = next((each[5:] for each in settings if each.startswith("name=")), None)
    setup = config(*(each for each in settings if not each.startswith("name=")), name=name)
    assert total(setup) == pytest.approx(peak_memory(lambda: train(setup)), rel=CLOSE)


@one_process
def test_parts_are_what_they_say(paper):
    setup, found = paper
    model, loop = build(setup)
    weights = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    learned = sum(each.nbytes for each in model.parameters())
    assert list(found.parts) == [FAST, SLOW, STEP]
    for parts in found.parts.values():
        assert parts[WEIGHTS] == weights
        assert [parts[OPTIMIZER + name] for name in ("exp_avg", "exp_avg_sq")] == [learned, learned]
        assert parts[GRADIENTS] == learned, "from the second micro-batch on"
    numbers = setup.slow.batch_size * setup.model.thoughts * setup.model.dim
    assert found.parts[FAST][LOCAL] == 4 * 6 * numbers, "mean and width, and two that Adam keeps of each"
    assert (found.learned_bytes, sum(found.groups), len(found.groups)) == (learned, learned, setup.model.layers + 1)
    assert found.fast_steps == loop.steps


@one_process
def test_operations_are_those_of_a_real_step(paper):
    setup, found = paper
    alone, with_three = (count_operations(lambda fast=fast: train(setup, ((1, fast),))) for fast in (0, 3))
    assert found.slow_operations == alone
    assert found.slow_operations + 3 * found.fast_operations == with_three


def test_a_masked_diffusion_s_step_is_that_of_the_draw_that_hides_most(monkeypatch):
    """Memory by the largest times of all strata, of the micro-batch that has the last; operations are of the mean."""
    setup = config("model.kind=masked-diffusion", "slow.batch_size=4", "model.vocab_size=512")
    mean, most = hidden_tokens(setup)
    assert (mean, most) == (4 * 33 / 2, 8 + 16 + 24 + 32)
    assert hidden_tokens(config("slow.batch_size=4", "slow.accumulate=2")) == (mean, 20 + 24 + 28 + 32)
    found, counted = simulate(setup), []
    log_probs = Decoder.token_log_probs
    monkeypatch.setattr(
        Decoder, "token_log_probs", lambda self, *args: counted.append(len(args[1])) or log_probs(self, *args)
    )
    operations = count_operations(lambda: train(setup, ((1, 0),)))
    a_token = 4 * 2 * setup.model.vocab_size * setup.model.dim  # forward, again for the way back, to states and head
    assert operations - found.slow_operations == (counted[0] - mean) * a_token
    draw = torch.rand
    # Draws by generators of their own are zero: each time is the end of its stratum.
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None, **how: draw(*shape, **how) * (generator is None))
    assert total(setup) == pytest.approx(peak_memory(lambda: train(setup)), rel=CLOSE)
    assert counted[-1] == most


def test_kernels_of_another_device_are_chosen_only_while_planning():
    x = torch.zeros(1)
    with planned_for("cuda"):
        assert device_type(x) == "cuda"
    assert device_type(x) == "cpu"


def test_layers_computed_again_on_a_gpu():
    """The backward pass meets the same kernels as the forward pass, and less is kept between the two."""
    keeping, again = (
        simulate(config("slow.batch_size=4", "model.layers=4", f"slow.recompute={each}"), "cuda")
        for each in ("false", "true")
    )
    assert sum(again.parts[SLOW].values()) < sum(keeping.parts[SLOW].values())
    assert again.parts[FAST] == keeping.parts[FAST]
    assert again.slow_operations > keeping.slow_operations


@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(each, marks=pytest.mark.long) for each in ("medium", "large"))]
)
def test_memory_of_a_gpu_against_what_was_measured_on_one(name):
    """Allocated bytes beyond weights and optimizer on an H100, 2026-11-26, by the decoder and the torch of that day."""
    measured = json.loads((ROOT / "benchmarks/speed-2026-11-29.json").read_text())[f"gpu-{name}"]["found"]
    settings = ("dtype=bfloat16", "model.vocab_size=50258", "slow.accumulate=1", "fast.record=false")
    parts = simulate(config(*settings, name=name), "cuda").parts
    beyond = [
        sum(size for part, size in held.items() if part != WEIGHTS and not part.startswith(OPTIMIZER))
        for held in parts.values()
    ]
    assert max(beyond) == pytest.approx(measured["peak_bytes"]["ours"], rel=0.15)
    chunks = 2 * 2048 * 50304 * 2  # logits and probabilities of so many positions, in two bytes each
    assert parts[FAST][HEAD] == pytest.approx(chunks, rel=0.01)


def taken(settings: tuple[str, ...], name: str | None, pipe) -> None:
    """In a process of its own: what training takes of the system at its peak, beyond what Python and torch take.

    glibc gives back what is freed where it is told to; by itself it keeps up to a half more.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)
    torch.set_num_threads(1)
    train(config("slow.batch_size=1"))  # libraries' own memory
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    train(config(*settings, name=name))
    pipe.send(_status("VmHWM") - before)


M_MMAP_THRESHOLD = -3
"""As in malloc.h."""


def _status(key: str) -> int:
    rows = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in rows if row.startswith(f"{key}:"))


REAL: dict[str, tuple[str, ...]] = {
    "nano": ("nano", "slow.batch_size=16"),
    "half": ("nano", "slow.batch_size=64", "slow.accumulate=2", "dtype=bfloat16"),
    "again": ("nano", "slow.batch_size=64", "slow.recompute=true"),
    "mini": ("mini", "slow.batch_size=2"),
    "vocabulary": ("nano", "model.vocab_size=16384", "slow.batch_size=16"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
@pytest.mark.parametrize(
    ("name", "settings"),
    [pytest.param(name, each, marks=() if key == "nano" else pytest.mark.long) for key, (name, *each) in REAL.items()],
    ids=list(REAL),
)
def test_memory_of_a_process(name, settings):
    reader, writer = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=taken, args=(settings, name, writer))
    process.start()
    process.join(200)
    assert process.exitcode == 0
    assert total(config(*settings, name=name)) == pytest.approx(reader.recv(), rel=0.15)

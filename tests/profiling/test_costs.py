"""Operations of a configuration, from few small steps: those of the step itself, counted whole; and torch's count."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.tiny_run import configure
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pyro_ltm as ltm
from pyro_ltm.data import TokenDataset
from pyro_ltm.inference import build
from pyro_ltm.profiling.costs import _Counting, count_costs, count_score
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.runs import Run
from pyro_ltm.training.step import train_step
from pyro_ltm.training.trainer import Trainer, slow_optimizer
from pyro_ltm.types import Batch

SHAPES = {
    "as it comes": [],
    "subsampled, more of all": ["fast.steps=9", "fast.subsample=4", "slow.batch_size=5"],
    "accumulated, Muon": ["fast.steps=3", "slow.accumulate=2", "slow_optimizer.name=muon"],
    "unrolled": ["guide.name=semi-amortized", "fast.steps=4"],
    "twin": ["model.thoughts=0"],
}


LONG = ("unrolled",)


@pytest.mark.parametrize(
    "settings", [pytest.param(SHAPES[name], id=name, marks=[pytest.mark.long] * (name in LONG)) for name in SHAPES]
)
def test_costs_are_those_of_all_the_work_counted_whole(settings):
    config = configure("model.vocab_size=280", *settings)
    found, whole = count_costs(config), _Counting(config, {})
    steps, sizes = config.fast.steps, (config.slow.batch_size, config.slow.accumulate)
    assert found.slow_step == whole.step(steps, *sizes)
    assert found.decoder_warmup_step == whole.step(0, *sizes, decoder_only=True)
    assert found.score_token == whole.score(steps) / whole.length
    new = whole.length - 1 - whole.given
    assert found.write_token == whole.write(steps, new) / new


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("bound", ["fast.steps=5"]),
        ("prefix", ["fast.steps=5"]),
        ("reference", ["fast.steps=5"]),
        ("prefix", ["model.thoughts=0"]),
    ],
)
def test_a_figure_costs_what_it_takes_counted_whole(protocol, settings):
    """By more draws and steps than are counted."""
    config = configure("model.vocab_size=280", *settings)
    steps, draws = (5, 6) if config.model.thoughts else (0, 1)
    assert count_score(config, protocol, particles=6) == _Counting(config, {}).figure(protocol, steps, draws)


def test_costs_of_writing_are_within_a_percent_where_attention_looks_further_back():
    config = configure("model.vocab_size=280", "model.max_length=64", "data.sequence_length=64", "model.window=64")
    whole = _Counting(config, {})
    new = whole.length - 1 - whole.given
    assert count_costs(config).write_token == pytest.approx(whole.write(config.fast.steps, new) / new, rel=0.01)


def test_a_training_costs_its_steps_with_and_without_thoughts():
    config = configure("model.vocab_size=280", "slow.steps=10", "slow.decoder_warmup=0.3")
    costs = count_costs(config)
    assert costs.training(config) == 3 * costs.decoder_warmup_step + 7 * costs.slow_step
    assert costs.decoder_warmup_step < costs.slow_step


def test_a_masked_diffusion_costs_what_its_draws_do_on_average():
    """Its head reads the hidden tokens alone, half of them on average; in as many passes as tokens each reads all."""
    config = configure("model.vocab_size=280", "model.kind=masked-diffusion", "slow.batch_size=40")
    found, whole = count_costs(config), _Counting(config, {})
    assert found.slow_step == pytest.approx(whole.step(0, 40, 1), rel=0.03)
    new = whole.length - 1 - whole.given
    assert found.write_token == whole.denoise(new, new) / new
    assert found.write_token > 5 * found.score_token


def test_the_trainer_takes_what_was_counted(birds, tmp_path):
    """A real step on real sequences: a run of three slow steps against one of two."""
    folder = ltm.prepare([str(birds)], tmp_path / "tokens", vocab_size=280, sequence_length=16)
    data = TokenDataset(folder)

    def operations(steps: int) -> int:
        config = configure(f"model.vocab_size={data.vocab_size}", f"slow.steps={steps}", "slow.save_every=100")
        model, loop = build(config)
        run = Run.create(tmp_path / str(steps), config, model, loop, data.tokenizer)
        return count_operations(lambda: Trainer(run, data, None).fit())

    config = configure(f"model.vocab_size={data.vocab_size}")
    assert operations(3) - operations(2) == count_costs(config).slow_step


def test_agrees_with_the_counter_of_torch_on_what_that_covers():
    """A step of the twin, forward and back, attention by plain products; torch knows no price of what the head does.

    On a processor that reads its logits by fused attention, R x V x D twice, and adds to its gradient in place, once.
    """
    config = configure("model.vocab_size=280", "model.thoughts=0", "model.layers=2", "model.dim=32")
    model, loop = build(config)
    optimizer = slow_optimizer(model, loop.guide, config.slow, config.slow_optimizer)
    batch = Batch.from_tokens(torch.randint(280, (3, 17)))
    loop = dataclasses.replace(loop, steps=0)

    def step() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            train_step(model, [batch], loop, optimizer, clip=1.0, seed=0, decoder_only=True)

    with FlopCounterMode(display=False) as theirs:
        step()
    head = 3 * 2 * batch.inputs.numel() * 280 * 32
    assert count_operations(step) == theirs.get_total_flops() + head

"""Floating-point operations that a configuration costs: of its training, of a scored token, of a written one.

Counted by `count_operations` while real steps run at the configuration's shape, on few random sequences: the work of a
step is linear in its sequences and in its rounds of fast steps, so a few small steps tell what a large one takes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from pyro_ltm.config import Config, FastConfig, SlowConfig, dump_toml
from pyro_ltm.errors import UserError
from pyro_ltm.inference import FastLoop, generate
from pyro_ltm.inference.build import build
from pyro_ltm.model import DecodingOptions, LatentThoughtModel
from pyro_ltm.profiling.operations import count_operations
from pyro_ltm.scores import evaluate_bound, evaluate_prefix, evaluate_reference
from pyro_ltm.training.step import train_step
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch


@dataclass(frozen=True)
class Costs:
    """Operations (see `count_operations`) of a model of one shape, trained one way.

    Attributes:
        slow_step: of a whole training step: the fast steps of all micro-batches, and the slow one.
        decoder_warmup_step: of one in which the decoder learns without thoughts.
        score_token: to fit a sequence's thoughts on all its tokens, and to score it once, a token.
        write_token: to read a prompt of half the length, fit its thoughts, and write as much again, a written token;
            of a masked diffusion in as many passes as tokens.
    """

    slow_step: int
    decoder_warmup_step: int
    score_token: float
    write_token: float

    def training(self, config: Config) -> int:
        """Of all slow steps of a run of this shape; validations are not counted."""
        alone = config.decoder_warmup_steps
        return alone * self.decoder_warmup_step + (config.slow.steps - alone) * self.slow_step


def count_costs(config: Config) -> Costs:
    """The costs of a configuration, whose vocabulary is known.

    Those of a masked diffusion, whose head reads as many tokens as are hidden, are of a draw, within a few percent.
    Where a fit may stop early (`fast.tolerance`) they are the most that it takes. The words of a prompt and the weights
    are random, which cost as much as any. What was counted once is remembered.

    Raises:
        UserError: whatever training would refuse.
    """
    few = dataclasses.replace(config, seed=0, compile=False, slow=_once(config), fast=_stepless(config))
    counting = _Counting(few, _counted.setdefault(dump_toml(few), {}))
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        return counting.costs(config)


def count_score(config: Config, protocol: str = "bound", *, particles: int = 1) -> int:
    """Operations of the figure of one full sequence by a protocol of evaluation, from so many draws.

    Raises:
        UserError: whatever training would refuse.
    """
    few = dataclasses.replace(config, seed=0, compile=False, slow=_once(config), fast=_stepless(config))
    counting, model = _Counting(few, _counted.setdefault(dump_toml(few), {})), config.model
    steps, draws = (config.fast.steps, particles) if model.thoughts else (0, particles if model.is_diffusion else 1)
    least = DRAWS if model.is_diffusion else 1
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        return _in_rounds(
            lambda fast: _linear(lambda count: counting.figure(protocol, fast, count), draws, few=least), steps, 1
        )


def _once(config: Config) -> SlowConfig:
    """The slow loop in which a step is as small as it can be, and training does nothing but steps."""
    # At a rate of 0 the weights stay as they are.
    slow = dataclasses.replace(config.slow, steps=2, warmup=0, decoder_warmup=0.0, lr=0.0)
    return dataclasses.replace(slow, batch_size=1, accumulate=1)


def _stepless(config: Config) -> FastConfig:
    return dataclasses.replace(config.fast, steps=1, tolerance=0.0, record=False)


DRAWS = 16
"""Draws of what a masked diffusion hides, stratified, over which its costs are taken at the least."""

_counted: dict[str, dict[tuple[object, ...], int]] = {}
"""Counts by shape, and of each by what was done."""


class _Counting:
    """A model of random weights, and the work that is counted with it.

    Args:
        config: its shape. counted: what was counted of that before; what is counted now is added.
    """

    def __init__(self, config: Config, counted: dict[tuple[object, ...], int]):
        self.config, self.counted = config, counted
        self.length = min(config.model.max_length, config.data.sequence_length)

    @functools.cached_property
    def built(self) -> tuple[LatentThoughtModel, FastLoop, torch.optim.Optimizer]:
        """Model, fast loop and slow optimizer: made where something is still to be counted."""
        model, loop = build(self.config)
        loop = dataclasses.replace(loop, objective=loop.objective.at(1.0))
        return model, loop, slow_optimizer(model, loop.guide, self.config.slow, self.config.slow_optimizer)

    def costs(self, config: Config) -> Costs:
        """All of them, of this shape with the steps and sizes of `config`."""
        steps, pieces = config.fast.steps if config.model.thoughts else 0, config.fast.subsample
        alone = self.training_step(config, lambda *sizes: self.step(0, *sizes, decoder_only=True))
        whole = self.training_step(
            config, lambda *sizes: _in_rounds(lambda fast: self.step(fast, *sizes), steps, pieces)
        )
        scored = _in_rounds(self.score, steps, 1)
        new = self.length - 1 - self.given
        if config.model.is_diffusion:
            written = _linear(lambda passes: self.denoise(passes, new), new)
        else:
            written = _in_rounds(lambda fast: _linear(lambda count: self.write(fast, count), new, few=8), steps, pieces)
        return Costs(whole, alone, scored / self.length, written / new)

    def training_step(self, config: Config, step: Callable[[int, int], int]) -> int:
        """A training step of all sequences and micro-batches, where `step` tells it for few of both."""
        size, accumulate = config.slow.batch_size, config.slow.accumulate
        whole = _linear(lambda count: step(count, 1), size, few=DRAWS if config.model.is_diffusion else 1)
        if accumulate == 1:
            return whole
        once = 2 * step(1, 1) - step(1, 2)  # the slow optimizer moves after all micro-batches
        return accumulate * (whole - once) + once

    def batch(self, size: int) -> Batch:
        """Random sequences."""
        generator = torch.Generator().manual_seed(size)
        shape = size, self.length + 1
        return Batch.from_tokens(torch.randint(self.config.model.vocab_size, shape, generator=generator))

    def step(self, fast_steps: int, size: int, micro_batches: int, *, decoder_only: bool = False) -> int:
        """A training step of micro-batches of `size` sequences."""

        def work() -> None:
            model, loop, optimizer = self.built
            batches, loop = [self.batch(size)] * micro_batches, loop.with_steps(fast_steps)
            train_step(model.train(), batches, loop, optimizer, clip=1.0, seed=0, decoder_only=decoder_only)

        return self._count(work, "step", fast_steps, size, micro_batches, decoder_only)

    def score(self, fast_steps: int) -> int:
        """A fit of one sequence on all its tokens, and one look at all of them."""
        draws = DRAWS if self.config.model.is_diffusion else 1

        @torch.no_grad()
        def work() -> None:
            model, loop, _ = self.built
            batch = dataclasses.replace(model.eval().precompute(self.batch(1)), hiding=(0, draws))
            fitted = loop.with_steps(fast_steps).for_scores().fit(model, batch)
            fitted.with_noise(1).score(model, batch, particles=1)

        return self._count(work, "score", fast_steps) // draws

    def figure(self, protocol: str, fast_steps: int, draws: int) -> int:
        """One sequence scored by a protocol."""

        def work() -> None:
            model, loop, _ = self.built
            batches, loop = [self.batch(1)], loop.with_steps(fast_steps)
            if protocol == "bound":
                evaluate_bound(model, batches, loop.with_density(), particles=draws)
            elif protocol == "prefix":
                evaluate_prefix(model, batches, loop, particles=draws)
            else:
                evaluate_reference(model, batches, fast_steps=fast_steps)

        return self._count(work, protocol, fast_steps, draws)

    @property
    def given(self) -> int:
        """Tokens of the prompt, after the one that begins every text."""
        return max(1, self.length // 2 - 1)

    def write(self, fast_steps: int, new: int) -> int:
        """A prompt read, its thoughts fitted, and so many tokens written after it."""
        prompt = " ".join(["1"] * self.given)

        def work(seed: int) -> bool:
            model, loop, _ = self.built
            how: dict[str, Any] = {"prompt": prompt, "max_new_tokens": new, "seed": seed}
            return generate(model.eval(), loop.with_steps(fast_steps), _Numbers(), **how)[0].ended

        for seed in range(1000):  # a text that ends of itself is too short to be counted
            ended: list[bool] = []
            found = self._count(lambda seed=seed, ended=ended: ended.append(work(seed)), "write", fast_steps, new)  # type: ignore[misc]
            if not any(ended):
                return found
            del self.counted["write", fast_steps, new]
        raise UserError(f"of texts of {new} tokens all ended too soon")

    def denoise(self, passes: int, new: int) -> int:
        """A prompt continued by `new` tokens of a masked diffusion in so many passes."""

        def work() -> None:
            model, _, _ = self.built
            given = torch.ones(1, 1 + self.given, dtype=torch.int64)
            model.eval().write(torch.zeros(1, 0, 1), given, new, sampler=DecodingOptions(diffusion_steps=passes))

        return self._count(work, "denoise", passes, new)

    def _count(self, work: Callable[[], object], *key: object) -> int:
        if key not in self.counted:
            self.counted[key] = count_operations(work)
        return self.counted[key]


def _linear(count: Callable[[int], int], size: int, *, few: int = 1) -> int:
    """The operations of `size` things of one kind, from those of `few` and of twice as many."""
    if size <= 2 * few:
        return count(size)
    return count(few) + (size - few) * (count(2 * few) - count(few)) // few


def _in_rounds(count: Callable[[int], int], steps: int, pieces: int) -> int:
    """The operations of `steps` fast steps, of which each round of `pieces` costs the same, from those of few."""
    rounds = steps // pieces - 1
    if rounds < 2:
        return count(steps)
    few = steps - rounds * pieces  # one round, and what is left over
    first = count(few)
    return first + rounds * (count(few + pieces) - first)


class _Numbers:
    """A codec whose words are the numbers of tokens."""

    end_of_text = 0

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


__all__ = ["Costs", "count_costs", "count_score"]

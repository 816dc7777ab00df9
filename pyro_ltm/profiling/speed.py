"""Costs of training on this machine: seconds, tokens a second, memory, and how they split between fast and slow."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch

from pyro_ltm.config import Config, SlowConfig, merge
from pyro_ltm.data import TokenDataset
from pyro_ltm.errors import UserError
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.build import build, check_config
from pyro_ltm.noise import fold
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.scores import evaluate_bound
from pyro_ltm.training.optimizer_state import OptimizerState
from pyro_ltm.training.step import train_step
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch

FAST = 4
"""Fast steps timed together, at least; each costs the same, or each round of `fast.subsample` of them does."""


@dataclass(frozen=True)
class Speed:
    """Cost of training, in seconds and bytes; each time the median of `rounds`.

    Attributes:
        sequences, tokens: in a micro-batch; tokens are the targets that count.
        fast_seconds: one fast step of a micro-batch. slow_seconds: the rest: its slow step.
        decoder_warmup_seconds: the slow step of a micro-batch without thoughts; None where there is none.
        steps: slow steps of the run. decoder_warmup_steps: the first of them, without thoughts.
        fast_steps: to each slow step. accumulate: micro-batches in a training step.
        data_seconds: reading and moving a micro-batch.
        validations: of the run, the one before its first step included. validation_seconds: one, of all its sequences.
        weights_bytes: decoder and guide, with the tables that they keep. optimizer_bytes: the slow optimizer's state.
        peak_bytes: at most in a training step beyond those two; None where it cannot be counted.
        corpus_tokens: targets in the data, None without data.
    """

    sequences: int
    tokens: int
    fast_seconds: float
    slow_seconds: float
    data_seconds: float
    fast_steps: int
    accumulate: int
    rounds: int
    steps: int
    decoder_warmup_steps: int
    decoder_warmup_seconds: float | None
    validations: int
    validation_seconds: float
    weights_bytes: int
    optimizer_bytes: int
    peak_bytes: int | None
    corpus_tokens: int | None = None

    @property
    def step_seconds(self) -> float:
        """A whole training step, thoughts and all: data, fast steps and slow step of every micro-batch."""
        return self.accumulate * (self.data_seconds + self.fast_steps * self.fast_seconds + self.slow_seconds)

    @property
    def run_seconds(self) -> float:
        """All of the run but its saves: validations and slow steps, those without thoughts at their own price."""
        steps = (
            self.decoder_warmup_steps * self.decoder_warmup_step_seconds
            + (self.steps - self.decoder_warmup_steps) * self.step_seconds
        )
        return steps + self.validations * self.validation_seconds

    @property
    def decoder_warmup_step_seconds(self) -> float:
        """A whole training step while the decoder learns without thoughts; 0 where it never does."""
        return (
            0.0
            if self.decoder_warmup_seconds is None
            else self.accumulate * (self.data_seconds + self.decoder_warmup_seconds)
        )

    @property
    def tokens_per_second(self) -> float:
        """Targets learnt from in a second of training, each read by all fast steps and the slow one."""
        return self.accumulate * self.tokens / self.step_seconds

    @property
    def fast_share(self) -> float:
        """Share of the time that goes into fast steps."""
        return self.accumulate * self.fast_steps * self.fast_seconds / self.step_seconds

    @property
    def epoch_seconds(self) -> float | None:
        """Once over all of the data."""
        return None if self.corpus_tokens is None else self.corpus_tokens / self.tokens_per_second

    @property
    def total_bytes(self) -> int | None:
        """Weights, optimizer state and a step's peak; None where that cannot be counted."""
        return None if self.peak_bytes is None else self.weights_bytes + self.optimizer_bytes + self.peak_bytes

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        names = ("step_seconds", "run_seconds", "tokens_per_second", "fast_share", "epoch_seconds", "total_bytes")
        return {**vars(self), **{name: getattr(self, name) for name in names}}


def measure_speed(
    config: Config,
    data: TokenDataset | None = None,
    *,
    device: str = "cpu",
    rounds: int = 3,
    on_round: Callable[[int], None] = lambda done: None,
) -> Speed:
    """Times fast steps, slow step and validation of a training run as `config` has it, on `data` or on random tokens.

    A step without fast steps is timed, and one with `FAST` of them or a few more: the difference is theirs, and counted
    as often as the run takes them. On a GPU with all of them, because there the host prepares one while another runs,
    and what is `fast` is what they add. Nothing is kept of the model.

    Args:
        on_round: called with the rounds done.

    Raises:
        UserError: whatever training would refuse; or fewer sequences than a batch.
    """
    check_config(config)
    bench = _Bench(config, data, device)
    found = []
    with pyro.validation_enabled(False):  # as in training
        bench.warm_up()
        for number in range(rounds):
            found.append(bench.time_round(number))
            on_round(number + 1)
        peak = bench.peak_bytes(bench.read(rounds - 1))
    return bench.speed(found, peak)


PATIENCE = 5.0
"""Seconds of a first round, after which a second one, without what is done once, is not waited for."""


def estimate_seconds(config: Config, data: TokenDataset, *, device: str = "cpu") -> float:
    """About how long all of the training takes (`Speed.run_seconds`), from one or two rounds of `measure_speed`.

    Training goes on as if nothing had been timed. Where a round is long, what it does only once is a part of the
    estimate. 0 where nothing can be timed: a batch is more than all data, or the decoder is to be compiled.
    """
    if len(data) < config.slow.batch_size or config.compile:
        return 0.0
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        bench, began = _Bench(config, data, device), time.perf_counter()
        rounds = [bench.time_round(0)]
        if time.perf_counter() - began < PATIENCE:
            rounds = [bench.time_round(1)]
    return bench.speed(rounds, None).run_seconds


@dataclass(frozen=True)
class _Round:
    """Seconds of the parts of a training run, timed once, and the tokens of the micro-batch: see `Speed`."""

    data: float
    slow: float
    fast: float
    decoder_warmup: float | None
    validation: float
    tokens: int


class _Bench:
    """The parts of a training run, to be timed one by one."""

    def __init__(self, config: Config, data: TokenDataset | None, device: str):
        self.config, self.data, self.device = config, data, device
        self.batch_size = config.slow.batch_size
        if data is not None and len(data) < self.batch_size:
            raise UserError(f"{data.folder.path}: {len(data)} sequences; a batch has {self.batch_size}")
        self.model, loop = build(config, device=device)
        # Sequences that stop early would make some steps cheaper than others; such a run is not recorded either.
        recorder = None if loop.stopping else loop.recorder
        self.loop = dataclasses.replace(loop, objective=loop.objective.at(1.0), stopping=None, recorder=recorder)
        self.scoring_loop = self.loop.with_density().for_scores()
        self.optimizer = slow_optimizer(self.model, loop.guide, config.slow, config.slow_optimizer)
        self.validations, self.validation_sequences = _validations(config.slow, data)

    def read(self, number: int) -> Batch:
        """A micro-batch on the device: of the data, or of random tokens."""
        size, data = self.batch_size, self.data
        if data is None:
            generator = torch.Generator().manual_seed(fold(self.config.seed, "bench", number))
            shape = (size, self.config.model.max_length + 1)
            batch = Batch.from_tokens(torch.randint(self.config.model.vocab_size, shape, generator=generator))
        else:
            batch = data.batch([index % len(data) for index in range(number * size, (number + 1) * size)])
        return batch.to(self.device)

    def train(self, batches: list[Batch], number: int, *, fast_steps: int, decoder_only: bool = False) -> None:
        """A training step on these micro-batches."""
        train_step(
            self.model,
            batches,
            self.loop.with_steps(fast_steps),
            self.optimizer,
            clip=self.config.slow.clip,
            seed=fold(self.config.seed, number),
            decoder_only=decoder_only,
        )

    def validate(self, batch: Batch, *, fast_steps: int) -> None:
        """A validation of one micro-batch."""
        evaluate_bound(self.model, [batch], self.scoring_loop.with_steps(fast_steps), particles=1)

    def warm_up(self) -> None:
        """Whatever is done once, such as compiling or recording: it is not a step's cost."""
        batch = self.read(0)
        for _ in range(2 if self.loop.recorder else 1):
            self.train([batch], 0, fast_steps=self._timed_steps(self.loop))
            if self.config.decoder_warmup_steps:
                self.train([batch], 0, fast_steps=0, decoder_only=True)
            if self.validations:
                self.validate(batch, fast_steps=self._timed_steps(self.scoring_loop))

    def time_round(self, number: int) -> _Round:
        """Times every part once, on the micro-batch of this number."""
        data, batch = _timed(partial(self.read, number), self.device)
        train = partial(self.train, [batch], number)
        slow, fast = self._price(train, self.loop)
        warmup = None
        if self.config.decoder_warmup_steps:
            warmup, _ = _timed(partial(train, fast_steps=0, decoder_only=True), self.device)
        validation = 0.0
        if self.validations:
            rest, each = self._price(partial(self.validate, batch), self.scoring_loop)
            batches = self.validation_sequences / self.batch_size
            validation = batches * (rest + self.scoring_loop.steps_taken * each)
        return _Round(data, slow, fast, warmup, validation, int(batch.tokens()))

    def _timed_steps(self, loop: FastLoop) -> int:
        """Fast steps that are timed together."""
        if self.model.device.type == "cuda":
            return loop.steps_taken
        return min(loop.steps_taken, -(-FAST // loop.subsample) * loop.subsample)

    def _price(self, work: Callable[..., Any], loop: FastLoop) -> tuple[float, float]:
        """Seconds of `work` without fast steps, and of each fast step that it is given then."""
        rest, _ = _timed(partial(work, fast_steps=0), self.device)
        steps = self._timed_steps(loop)
        if not steps:
            return rest, 0.0
        whole, _ = _timed(partial(work, fast_steps=steps), self.device)
        return rest, max(whole - rest, 0.0) / steps

    def peak_bytes(self, batch: Batch) -> int | None:
        """Memory that a training step holds at its peak, beyond weights and the optimizer's state."""
        self.optimizer.zero_grad(set_to_none=True)  # what the profiler has not seen made, it cannot see freed
        recorder, repeats = self.loop.recorder, 1
        # An unrolled step keeps all its fast steps; the others need no more than two to show their peak.
        fast_steps = (
            self.loop.steps_taken if recorder or self.loop.guide.keeps_graph else min(self._timed_steps(self.loop), 2)
        )
        if recorder:  # to be recorded anew, whole, in the second step: its memory is a step's
            recorder.forget()
            repeats = 2
        count = min(self.config.slow.accumulate, 2)  # from the second micro-batch on, gradients lie beside the graph
        step = partial(self.train, [batch] * count, 0, fast_steps=fast_steps)
        return peak_memory(lambda: [step() for _ in range(repeats)], self.device, reserved=repeats > 1)

    def speed(self, rounds: list[_Round], peak_bytes: int | None) -> Speed:
        """Medians of the rounds, with all that a run's cost follows from."""
        slow, warmup = self.config.slow, [one.decoder_warmup for one in rounds if one.decoder_warmup is not None]
        modules = (self.model, self.loop.guide)
        weights = [one for module in modules for one in (*module.parameters(), *module.buffers())]
        return Speed(
            sequences=self.batch_size,
            tokens=round(statistics.mean(one.tokens for one in rounds)),
            fast_seconds=statistics.median(one.fast for one in rounds),
            slow_seconds=statistics.median(one.slow for one in rounds),
            data_seconds=statistics.median(one.data for one in rounds),
            fast_steps=self.loop.steps_taken,
            accumulate=slow.accumulate,
            rounds=len(rounds),
            steps=slow.steps,
            decoder_warmup_steps=self.config.decoder_warmup_steps,
            decoder_warmup_seconds=statistics.median(warmup) if warmup else None,
            validations=self.validations,
            validation_seconds=statistics.median(one.validation for one in rounds),
            weights_bytes=sum(tensor.nbytes for tensor in weights),
            optimizer_bytes=sum(tensor.nbytes for tensor in OptimizerState.of(self.optimizer).tensors.values()),
            peak_bytes=peak_bytes,
            corpus_tokens=None if self.data is None else self.data.tokens,
        )


def with_vocabulary(config: Config) -> Config:
    """`config` with the vocabulary that its own data would be given, where it names none for the model."""
    if config.model.vocab_size:
        return config
    return merge(config, {"model": {"vocab_size": config.data.vocab_size}})


def _validations(slow: SlowConfig, data: TokenDataset | None) -> tuple[int, int]:
    """Validations of a run, and the sequences of each; without data, as many of these as are asked for."""
    sequences = slow.eval_sequences
    if data is not None:
        if "validation" not in data.folder.splits:
            return 0, 0
        sequences = min(sequences, len(TokenDataset(data.folder, "validation")))
    # One before the first step, and one after the last, whatever the number between them.
    return 1 + (-(-slow.steps // slow.eval_every) if slow.eval_every else 1), sequences


def _timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds that `work` takes, to its end on the device, and its result."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - began, result

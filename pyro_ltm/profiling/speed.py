"""What training costs on this machine: seconds, tokens a second, memory, and how they split between fast and slow."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_ltm.config import Config, SlowConfig, merge
from pyro_ltm.data import TokenDataset
from pyro_ltm.errors import UserError
from pyro_ltm.inference.build import build, check_config
from pyro_ltm.noise import fold
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.scores import evaluate_bound
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
        peak_bytes: held at most in a training step beyond those two; None where it cannot be counted.
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
        """All of the run but its saves: validations and slow steps, those of the decoder alone at their own price."""
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
    model, loop = build(config, device=device)
    slow, seed = config.slow, config.seed
    if data is not None and len(data) < slow.batch_size:
        raise UserError(f"{data.folder.path}: {len(data)} sequences; a batch has {slow.batch_size}")
    optimizer = slow_optimizer(model, loop.guide, slow)
    overlaps = model.device.type == "cuda"
    # Sequences that stop early would make some steps cheaper than others; such a run is not recorded either.
    recorder = None if loop.stopping else loop.recorder
    loop = dataclasses.replace(loop, objective=loop.objective.at(1.0), stopping=None, recorder=recorder)
    checker = loop.with_density()
    fast_steps = loop.steps_taken
    counted = fast_steps if overlaps else min(fast_steps, -(-FAST // loop.subsample) * loop.subsample)
    validations, validated = _validations(slow, data)

    def read(number: int) -> Batch:
        if data is None:
            generator = torch.Generator().manual_seed(fold(seed, "bench", number))
            shape = (slow.batch_size, config.model.max_length + 1)
            batch = Batch.from_tokens(torch.randint(config.model.vocab_size, shape, generator=generator))
        else:
            first = number * slow.batch_size
            batch = data.batch([index % len(data) for index in range(first, first + slow.batch_size)])
        return batch.to(device)

    def learn(batch: Batch, fast_steps: int, number: int = 0, decoder_only: bool = False, count: int = 1) -> None:
        train_step(
            model,
            [batch] * count,
            loop.with_steps(fast_steps),
            optimizer,
            clip=slow.clip,
            seed=fold(seed, number),
            decoder_only=decoder_only,
        )

    def validate(batch: Batch, fast_steps: int) -> None:
        evaluate_bound(model, [batch], checker.with_steps(fast_steps), particles=1)

    batch = read(0)
    decoder_warmup_steps = config.decoder_warmup_steps
    checking_steps = checker.steps_taken
    checked = checking_steps if overlaps else min(checking_steps, FAST)
    reading, fast, slowly, warming, checking, tokens = [], [], [], [], [], []
    with pyro.validation_enabled(False):  # as in training
        for _ in range(2 if recorder else 1):  # what is done once, compiling or recording, is not a step's cost
            learn(batch, counted)
            if decoder_warmup_steps:
                learn(batch, 0, decoder_only=True)
            if validations:
                validate(batch, checked)
        for number in range(rounds):
            seconds, batch = _timed(partial(read, number), device)
            reading.append(seconds)
            without, each = _priced(partial(learn, batch, number=number), counted, device)
            slowly.append(without)
            fast.append(each)
            if decoder_warmup_steps:
                warming.append(_timed(partial(learn, batch, 0, number, decoder_only=True), device)[0])
            if validations:
                without, each = _priced(partial(validate, batch), checked, device)
                checking.append(validated / slow.batch_size * (without + checking_steps * each))
            tokens.append(int(batch.tokens()))
            on_round(number + 1)
        optimizer.zero_grad(set_to_none=True)  # what the profiler has not seen made, it cannot see freed
        kept = fast_steps if loop.guide.keeps_graph else min(counted, 2)  # an unrolled step keeps all fast steps
        count = min(slow.accumulate, 2)  # from the second micro-batch on, gradients are held beside what it keeps
        if recorder:  # to be recorded anew, whole, in the second step: its memory is a step's
            recorder.forget()
            kept = fast_steps
        steps = 2 if recorder else 1
        step = partial(learn, batch, kept, count=count)
        peak = peak_memory(lambda: [step() for _ in range(steps)], device, reserved=bool(recorder))
    held = [tensor for module in (model, loop.guide) for tensor in (*module.parameters(), *module.buffers())]
    return Speed(
        sequences=slow.batch_size,
        tokens=round(statistics.mean(tokens)),
        fast_seconds=statistics.median(fast),
        slow_seconds=statistics.median(slowly),
        data_seconds=statistics.median(reading),
        fast_steps=fast_steps,
        accumulate=slow.accumulate,
        rounds=rounds,
        steps=slow.steps,
        decoder_warmup_steps=decoder_warmup_steps,
        decoder_warmup_seconds=statistics.median(warming) if warming else None,
        validations=validations,
        validation_seconds=statistics.median(checking) if checking else 0.0,
        weights_bytes=_bytes(held),
        optimizer_bytes=_bytes(tensor for entry in optimizer.state.values() for tensor in entry.values()),
        peak_bytes=peak,
        corpus_tokens=None if data is None else data.tokens,
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


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _priced(work: Callable[[int], Any], fast_steps: int, device: str) -> tuple[float, float]:
    """Seconds of `work` without fast steps, and of each of the `fast_steps` that it is given then."""
    without, _ = _timed(partial(work, 0), device)
    if not fast_steps:
        return without, 0.0
    whole, _ = _timed(partial(work, fast_steps), device)
    return without, max(whole - without, 0.0) / fast_steps


def _timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds that `work` takes, to its end on the device, and its result."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - began, result

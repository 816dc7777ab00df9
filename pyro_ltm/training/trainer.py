"""The slow loop: step after step, with validation, checkpoints, and an end that resuming cannot change."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pyro
import torch

from pyro_ltm.config import SlowConfig, dump_toml
from pyro_ltm.data import DataOrder, TokenDataset, unigram_nats
from pyro_ltm.errors import UserError
from pyro_ltm.files import write_text
from pyro_ltm.inference.parts import Parts
from pyro_ltm.noise import DrawFrom, Noise, fold
from pyro_ltm.reading import Count
from pyro_ltm.runs.folder import (
    CONFIG,
    METRICS,
    TRAINER,
    check_tensors,
    load_weights,
    read_tensors,
    weights,
    write_tensors,
)
from pyro_ltm.runs.metrics import MetricsLog
from pyro_ltm.runs.run import Run, check_fits
from pyro_ltm.scores import Bound
from pyro_ltm.training.schedule import changes, extended, flat, learning_rate, phase
from pyro_ltm.training.step import StepReport, train_step
from pyro_ltm.types import Batch

NONFINITE = "nonfinite.json"
STATE = "optimizer."
"""What the names of the optimizer's tensors begin with in a checkpoint."""

MEANT = (signal.SIGINT, signal.SIGTERM)
WARNINGS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
ENDING = (*MEANT, *(getattr(signal, name) for name in WARNINGS if hasattr(signal, name)))
"""Signals after which a run saves and ends: a closed terminal and the warnings of batch systems are among them."""

Seconds = Annotated[float, msgspec.Meta(ge=0.0)]


class Stopped(KeyboardInterrupt):
    """Training was interrupted (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1) after it saved; the message says how to go on."""


@dataclass
class Progress:
    """What a progress display gets after each slow step; nats unless the name says otherwise.

    `figure`: what `bound` is: "bound"; "own_noise", when the fit has seen the draw that it was taken on (the
    reference's fixed noise); "joint", -log p(x, z), when the guide is a point or draws; "exact", without thoughts. Only
    the first and the last are bounds. `decoder_warmup_steps`: of the slow steps, the first, in which the decoder
    learns without thoughts: they go faster than the others.
    """

    step: int
    steps: int
    tokens_per_second: float
    bound: float
    distortion: float
    rate: float
    validation: Bound | None = None
    figure: str = "bound"
    decoder_warmup_steps: int = 0


@dataclass
class Counters:
    """What the trainer counts over the whole run, resumed or not."""

    step: Count = 0
    tokens: Count = 0
    seconds: Seconds = 0.0
    skipped: Count = 0
    skipped_in_a_row: Count = 0


@dataclass(kw_only=True)
class TrainerMeta(Counters):
    """What a checkpoint says of itself besides the counters.

    Attributes:
        position: sequences read. data: fingerprint of what was trained on.
        states: tensors of the optimizer. settings: the configuration, by dotted keys. Both are None in checkpoints of
            older releases.
    """

    position: Count
    data: str
    states: Count | None = None
    settings: dict[str, Any] | None = None


@dataclass
class Trainer:
    """Trains the parts of a run on token sequences.

    All randomness is keyed by (seed, step, sequence), so a run killed at any moment and resumed ends with the same
    weights, bit for bit on one CPU, as one left alone.

    Args:
        run: the run folder and the parts to train.
        train: sequences to learn from. validation: held-out sequences, or None.
        on_progress: called after each slow step and each validation.
        on_interrupt: called at the first Ctrl-C or other signal to end, while the step under way goes on.
    """

    run: Run
    train: TokenDataset
    validation: TokenDataset | None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_interrupt: Callable[[], None] = lambda: None
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        check_fits(self.run.config, self.train)
        self.slow = self.run.config.slow
        self.optimizer = slow_optimizer(self.run.parts, self.slow)
        self.order = DataOrder(len(self.train), self.slow.batch_size, self.run.config.seed)
        self.metrics = MetricsLog(self.run.folder / METRICS)
        self.interrupted = False
        self._saved = time.perf_counter()
        self._last: Batch | None = None

    def fit(self) -> Run:
        """Trains from where the counters stand to the last step.

        Raises:
            Stopped: interrupted; everything up to the last step is saved.
            UserError: too many non-finite losses in a row, or the disk is full; the last good checkpoint stays.
        """
        # Distributions check no arguments here: it costs time, and a value that is not finite is counted, not raised.
        with pyro.validation_enabled(False), self._interruptible():
            if self.counters.step == 0:
                self._begin()
            while self.counters.step < self.slow.steps:
                self._step()
                done = self.counters.step == self.slow.steps
                if done or (self.slow.eval_every and self.counters.step % self.slow.eval_every == 0):
                    self._validate()
                saved = False
                if done or self.interrupted or self._save_is_due():
                    saved = self._save_if_healthy(done)
                if self.interrupted and not done:
                    kept = "everything is saved" if saved else "its weights have run away, the last good ones are kept"
                    raise Stopped(f"at step {self.counters.step} of {self.slow.steps}; {kept}")
        self.run.parts.model.eval()  # as a run that is loaded
        return Run(self.run.folder, self.run.config, self.run.parts, self.run.tokenizer, self.counters.step)

    def _save_is_due(self) -> bool:
        minutes = self.slow.save_minutes
        by_the_clock = bool(minutes) and time.perf_counter() - self._saved >= 60 * minutes
        return by_the_clock or self.counters.step % self.slow.save_every == 0

    def _save_if_healthy(self, done: bool) -> bool:
        """Saves unless the weights have run away: then the last good checkpoint stays. Raises UserError at the end."""
        healthy = self.counters.skipped_in_a_row == 0 and self._healthy()
        if healthy:
            self.save()
        elif done:
            raise UserError(
                f"{self.run.folder}: the run ended with weights that give no finite bound; the last good checkpoint is "
                "kept: lower slow.lr in a new run"
            )
        return healthy

    @torch.no_grad()
    def _healthy(self) -> bool:
        """Whether the weights as they are now give a finite bound on the sequences seen last, at the guide's start."""
        parts, batch = self.run.parts, self._last
        if batch is None:
            return True
        state = parts.guide.init(batch)
        with DrawFrom(Noise(batch.ids, device=batch.device, seed=0)):
            terms = parts.objective.terms(parts.model, parts.guide, batch, state)
        return bool(torch.isfinite(terms.log_likelihood).all())

    def save(self) -> None:
        """Writes the whole state in one file, then the weights by themselves for everyone else."""
        state = {f"{STATE}{name}": value for name, value in _optimizer_tensors(self.optimizer).items()}
        meta = TrainerMeta(
            **vars(self.counters),
            position=self._position(),
            data=self.train.folder.fingerprint,
            states=len(state),
            settings=flat(self.run.config),
        )
        write_tensors(self.run.folder / TRAINER, weights(self.run.parts) | state, vars(meta))
        self.run.save_weights(self.counters.step)
        self._saved = time.perf_counter()

    def resume(self) -> None:
        """Goes back to the last checkpoint; a run that never wrote one starts from its first step.

        Raises:
            UserError: the checkpoint is damaged, or was made on other data or by another configuration.
        """
        path = self.run.folder / TRAINER
        if path.exists():
            tensors, meta = read_tensors(path, TrainerMeta)
            if meta.data != self.train.folder.fingerprint:
                raise UserError(f"{self.run.folder}: was not trained on {self.train.folder.path}; give its own data")
            settings = meta.settings or flat(self.run.config)
            if changed := changes(self.run.config, settings, meta.step):
                raise UserError(
                    f"{self.run.folder}: its checkpoint was made by another configuration than its {CONFIG} is now: "
                    f"{changed[0]} was {settings.get(changed[0])!r}; put it back as it was"
                )
            state = {name: value for name, value in tensors.items() if name.startswith(STATE)}
            if meta.states not in (None, len(state)):
                raise UserError(f"{path}: damaged: it has {len(state)} tensors of the optimizer's {meta.states}")
            load_weights(self.run.parts, {name: tensors[name] for name in tensors.keys() - state.keys()}, path)
            _load_optimizer_tensors(self.optimizer, state, path)
            if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
                raise UserError(f"{path}: damaged: not all that it holds is finite")
            self.counters = Counters(**{entry.name: getattr(meta, entry.name) for entry in fields(Counters)})
            if meta.position != self._position():
                raise UserError(f"{path}: damaged: its data position is not that of step {self.counters.step}")
            # A kill between the two files of a checkpoint leaves older weights in the other one.
            self.run.save_weights(self.counters.step)
        self.metrics.cut(after=self.counters.step if path.exists() else -1)

    def extend(self, steps: int, *, rewarm: int = 0) -> None:
        """Goes on to `steps` slow steps instead of those planned, and keeps a note of it in the run.

        From here on the learning rate is that of a plan of `steps` steps, to which it rises in `rewarm` steps; warm-ups
        of the objective and steps without thoughts stay as they were planned.

        Raises:
            UserError: so many steps are done already.
        """
        at, before = self.counters.step, self.slow.steps
        if steps <= at:
            raise UserError(f"{self.run.folder}: has done {at} slow steps already; give more than that with --steps")
        if at:
            config = extended(self.run.config, steps=steps, at=at, rewarm=rewarm)
        else:  # nothing is done yet by the first plan
            config = replace(self.run.config, slow=replace(self.slow, steps=steps))
        write_text(self.run.folder / CONFIG, dump_toml(config))
        self.run, self.slow = replace(self.run, config=config), config.slow
        self.metrics.write("plan", {"step": at, "steps": steps, "steps_before": before, "rewarm": rewarm})

    def _position(self) -> int:
        """Sequences read since the start of training: where the data order goes on."""
        return self.counters.step * self.slow.sequences

    def _batches(self) -> list[Batch]:
        first = self._position()
        starts = range(first, first + self.slow.sequences, self.slow.batch_size)
        return [self.train.batch(self.order.indices(start)).to(self.run.parts.device) for start in starts]

    def _step(self) -> None:
        parts, counters = self.run.parts, self.counters
        started = time.perf_counter()
        lr = learning_rate(counters.step, self.slow)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batches = self._batches()
        self._last = batches[-1]
        decoder_only, share = phase(counters.step, self.run.config)
        objective = parts.objective.at(share)
        parts.model.train()
        report = train_step(
            parts.model,
            batches,
            guide=parts.guide,
            objective=objective,
            fast_optimizer=parts.optimizer,
            fast_steps=parts.fast.steps,
            **parts.fitting,
            slow_optimizer=self.optimizer,
            clip=self.slow.clip,
            seed=fold(self.run.config.seed, "train", counters.step),
            decoder_only=decoder_only,
        )
        counters.step += 1
        self._count(report, batches)
        seconds = time.perf_counter() - started
        counters.seconds += seconds
        figure = "joint" if not parts.guide.has_density else "own_noise" if parts.fast.noise == "fixed" else "bound"
        if decoder_only:
            figure = "bound"  # exact
        row = {
            "step": counters.step,
            "tokens": counters.tokens,
            "seconds": round(counters.seconds, 3),
            "lr": lr,
            "beta": None if decoder_only else objective.beta,
            f"{figure}_nats_per_token": float(report.bound),
            "distortion_nats_per_token": float(report.distortion),
            "kl_nats_per_sequence": float(report.rate) if parts.guide.has_density and not decoder_only else None,
            "grad_norm": float(report.grad_norm),
            "skipped": counters.skipped,
        }
        self.metrics.write("train", row)
        speed = int(report.tokens) / seconds
        self.on_progress(
            Progress(
                counters.step,
                self.slow.steps,
                speed,
                float(report.bound),
                float(report.distortion),
                float(report.rate),
                figure="exact" if decoder_only else self._shown(figure),
                decoder_warmup_steps=self.run.config.decoder_warmup_steps,
            )
        )

    def _count(self, report: StepReport, batches: list[Batch]) -> None:
        """Counts tokens, and steps skipped because they were not finite; stops the run when there are too many."""
        counters = self.counters
        counters.tokens += int(report.tokens)
        if bool(report.finite):
            counters.skipped_in_a_row = 0
            return
        counters.skipped += 1
        counters.skipped_in_a_row += 1
        if counters.skipped_in_a_row < self.slow.max_nonfinite:
            return
        found = {
            "step": counters.step,
            "skipped_in_a_row": counters.skipped_in_a_row,
            "bound_nats_per_token": str(float(report.bound)),
            "grad_norm": str(float(report.grad_norm)),
            "lr": self.optimizer.param_groups[0]["lr"],
            "sequence_ids": [batch.ids.tolist() for batch in batches],
        }
        write_text(self.run.folder / NONFINITE, json.dumps(found, indent=2) + "\n")
        raise UserError(
            f"{self.run.folder}: {counters.skipped_in_a_row} steps in a row were not finite (the last at step "
            f"{counters.step}, see {NONFINITE}); the last good checkpoint is kept: "
            "lower slow.lr or optimizer.lr in a new run"
        )

    def _begin(self) -> None:
        """The levels to beat: what counting tokens gives, and what the untrained model gives."""
        if self.validation is not None:
            self.metrics.write(
                "start", {"step": 0, "unigram_nats_per_token": unigram_nats(self.train, self.validation)}
            )
        self._validate()

    def _validate(self) -> None:
        """The honest bound on the first validation sequences, always the same ones and the same noise."""
        if self.validation is None:
            return
        bound = self.run.evaluate(
            self.validation,
            particles=1,
            sequences=self.slow.eval_sequences,
            batch_size=self.slow.batch_size,
            seed=fold(self.run.config.seed, "validation"),
        )
        self.metrics.write("validation", {"step": self.counters.step, **bound.to_dict()})
        nan = math.nan
        shown = self._shown("bound")
        self.on_progress(Progress(self.counters.step, self.slow.steps, nan, nan, nan, nan, bound, shown))

    def _shown(self, figure: str) -> str:
        """`figure`, or "exact" where nothing is fitted."""
        return figure if self.run.config.model.thoughts else "exact"

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C, or another signal to end, ends the run after the step under way; a second Ctrl-C ends it at once."""

        def interrupt(number: int, frame: Any) -> None:
            if not self.interrupted:
                self.interrupted = True
                self.on_interrupt()
            elif number == signal.SIGINT:  # of the others several may come: a closed terminal sends two
                raise KeyboardInterrupt

        # `nohup` has hang-ups ignored: they stay so.
        numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN or number in MEANT]
        try:
            previous = {number: signal.signal(number, interrupt) for number in numbers}
        except ValueError:  # not the main thread: its owner handles signals
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.metrics.close()


def slow_optimizer(parts: Parts, slow: SlowConfig) -> torch.optim.AdamW:
    """AdamW over decoder and guide; matrices decay, vectors do not."""
    parameters = [p for module in (parts.model, parts.guide) for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": slow.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=slow.lr, betas=(slow.beta1, slow.beta2), fused=True)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors, without pickle."""
    state: dict[int, dict[str, torch.Tensor]] = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def _load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Puts `_optimizer_tensors` back, whose names begin with `STATE`.

    Raises:
        UserError: a moment is missing, of another shape or type than its parameter, or of none.
    """
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    told = {name.removeprefix(STATE).split(".")[0] for name in tensors}
    known = {str(index): index for index in parameters}
    wanted: dict[str, torch.Tensor] = {}
    for index in sorted(known[one] for one in told & known.keys()):
        moment = parameters[index].detach()
        wanted[f"{STATE}{index}.step"] = torch.zeros(())
        wanted |= {f"{STATE}{index}.{name}": moment for name in ("exp_avg", "exp_avg_sq")}
    check_tensors(wanted, tensors, f"{path}: its optimizer state does not fit the run's configuration")
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        number, entry = name.removeprefix(STATE).split(".")
        state.setdefault(int(number), {})[entry] = value
        if entry != "exp_avg" and bool((value < 0).any()):
            raise UserError(f"{path}: damaged: {name} is below zero")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

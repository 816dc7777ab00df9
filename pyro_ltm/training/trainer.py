"""The slow loop: step after step, with validation, checkpoints, and an end that resuming cannot change."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

import pyro
import torch
from torch import nn

from pyro_ltm.config import ADAMW, Component, SlowConfig
from pyro_ltm.data import DataOrder, TokenDataset, unigram_nats
from pyro_ltm.distributed import current, failing_together, sharing
from pyro_ltm.errors import RanAway, UserError, warn
from pyro_ltm.files import write_text
from pyro_ltm.inference import FastLoop
from pyro_ltm.interruption import Stopped, left_at, on_end_signal
from pyro_ltm.noise import DrawFrom, Noise, fold
from pyro_ltm.optimizers.slow import SLOW_OPTIMIZERS
from pyro_ltm.optimizers.slow.base import set_learning_rate
from pyro_ltm.runs.base import save_config
from pyro_ltm.runs.batches import check_fits
from pyro_ltm.runs.folder import METRICS, trainable
from pyro_ltm.runs.metrics import MetricsLog
from pyro_ltm.runs.run import Run
from pyro_ltm.scores import Bound
from pyro_ltm.training.average import Average
from pyro_ltm.training.background import Background
from pyro_ltm.training.checkpoint import Checkpoint
from pyro_ltm.training.health import Health
from pyro_ltm.training.kept import Counters
from pyro_ltm.training.parallel import parallel
from pyro_ltm.training.schedule import learning_rate, phase, plan_row, replanned
from pyro_ltm.training.shortage import told_what_fits
from pyro_ltm.training.step import SlowPass, StepReport, train_step
from pyro_ltm.types import Batch

NONFINITE = "nonfinite.json"


@dataclass
class Progress:
    """A slow step or a validation, for a progress display; nats unless the name says otherwise.

    `figure`: what `bound` is: "bound"; "own_noise", when the fit has seen the draw that it was taken on (the
    reference's fixed noise); "joint", -log p(x, z), when the guide is a point or draws; "exact", without thoughts;
    "diffusion", of a masked diffusion. "own_noise" and "joint" are no bounds. `decoder_warmup_steps`: of the slow
    steps, the first, in which the decoder learns without thoughts: they go faster than the others. `average`: the
    validation of the average of the weights. `is_best`: no validation so far was better, and the weights are kept.
    """

    step: int
    steps: int
    tokens_per_second: float
    bound: float
    distortion: float
    rate: float
    validation: Bound | None = None
    average: Bound | None = None
    is_best: bool = False
    figure: str = "bound"
    decoder_warmup_steps: int = 0


@dataclass
class Trainer:
    """Trains model and guide of a run on token sequences.

    All randomness is keyed by (seed, step, sequence), so a run killed at any moment and resumed ends with the same
    weights, bit for bit on one CPU, as one left alone.

    Args:
        run: the run folder, and what to train.
        train: sequences to learn from. validation: sequences to validate on, or None.
        on_progress: called after each slow step and each validation.
        on_interrupt: called at the first Ctrl-C or other signal to end, while the step under way goes on.
        on_note: called with a line that the user should read, such as that an earlier checkpoint was taken.
    """

    run: Run
    train: TokenDataset
    validation: TokenDataset | None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_interrupt: Callable[[], None] = lambda: None
    on_note: Callable[[str], None] = warn
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        check_fits(self.run.config, self.train)
        self.slow = self.run.config.slow
        self.world = current()
        self.parallel = parallel(SlowPass(self.run.model, self.run.loop.guide), self.run.config.distributed.kind)
        if self.parallel.shares:  # recorded steps would read where weights lay that are gathered anew
            self.run = replace(self.run, loop=replace(self.run.loop, recorder=None))
        self.optimizer = slow_optimizer(self.run.model, self.run.loop.guide, self.slow, self.run.config.slow_optimizer)
        self.order = DataOrder(len(self.train), self.slow.sequences, self.run.config.seed)
        self.metrics = MetricsLog(self.run.folder / METRICS, writes=self.world.leads)
        weights = self.run.trainable.state_dict()
        self.average = Average(weights, self.slow.average) if self.slow.average else None
        self.others = {} if self.average is None else {"average": self.average.tensors}
        if self.slow.keep_best:
            self.others["best"] = {name: value.clone() for name, value in weights.items()}
        self.checkpoint = Checkpoint(self.run, self.optimizer, self.train, self.metrics, self.others, self.on_note)
        self.background = Background()
        self.interrupted = 0  # the signal to end that came first
        self._saved = time.perf_counter()
        self._last: Batch | None = None

    def fit(self) -> Run:
        """Trains from where the counters stand to the last step.

        Raises:
            Stopped: interrupted; everything up to the last step is saved.
            UserError: too many non-finite losses in a row, or the disk or the memory is full; the last good checkpoint
                stays.
        """
        # Checkpoints are written while training goes on, but the last one, and that at a signal.
        # Distributions check no arguments here: it costs time, and a value that is not finite is counted, not raised.
        with (
            pyro.validation_enabled(False),
            on_end_signal(self._interrupt),
            closing(self.metrics),
            closing(self.background),
            told_what_fits(self.run.folder, self.slow, splits=not self.run.loop.objective.couples_batch),
        ):
            while not self._is_done:
                self.background.check()
                self._go_on()
                done = self._is_done
                # A signal that comes later, or to another process, ends the next step of all.
                ending, due = self.world.any(bool(self.interrupted), self._save_is_due())
                saved = (done or ending or due) and self._save_if_healthy(done)
                if done or ending:
                    self.background.wait()
                if ending and not done:
                    what = "everything is saved" if saved else "its weights have run away, the last good ones are kept"
                    where = f"at step {self.counters.step} of {self.slow.steps}"
                    raise Stopped(f"{where}; {what}", number=self.interrupted)
        return replace(self.parallel.whole_run(self.run), step=self.counters.step)

    @property
    def _is_done(self) -> bool:
        return self.counters.step == self.slow.steps and not self.counters.validation_due

    def _go_on(self) -> None:
        """Takes the next slow step, and the validation that is due after it.

        At a signal either is left between two fast steps, by all processes together. Nothing has changed by then, and
        whoever goes on with the run does it again.
        """
        counters = self.counters
        with suppress(Stopped), left_at(lambda: self.interrupted or self.world.others_leave()):
            if counters.step == 0:
                self._begin()
            if not counters.validation_due:
                self._step()
                is_last = counters.step == self.slow.steps
                every = self.slow.eval_every
                counters.validation_due = is_last or bool(every and counters.step % every == 0)
            if counters.validation_due:
                self._validate()
                counters.validation_due = False

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
            raise RanAway(
                f"{self.run.folder}: the run ended with weights that give no finite bound; the last good checkpoint is "
                "kept: lower slow.lr in a new run"
            )
        return healthy

    @torch.no_grad()
    def _healthy(self) -> bool:
        """Whether the weights as they are now give a finite bound on the sequences seen last, at the guide's start."""
        model, loop, batch = self.run.model, self.run.loop, self._last
        if batch is None:
            return True
        with self.parallel.gathered(), DrawFrom(Noise(batch.ids, device=batch.device, seed=0)):
            state = loop.guide.init(batch)
            terms = loop.objective.terms(model, loop.guide, batch, state)
        return not any(self.world.any(not torch.isfinite(terms.log_likelihood).all()))

    def save(self) -> None:
        """Takes a checkpoint, which is then written in the background."""
        self.background.wait()  # for what it reads is what the next snapshot is copied into
        self.background.start(self.checkpoint.snapshot(self.counters))
        self._saved = time.perf_counter()

    def resume(self) -> None:
        """Goes back to the last checkpoint; a run that never wrote one starts from its first step.

        Raises:
            UserError: as `Checkpoint.load`.
        """
        counters = self.checkpoint.load()
        self.counters = counters or self.counters
        self.metrics.cut(after=self.counters.step)

    def extend(self, steps: int, *, rewarm: int = 0, decay: int = 0) -> None:
        """Goes on to `steps` slow steps instead of those planned, and keeps a note of it in the run.

        From here on the learning rate is that of a plan of `steps` steps, to which it rises in `rewarm` steps; warm-ups
        of the objective and steps without thoughts stay as they were planned. With `decay`, the decay of a run of
        `slow.schedule` wsd begins here, and the run ends after so many steps; one of as many that was begun goes on.

        Raises:
            UserError: so many steps are done already, or no decay can begin here.
        """
        folder, at, before = self.run.folder, self.counters.step, self.run.config
        if decay and self.slow.decay_steps == decay:
            return
        config = replanned(before, folder, at=at, steps=steps, rewarm=rewarm, decay=decay)
        if config != before:
            if self.world.leads:
                save_config(folder, config)
            self.run, self.slow = replace(self.run, config=config), config.slow
            self.checkpoint.run = self.run
            self.metrics.write("plan", plan_row(at, before, config))

    def _batches(self) -> list[Batch]:
        """The sequences of the step that are this process's, in micro-batches."""
        first = self.counters.step * self.slow.sequences  # read since the start of training
        indices = self.order.indices(first)
        places = torch.arange(len(indices))[self.world.rank :: self.world.size]
        batches = []
        for some in places.split(self.slow.batch_size):
            batch = self.train.batch(indices[some.numpy()]).to(self.run.device)
            batches.append(replace(batch, step_places=some, step_size=len(indices)))
        return batches

    def _step(self) -> None:
        counters, seed = self.counters, self.run.config.seed
        started = time.perf_counter()
        set_learning_rate(self.optimizer, learning_rate(counters.step, self.slow))
        batches = self._batches()
        self._last = batches[-1]
        decoder_only, share = phase(counters.step, self.run.config)
        loop = replace(self.run.loop, objective=self.run.loop.objective.at(share))
        self.run.model.train()
        report = train_step(
            self.run.model,
            batches,
            loop,
            self.optimizer,
            clip=self.slow.clip,
            seed=fold(seed, "train", counters.step),
            decoder_only=decoder_only,
            parallel=self.parallel,
        )
        if self.average is not None:
            self.average.update(counters.step)
        counters.step += 1
        self._count(report, batches)
        seconds = time.perf_counter() - started
        counters.seconds += seconds
        self._report(report, loop, seconds, decoder_only=decoder_only)

    def _report(self, report: StepReport, loop: FastLoop, seconds: float, *, decoder_only: bool) -> None:
        """Writes the figures of a step, and shows them."""
        counters, has_density = self.counters, loop.guide.has_density
        bound, distortion, rate = float(report.bound), float(report.distortion), float(report.rate)
        figure = "joint" if not has_density else "own_noise" if loop.noise == "fixed" else "bound"
        if decoder_only:
            figure = "bound"  # exact
        row = {
            "step": counters.step,
            "tokens": counters.tokens,
            "seconds": round(counters.seconds, 3),
            "lr": self.optimizer.param_groups[0]["lr"],
            "beta": None if decoder_only else loop.objective.beta,
            f"{figure}_nats_per_token": bound,
            "distortion_nats_per_token": distortion,
            "kl_nats_per_sequence": rate if has_density and not decoder_only else None,
            "grad_norm": float(report.grad_norm),
            "skipped": counters.skipped,
        }
        if note := self._remark(rate, loop, decoder_only):
            row["note"] = note
            self.on_note(f"step {counters.step}: {note}")
        self.metrics.write("train", row)
        shown = "exact" if decoder_only else self._shown(figure)
        first, speed = self.run.config.decoder_warmup_steps, int(report.tokens) / seconds
        step, steps = counters.step, self.slow.steps
        self.on_progress(
            Progress(step, steps, speed, bound, distortion, rate, figure=shown, decoder_warmup_steps=first)
        )

    def _remark(self, rate: float, loop: FastLoop, decoder_only: bool) -> str | None:
        """A line on the thoughts, where there are any, their KL has its whole weight, and there is something to say."""
        model = self.run.config.model
        if decoder_only or not model.thoughts or loop.objective.beta != self.run.loop.objective.beta:
            return None
        tokens = self.counters.tokens / (self.counters.step * self.slow.sequences)
        return Health(tokens, model.vocab_size, loop.guide.has_density).remark(rate, self.counters)

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
            "sequence_ids": self.world.gather([batch.ids.tolist() for batch in batches]),
        }
        if self.world.leads:
            write_text(self.run.folder / NONFINITE, json.dumps(found, indent=2) + "\n")
        raise RanAway(
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
        bound, average = self._bound(self.validation), None
        row = {"step": self.counters.step, **bound.to_dict()}
        if self.average is not None and self.counters.step:
            with self.average.in_place():
                average = self._bound(self.validation)
            row |= {f"average_{name}": getattr(average, name) for name in ("nats_per_token", "nats_per_token_stderr")}
        self.metrics.write("validation", row)
        is_best = self.slow.keep_best and self._keep_if_best(bound.nats_per_token)
        step, steps, nan = self.counters.step, self.slow.steps, math.nan
        self.on_progress(Progress(step, steps, nan, nan, nan, nan, bound, average, is_best, self._shown("bound")))

    def _bound(self, data: TokenDataset) -> Bound:
        """The honest bound of the weights as they are now, of which each process scores a part.

        At a signal to one of them it leaves between two fast steps, and the others before their next batch.
        """
        left = left_at(lambda: self.interrupted)
        with self.parallel.gathered(), sharing(), failing_together(), left:
            return self.run.evaluate(
                data,
                particles=1,
                sequences=self.slow.eval_sequences,
                batch_size=self.slow.batch_size,
                seed=fold(self.run.config.seed, "validation"),
            )

    def _keep_if_best(self, nats: float) -> bool:
        """Copies the weights where no validation was as good as this one; whether it did."""
        counters, best = self.counters, self.others["best"]
        if not nats < (math.inf if counters.best_nats is None else counters.best_nats):
            return False
        counters.best_step, counters.best_nats = counters.step, nats
        for name, value in self.run.trainable.state_dict().items():
            best[name].copy_(value)
        return True

    def _shown(self, figure: str) -> str:
        """`figure`; where nothing is fitted "exact", or "diffusion"."""
        model = self.run.config.model
        return figure if model.thoughts else "exact" if model.is_exact else "diffusion"

    def _interrupt(self, number: int) -> bool:
        """Ends the run after the step under way; False where that was asked for before, and is to be at once."""
        if self.interrupted:
            return self.world.size > 1  # torchrun, too, sends them the Ctrl-C that they have from the terminal
        self.interrupted = number
        self.on_interrupt()
        return True


def slow_optimizer(
    model: nn.Module, guide: nn.Module, slow: SlowConfig, component: Component = ADAMW
) -> torch.optim.Optimizer:
    """The optimizer of decoder and guide that `component` names. Raises UserError when nothing of them learns."""
    modules = trainable(model, guide)
    if not any(parameter.requires_grad for parameter in modules.parameters()):
        raise UserError("nothing learns: the base is frozen, and there are no thoughts; set graft.train to all or lora")
    return SLOW_OPTIMIZERS.build(component).build(modules, slow)

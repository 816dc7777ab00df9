"""One posterior family, fitted by one objective, judged: the same honest figures whatever was optimized.

Protocol: q is fitted to the sequences that are scored; the score is on fresh noise, the same for every pair, and
charges the whole KL; only the fit is on the clock.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_ltm.guides import Guide
from pyro_ltm.inference import Posterior, fit_posterior
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.inference.samplers import ParticleGuide
from pyro_ltm.noise import fold
from pyro_ltm.objectives import Terms, as_objective
from pyro_ltm.optimizers import FastOptimizer
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.scores.dependence import Blocks, Places
from pyro_ltm.scores.estimate import mean_error, ratio_error
from pyro_ltm.scores.importance import effective_sample_size, importance_nats
from pyro_ltm.types import Batch, State, evaluating, frozen

CLOSE = 0.01
"""A bound has arrived when it is within this share of its best."""

Count = Callable[[int, float], None]
"""Called with the sequences done and the nats a token so far."""


@dataclass(frozen=True)
class Estimate:
    """Nats a token, its standard error (None for a single sequence), and over what that was taken."""

    nats_per_token: float
    stderr: float | None
    blocks: Blocks | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The honest bound after so many fast steps, and what they took: `ms` of fitting a sequence."""

    steps: int
    ms: float
    nats_per_token: float | None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Honest figures of one pair; None where there is none to give, and then `note` says why.

    Attributes:
        fast_steps: asked for. steps_taken: the mean over sequences.
        elbo, iwae: upper bounds on the nats a token; iwae is importance-weighted, with all draws.
        ess: effective sample size of those draws, the mean over sequences; ess_stderr: its standard error.
        rate: KL(q || p), nats a sequence. distortion: E_q[-log p(x | z)], nats a token.
        log_joint: E_q[log p(x, z)], nats a sequence: all that a point can be held to.
        steps_to_1pct, ms_per_sequence_to_1pct: to come within 1% of the best bound of `curve`.
        ms_per_fast_step: the median, of a batch. ms_per_sequence: the whole fit.
        peak_memory_bytes: of a fit of one fast step to the first batch, beyond the weights; None for a guide that has
            something left to do at the end of a fit.
        curve: the bound along the way. nats_by_sequence: of `elbo`, for paired differences.
        note: what a reader must know of these figures.
    """

    fast_steps: int
    steps_taken: float | None = None
    elbo: Estimate | None = None
    iwae: Estimate | None = None
    ess: float | None = None
    ess_stderr: float | None = None
    rate: float | None = None
    distortion: float | None = None
    log_joint: float | None = None
    steps_to_1pct: int | None = None
    ms_per_sequence_to_1pct: float | None = None
    ms_per_fast_step: float | None = None
    ms_per_sequence: float | None = None
    peak_memory_bytes: int | None = None
    curve: list[Checkpoint] = field(default_factory=list)
    nats_by_sequence: list[float] = field(default_factory=list)
    note: str = ""


@torch.no_grad()
def judge(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    guide: Guide,
    objective: ELBO,
    optimizer: FastOptimizer | None = None,
    fast_steps: int = 16,
    particles: int = 64,
    curve_particles: int = 8,
    seed: int = 0,
    count: Count | None = None,
    **fitting: Any,
) -> Judgement:
    """Fits q to every sequence and judges it.

    Args:
        particles: draws K for the figures. curve_particles: for each point of the curve.
        fitting: more for `fit_posterior`, such as its `noise`.

    Raises:
        UserError: guide, objective, optimizer and noise do not fit one another.
    """
    fitting |= {"guide": guide, "objective": objective, "optimizer": optimizer, "seed": fold(seed, "fit")}
    tally = _Tally(model, guide, fast_steps, particles, curve_particles, seed)
    if as_objective(objective).couples_batch:
        batches = [one for batch in batches for one in batch.apart()]
    with evaluating(model), pyro.validation_enabled(False), _own_generator(batches[0].inputs.device, seed):
        first = batches[0]
        start = partial(fit_posterior, model, first, steps=min(1, fast_steps), **fitting)
        # What a guide does at its end (a Hessian) is too long for the profiler's record, which held 15 GB of it.
        ends = type(guide).finish is not Guide.finish
        memory = None if ends else peak_memory(start, first.inputs.device)
        start()  # what a first fit sets up is no part of its time
        for batch in batches:
            clock = _Clock(batch.inputs.device, tally.places)
            posterior = fit_posterior(model, batch, steps=fast_steps, watch=clock, **fitting)
            clock.stop()
            tally.add(batch, posterior, clock)
            if count:
                count(tally.sequences, tally.level)
    return tally.result(memory)


def places(steps: int) -> list[int]:
    """Fast steps after which the curve has a point: 0, 1, 2, 4, 8, ... and the last."""
    return sorted({0, steps, *(1 << power for power in range(steps.bit_length()) if 1 << power <= steps)})


def arrival(curve: Sequence[Checkpoint], share: float = CLOSE) -> Checkpoint | None:
    """The first point within `share` of the best; None where no point has a bound."""
    known = [point for point in curve if point.nats_per_token is not None]
    levels = [float(point.nats_per_token or 0) for point in known]
    if not known:
        return None
    limit = min(levels) + share * abs(min(levels))
    return next(point for point, level in zip(known, levels, strict=True) if level <= limit)


class _Clock:
    """Seconds of a fit and of nothing else, and the states along its way: the `watch` of `fit_posterior`."""

    def __init__(self, device: torch.device, wanted: Sequence[int]):
        self.device, self.wanted = device, set(wanted)
        self.seconds, self.last = 0.0, 0
        self.each: list[float] = []
        self.kept: dict[int, tuple[State, float]] = {}
        self._started = self._now()

    def __call__(self, step: int, state: State) -> None:
        """Stops while it looks."""
        passed = self.stop()
        if step > self.last:  # a sampler may tell of all its steps at once
            self.each += [passed / (step - self.last)] * (step - self.last)
        self.last = step
        if step in self.wanted:
            self.kept[step] = ({name: value.detach().clone() for name, value in state.items()}, self.seconds)
        self._started = self._now()

    def stop(self) -> float:
        """Counts what has passed, and gives it."""
        passed = self._now() - self._started
        self.seconds += passed
        return passed

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class _Tally:
    """Sums over the batches of one pair."""

    def __init__(
        self, model: nn.Module, guide: Guide, fast_steps: int, particles: int, curve_particles: int, seed: int
    ):
        self.model, self.guide, self.seed = model, guide, seed
        self.fast_steps, self.particles, self.curve_particles = fast_steps, particles, curve_particles
        self.places = places(0 if guide.learning == "amortized" else fast_steps)
        self.parts: dict[str, list[Tensor]] = {}
        self.order: list[Places] = []
        self.seconds: dict[int, float] = dict.fromkeys(self.places, 0.0)
        self.nats: dict[int, float] = dict.fromkeys(self.places, 0.0)
        self.each: list[float] = []
        self.fit_seconds = 0.0

    def add(self, batch: Batch, posterior: Posterior, clock: _Clock) -> None:
        """Scores a batch and the states along its way."""
        precompute: Any = getattr(self.model, "precompute", None)
        batch = precompute(batch) if precompute else batch
        self.each += clock.each
        self.fit_seconds += clock.seconds
        self._keep(tokens=batch.mask.sum(-1), steps=posterior.steps_taken)
        self.order.append(Places.of(batch))
        if self.guide.scored_distribution(posterior.state) is None:
            self._add_point(batch, posterior)
            return
        terms = posterior.with_noise(fold(self.seed, "score")).score(self.model, batch, particles=self.particles)
        weight = terms.log_weight.double()
        self._keep(
            distortion=terms.distortion.double(),
            rate=terms.rate.double(),
            iwae=importance_nats(weight, self.particles),
            ess=effective_sample_size(weight),
            log_joint=(terms.log_likelihood + terms.log_prior).mean(0).double(),
        )
        self._add_curve(batch, posterior, clock)

    def _add_point(self, batch: Batch, posterior: Posterior) -> None:
        """What can be said of a point."""
        target = LogJoint(self.model, batch)
        draws = posterior.with_noise(fold(self.seed, "score")).sample(self.curve_particles)
        parts = [target.parts(z) for z in draws]
        likelihood, prior = (torch.stack(part).double().mean(0) for part in zip(*parts, strict=True))
        self._keep(distortion=-likelihood, log_joint=likelihood + prior)

    def _add_curve(self, batch: Batch, posterior: Posterior, clock: _Clock) -> None:
        """The bound of each state that the clock kept; a batch that stopped early stays where it was."""
        final = self._nats(batch, posterior)
        for place in self.places:
            if place >= clock.last:
                nats, seconds = final, clock.seconds
            elif place in clock.kept:
                state, seconds = clock.kept[place]
                began = time.perf_counter()
                # As `fit_posterior` ends a fit.
                with frozen(self.model), frozen(self.guide):
                    target = LogJoint(self.model, batch)
                    state = self.guide.finish(state, target, target.width())
                seconds += time.perf_counter() - began  # without its end a fit of so many steps would be no posterior
                nats = self._nats(batch, Posterior(self.guide, state, batch.ids, posterior.noise, posterior.history))
            else:
                nats, seconds = math.nan, math.nan  # nobody saw it
            self.nats[place] += nats
            self.seconds[place] += seconds

    def _nats(self, batch: Batch, posterior: Posterior) -> float:
        fresh = posterior.with_noise(fold(self.seed, "curve"))
        return float(_nats(fresh.score(self.model, batch, particles=self.curve_particles)).sum())

    @property
    def sequences(self) -> int:
        """Scored so far."""
        return sum(len(part) for part in self.parts["tokens"])

    @property
    def level(self) -> float:
        """Nats a token so far; NaN where there is no bound."""
        if "rate" not in self.parts:
            return math.nan
        nats = self._whole("distortion") + self._whole("rate")
        return float(nats.sum() / self._whole("tokens").sum())

    def result(self, memory: int | None) -> Judgement:
        """The figures of all batches."""
        count, tokens, places = self.sequences, self._whole("tokens").double(), Places.joined(self.order)
        taken: dict[str, Any] = {
            "fast_steps": self.fast_steps,
            "steps_taken": float(self._whole("steps").double().mean()),
            "ms_per_fast_step": 1000 * statistics.median(self.each) if self.each else None,
            "ms_per_sequence": 1000 * self.fit_seconds / count,
            "peak_memory_bytes": memory,
        }
        distortion = self._whole("distortion")
        parts: dict[str, Any] = {
            "distortion": _finite(distortion.sum() / tokens.sum()),
            "log_joint": _finite(self._whole("log_joint").mean()),
        }
        if "rate" not in self.parts:
            return Judgement(**taken, **parts, note=f"{type(self.guide).__name__} has no density: no bound judges it")
        nats = distortion + self._whole("rate")
        if bad := int((~nats.isfinite()).sum()):
            return Judgement(**taken, note=f"ran away: no finite bound for {bad} of {count} sequences")
        ess = self._whole("ess")
        curve = [
            Checkpoint(place, 1000 * self.seconds[place] / count, _finite(self.nats[place] / float(tokens.sum())))
            for place in self.places
            if math.isfinite(self.seconds[place])
        ]
        arrived = arrival(curve)
        return Judgement(
            **taken,
            **parts,
            elbo=estimate(nats, tokens, places),
            iwae=estimate(self._whole("iwae"), tokens, places),
            ess=_finite(ess.mean()),
            ess_stderr=_finite(mean_error(ess, places).stderr),
            rate=_finite(self._whole("rate").mean()),
            steps_to_1pct=arrived.steps if arrived else None,
            ms_per_sequence_to_1pct=arrived.ms if arrived else None,
            curve=curve,
            nats_by_sequence=nats.tolist(),
            note=DRAWS if isinstance(self.guide, ParticleGuide) else "",
        )

    def _keep(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.parts.setdefault(name, []).append(value.detach().cpu())

    def _whole(self, name: str) -> Tensor:
        return torch.cat(self.parts[name])


DRAWS = "draws have no density: judged by the Normal with their mean and variance"


def estimate(nats: Tensor, tokens: Tensor, places: Places | None) -> Estimate:
    """Total nats / total tokens of sequences [S], with its standard error."""
    error = ratio_error(nats, tokens, places)
    return Estimate(float(nats.sum() / tokens.sum()), _finite(error.stderr), error.blocks)


def _nats(terms: Terms) -> Tensor:
    """[B] minus the ELBO, exact KL where there is one."""
    return terms.distortion.double() + terms.rate.double()


def _finite(value: Tensor | float) -> float | None:
    return float(value) if math.isfinite(value) else None


@contextmanager
def _own_generator(device: torch.device, seed: int) -> Iterator[None]:
    """Whatever draws from torch's global generator draws the same for every pair, and outside nothing changes."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(fold(seed, "global"))
        yield


__all__ = ["Checkpoint", "Estimate", "Judgement", "arrival", "estimate", "judge", "places"]

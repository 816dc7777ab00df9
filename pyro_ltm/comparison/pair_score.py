"""The score of one posterior family fitted by one objective: the same honest figures whatever was optimized.

Protocol: q is fitted to the sequences that are scored; the score is on fresh noise, the same for every pair, and
charges the whole KL; only the fit is on the clock. Where several processes share it (`distributed.sharing`), each fits
and scores its part of the batches, and all have all figures.
"""

from __future__ import annotations

import dataclasses
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
from torch import Tensor, nn

from pyro_ltm.comparison.result import Checkpoint, PairScore, arrival, estimate, finite
from pyro_ltm.distributed import team
from pyro_ltm.guides import Guide
from pyro_ltm.inference import FastLoop, Posterior
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.inference.samplers import ParticleGuide
from pyro_ltm.noise import fold
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.scores.convergence import CHAIN_FIGURES, LEAST_DRAWS, Convergence, chain_figures
from pyro_ltm.scores.dependence import Places
from pyro_ltm.scores.estimate import mean_error
from pyro_ltm.scores.exchange import exchange_rate, nats_without_thoughts
from pyro_ltm.scores.importance import effective_sample_size, importance_nats
from pyro_ltm.scores.pareto import ParetoK, pareto_k, why_no_pareto_k
from pyro_ltm.types import Batch, State, evaluating, frozen

DRAWS = "draws have no density: scored by the Normal with their mean and variance"

TOO_FEW = f"too few fast steps for R-hat, whose chains need {LEAST_DRAWS} draws after the warm-up"

Progress = Callable[[int, float], None]
"""Called with the sequences done and the nats a token so far."""


@dataclass(frozen=True, kw_only=True)
class PairScoring:
    """How every pair is scored.

    Attributes:
        particles: draws K for the figures. curve_particles: for each point of the curve.
        rhat: a sampler's chains are kept and looked at, through the extra `arviz`.
        seed: of the noise.
    """

    particles: int = 64
    curve_particles: int = 8
    rhat: bool = False
    seed: int = 0


@torch.no_grad()
def score_pair(
    model: nn.Module,
    batches: Sequence[Batch],
    loop: FastLoop,
    how: PairScoring | None = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> PairScore:
    """Fits q to every sequence and scores it.

    Args:
        how: None: `PairScoring()`. settings: single ones of it, by name, in place of those of `how`.

    Raises:
        UserError: model and guide do not fit one another.
    """
    how = dataclasses.replace(how or PairScoring(), **settings)
    loop = dataclasses.replace(loop.for_scores(), recorder=None)  # each step is watched
    totals, seed = _Totals(model, loop, how), fold(how.seed, "fit")
    if loop.objective.couples_batch:
        batches = [one for batch in batches for one in batch.apart()]
    device, few = batches[0].device, loop.steps - loop.steps // 2 < LEAST_DRAWS
    keep = how.rhat and loop.guide.has_chains and not few
    with evaluating(model), pyro.validation_enabled(False), _own_generator(device, how.seed):
        start = partial(loop.with_steps(min(1, loop.steps)).fit, model, batches[0], seed=seed)
        # What a guide does at its end (a Hessian) is too long for the profiler's record, which held 15 GB of it.
        memory = peak_memory(start, device) if type(loop.guide).finish is Guide.finish else None
        start()  # what a first fit sets up is no part of its time
        for batch in own_part(batches):
            clock = _Clock(device, totals.curve_steps)
            posterior = loop.fit(model, batch, seed=seed, keep_chains=keep, watch=clock)
            clock.stop()
            totals.add(batch, posterior, clock)
            if progress:
                progress(totals.sequences, totals.level)
    totals.gather()
    found = totals.score(memory)
    return found.with_note(TOO_FEW) if how.rhat and loop.guide.has_chains and few else found


def own_part(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Of batches that several processes share, this one's: whole ones, smaller where there are fewer than processes."""
    shared = team()
    if len(batches) < shared.size:
        size = max(1, -(-sum(batch.size for batch in batches) // shared.size))
        batches = [batch.select(rows) for batch in batches for rows in torch.arange(batch.size).split(size)]
    return batches[shared.part(len(batches))]


def curve_steps(steps: int) -> list[int]:
    """Fast steps after which the curve has a point: 0, 1, 2, 4, 8, ... and the last."""
    return sorted({0, steps, *(1 << power for power in range(steps.bit_length()) if 1 << power <= steps)})


class _Clock:
    """Seconds of a fit and of nothing else, and the states along its way: the `watch` of `FastLoop.fit`."""

    def __init__(self, device: torch.device, wanted: Sequence[int]):
        self.device, self.wanted = device, set(wanted)
        self.seconds, self.last = 0.0, 0
        self.step_seconds: list[float] = []
        self.states: dict[int, tuple[State, float]] = {}
        self._started = self._now()

    def __call__(self, step: int, state: State) -> None:
        """Copies the state, with the clock stopped."""
        passed = self.stop()
        if step > self.last:  # a sampler may report all its steps at once
            self.step_seconds += [passed / (step - self.last)] * (step - self.last)
        self.last = step
        if step in self.wanted:
            self.states[step] = ({name: value.detach().clone() for name, value in state.items()}, self.seconds)
        self._started = self._now()

    def stop(self) -> float:
        """Adds the seconds since the last start, and gives them."""
        passed = self._now() - self._started
        self.seconds += passed
        return passed

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class _Totals:
    """Figures of the sequences that are scored so far."""

    model: nn.Module
    loop: FastLoop
    how: PairScoring
    columns: dict[str, list[Tensor]] = field(default_factory=dict)
    places: list[Places] = field(default_factory=list)
    curves: list[list[tuple[float, float]]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    chains: int = 0
    draws: int = 0
    fit_seconds: float = 0.0

    @property
    def curve_steps(self) -> list[int]:
        """Where the curve has its points."""
        return curve_steps(self.loop.steps_taken)

    def add(self, batch: Batch, posterior: Posterior, clock: _Clock) -> None:
        """Scores a batch and the states along its way."""
        precompute: Any = getattr(self.model, "precompute", None)
        batch = precompute(batch) if precompute else batch
        self.step_seconds += clock.step_seconds
        self.fit_seconds += clock.seconds
        self.places.append(Places.of(batch))
        self._append(tokens=batch.mask.sum(-1), steps=posterior.steps_taken)
        if posterior.chains is not None:
            self.chains, self.draws = posterior.chains.shape[:2]
            self._append(**chain_figures(posterior.chains))
        if self.loop.guide.scored_distribution(posterior.state) is None:
            self._append(**self._figures_of_point(batch, posterior))
        else:
            self._append(**self._figures(batch, posterior))
            self.curves.append(self._curve(batch, posterior, clock))

    def _figures(self, batch: Batch, posterior: Posterior) -> dict[str, Tensor]:
        unseen, count = posterior.with_noise(fold(self.how.seed, "score")), self.how.particles
        terms = unseen.score(self.model, batch, particles=count)
        weight = terms.log_weight.double()
        tail = {} if self._no_pareto_k else {"pareto_k": pareto_k(weight)}
        return tail | {
            "distortion": terms.distortion.double(),
            "rate": terms.rate.double(),
            "iwae": importance_nats(weight, count),
            "ess": effective_sample_size(weight),
            "without": nats_without_thoughts(self.model, batch, unseen.sample()[0]),
            "log_joint": (terms.log_likelihood + terms.log_prior).mean(0).double(),
        }

    @property
    def _no_pareto_k(self) -> str:
        return why_no_pareto_k(self.how.particles, self.loop.guide.thoughts)

    def _figures_of_point(self, batch: Batch, posterior: Posterior) -> dict[str, Tensor]:
        log_joint = LogJoint(self.model, batch)
        draws = posterior.with_noise(fold(self.how.seed, "score")).sample(self.how.curve_particles)
        parts = [log_joint.parts(z) for z in draws]
        likelihood, prior = (torch.stack(part).double().mean(0) for part in zip(*parts, strict=True))
        return {"distortion": -likelihood, "log_joint": likelihood + prior}

    def _curve(self, batch: Batch, posterior: Posterior, clock: _Clock) -> list[tuple[float, float]]:
        """Nats and seconds of a batch at each of the curve's steps; one that stopped early stays where it was."""
        final = self._nats(batch, posterior), clock.seconds
        return [
            final if step >= clock.last else self._point(batch, posterior, clock, step) for step in self.curve_steps
        ]

    def _point(self, batch: Batch, posterior: Posterior, clock: _Clock, step: int) -> tuple[float, float]:
        """Nats and seconds after `step` fast steps; NaN where the fit did not report them."""
        if step not in clock.states:
            return math.nan, math.nan
        state, seconds = clock.states[step]
        began = time.perf_counter()
        with frozen(self.model), frozen(self.loop.guide):  # as a fit ends
            log_joint = LogJoint(self.model, batch)
            state = self.loop.guide.finish(state, log_joint, log_joint.width())
        seconds += time.perf_counter() - began  # without its end a fit of so many steps would be no posterior
        return self._nats(batch, dataclasses.replace(posterior, state=state)), seconds

    def _nats(self, batch: Batch, posterior: Posterior) -> float:
        """Minus the ELBO of a batch, on the curve's noise; the KL exact where it can be."""
        fresh = posterior.with_noise(fold(self.how.seed, "curve"))
        terms = fresh.score(self.model, batch, particles=self.how.curve_particles)
        return float((terms.distortion.double() + terms.rate.double()).sum())

    @property
    def sequences(self) -> int:
        """Scored so far."""
        return sum(len(part) for part in self.columns["tokens"])

    @property
    def level(self) -> float:
        """Nats a token so far; NaN where there is no bound."""
        if "rate" not in self.columns:
            return math.nan
        nats = self._column("distortion") + self._column("rate")
        return float(nats.sum() / self._column("tokens").sum())

    def gather(self) -> None:
        """Adds what other processes have, where several share the batches."""
        shared = team()
        parts = shared.gather([self.columns])
        names = dict.fromkeys(name for part in parts for name in part)
        self.columns = {name: [value for part in parts for value in part.get(name, [])] for name in names}
        self.places, self.curves = shared.gather(self.places), shared.gather(self.curves)
        self.step_seconds = shared.gather(self.step_seconds)
        self.chains, self.draws = max(shared.gather([self.chains])), max(shared.gather([self.draws]))
        self.fit_seconds = sum(shared.gather([self.fit_seconds]))

    def score(self, memory: int | None) -> PairScore:
        """The figures of all batches."""
        tokens = self._column("tokens").double()
        cost = PairScore(
            fast_steps=self.loop.steps,
            steps_taken=float(self._column("steps").double().mean()),
            ms_per_fast_step=1000 * statistics.median(self.step_seconds) if self.step_seconds else None,
            ms_per_sequence=1000 * self.fit_seconds / self.sequences,
            peak_memory_bytes=memory,
        )
        distortion = self._column("distortion")
        figures: dict[str, Any] = {
            "distortion": finite(distortion.sum() / tokens.sum()),
            "log_joint": finite(self._column("log_joint").mean()),
        }
        if self.chains:
            columns = {name: self._column(name) for name in CHAIN_FIGURES}
            figures["convergence"] = Convergence.of(columns, chains=self.chains, draws=self.draws)
        if "rate" not in self.columns:
            figures["note"] = f"{type(self.loop.guide).__name__} has no density: no bound scores it"
        elif bad := int((~(distortion + self._column("rate")).isfinite()).sum()):
            figures |= {"distortion": None, "log_joint": None}
            figures |= {"note": f"ran away: no finite bound for {bad} of {self.sequences} sequences"}
        else:
            figures |= self._bounds(tokens)
        return dataclasses.replace(cost, **figures)

    def _bounds(self, tokens: Tensor) -> dict[str, Any]:
        places, rate, ess = Places.joined(self.places), self._column("rate"), self._column("ess")
        nats = self._column("distortion") + rate
        curve = self._whole_curve(float(tokens.sum()))
        index = arrival([point.nats_per_token for point in curve])
        return {
            "elbo": estimate(nats, tokens, places),
            "iwae": estimate(self._column("iwae"), tokens, places),
            "ess": finite(ess.mean()),
            "ess_stderr": finite(mean_error(ess, places).stderr),
            "pareto_k": None if self._no_pareto_k else ParetoK.of(self._column("pareto_k"), self.how.particles),
            "no_pareto_k": self._no_pareto_k,
            "rate": finite(rate.mean()),
            "exchange_rate": exchange_rate(self._column("without"), self._column("distortion"), rate, places),
            "steps_to_1pct": None if index is None else curve[index].steps,
            "ms_per_sequence_to_1pct": None if index is None else curve[index].ms,
            "curve": curve,
            "nats_by_sequence": nats.tolist(),
            "rate_by_sequence": rate.tolist(),
            "note": DRAWS if isinstance(self.loop.guide, ParticleGuide) else "",
        }

    def _whole_curve(self, tokens: float) -> list[Checkpoint]:
        found = []
        for step, batches in zip(self.curve_steps, zip(*self.curves, strict=True), strict=True):
            nats, seconds = (sum(values) for values in zip(*batches, strict=True))
            if math.isfinite(seconds):
                found.append(Checkpoint(step, 1000 * seconds / self.sequences, finite(nats / tokens)))
        return found

    def _append(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value.detach().cpu())

    def _column(self, name: str) -> Tensor:
        return torch.cat(self.columns[name])


@contextmanager
def _own_generator(device: torch.device, seed: int) -> Iterator[None]:
    """Whatever draws from torch's global generator draws the same for every pair, and outside nothing changes."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(fold(seed, "global"))
        yield


__all__ = ["curve_steps", "own_part", "score_pair"]

"""How a posterior is fitted: one object for guide, objective, optimizer and all that goes with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_ltm.errors import RanAway, UserError
from pyro_ltm.guides import Guide, MeanField
from pyro_ltm.inference.compatibility import check_fit, check_fixed_noise, check_precision, check_prior
from pyro_ltm.inference.cuda_graph import Recorder, cache_key
from pyro_ltm.inference.fit import GradientSteps, Plateau, Watch, run
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.inference.posterior import Posterior
from pyro_ltm.inference.samplers import KeptChains, ParticleGuide
from pyro_ltm.interruption import leave_if_asked
from pyro_ltm.noise import Noise, fold
from pyro_ltm.objectives import BetaELBO, Objective, as_objective
from pyro_ltm.optimizers import Adam, FastOptimizer
from pyro_ltm.types import Batch, State, evaluating, frozen


@dataclass(frozen=True)
class FastLoop:
    """Fits q(z) of every sequence in a batch from scratch, by a few fast steps on its own parameters.

        FastLoop(MeanField(16, 256), AnalyticELBO()).fit(model, batch, seed=0)

    Args:
        guide: the posterior family.
        objective: the bound to raise; a Pyro ELBO with `differentiable_loss` becomes a `PyroObjective`.
        optimizer: moves the local parameters.
        steps: fast steps; a sampler's transitions.
        noise: "fresh" draws anew in each step; "antithetic" in mirrored pairs; "fixed" repeats one draw as the
            reference implementation does, and what is fitted so must be scored on other noise.
        stopping: when a sequence takes no more steps; None: all take all of them.
        subsample: each fast step scores one of so many equal pieces of the tokens, scaled up (`subsampled`); the
            bounds in the history are then estimates, and the pieces are those of the longest sequence.
        recorder: on a GPU, replays the loop for batches of shapes that it has seen, where each step asks for the same
            whatever the numbers (`cache_key`): on all tokens, without stopping, a kept graph or a watch, for guides
            that say so (`is_recorded`), and where distributions do not check their arguments.

    Raises:
        UserError: guide, objective, optimizer and the rest do not fit one another.
    """

    guide: Guide
    objective: Objective
    optimizer: FastOptimizer = field(default_factory=Adam)
    steps: int = 16
    noise: str = "fresh"
    stopping: Plateau | None = None
    subsample: int = 1
    recorder: Recorder | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        tolerance = self.stopping.tolerance if self.stopping else 0.0
        check_fit(self.guide, self.objective, self.optimizer, self.noise, tolerance=tolerance, subsample=self.subsample)

    def fit(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        seed: int = 0,
        start: State | None = None,
        keep_graph: bool = False,
        keep_chains: bool = False,
        watch: Watch | None = None,
    ) -> Posterior:
        """The posteriors of `batch`.

        Leaves `.grad` of model and guide alone. A sequence's posterior does not depend on who shares its batch: the
        loss is a sum over sequences, the optimizer treats each by itself, and noise is keyed by the sequence's id.
        (Objectives that compare sequences are the exception; `fit_to_score` has none.)

        Args:
            model: a Pyro program `model(batch, state)` with the sites `thoughts` and `tokens`.
            seed: of the noise, together with each sequence's id.
            start: local parameters to begin from, such as those of an earlier fit; None: `guide.init(batch)`.
            keep_graph: the state keeps its graph, through all fast steps, back to the parameters of guide and model:
                for the slow step of an encoder (second order, with all the memory that it needs).
            keep_chains: a sampler's draws of the second half of its steps are kept, as `Posterior.chains`.
            watch: sees the state before the first step and after each.

        Raises:
            UserError: model and guide do not fit one another, or chains are asked of a guide that has none.
        """
        leave_if_asked()
        kept = self._kept(watch) if keep_chains else None
        watch = kept or watch
        check_precision(model, self.guide)
        check_prior(getattr(model, "prior", None), self.guide, self.objective, self.noise)
        noise = Noise(batch.ids, device=batch.device, seed=seed, kind=self.noise)
        with _without_gradient(keep_graph, self.guide):
            state = self._first(model, batch, start)
        fit = partial(self._run, model, seed=seed, keep_graph=keep_graph, watch=watch)
        key, varies = None, keep_graph or watch or self.stopping or self.subsample > 1 or not self.steps_taken
        if self.recorder and not varies:
            key = cache_key(batch, model, self.guide, self.objective, self.optimizer, self.steps, self.noise)
        if self.recorder and key:
            state, history = self.recorder.run(fit, key, batch, state, noise)
        else:
            state, history = fit(batch, state, noise)
        noise.part()  # a draw of q is to know nothing of those that the fit has seen
        return Posterior(self.guide, state, batch.ids, noise, history, kept.chains if kept else None)

    def _kept(self, watch: Watch | None) -> KeptChains:
        """A watch that keeps a sampler's chains. Raises UserError where there are none."""
        if not isinstance(self.guide, ParticleGuide) or not self.guide.has_chains:
            raise UserError(f"{type(self.guide).__name__} has no Markov chains: fit one of langevin, mala and hmc")
        return KeptChains(self.guide, self.steps, watch)

    @property
    def steps_taken(self) -> int:
        """Fast steps that a fit takes at most: none where the guide's first state is final."""
        return 0 if self.guide.learning == "amortized" else self.steps

    def _first(self, model: nn.Module, batch: Batch, start: State | None) -> State:
        """The local parameters before the first step, the objective's own among them."""
        state = (self.guide.init(batch) if start is None else start) | self.objective.local(batch)
        is_double = any(weight.dtype == torch.float64 for weight in model.parameters())
        return {name: value.double() for name, value in state.items()} if is_double else state

    def _run(
        self,
        model: nn.Module,
        batch: Batch,
        state: State,
        noise: Noise,
        *,
        seed: int,
        keep_graph: bool,
        watch: Watch | None,
    ) -> tuple[State, Tensor]:
        """The last state and the history: all of a fit that can be recorded."""
        guide, steps, seen = self.guide, self.steps_taken, _leaving(watch)
        # Weights are fused for many passes: a twin, or an encoder alone, makes none.
        many = steps > 0 or isinstance(guide, ParticleGuide)
        fused = getattr(model, "fused_weights", nullcontext) if many and not keep_graph else nullcontext
        with _without_gradient(keep_graph, model, guide), fused():
            precompute: Any = getattr(model, "precompute", None)
            if keep_graph:
                batch = dataclasses.replace(batch, context=None)  # it is cut from the graph
            elif precompute:
                batch = precompute(batch)
            if self.noise == "fixed":
                check_fixed_noise(guide, self.objective, getattr(model, "prior", None), state)
            seen(0, state)
            log_joint = LogJoint(model, batch)
            if isinstance(guide, ParticleGuide):
                state, history = guide.run(
                    log_joint, state, optimizer=self.optimizer, noise=noise, steps=steps, watch=seen
                )
            else:
                fast: Any = GradientSteps(
                    model, guide, self.objective, self.optimizer, steps, self.subsample, seed, keep_graph
                )
                fast = self.stopping.around(fast) if self.stopping else fast
                state, history = run(fast, batch, state, noise, steps, seen)
            return guide.finish(state, log_joint, log_joint.width()), history

    def fit_to_score(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        seed: int = 0,
        keep_chains: bool = False,
        watch: Watch | None = None,
    ) -> Posterior:
        """`fit` where something is to be scored: on the bound itself, not its annealed form, and on all tokens.

        No posterior depends on who else is in the batch: under an objective that compares sequences, which may be one
        another's future, each is fitted by itself. Draws of the posterior that nothing else asks for then come from a
        stream of their own.

        Raises:
            UserError: a posterior has run away, or model and guide do not fit one another.
        """
        loop = self.for_scores()
        batches = batch.apart() if loop.objective.couples_batch else [batch]
        # Unchecked: what has run away is said below, in a line and not in a warning for each step.
        with evaluating(model), pyro.validation_enabled(False):
            each = [loop.fit(model, one, seed=seed, keep_chains=keep_chains, watch=watch) for one in batches]
        return _sound(each[0] if len(each) == 1 else _joined(each, batch, self.noise, seed))

    def for_scores(self) -> FastLoop:
        """This loop on the bound itself, not its annealed form, and on all tokens."""
        return dataclasses.replace(self, objective=self.objective.at(1.0), subsample=1)

    def with_density(self) -> FastLoop:
        """A loop whose posteriors a bound can score: this one, or a mean-field fit where the guide has no density.

        Its KL is exact where the prior has a closed form.
        """
        if self.guide.has_density:
            return self
        guide = MeanField(self.guide.thoughts, self.guide.dim)
        return FastLoop(guide, BetaELBO(beta=1.0), steps=self.steps, stopping=self.stopping, recorder=self.recorder)

    def with_steps(self, steps: int | None) -> FastLoop:
        """This loop with so many fast steps, where they are given; a twin, without thoughts, takes none."""
        return self if steps is None or not self.guide.thoughts else dataclasses.replace(self, steps=steps)


def _leaving(watch: Watch | None) -> Watch:
    """A watch that leaves the fit where that is asked for, before `watch` sees the state."""

    def seen(step: int, state: State) -> None:
        leave_if_asked()
        if watch:
            watch(step, state)

    return seen


@contextmanager
def _without_gradient(keep_graph: bool, *modules: nn.Module) -> Iterator[None]:
    """The modules get no gradient; or, where the graph is kept, attention can be differentiated twice."""
    with ExitStack() as stack:
        if keep_graph:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for module in () if keep_graph else modules:
            stack.enter_context(frozen(module))
        yield


def _joined(each: list[Posterior], batch: Batch, kind: str, seed: int) -> Posterior:
    """One posterior of sequences that were fitted by themselves."""
    state = {name: torch.cat([posterior.state[name] for posterior in each]) for name in each[0].state}
    steps = max(len(posterior.history) for posterior in each)
    history = batch.mask.new_full((steps, batch.size), math.nan, dtype=each[0].history.dtype)
    for row, posterior in enumerate(each):
        history[: len(posterior.history), row] = posterior.history[:, 0]
    noise = Noise(batch.ids, device=batch.device, kind=kind, seed=seed if kind == "fixed" else fold(seed, "fitted"))
    return Posterior(each[0].guide, state, batch.ids, noise, history)


def _sound(posterior: Posterior) -> Posterior:
    """The posterior, of which something is to be said. Raises RanAway where one sequence's has run away."""
    sound = torch.stack([value.isfinite().reshape(len(value), -1).all(1) for value in posterior.state.values()]).all(0)
    if not bool(sound.all()):
        raise RanAway(
            f"the fast loop has run away: {int((~sound).sum())} of {len(sound)} posteriors are not finite numbers: "
            "lower its rate (optimizer.lr); if that is the run's own, train again with a lower slow.lr"
        )
    return posterior

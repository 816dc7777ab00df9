"""The fast loop: each sequence's posterior, fitted from scratch by a few gradient steps of its own parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_ltm.divergence import analytic_kl
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference.compatibility import check_fit, check_fixed_noise, check_precision, couples_batch
from pyro_ltm.inference.cuda_graph import Recorder, cache_key
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.inference.samplers import ParticleGuide
from pyro_ltm.inference.token_subsample import subsampled
from pyro_ltm.noise import DrawFrom, Noise, draw, fold
from pyro_ltm.objectives import Objective, Terms
from pyro_ltm.optimizers.fast import Adam, FastOptimizer
from pyro_ltm.types import Batch, State, frozen

Watch = Callable[[int, State], None]
"""Called with the fast steps done and the local parameters [B, ...]: before the first step, and after each."""


CHUNK = 64
"""Draws of a posterior that are kept at a time when it is scored.

Part of what a seed means: pieces of another size can give other draws, where one draw is not a multiple of 16 normals.
"""


@dataclass(frozen=True)
class Posterior:
    """The fitted posteriors of a batch.

    Shapes:
        state: local parameters, leading dimension B.
        ids: [B] the sequences' stable names.
        history: [steps, B] the objective's bound of each sequence at each fast step, before the step, in nats; NaN
            after a sequence stopped; for an ELBO that is not of this library, [steps, 1], summed over the batch.

    Attributes:
        noise: the stream that the fit drew from. `sample` goes on with it: new draws after a fit on fresh noise, one
            draw for ever after a fit on fixed noise. `with_noise` gives draws that no fit has seen.
    """

    guide: Guide
    state: State
    ids: Tensor
    noise: Noise
    history: Tensor

    @property
    def distribution(self) -> TorchDistribution:
        """q(z): batch shape [B], event shape [N, D]."""
        return self.guide.distribution(self.state)

    @property
    def steps_taken(self) -> Tensor:
        """[B] fast steps of each sequence, int64."""
        return self.history.isfinite().sum(0).expand(len(self.ids))

    def with_noise(self, seed: int) -> Posterior:
        """The same posterior drawing from another stream: what was fitted on one noise is judged on this one."""
        return dataclasses.replace(self, noise=Noise(self.ids, seed=seed, device=self.noise.device))

    @torch.no_grad()
    def sample(self, particles: int = 1) -> Tensor:
        """Thoughts [K, B, N, D] from q."""
        return _draws(self.distribution, particles, self.noise)

    @torch.no_grad()
    def mean(self, draws: int = 64) -> Tensor:
        """E_q[z], [B, N, D]; of a family without a closed form for it, the mean of so many draws."""
        try:
            mean: Tensor = self.distribution.mean
        except NotImplementedError:
            mean = self.sample(draws).mean(0)
        return mean

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Batch, *, particles: int = 1) -> Terms:
        """The parts of the bound on this posterior's noise; the KL exact where it can be.

        Raises:
            UserError: the posterior is a point, and no bound judges a point.
        """
        q = self.guide.judged(self.state)
        if q is None:
            raise UserError(
                f"{type(self.guide).__name__} is a point: it has no density, and no bound judges it; "
                "fit another guide under the same decoder to score it"
            )
        target = LogJoint(model, batch)
        parts = []
        # In pieces, so that memory does not grow with K. One draw at a time goes through the decoder: on a CPU several
        # at once are slower from a few sequences on.
        for first in range(0, particles, CHUNK):
            z = _draws(q, min(CHUNK, particles - first), self.noise)
            parts += [
                (*target.parts(particle), log_guide) for particle, log_guide in zip(z, q.log_prob(z), strict=True)
            ]
        log_likelihood, log_prior, log_guide = (torch.stack(part) for part in zip(*parts, strict=True))
        prior: Any = getattr(model, "prior", None)
        kl = analytic_kl(q, prior()) if self.guide.has_analytic_kl and prior is not None else None
        return Terms(log_likelihood, log_prior, log_guide, kl, state=self.state)


def fit_posterior(
    model: nn.Module,
    batch: Batch,
    *,
    guide: Guide,
    objective: ELBO,
    optimizer: FastOptimizer | None = None,
    steps: int = 16,
    noise: str = "fresh",
    seed: int = 0,
    tolerance: float = 0.0,
    patience: int = 4,
    subsample: int = 1,
    start: State | None = None,
    keep_graph: bool = False,
    watch: Watch | None = None,
    recorder: Recorder | None = None,
) -> Posterior:
    """Fits q(z) of every sequence in `batch` by `steps` fast steps, starting from `start` or else `guide.init(batch)`.

    Leaves `.grad` of model and guide alone. A sequence's posterior does not depend on who shares its batch: the loss is
    a sum over sequences, the optimizer treats each by itself, and noise is keyed by the sequence's id. (Objectives that
    compare sequences are the exception: `couples_batch`, and what is scored is fitted by `fit_to_score`.)

    Args:
        model: a Pyro program `model(batch, state)` with the sites `thoughts` and `tokens`.
        objective: the bound to raise; any Pyro ELBO with `differentiable_loss`.
        optimizer: moves the local parameters; `Adam()` when None.
        noise: "fresh" draws anew in each step; "antithetic" in mirrored pairs; "fixed" repeats one draw as the
            reference implementation does, and what is fitted so must be scored on other noise.
        seed: of the noise, together with each sequence's id.
        tolerance: a sequence whose bound rose by fewer nats than this over `patience` fast steps (their mean against
            the mean of as many before) takes no more, and the batch goes on without it; 0: all take all steps. Fast
            steps then wait for the device, for who goes on is decided on the host.
        subsample: each fast step scores one of so many equal stretches of the tokens, scaled up (`subsampled`); the
            bounds in the history are then estimates, and the stretches are those of the longest sequence.
        start: local parameters to begin from, such as those of an earlier fit of the same sequences.
        keep_graph: the state keeps its graph, through all fast steps, back to the parameters of guide and model: for
            the slow step of an encoder (second order, with all the memory that it needs).
        watch: sees the state before the first step and after each.
        recorder: on a GPU, replays the fast loop for batches of shapes that it has seen, where each step asks for the
            same whatever the numbers (`cuda_graph.cache_key`): without `tolerance`, `subsample`, `keep_graph` and
            `watch`, for guides that say so (`is_recorded`), and where distributions do not check their arguments.

    Raises:
        UserError: guide, objective, optimizer and noise do not fit one another.
    """
    optimizer = optimizer or Adam()
    check_fit(guide, objective, optimizer, noise, tolerance=tolerance, subsample=subsample)
    check_precision(model, guide)
    objective = objective.for_guide() if isinstance(objective, Objective) else objective
    stream, fixed = Noise(batch.ids, device=batch.device, seed=seed, kind=noise), noise == "fixed"
    steps = steps if guide.takes_fast_steps else 0

    double = any(weight.dtype == torch.float64 for weight in model.parameters())

    def first(batch: Batch) -> State:
        state = guide.init(batch) if start is None else start
        state = state | (objective.local(batch) if isinstance(objective, Objective) else {})
        return {name: value.double() for name, value in state.items()} if double else state

    def fit(batch: Batch, state: State | None, noise: Noise) -> tuple[State, Tensor]:
        # Weights are laid out for many passes: a twin, or an encoder alone, makes none.
        with _held_still(model, guide, keep_graph, many=steps > 0 or isinstance(guide, ParticleGuide)):
            precompute: Any = getattr(model, "precompute", None)
            if keep_graph:
                batch = dataclasses.replace(batch, context=None)  # it is cut from the graph
            elif precompute:
                batch = precompute(batch)
            state = first(batch) if state is None else state
            if fixed:
                check_fixed_noise(guide, objective, getattr(model, "prior", None), state)
            if watch:
                watch(0, state)
            if isinstance(guide, ParticleGuide):
                state, history = guide.run(
                    LogJoint(model, batch), state, optimizer=optimizer, noise=noise, steps=steps, watch=watch
                )
            else:
                loop = _Loop(model, batch, guide, objective, optimizer, noise, steps, keep_graph, subsample, seed)
                state, history = loop.run(state, tolerance, patience, watch)
            target = LogJoint(model, batch)
            return guide.finish(state, target, target.width()), history

    moves = keep_graph or tolerance or subsample > 1 or watch or not steps
    kind = None if recorder is None or moves else cache_key(batch, model, guide, objective, optimizer, steps, noise)
    if recorder is None or kind is None:
        state, history = fit(batch, None, stream)
    else:
        with frozen(guide):
            begun = first(batch)
        state, history = recorder.run(fit, kind, batch, begun, stream)
    return Posterior(guide, state, batch.ids, stream, history)


def fit_to_score(model: nn.Module, batch: Batch, *, objective: ELBO, seed: int = 0, **fitting: Any) -> Posterior:
    """`fit_posterior` where something is to be scored: no posterior depends on who else is in the batch.

    Under an objective that compares sequences, which may be one another's future, each is fitted by itself. Draws of
    the posterior that nothing else asks for then come from a stream of their own.

    Raises:
        UserError: a posterior has run away, or parts do not fit one another.
    """
    batches = batch.apart() if couples_batch(objective) else [batch]
    # Unchecked: what has run away is said below, in a line and not in a warning for each step.
    with pyro.validation_enabled(False):
        each = [fit_posterior(model, one, objective=objective, seed=seed, **fitting) for one in batches]
    if len(each) == 1:
        return _sound(each[0])
    state = {name: torch.cat([posterior.state[name] for posterior in each]) for name in each[0].state}
    steps = max(len(posterior.history) for posterior in each)
    history = batch.mask.new_full((steps, batch.size), math.nan, dtype=each[0].history.dtype)
    for row, posterior in enumerate(each):
        history[: len(posterior.history), row] = posterior.history[:, 0]
    kind = fitting.get("noise", "fresh")
    noise = Noise(batch.ids, device=batch.device, kind=kind, seed=seed if kind == "fixed" else fold(seed, "fitted"))
    return _sound(Posterior(each[0].guide, state, batch.ids, noise, history))


def _sound(posterior: Posterior) -> Posterior:
    """The posterior, of which something is to be said. Raises UserError where one sequence's has run away."""
    sound = torch.stack([value.isfinite().reshape(len(value), -1).all(1) for value in posterior.state.values()]).all(0)
    if not bool(sound.all()):
        raise UserError(
            f"the fast loop has run away: {int((~sound).sum())} of {len(sound)} posteriors are not finite numbers: "
            "lower its rate (optimizer.lr); if that is the run's own, train again with a lower slow.lr"
        )
    return posterior


@dataclass
class _Loop:
    """The fast steps of a batch, which shrinks as its sequences finish."""

    model: nn.Module
    batch: Batch
    guide: Guide
    objective: ELBO
    optimizer: FastOptimizer
    noise: Noise
    steps: int
    keep_graph: bool
    subsample: int
    seed: int

    def run(self, state: State, tolerance: float, patience: int, watch: Watch | None) -> tuple[State, Tensor]:
        """The last state and the history."""
        size, device = self.batch.size, self.batch.inputs.device
        memory, rows = self.optimizer.init(state), torch.arange(size, device=device)
        whole, history = state, [torch.zeros(0, size, device=device)]
        for step in range(self.steps):
            bounds, state, memory = self._step(state, memory, step)
            whole = _put(whole, rows, state)
            history.append(
                bounds if len(rows) == size else bounds.new_full((size,), math.nan).index_copy(0, rows, bounds)
            )
            if watch:
                watch(step + 1, whole)
            if tolerance and step + 1 >= 2 * patience:
                before, now = torch.stack(history[-2 * patience :])[:, rows].unflatten(0, (2, patience)).mean(1)
                # A bound that is not finite has not risen either: it is left as it is, and seen by whoever scores it.
                going = (_sense(self.objective) * (now - before) >= tolerance).nonzero()[:, 0]
                if len(going) < len(rows):
                    rows, state, memory = rows[going], _select(state, going), _select(memory, going)
                    self.batch, self.noise = self.batch.select(going), self.noise.select(going)
                if not len(rows):
                    break
        return whole, torch.stack(history[1:]) if len(history) > 1 else history[0]

    def _step(self, state: State, memory: State, step: int) -> tuple[Tensor, State, State]:
        """One fast step: the bounds before it, and state and memory after it."""
        leaves = {name: self._leaf(value) for name, value in state.items()}
        batch = self.batch
        if self.subsample > 1:
            batch = subsampled(batch, self.subsample, step=step, seed=self.seed)
        objective: Any = self.objective
        if isinstance(objective, Objective):
            objective = objective.within(step / self.steps)
        with torch.enable_grad(), DrawFrom(self.noise):
            bounds = sequence_bounds(objective, self.model, self.guide, batch, leaves)
            # An upper bound is to fall, any other to rise; and optimizers descend.
            losses = -_sense(objective) * bounds
            grads = torch.autograd.grad(losses.sum(), list(leaves.values()), create_graph=self.keep_graph)
        gradients = dict(zip(leaves, grads, strict=True))
        with torch.set_grad_enabled(self.keep_graph):
            if self.optimizer.wants_natural_gradient:
                gradients |= self.optimizer.shortened(gradients, self.guide.natural_gradient(leaves, gradients))
            losses = losses.detach().expand(self.batch.size)
            state, memory = self.optimizer.step(leaves, gradients, memory, losses=losses, step=step, steps=self.steps)
        return bounds.detach(), state, memory

    def _leaf(self, value: Tensor) -> Tensor:
        """What the gradient of this step is taken for; with the graph kept, still a part of it."""
        return value if self.keep_graph and value.requires_grad else value.detach().requires_grad_()


def sequence_bounds(objective: ELBO, model: nn.Module, guide: nn.Module, batch: Batch, state: State) -> Tensor:
    """The objective's bound of each sequence in nats, [B]; [1] from an ELBO that only gives the whole batch's."""
    if isinstance(objective, Objective):
        return objective.bound(objective.terms(model, guide, batch, state))
    whole: Any = objective  # the method is on Pyro's subclasses, not on its ELBO
    return -whole.differentiable_loss(model, guide, batch, state).reshape(1)


@contextmanager
def _held_still(model: nn.Module, guide: nn.Module, keep_graph: bool, many: bool) -> Iterator[None]:
    """Decoder and guide held still; or, where the graph is kept, attention that can be differentiated twice."""
    with ExitStack() as stack:
        if keep_graph:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        else:
            stack.enter_context(frozen(model))
            stack.enter_context(frozen(guide))
            if many and (held := getattr(model, "held", None)):
                stack.enter_context(held())
        yield


def _sense(objective: ELBO) -> int:
    return objective.sense if isinstance(objective, Objective) else 1


def _select(tensors: State, rows: Tensor) -> State:
    return {name: value[rows] for name, value in tensors.items()}


def _put(whole: State, rows: Tensor, part: State) -> State:
    """`whole` with its sequences at `rows` replaced; `part` itself where that is all of them."""
    if all(len(value) == len(rows) for value in whole.values()):
        return part
    return {name: value.index_copy(0, rows, part[name]) for name, value in whole.items()}


def _draws(distribution: TorchDistribution, particles: int, noise: Noise) -> Tensor:
    """[K, B, N, D]."""
    return draw(distribution.expand(torch.Size([particles, *distribution.batch_shape])), noise)

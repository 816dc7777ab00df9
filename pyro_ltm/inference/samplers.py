"""Samplers: they follow log p(x, z) itself and leave draws, not a density. They share the guides' face."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.infer.mcmc import HMC as PyroHMC
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.noise import Noise, Normals, fold, rsample_from
from pyro_ltm.optimizers import FastOptimizer
from pyro_ltm.types import Batch, Card, Registry, State

Watch = Callable[[int, State], None]


class Draws(dist.TorchDistribution):
    """One of C draws, each as likely as the others. It has no density: `log_prob` is 0 by convention, as `Delta`'s.

    Shapes:
        values: [..., B, C, N, D]. Batch shape [..., B], event shape [N, D].
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.independent(dist.constraints.real, 2)
    has_rsample = True

    def __init__(self, values: Tensor, validate_args: bool | None = None):
        self.values = values
        super().__init__(values.shape[:-3], values.shape[-2:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """[..., B, N, D]."""
        return self.values.mean(-3)

    @property
    def variance(self) -> Tensor:
        """[..., B, N, D]."""
        return self.values.var(-3, correction=0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Draws:
        """The same draws over more sequences."""
        return Draws(self.values.expand(*batch_shape, *self.values.shape[-3:]))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws [*sample_shape, ..., B, N, D], picked by torch's generator."""
        whole = self.expand(torch.Size(sample_shape) + self.batch_shape)
        return rsample_from(whole, lambda shape: torch.randn(shape, device=self.values.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Zeros [..., B]."""
        return value.new_zeros(torch.broadcast_shapes(self.batch_shape, value.shape[:-2]))


@rsample_from.register
def _(distribution: Draws, normals: Normals) -> Tensor:
    values = distribution.values
    count = values.shape[-3]
    # A standard normal through its own distribution function is uniform.
    share = torch.special.ndtr(normals(distribution.batch_shape))
    index = (share * count).long().clamp(max=count - 1)[..., None, None, None]
    return values.take_along_dim(index, dim=-3).squeeze(-3)


class ParticleGuide(Guide):
    """Draws that follow log p(x, z), the objective `map`; no family, no density.

    A bound judges them through the Normal that has the draws' mean and variance in each dimension.
    """

    has_density: ClassVar[bool] = False
    follows_joint: ClassVar[bool] = True
    has_analytic_kl: ClassVar[bool] = True  # that Normal's

    def __init__(self, thoughts: int, dim: int, chains: int, seed: int):
        super().__init__(thoughts, dim)
        if not 1 <= chains <= 1024:
            raise UserError(f"guide: chains = {chains}: from 1 to 1024")
        self.chains = chains
        self.seed = seed

    @abstractmethod
    def run(
        self,
        target: LogJoint,
        state: State,
        *,
        optimizer: FastOptimizer,
        noise: Noise,
        steps: int,
        watch: Watch | None,
    ) -> tuple[State, Tensor]:
        """The state after `steps` transitions, and the history [steps, B] of log p(x, z), the mean over chains."""

    def init(self, batch: Batch) -> State:
        """Draws from N(0, I) `particles` [B, C, N, D], and their moments `mean` and `variance` [B, N, D]."""
        shape = torch.Size([self.chains, batch.size, self.thoughts, self.dim])
        dtype = torch.get_default_dtype()
        noise = Noise(batch.ids, device=batch.device, seed=fold(self.seed, "chains"))
        particles = noise.normal(shape, event_dims=2, dtype=dtype).to(batch.inputs.device).transpose(0, 1)
        return {"particles": particles, "mean": torch.zeros_like(particles[:, 0])} | {
            "variance": torch.ones_like(particles[:, 0])  # one chain has no variance of its own yet: the prior's
        }

    def distribution(self, state: State) -> dist.TorchDistribution:
        """One of the chains' last draws."""
        return Draws(state["particles"])

    def scored_distribution(self, state: State) -> dist.TorchDistribution | None:
        """The Normal with the mean and variance of the draws."""
        return dist.Normal(state["mean"], state["variance"].clamp(min=LEAST_VARIANCE).sqrt()).to_event(2)


LEAST_VARIANCE = 1e-6


class _Moments:
    """Mean and variance of the later draws of a run, at any time of it.

    Draws count from the last power of two but one: at step 2^k the second half of the run, at most three quarters of it
    in between. So a run that is judged on its way is judged as if it ended there.
    """

    def __init__(self) -> None:
        self._older: list[Tensor] = []
        self._newer: list[Tensor] = []
        self._next = 1

    def add(self, step: int, particles: Tensor) -> None:
        """`particles` [B, C, N, D] after transition `step` (from 0)."""
        if step == self._next:
            self._older, self._newer, self._next = self._newer, [], 2 * self._next
        count = particles.new_tensor(float(particles.shape[1]))
        new = [count, particles.sum(1), particles.square().sum(1)]
        self._newer = [a + b for a, b in zip(self._newer, new, strict=True)] if self._newer else new

    def into(self, state: State) -> State:
        """`state` with the moments."""
        parts = [self._older, self._newer] if self._older and self._newer else [self._older or self._newer]
        count, total, square = (sum(values[1:], values[0]) for values in zip(*parts, strict=True))
        mean = total / count
        return state | {"mean": mean, "variance": (square / count - mean.square()).clamp(min=0)}


class _Langevin(ParticleGuide):
    """Chains that step along the gradient of log p(x, z) and are shaken by noise, all of a batch at once."""

    def __init__(self, thoughts: int, dim: int, chains: int, step_size: float, seed: int):
        super().__init__(thoughts, dim, chains, seed)
        if not 0 < step_size <= 1:
            raise UserError(f"guide: step_size = {step_size}: above 0, at most 1 (the prior's variance is 1)")
        self.step_size = step_size

    def run(
        self,
        target: LogJoint,
        state: State,
        *,
        optimizer: FastOptimizer,
        noise: Noise,
        steps: int,
        watch: Watch | None,
    ) -> tuple[State, Tensor]:
        """See `ParticleGuide.run`. Moments are those of about the second half."""
        z = state["particles"].transpose(0, 1)
        moments, history = _Moments(), [z.new_zeros(0, z.shape[1])]
        log_joint, slope = _value_and_gradient(target, z)
        size = z.new_full((z.shape[1],), self.step_size)
        for step in range(steps):
            history.append(log_joint.mean(0))
            normals = noise.normal(torch.Size([*z.shape[:2], z[0, 0].numel() + 1]), event_dims=1, dtype=z.dtype)
            shake, uniform = normals[..., :-1].view_as(z), torch.special.ndtr(normals[..., -1])
            across = size[:, None, None]
            proposed = z + across * slope + (2 * across).sqrt() * shake
            new_joint, new_slope = _value_and_gradient(target, proposed)
            back = z - proposed - across * new_slope
            there = proposed - z - across * slope
            ratio = new_joint - log_joint + ((there.square() - back.square()).sum((-2, -1)) / (4 * size))
            accepted = self._accepts(uniform, ratio)
            z = torch.where(accepted[..., None, None], proposed, z)
            slope = torch.where(accepted[..., None, None], new_slope, slope)
            log_joint = torch.where(accepted, new_joint, log_joint)
            size = self._tuned(size, ratio, step, steps)
            moments.add(step, z.transpose(0, 1))
            state = moments.into(state | {"particles": z.transpose(0, 1)})
            if watch:
                watch(step + 1, state)
        return state, torch.stack(history[1:]) if steps else history[0]

    @abstractmethod
    def _accepts(self, uniform: Tensor, ratio: Tensor) -> Tensor:
        """[C, B] which proposals are taken, for the log acceptance `ratio` [C, B]."""

    @abstractmethod
    def _tuned(self, size: Tensor, ratio: Tensor, step: int, steps: int) -> Tensor:
        """The step size [B] of each sequence after transition `step`."""


class Langevin(_Langevin):
    """Unadjusted Langevin dynamics: no step is refused, so its draws are off by an error that falls with the step size.

    Each step follows the whole gradient, not that of a sample of the data (as SGLD does). Roberts and Tweedie 1996; for
    thoughts, the posterior sampler of Kong et al., arXiv:2502.01567.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        chains: chains C of each sequence. step_size: of each transition. seed: of the chains' starts.
    """

    card: ClassVar[Card] = Card(
        summary="unadjusted Langevin dynamics: draws that follow log p(x, z)",
        cost="one decoder pass a chain and step",
        when="draws without a family's shape; biased by its step size",
        reference="Roberts and Tweedie 1996",
    )
    arguments: ClassVar[tuple[str, ...]] = ("step_size", "chains")

    def __init__(self, thoughts: int, dim: int, step_size: float = 0.05, chains: int = 4, seed: int = 0):
        super().__init__(thoughts, dim, chains, step_size, seed)

    def _accepts(self, uniform: Tensor, ratio: Tensor) -> Tensor:
        return torch.ones_like(ratio, dtype=torch.bool)

    def _tuned(self, size: Tensor, ratio: Tensor, step: int, steps: int) -> Tensor:
        return size


class MALA(_Langevin):
    """Metropolis-adjusted Langevin: a step is taken or refused so that the draws are the posterior's own.

    In the first half the step size of each sequence is tuned to the best acceptance (Roberts and Rosenthal 1998).

    Args:
        thoughts: thought vectors N. dim: width D of each.
        chains: chains C of each sequence. step_size: of the first transition. seed: of the chains' starts.
    """

    card: ClassVar[Card] = Card(
        summary="Metropolis-adjusted Langevin dynamics",
        cost="one decoder pass a chain and step",
        when="draws that are the posterior's own in the limit of many steps",
        reference="Roberts and Tweedie 1996",
    )
    arguments: ClassVar[tuple[str, ...]] = ("step_size", "chains")

    def __init__(self, thoughts: int, dim: int, step_size: float = 0.05, chains: int = 4, seed: int = 0):
        super().__init__(thoughts, dim, chains, step_size, seed)

    def _accepts(self, uniform: Tensor, ratio: Tensor) -> Tensor:
        return uniform.log() < ratio  # a ratio that is not a number is refused

    def _tuned(self, size: Tensor, ratio: Tensor, step: int, steps: int) -> Tensor:
        if step >= steps // 2:
            return size  # chains that go on adapting do not keep their distribution
        acceptance = ratio.nan_to_num(nan=-torch.inf).clamp(max=0).exp().mean(0)
        return (size * torch.exp((acceptance - BEST_ACCEPTANCE) / (1 + step / 10) ** 0.5)).clamp(1e-6, 1.0)


BEST_ACCEPTANCE = 0.574
"""Of Langevin steps in many dimensions (Roberts and Rosenthal 1998)."""


class HMC(ParticleGuide):
    """Hamiltonian Monte Carlo by Pyro's own kernels (Neal 2011; NUTS: arXiv:1111.4246).

    Each sequence has one chain of its own, run by itself, so that no sequence's acceptance depends on another's: exact
    in the limit and slow. The first half of the steps tunes the kernel, the second is kept.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        leapfrogs: gradient steps of the first transition; their length in all is kept while their
            size is tuned. kernel: `hmc`, or `nuts`, which chooses their number itself.
        step_size: of the first leapfrog step; it is tuned. seed: of start and chain.
    """

    card: ClassVar[Card] = Card(
        summary="Hamiltonian Monte Carlo, through Pyro's kernels",
        cost="several decoder passes a step, one sequence after the other",
        when="the truth to hold the other families against",
        reference="Neal 2011",
    )
    arguments: ClassVar[tuple[str, ...]] = ("leapfrogs",)

    def __init__(
        self,
        thoughts: int,
        dim: int,
        leapfrogs: int = 8,
        kernel: str = "hmc",
        step_size: float = 0.1,
        seed: int = 0,
    ):
        super().__init__(thoughts, dim, 1, seed)
        if not 1 <= leapfrogs <= 1024 or kernel not in ("hmc", "nuts") or not step_size > 0:
            raise UserError(
                f"guide: leapfrogs = {leapfrogs}, kernel = {kernel!r}, step_size = {step_size}: "
                "1 to 1024, hmc or nuts, and above 0"
            )
        self.leapfrogs, self.kernel, self.step_size = leapfrogs, kernel, step_size

    def run(
        self,
        target: LogJoint,
        state: State,
        *,
        optimizer: FastOptimizer,
        noise: Noise,
        steps: int,
        watch: Watch | None,
    ) -> tuple[State, Tensor]:
        """See `ParticleGuide.run`. `particles` become the draws that were kept."""
        if not steps:
            return state, state["mean"].new_zeros(0, len(state["mean"]))
        chains, levels = [], []
        for row in range(target.batch.size):
            one = target.select(torch.tensor([row], device=target.batch.inputs.device))
            draws, level = self._chain(one, state["particles"][row], noise.seeds[row], steps)
            chains.append(draws)
            levels.append(level)
        particles = torch.stack(chains)
        moments = {"mean": particles.mean(1), "variance": particles.var(1, correction=0)}
        state = {"particles": particles, **moments}
        if watch:
            watch(steps, state)
        return state, torch.stack(levels, dim=1)

    def _chain(self, target: LogJoint, start: Tensor, seed: int, steps: int) -> tuple[Tensor, Tensor]:
        """Draws [C, N, D] of the second half, and log p(x, z) [steps] along the way."""
        levels: list[Tensor] = []
        with torch.no_grad():
            if not bool(target(start).isfinite().all()):  # Pyro would look for a step size for ever
                lost = torch.full_like(start, torch.nan)
                return lost.expand(steps - steps // 2, -1, -1), start.new_full((steps,), torch.nan)

        def record(kernel: Any, params: dict[str, Tensor], stage: str, index: int) -> None:
            with torch.no_grad():
                levels.append(target(params["thoughts"])[0])

        def potential(params: dict[str, Tensor]) -> Tensor:
            return -target(params["thoughts"]).sum()

        shape: dict[str, Any] = {"step_size": self.step_size, "potential_fn": potential, "jit_compile": False}
        kernel: Any = NUTS(**shape) if self.kernel == "nuts" else PyroHMC(num_steps=self.leapfrogs, **shape)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            chain = MCMC(
                kernel,
                num_samples=steps - steps // 2,
                warmup_steps=steps // 2,
                initial_params={"thoughts": start.detach().clone()},
                disable_progbar=True,
                hook_fn=record,
            )
            chain.run()
        return chain.get_samples()["thoughts"].flatten(0, 1), torch.stack(levels[-steps:])


class SVGD(ParticleGuide):
    """Stein variational gradient descent (arXiv:1608.04471): draws that climb log p(x, z) and push one another apart.

    Deterministic once its draws have started; the fast optimizer moves them.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        particles: draws C of each sequence. seed: of where they start.
    """

    card: ClassVar[Card] = Card(
        summary="Stein variational gradient descent: draws that repel one another",
        cost="one decoder pass a draw and step",
        when="a few draws that cover several modes; too narrow in many dimensions",
        reference="arXiv:1608.04471",
    )
    arguments: ClassVar[tuple[str, ...]] = ("particles",)

    def __init__(self, thoughts: int, dim: int, particles: int = 8, seed: int = 0):
        if particles < 2:
            raise UserError(f"guide: particles = {particles}: at least 2, which push one another apart")
        super().__init__(thoughts, dim, particles, seed)

    def run(
        self,
        target: LogJoint,
        state: State,
        *,
        optimizer: FastOptimizer,
        noise: Noise,
        steps: int,
        watch: Watch | None,
    ) -> tuple[State, Tensor]:
        """See `ParticleGuide.run`."""
        moving = {"particles": state["particles"]}
        memory, history = optimizer.init(moving), [state["mean"].new_zeros(0, len(state["mean"]))]
        for step in range(steps):
            z = moving["particles"]
            log_joint, slope = _value_and_gradient(target, z.transpose(0, 1))
            history.append(log_joint.mean(0))
            uphill = _stein(z.flatten(2), slope.transpose(0, 1).flatten(2)).view_as(z)
            moving, memory = optimizer.step(
                moving, {"particles": -uphill}, memory, losses=-log_joint.mean(0), step=step, steps=steps
            )
            z = moving["particles"]
            state = {"particles": z, "mean": z.mean(1), "variance": z.var(1, correction=0)}
            if watch:
                watch(step + 1, state)
        return state, torch.stack(history[1:]) if steps else history[0]


def _stein(z: Tensor, slope: Tensor) -> Tensor:
    """The direction [B, C, P] in which the kernelized KL falls fastest, for draws and gradients [B, C, P]."""
    count = z.shape[1]
    distances = torch.cdist(z, z).square()
    above = torch.triu_indices(count, count, offset=1)
    median = distances[:, above[0], above[1]].median(dim=1).values
    width = (median / (2 * torch.log(torch.tensor(count + 1.0, dtype=z.dtype)))).clamp(min=1e-12)[:, None, None]
    kernel = torch.exp(-distances / (2 * width))
    apart = (kernel.sum(-1, keepdim=True) * z - kernel @ z) / width
    return (kernel @ slope + apart) / count


def _value_and_gradient(target: LogJoint, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log p(x, z) [C, B] of draws z [C, B, N, D], and its gradient [C, B, N, D]."""
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        log_joint = target(leaf)
        (slope,) = torch.autograd.grad(log_joint.sum(), leaf)
    return log_joint.detach(), slope


SAMPLERS: Registry[ParticleGuide] = Registry("guide", {"langevin": Langevin, "mala": MALA, "hmc": HMC, "svgd": SVGD})

"""Hamiltonian Monte Carlo, through Pyro."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.infer.mcmc import HMC as PyroHMC
from pyro.infer.mcmc import MCMC, NUTS
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.inference.fit import Watch
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.inference.samplers.base import ParticleGuide
from pyro_ltm.interruption import leave_if_asked
from pyro_ltm.noise import Noise, fold
from pyro_ltm.optimizers import FastOptimizer
from pyro_ltm.registry import Card
from pyro_ltm.types import State


class HMC(ParticleGuide):
    """Hamiltonian Monte Carlo by Pyro's own kernels (Neal 2011; NUTS: arXiv:1111.4246).

    Each sequence has chains of its own, run by themselves, so that no sequence's acceptance depends on another's: exact
    in the limit and slow. The first half of the steps tunes the kernel, the second is kept.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        leapfrogs: gradient steps of the first transition; their length in all is kept while their
            size is tuned. kernel: `hmc`, or `nuts`, which chooses their number itself.
        step_size: of the first leapfrog step; it is tuned. chains: of each sequence. seed: of starts and chains.
    """

    card: ClassVar[Card] = Card(
        summary="Hamiltonian Monte Carlo, through Pyro's kernels",
        cost="several decoder passes a step, one sequence after the other",
        when="the truth to hold the other families against",
        reference="Neal 2011",
    )
    arguments: ClassVar[tuple[str, ...]] = ("leapfrogs",)
    has_chains: ClassVar[bool] = True

    def __init__(
        self,
        thoughts: int,
        dim: int,
        leapfrogs: int = 8,
        kernel: str = "hmc",
        step_size: float = 0.1,
        chains: int = 1,
        seed: int = 0,
    ):
        super().__init__(thoughts, dim, chains, seed)
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
        """See `ParticleGuide.run`. `particles` become the draws that were kept, one chain after the other."""
        if not steps:
            return state, state["mean"].new_zeros(0, len(state["mean"]))
        sequences, levels = [], []
        for row in range(target.batch.size):
            leave_if_asked()
            one = target.select(torch.tensor([row], device=target.batch.device))
            seed, starts = noise.seeds[row], state["particles"][row]
            seeds = [seed, *(fold(seed, "chain", number) for number in range(1, self.chains))]
            chains = [self._chain(one, start[None], own, steps) for start, own in zip(starts, seeds, strict=True)]
            sequences.append(torch.cat([draws for draws, _ in chains]))
            levels.append(torch.stack([level for _, level in chains]).mean(0))
        particles = torch.stack(sequences)
        moments = {"mean": particles.mean(1), "variance": particles.var(1, correction=0)}
        state = {"particles": particles, **moments}
        if watch:
            watch(steps, state)
        return state, torch.stack(levels, dim=1)

    def chains_of(self, seen: list[Tensor]) -> Tensor:
        """[C, S, B, N, D]: all of them are in the last state."""
        return seen[-1].unflatten(1, (self.chains, -1)).permute(1, 2, 0, 3, 4)

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

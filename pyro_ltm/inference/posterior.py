"""The posteriors of a batch that a fast loop has fitted, to draw from and to score."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_ltm.divergence import analytic_kl
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.noise import Noise, draw
from pyro_ltm.objectives import Terms
from pyro_ltm.types import Batch, State

ARVIZ = "pip install -e '.[arviz]' in the clone, with Python 3.11 or newer"
"""Where R-hat, and ArviZ's data, come from."""

CHUNK = 64
"""Draws of a posterior in memory at a time when it is scored.

Part of what a seed means: pieces of another size can give other draws, where one draw is not a multiple of 16 normals.
"""


@dataclass(frozen=True)
class Posterior:
    """The fitted posteriors of a batch.

    Shapes:
        state: local parameters, leading dimension B.
        ids: [B] the sequences' stable names.
        history: [steps, B] the objective's value for each sequence at each fast step, before the step, in nats; NaN
            after a sequence stopped; for an ELBO that is not of this library, [steps, 1], summed over the batch.

    Attributes:
        chains: [C, S, B, N, D] draws of a sampler's chains, where the fit was asked to keep them.
        noise: the stream that the fit drew from. `sample` goes on with it: new draws after a fit on fresh noise, one
            draw for ever after a fit on fixed noise. `with_noise` gives draws that no fit has seen.
    """

    guide: Guide
    state: State
    ids: Tensor
    noise: Noise
    history: Tensor
    chains: Tensor | None = None

    def __repr__(self) -> str:
        steps, value = len(self.history), self.history.nanmean(-1)
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self.state.items())
        lines = [f"Posterior of {len(self.ids)} sequences: {type(self.guide).__name__}, {steps} fast steps"]
        if steps:
            first, last = float(value[0]), float(value[-1])
            lines.append(f"  objective  {first:.2f} nats a sequence before the first step, {last:.2f} before the last")
        lines.append(f"  thoughts   {[len(self.ids), self.guide.thoughts, self.guide.dim]}")
        return "\n".join([*lines, f"  state      {shapes}"])

    @property
    def distribution(self) -> TorchDistribution:
        """q(z): batch shape [B], event shape [N, D]."""
        return self.guide.distribution(self.state)

    @property
    def steps_taken(self) -> Tensor:
        """[B] fast steps of each sequence, int64."""
        return self.history.isfinite().sum(0).expand(len(self.ids))

    def with_noise(self, seed: int) -> Posterior:
        """The same posterior drawing from another stream: what was fitted on one noise is scored on this one."""
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

    def to_arviz(self, draws: int = 1000) -> Any:
        """The posterior as ArviZ reads it: an xarray `DataTree` whose group `posterior` holds the site `thoughts`.

        Dimensions are chain, draw, sequence (by its id), thought, dim: a sampler's own chains, where the fit kept
        them; else one chain of so many independent `draws`.

        Raises:
            UserError: the extra `arviz` is not installed, or a sampler's chains were not kept.
        """
        try:
            from arviz_base import from_dict
        except ModuleNotFoundError as error:
            raise UserError(f"ArviZ's data need another package ({error.name}): {ARVIZ}") from None
        if self.chains is None and self.guide.has_chains:
            raise UserError(f"the chains of {type(self.guide).__name__} were not kept: fit with keep_chains=True")
        values = self.sample(draws)[None] if self.chains is None else self.chains
        thoughts = values.detach().cpu().numpy()
        return from_dict(
            {"posterior": {"thoughts": thoughts}},
            dims={"thoughts": ["sequence", "thought", "dim"]},
            coords={"sequence": self.ids.tolist()},
            attrs={"posterior": {"guide": type(self.guide).__name__, "fast_steps": len(self.history)}},
        )

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Batch, *, particles: int = 1) -> Terms:
        """The parts of the bound on this posterior's noise; the KL exact where it can be.

        Raises:
            UserError: the posterior is a point, and no bound judges a point.
        """
        q = self.guide.scored_distribution(self.state)
        if q is None:
            raise UserError(
                f"{type(self.guide).__name__} is a point: it has no density, and no bound judges it; "
                "fit another guide under the same decoder to score it"
            )
        target = LogJoint(model, batch)
        # Without thoughts all draws are one: it is scored once, and counts as many times.
        draws, parts = (particles if self.guide.thoughts else 1), []
        # In pieces, so that memory does not grow with K. One draw at a time goes through the decoder: on a CPU several
        # at once are slower from a few sequences on.
        for first in range(0, draws, CHUNK):
            z = _draws(q, min(CHUNK, draws - first), self.noise)
            parts += [
                (*target.parts(particle), log_guide) for particle, log_guide in zip(z, q.log_prob(z), strict=True)
            ]
        log_likelihood, log_prior, log_guide = (
            torch.stack(part).expand(particles, -1) for part in zip(*parts, strict=True)
        )
        prior: Any = getattr(model, "prior", None)
        kl = analytic_kl(q, prior()) if self.guide.has_analytic_kl and prior is not None else None
        return Terms(log_likelihood, log_prior, log_guide, kl, state=self.state)


def _draws(distribution: TorchDistribution, particles: int, noise: Noise) -> Tensor:
    """[K, B, N, D]."""
    return draw(distribution.expand(torch.Size([particles, *distribution.batch_shape])), noise)

"""Upper bounds on nats from annealed importance sampling, from the prior or from q: more temperatures tighten them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_ltm.distributed import team
from pyro_ltm.errors import UserError
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.ais import Annealing, anneal
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import Noise, fold
from pyro_ltm.scores.estimate import Count, Figure, Tally
from pyro_ltm.scores.importance import effective_sample_size, importance_nats
from pyro_ltm.types import Batch, evaluating, frozen

STARTS = ("prior", "q")


@dataclass(frozen=True, kw_only=True, repr=False)
class AnnealedBound(Figure):
    """An upper bound on nats from annealed importance sampling.

    Attributes:
        start: prior, or q. temperatures, schedule, chains, leapfrogs, seed: how it was measured.
        acceptance: share of transitions taken. effective_sample_size: of the chains, mean over sequences.
    """

    start: str
    temperatures: int
    schedule: str
    chains: int
    leapfrogs: int
    acceptance: float
    effective_sample_size: float
    seed: int


def evaluate_annealed(
    model: LatentThoughtModel,
    batches: Iterable[Batch],
    loop: FastLoop,
    *,
    start: str,
    annealing: Annealing | None = None,
    seed: int = 0,
    progress: Count | None = None,
) -> AnnealedBound:
    """Anneals from the prior, or from q fitted to each sequence, to its posterior (see `anneal`).

    Costs about 2 * temperatures * leapfrogs * chains decoder passes with their gradients for each sequence. The prior
    needs many temperatures; q few, where it is close.

    Args:
        annealing: None: `Annealing()`.

    Raises:
        UserError: a start that is not one of `STARTS`, or a guide that is a point.
    """
    if start not in STARTS:
        raise UserError(f"start = {start!r}: choose from {', '.join(STARTS)}")
    check_annealing(model.prior)
    how = annealing or Annealing()
    tally, acceptance, sizes = Tally(progress), [], []
    with evaluating(model):
        for read in batches:
            batch = model.precompute(read)
            q = start_of(model, batch, loop, start, seed)
            noise, tuning = (
                Noise(batch.ids, device=batch.device, seed=fold(seed, name, start)) for name in ("anneal", "tune")
            )
            with frozen(model), frozen(loop.guide), model.fused_weights():
                found = anneal(LogJoint(model, batch), q, how, noise=noise, tuning=tuning)
            acceptance.append(found.acceptance.mean(0).double().cpu())
            sizes.append(effective_sample_size(found.log_weight.cpu()))
            tally.add(batch, importance_nats(found.log_weight.cpu(), how.chains))
    return tally.figure(
        AnnealedBound,
        "annealed bound",
        start=start,
        acceptance=_mean(acceptance),
        effective_sample_size=_mean(sizes),
        seed=seed,
        **vars(how),
    )


def check_annealing(prior: nn.Module) -> None:
    """Raises UserError where chains cannot follow the density of the `prior`, of which it has estimates alone."""
    if not getattr(prior, "has_exact_density", True):
        raise UserError(
            f"annealing follows a density, of which the prior {type(prior).__name__} has estimates alone: leave it "
            "out, and score by the bound"
        )


def start_of(model: LatentThoughtModel, batch: Batch, loop: FastLoop, start: str, seed: int) -> TorchDistribution:
    """Distribution from which a batch's chains start: the prior, or q fitted to each sequence.

    Raises:
        UserError: q is a point.
    """
    if start == "prior":
        return model.prior().expand(torch.Size([batch.size]))
    q = loop.guide.scored_distribution(loop.fit_to_score(model, batch, seed=fold(seed, "fit")).state)
    if q is None:
        raise UserError(f"{type(loop.guide).__name__} is a point: it has no density to anneal from; use the prior")
    return q


def _mean(values: list[Tensor]) -> float:
    values = team().gather(values)
    return float(torch.cat(values).mean()) if values else math.nan

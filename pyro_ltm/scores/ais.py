"""Of the protocol `bound`, what tightens with work: annealed importance sampling, from the prior and from q."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference import fit_to_score
from pyro_ltm.inference.ais import anneal
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import Noise, fold
from pyro_ltm.optimizers import FastOptimizer
from pyro_ltm.scores.dependence import Places
from pyro_ltm.scores.estimate import Figure
from pyro_ltm.scores.importance import effective_sample_size, importance_nats
from pyro_ltm.types import Batch, evaluating, frozen

STARTS = ("prior", "q")


@dataclass(frozen=True, kw_only=True)
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
    *,
    start: str,
    guide: Guide,
    objective: ELBO,
    optimizer: FastOptimizer | None = None,
    fast_steps: int = 16,
    temperatures: int = 32,
    chains: int = 4,
    leapfrogs: int = 4,
    schedule: str = "sigmoid",
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
    **fitting: Any,
) -> AnnealedBound:
    """Anneals from the prior, or from q fitted to each sequence, to its posterior (see `anneal`).

    Costs about 2 * temperatures * leapfrogs * chains decoder passes with their gradients for each sequence. The prior
    needs many temperatures; q few, where it is close.

    Raises:
        UserError: a start that is not one of `STARTS`, a schedule that is not one of `SCHEDULES`, a count below 1, or
            a guide that is a point.
    """
    if start not in STARTS:
        raise UserError(f"start = {start!r}: choose from {', '.join(STARTS)}")
    with evaluating(model):
        weights, tokens, places, acceptance = [], [], [], []
        for read in batches:
            batch = model.precompute(read)
            q = model.prior().expand(torch.Size([batch.size]))
            if start == "q":
                posterior = fit_to_score(
                    model,
                    batch,
                    guide=guide,
                    objective=objective,
                    optimizer=optimizer,
                    steps=fast_steps,
                    seed=fold(seed, "fit"),
                    **fitting,
                )
                scored = guide.scored_distribution(posterior.state)
                if scored is None:
                    raise UserError(
                        f"{type(guide).__name__} is a point: it has no density to anneal from; use the prior"
                    )
                q = scored
            with frozen(model), frozen(guide), model.fused_weights():
                found = anneal(
                    LogJoint(model, batch),
                    q,
                    noise=Noise(batch.ids, device=batch.device, seed=fold(seed, "anneal", start)),
                    tuning=Noise(batch.ids, device=batch.device, seed=fold(seed, "tune", start)),
                    steps=temperatures,
                    chains=chains,
                    leapfrogs=leapfrogs,
                    schedule=schedule,
                )
            weights.append(found.log_weight.cpu())
            acceptance.append(found.acceptance.mean(0).double().cpu())
            tokens.append(batch.mask.sum(-1).cpu())
            places.append(Places.of(batch))
            if progress:
                nats = importance_nats(torch.cat(weights, 1), chains)
                progress(len(nats), float(nats.sum() / torch.cat(tokens).sum()))
    if not weights:
        raise UserError("nothing to score: no sequences")
    log_weight = torch.cat(weights, 1)
    nats = importance_nats(log_weight, chains)
    if not math.isfinite(float(nats.sum())):
        raise UserError("the annealed bound is not finite: the model's weights have run away")
    bound: AnnealedBound = AnnealedBound.of(
        nats,
        torch.cat(tokens),
        Places.joined(places),
        start=start,
        temperatures=temperatures,
        schedule=schedule,
        chains=chains,
        leapfrogs=leapfrogs,
        acceptance=float(torch.cat(acceptance).mean()),
        effective_sample_size=float(effective_sample_size(log_weight).mean()),
        seed=seed,
    )
    return bound

"""The evidence of texts that the model wrote itself, from both sides: bidirectional Monte Carlo (arXiv:1511.02543)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from pyro_ltm.errors import UserError
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.ais import Annealing, anneal_both_ways
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import Noise, fold
from pyro_ltm.scores.estimate import Count, Difference, Figure, Tally, difference, plain
from pyro_ltm.scores.importance import importance_nats
from pyro_ltm.scores.own_texts import Written
from pyro_ltm.types import evaluating, frozen


@dataclass(frozen=True, kw_only=True)
class Sandwich:
    """Nats of texts between two bounds, and how loose the others are; texts are independent of one another.

    Attributes:
        at_most, at_least: by annealing from q to the posterior and back: the exact nats lie between them, in
            expectation. width: from one to the other.
        bound, importance_weighted: as `Bound` has them, of the same texts.
        loose_at_least, loose_at_most: between these lies how far the bound is off: KL(q || p(z | x)) a token.
        temperatures, schedule, chains, leapfrogs, particles, fast_steps, seed: how it was measured. guide: what was
            fitted. acceptance: share of transitions taken, forward and backward.
    """

    at_most: Figure
    at_least: Figure
    width: Difference
    bound: Figure
    importance_weighted: Figure
    loose_at_least: Difference
    loose_at_most: Difference
    texts: int
    temperatures: int
    schedule: str
    chains: int
    leapfrogs: int
    particles: int
    acceptance: list[float]
    guide: str
    fast_steps: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary for JSON; figures that are not known are None."""
        return plain(self)


def evaluate_sandwich(
    model: LatentThoughtModel,
    written: Iterable[Written],
    loop: FastLoop,
    *,
    annealing: Annealing | None = None,
    particles: int = 16,
    seed: int = 0,
    progress: Count | None = None,
) -> Sandwich:
    """Anneals from q, fitted to each text, to its posterior, and back from the thoughts that it was written from.

    Costs about 3 * temperatures * leapfrogs * chains decoder passes with their gradients for each text.

    Args:
        written: texts of the model itself (`write_texts`): of others the upper side does not hold.
        annealing: None: `Annealing()`.

    Raises:
        UserError: as `evaluate_annealed`; or the prior's density is an estimate, by which the lower side does not hold.
    """
    if not getattr(model.prior, "has_exact_density", True):
        raise UserError(f"{type(model.prior).__name__} only estimates its density: no annealing back bounds the nats")
    how = annealing or Annealing()
    tallies = {name: Tally() for name in ("at_most", "at_least", "bound", "importance_weighted")}
    tallies["at_most"].progress = progress
    taken: list[list[torch.Tensor]] = [[], []]
    with evaluating(model):
        for read, thoughts in written:
            batch = model.precompute(read)
            posterior = loop.fit_to_score(model, batch, seed=fold(seed, "fit"))
            terms = posterior.with_noise(fold(seed, "score")).score(model, batch, particles=particles)
            q = loop.guide.scored_distribution(posterior.state)
            assert q is not None  # a point has no score, which says so
            noise, tuning = (Noise(batch.ids, device=batch.device, seed=fold(seed, name)) for name in ("way", "tune"))
            with frozen(model), frozen(loop.guide), model.fused_weights():
                both = anneal_both_ways(LogJoint(model, batch), q, thoughts, how, noise=noise, tuning=tuning)
            forward, back = (found.log_weight.cpu() for found in both)
            for one, share in zip(taken, both, strict=True):
                one.append(share.acceptance.mean(0).double().cpu())
            tallies["at_least"].add(batch, -importance_nats(-back, how.chains))
            tallies["bound"].add(batch, terms.distortion.double() + terms.rate.double())
            tallies["importance_weighted"].add(batch, importance_nats(terms.log_weight.double(), particles))
            tallies["at_most"].add(batch, importance_nats(forward, how.chains))
    figures: dict[str, Any] = {name: tally.figure(Figure, name.replace("_", " ")) for name, tally in tallies.items()}
    return Sandwich(
        **figures,
        **_distances(**figures),
        texts=len(figures["bound"].sequence_nats),
        particles=particles,
        acceptance=[float(torch.cat(one).mean()) for one in taken],
        guide=type(loop.guide).__name__,
        fast_steps=loop.steps,
        seed=seed,
        **vars(how),
    )


def _distances(at_most: Figure, at_least: Figure, bound: Figure, **_: Figure) -> dict[str, Any]:
    """How far the sides are apart, and the bound from either; texts are independent."""

    def above(one: Figure, other: Figure) -> Difference:
        return difference(one.sequence_nats, other.sequence_nats, one.sequence_tokens, None)

    distances = {"width": above(at_most, at_least), "loose_at_least": above(bound, at_most)}
    return distances | {"loose_at_most": above(bound, at_least)}

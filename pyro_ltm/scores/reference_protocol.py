"""The protocol `reference`: the reference implementation's own figure. It is NOT a bound, and is here to show that.

github.com/mingluzhao/Latent-Thought-LM draws one noise for each sequence, fits q on that draw in every fast step, and
scores q on the same draw. The posterior learns the noise: what it reports can lie below the entropy of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import fit_posterior
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import fold
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.optimizers import Adam
from pyro_ltm.scores.dependence import Places
from pyro_ltm.scores.estimate import Figure, perplexity
from pyro_ltm.types import Batch, evaluating

LABEL = "NOT a bound: scored on the noise that the posterior was fitted to"


@dataclass(frozen=True, kw_only=True)
class Reference(Figure):
    """The reference implementation's figure.

    Attributes:
        is_bound: False. label: what must stand beside the figure.
        perplexity: exp(nats_per_token). published_perplexity: as the reference prints it, the mean over sequences of
            exp(nats / tokens).
        fast_steps, seed, sequences: how it was measured.
    """

    label: str = LABEL
    is_bound: bool = False
    perplexity: float
    published_perplexity: float
    fast_steps: int
    seed: int
    sequences: int

    guide: ClassVar[dict[str, float]] = {"init_loc": 0.01, "init_log_variance": -5.0, "init_noise": 0.1}
    optimizer: ClassVar[Adam] = Adam(lr=0.34, lr_final=0.1, beta1=0.9, eps=1e-8, weight_decay=0.01)


@torch.no_grad()
def evaluate_reference(
    model: LatentThoughtModel,
    batches: Iterable[Batch],
    *,
    fast_steps: int = 16,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Reference:
    """Fits and scores as the reference implementation does, whatever guide and fast loop the run has.

    Mean-field, log variance from -5, AdamW from 0.34 along a cosine towards 0.034, one noise for fit and score. (The
    reference passes 0.3 to each of its fits, too, but its schedule reads the 0.34 that its optimizer was made with.)
    Two things differ: means and log variances start, and noise is drawn, from streams of their own for each sequence;
    and what is padding is not scored, of which the reference has none.
    """
    with evaluating(model):
        guide = MeanField(model.config.thoughts, model.config.dim, seed=fold(seed, "start"), **Reference.guide)
        nats, tokens, places = [], [], []
        for read in batches:
            batch = model.precompute(read)
            posterior = fit_posterior(
                model,
                batch,
                guide=guide,
                objective=AnalyticELBO(),
                optimizer=Reference.optimizer,
                steps=fast_steps,
                noise="fixed",
                seed=fold(seed, "fit"),
            )
            terms = posterior.score(model, batch)  # on the noise of the fit: the fault that this protocol shows
            nats.append((terms.distortion + terms.rate).double().cpu())
            tokens.append(batch.mask.sum(-1).cpu())
            places.append(Places.of(batch))
            if progress:
                progress(sum(map(len, nats)), float(torch.cat(nats).sum() / torch.cat(tokens).sum()))
    if not nats:
        raise UserError("nothing to score: no sequences")
    whole, counts = torch.cat(nats), torch.cat(tokens).double()
    level = float(whole.sum() / counts.sum())
    if not math.isfinite(level):
        raise UserError("the reference's figure is not finite: the model's weights, or its posterior's, have run away")
    found: Reference = Reference.of(
        whole,
        counts,
        Places.joined(places),
        perplexity=perplexity(level),
        published_perplexity=float((whole / counts).exp().mean()),
        fast_steps=fast_steps,
        seed=seed,
        sequences=len(whole),
    )
    return found

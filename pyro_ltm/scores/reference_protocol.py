"""The protocol `reference`: the reference implementation's own figure. It is NOT a bound, and is here to show that.

github.com/mingluzhao/Latent-Thought-LM draws one noise for each sequence, fits q on that draw in every fast step, and
scores q on the same draw. The posterior learns the noise: what it reports can lie below the entropy of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import fold
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.optimizers import Adam
from pyro_ltm.scores.estimate import Count, Figure, Tally, perplexity
from pyro_ltm.types import Batch, evaluating

LABEL = "NOT a bound: scored on the noise that the posterior was fitted to"


@dataclass(frozen=True, kw_only=True, repr=False)
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
    progress: Count | None = None,
) -> Reference:
    """Fits and scores as the reference implementation does, whatever guide and fast loop the run has.

    Mean-field, log variance from -5, AdamW from 0.34 along a cosine towards 0.034, one noise for fit and score. (The
    reference passes 0.3 to each of its fits, too, but its schedule reads the 0.34 that its optimizer was made with.)
    Two things differ: means and log variances start, and noise is drawn, from streams of their own for each sequence;
    and what is padding is not scored, of which the reference has none.
    """
    guide = MeanField(model.config.thoughts, model.config.thought_width, seed=fold(seed, "start"), **Reference.guide)
    loop = FastLoop(guide, AnalyticELBO(), Reference.optimizer, steps=fast_steps, noise="fixed")
    tally = Tally(progress)
    with evaluating(model):
        for read in batches:
            batch = model.precompute(read)
            # Scored on the noise of the fit: the fault that this protocol shows.
            terms = loop.fit(model, batch, seed=fold(seed, "fit")).score(model, batch)
            tally.add(batch, terms.distortion + terms.rate)
    nats, tokens, _ = tally.whole()
    return tally.figure(
        Reference,
        "reference's figure",
        perplexity=perplexity(float(nats.sum() / tokens.sum())),
        published_perplexity=perplexity(float((nats / tokens).logsumexp(0)) - math.log(len(nats))),
        fast_steps=fast_steps,
        seed=seed,
        sequences=len(nats),
    )

"""What thoughts carry, and where: rates, active units, mutual information, distortion with whose thoughts, by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.evaluation.figure import plain, ratio_stderr
from pyro_ltm.inference import Parts, Posterior
from pyro_ltm.model import TokenSequence
from pyro_ltm.noise import Noise, draw, fold
from pyro_ltm.types import Batch

THRESHOLDS = (0.01, 0.1)
"""Variances of the posterior mean above which a latent dimension is called active: 0.01 is that of arXiv:1509.00519,
0.1 leaves out what hardly moves."""


@dataclass(frozen=True)
class Mean:
    """A mean over sequences and its standard error."""

    mean: float
    stderr: float

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """Of one value a sequence, [S]."""
        values = values.double()
        count = len(values)
        return cls(float(values.mean()), float(values.std() / count**0.5) if count > 1 else math.nan)


@dataclass(frozen=True)
class Layer:
    """Reconstruction with the thoughts of the first `layers` layers known, and those above drawn from the prior.

    Attributes:
        nats_per_token: distortion. accuracy: share of tokens that are the likeliest, given the true ones before.
    """

    layers: int
    nats_per_token: float
    nats_per_token_stderr: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Figures of the thoughts of a corpus; nats unless the name says otherwise.

    Attributes:
        rate: KL(q || prior) of a sequence. rate_by_thought, rate_by_layer: its parts where q has no dependence between
            thoughts; None otherwise.
        active: share of dimensions whose posterior mean varies over sequences by more than each of `THRESHOLDS`, by
            layer.
        mutual_information: of a sequence and its thoughts under q, E log q(z|x) - log mean_j q(z|x_j) over the
            sequences at hand (Hoffman and Johnson 2016); it cannot exceed `ceiling`, the log of their number, so near
            it the figure says "at least". marginal_kl: the rest of the rate, KL(mean_j q(z|x_j) || prior).
        distortion: nats a token with thoughts from `q`, the `prior`, all `zero`, and `shuffled`.
        by_layer: progressive reconstruction from the first layer up, the probe of arXiv:2502.01567; by_layer_down: from
            the last layer down.
        sequences, tokens, fast_steps, seed, guide: what was measured, and how.
    """

    rate: Mean
    rate_by_thought: list[Mean] | None
    rate_by_layer: list[Mean] | None
    active: dict[str, list[float]]
    mutual_information: Mean
    ceiling: float
    marginal_kl: float
    distortion: dict[str, Mean]
    by_layer: list[Layer]
    by_layer_down: list[Layer]
    sequences: int
    tokens: int
    fast_steps: int
    seed: int
    guide: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return plain(self)


@dataclass
class Thoughts:
    """The posteriors of a corpus, fitted once.

    Shapes:
        means: [S, N, D].
    """

    parts: Parts
    batches: list[Batch]
    posteriors: list[Posterior]
    seed: int

    @classmethod
    def fit(
        cls,
        parts: Parts,
        batches: Iterable[Batch],
        *,
        fast_steps: int | None = None,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Thoughts:
        """Fits q to every sequence; a guide without a density is judged by a mean-field fit (`Parts.judge`).

        Raises:
            UserError: the model has no thoughts, or there are no sequences.
        """
        if not parts.model.config.thoughts:
            raise UserError("this model has no thoughts (it is an autoregressive twin): nothing to look at")
        parts = parts.judge()
        kept, posteriors, done = [], [], 0
        for read in batches:
            batch = parts.model.precompute(read)
            kept.append(batch)
            posteriors.append(parts.fit(batch, steps=fast_steps, seed=fold(seed, "fit")))
            done += batch.size
            if progress:
                progress(done)
        if not kept:
            raise UserError("nothing to look at: no sequences")
        return cls(parts, kept, posteriors, seed)

    @property
    def means(self) -> Tensor:
        """[S, N, D] posterior means."""
        return torch.cat([posterior.with_noise(fold(self.seed, "mean")).mean() for posterior in self.posteriors]).cpu()

    def draws(self, name: str) -> list[Tensor]:
        """A draw [B, N, D] from each posterior, on noise that the fit never saw."""
        return [posterior.with_noise(fold(self.seed, name)).sample()[0] for posterior in self.posteriors]


@torch.no_grad()
def diagnose(thoughts: Thoughts, *, fast_steps: int | None = None) -> Diagnostics:
    """All figures of `Diagnostics`, from posteriors that are fitted already."""
    parts, model = thoughts.parts, thoughts.parts.model
    model.eval()
    counts = torch.cat([batch.mask.sum(-1).cpu() for batch in thoughts.batches])
    means = thoughts.means.double()
    variance = means.var(0, correction=0).chunk(model.config.layers)
    rate = torch.cat([_rate(posterior, fold(thoughts.seed, "rate"), parts) for posterior in thoughts.posteriors])
    by_thought = _rate_by_thought(thoughts)
    layers = None if by_thought is None else by_thought.unflatten(1, (model.config.layers, -1)).sum(-1)
    information = mutual_information(thoughts)
    return Diagnostics(
        rate=Mean.of(rate),
        rate_by_thought=None if by_thought is None else [Mean.of(one) for one in by_thought.T],
        rate_by_layer=None if layers is None else [Mean.of(one) for one in layers.T],
        active={str(level): [float((layer > level).double().mean()) for layer in variance] for level in THRESHOLDS},
        mutual_information=Mean.of(information),
        ceiling=math.log(len(information)),
        marginal_kl=float(rate.mean() - information.mean()),
        distortion=_distortions(thoughts, counts),
        by_layer=_progressive(thoughts, down=False),
        by_layer_down=_progressive(thoughts, down=True),
        sequences=len(counts),
        tokens=int(counts.sum()),
        fast_steps=parts.steps(fast_steps),
        seed=thoughts.seed,
        guide=type(parts.guide).__name__,
    )


@torch.no_grad()
def mutual_information(thoughts: Thoughts) -> Tensor:
    """[S] log q(z|x) - log mean_j q(z|x_j) at one draw of each sequence, over all sequences at hand."""
    draws = torch.cat(thoughts.draws("information"))
    each = []
    for z in draws:
        levels = [p.guide.judged(p.state) for p in thoughts.posteriors]
        each.append(torch.cat([q.log_prob(z.expand(*q.batch_shape, *z.shape)) for q in levels if q is not None]))
    log_q = torch.stack(each).double().cpu()  # [draw of sequence s, under the posterior of sequence j]
    own = log_q.diagonal()
    return own - (torch.logsumexp(log_q, 1) - math.log(len(log_q)))


def _rate(posterior: Posterior, seed: int, parts: Parts, particles: int = 16) -> Tensor:
    """[B] KL(q || prior), exact where it can be."""
    q = posterior.guide.judged(posterior.state)
    assert q is not None  # `Parts.judge` has seen to it
    prior = parts.model.prior().expand(q.batch_shape)
    if posterior.guide.has_analytic_kl:
        return torch.distributions.kl_divergence(q, prior).double().cpu()
    z = posterior.with_noise(seed).sample(particles)
    return (q.log_prob(z) - prior.log_prob(z)).mean(0).double().cpu()


def _rate_by_thought(thoughts: Thoughts) -> Tensor | None:
    """[S, N]; None where the family has no such parts."""
    if not thoughts.parts.guide.has_kl_by_thought:
        return None
    return torch.cat([p.guide.kl_by_thought(p.state).double().cpu() for p in thoughts.posteriors])


def _distortions(thoughts: Thoughts, counts: Tensor) -> dict[str, Mean]:
    """Nats a token with whose thoughts."""
    own = thoughts.draws("distortion")
    whole = torch.cat(own)
    shuffled = whole.roll(1, 0).split([len(z) for z in own])
    prior = [
        draw(thoughts.parts.model.prior().expand(torch.Size([b.size])), Noise(b.ids, seed=fold(thoughts.seed, "prior")))
        for b in thoughts.batches
    ]
    kinds = {"q": own, "prior": prior, "zero": [torch.zeros_like(z) for z in own]}
    if len(whole) > 1:
        kinds["shuffled"] = list(shuffled)
    found = {}
    for name, thought in kinds.items():
        nats = torch.cat([_nats(thoughts, batch, z)[0] for batch, z in zip(thoughts.batches, thought, strict=True)])
        found[name] = Mean(float(nats.sum() / counts.sum()), ratio_stderr(nats, counts.double()))
    return found


def _progressive(thoughts: Thoughts, *, down: bool) -> list[Layer]:
    """Reconstruction with 0, 1, ... all layers' thoughts at their posterior means, the others' from the prior."""
    config = thoughts.parts.model.config
    each = config.thoughts // config.layers
    counts = torch.cat([batch.mask.sum(-1).cpu() for batch in thoughts.batches]).double()
    found = []
    for layers in range(config.layers + 1):
        nats, hits = [], 0.0
        for batch, posterior in zip(thoughts.batches, thoughts.posteriors, strict=True):
            noise = Noise(batch.ids, seed=fold(thoughts.seed, "others"))
            z = draw(thoughts.parts.model.prior().expand(torch.Size([batch.size])), noise)
            known = slice(config.thoughts - layers * each, None) if down else slice(0, layers * each)
            z[:, known] = posterior.with_noise(fold(thoughts.seed, "mean")).mean()[:, known]
            one, right = _nats(thoughts, batch, z)
            nats.append(one)
            hits += float(right.sum())
        whole = torch.cat(nats)
        level = float(whole.sum() / counts.sum())
        found.append(Layer(layers, level, ratio_stderr(whole, counts), hits / float(counts.sum())))
    return found


def _nats(thoughts: Thoughts, batch: Batch, z: Tensor) -> tuple[Tensor, Tensor]:
    """[B] -log p(x | z), and [B] tokens that are the likeliest."""
    decoder, targets = thoughts.parts.model.decoder, batch.targets
    assert targets is not None  # a batch without targets has nothing to score
    logits = decoder.logits(decoder(TokenSequence(decoder, z, batch)._context(targets), z))
    log_probs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    right = (logits.argmax(-1) == targets) & batch.mask
    return -(log_probs * batch.mask).sum(-1).double().cpu(), right.sum(-1).cpu()

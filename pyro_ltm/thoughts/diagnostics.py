"""Figures of thoughts: rates, active units, mutual information, distortion with whose thoughts, by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from pyro_ltm.divergence import analytic_kl
from pyro_ltm.errors import UserError
from pyro_ltm.inference import FastLoop, Posterior
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import Noise, draw, fold
from pyro_ltm.scores.dependence import Blocks, Places
from pyro_ltm.scores.estimate import Difference, difference, mean_error, plain, ratio_error
from pyro_ltm.scores.exchange import ExchangeRate, exchange_rate, why_no_exchange_rate
from pyro_ltm.types import Batch

VARIANCES = (0.01, 0.1)
"""A latent dimension is called active where its posterior mean varies over sequences by more than this: 0.01 is the
threshold of arXiv:1509.00519, 0.1 leaves out what hardly moves."""

RATE = 0.01
"""The other usual count: dimensions whose KL is more than this, in nats."""

CHUNK = 16
"""Draws whose density under all posteriors is taken at a time."""


@dataclass(frozen=True)
class Mean:
    """A mean over sequences, its standard error, and over what that was taken."""

    mean: float
    stderr: float
    blocks: Blocks

    @classmethod
    def of(cls, values: Tensor, places: Places) -> Mean:
        """Of one value a sequence, [S]."""
        error = mean_error(values, places)
        return cls(float(values.double().mean()), error.stderr, error.blocks)

    @classmethod
    def of_tokens(cls, nats: Tensor, tokens: Tensor, places: Places) -> Mean:
        """A token, of the nats and the tokens of each sequence, [S]."""
        error = ratio_error(nats, tokens, places)
        return cls(float(nats.sum() / tokens.sum()), error.stderr, error.blocks)


@dataclass(frozen=True)
class Layer:
    """Reconstruction with the thoughts of the first `layers` layers known, and those above drawn from the prior.

    Attributes:
        nats_per_token: distortion. accuracy: share of tokens that are the likeliest, given the true ones before.
        nats_per_token_stderr, accuracy_stderr: their standard errors.
    """

    layers: int
    nats_per_token: float
    nats_per_token_stderr: float
    accuracy: float
    accuracy_stderr: float


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """Figures of the thoughts of a corpus; nats unless the name says otherwise.

    Attributes:
        rate: KL(q || prior) of a sequence. rate_by_thought, rate_by_layer: its parts where q has no dependence between
            thoughts; None otherwise.
        active: share of dimensions in use, by layer, under each of the counts `VARIANCES` and `RATE`; None for the last
            where the KL has no part for each dimension.
        mutual_information: of a sequence and its thoughts under q, E log q(z|x) - log mean_j q(z|x_j) over the
            sequences at hand (Hoffman and Johnson 2016); it cannot exceed `ceiling`, the log of their number, so near
            it the figure says "at least". marginal_kl: the rest of the rate, KL(mean_j q(z|x_j) || prior).
        distortion: nats a token with thoughts from `q`, the `prior`, all `zero`, and `shuffled` (another sequence's).
        exchange_rate: nats of distortion saved a nat of rate, against thoughts all zero (see `scores.exchange`);
            no_exchange_rate: why there is none, else empty.
        costs: how many nats a token more than `q` each of the others takes, with the paired standard error.
        by_layer: progressive reconstruction from the first layer up, the probe of arXiv:2502.01567; by_layer_down: from
            the last layer down.
        sequences, tokens, particles, fast_steps, seed, guide: what was measured, and how. Progressive reconstruction
            has one draw of the thoughts that are not known.
    """

    rate: Mean
    rate_by_thought: list[Mean] | None
    rate_by_layer: list[Mean] | None
    active: dict[str, list[float] | None]
    mutual_information: Mean
    ceiling: float
    marginal_kl: Mean
    distortion: dict[str, Mean]
    costs: dict[str, Difference]
    exchange_rate: ExchangeRate | None
    no_exchange_rate: str
    by_layer: list[Layer]
    by_layer_down: list[Layer]
    sequences: int
    tokens: int
    particles: int
    fast_steps: int
    seed: int
    guide: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return plain(self)


@dataclass
class Thoughts:
    """The posteriors of a corpus, fitted once.

    Attributes:
        loop: by which they were fitted. batches: the sequences, with their contexts. posteriors: of each batch.
        seed: of the fits, and of all that is drawn from them later.
    """

    model: LatentThoughtModel
    loop: FastLoop
    batches: list[Batch]
    posteriors: list[Posterior]
    seed: int

    @classmethod
    def fit(
        cls,
        model: LatentThoughtModel,
        batches: Iterable[Batch],
        loop: FastLoop,
        *,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Thoughts:
        """Fits q to every sequence; in place of a guide without a density, a mean-field one (`FastLoop.with_density`).

        Raises:
            UserError: the model has no thoughts, or there are no sequences.
        """
        if not model.config.thoughts:
            raise UserError(f"this model has no thoughts ({model.config.no_thoughts}): nothing to look at")
        loop = loop.with_density()
        fitted, posteriors = [], []
        for batch in map(model.precompute, batches):
            fitted.append(batch)
            posteriors.append(loop.fit_to_score(model, batch, seed=fold(seed, "fit")))
            if progress:
                progress(sum(one.size for one in fitted))
        if not fitted:
            raise UserError("nothing to look at: no sequences")
        return cls(model, loop, fitted, posteriors, seed)

    @cached_property
    def means(self) -> Tensor:
        """[S, N, D] posterior means, on the CPU."""
        return torch.cat([posterior.with_noise(fold(self.seed, "mean")).mean() for posterior in self.posteriors]).cpu()

    @cached_property
    def counts(self) -> Tensor:
        """[S] tokens of each sequence, float64."""
        return torch.cat([batch.mask.sum(-1) for batch in self.batches]).double().cpu()

    @cached_property
    def places(self) -> Places:
        """Where the sequences stand in their text."""
        return Places.joined([Places.of(batch) for batch in self.batches])

    def draws(self, name: str, particle: int = 0) -> list[Tensor]:
        """A draw [B, N, D] from each batch's posteriors, on noise that the fit never saw."""
        return [posterior.with_noise(fold(self.seed, name, particle)).sample()[0] for posterior in self.posteriors]

    def from_prior(self, particle: int = 0) -> list[Tensor]:
        """A draw [B, N, D] from the prior for each batch."""
        prior, seed = self.model.prior(), fold(self.seed, "prior", particle)

        def drawn(batch: Batch) -> Tensor:
            noise = Noise(batch.ids, device=batch.device, seed=seed)
            return draw(prior.expand(torch.Size([batch.size])), noise)

        return [drawn(batch) for batch in self.batches]


@torch.no_grad()
def diagnose(thoughts: Thoughts, *, particles: int = 4) -> Diagnostics:
    """All figures of `Diagnostics`, from posteriors that are fitted already.

    Args:
        particles: draws from each posterior, and from the prior, over which a figure is averaged.
    """
    layers = thoughts.model.config.layers
    rate = torch.cat([_rate(posterior, thoughts, particles) for posterior in thoughts.posteriors])
    by_thought = _rate_by_thought(thoughts)
    by_layer = None if by_thought is None else by_thought.unflatten(1, (layers, -1)).sum(-1)
    information = mutual_information(thoughts, particles)
    nats = _distortions(thoughts, particles)
    tokens, places = thoughts.counts, thoughts.places
    return Diagnostics(
        rate=Mean.of(rate, places),
        rate_by_thought=None if by_thought is None else [Mean.of(one, places) for one in by_thought.T],
        rate_by_layer=None if by_layer is None else [Mean.of(one, places) for one in by_layer.T],
        active=_active(thoughts),
        mutual_information=Mean.of(information, places),
        ceiling=math.log(len(information)),
        marginal_kl=Mean.of(rate - information, places),
        distortion={name: Mean.of_tokens(one, tokens, places) for name, one in nats.items()},
        costs={name: difference(one, nats["q"], tokens, places) for name, one in nats.items() if name != "q"},
        exchange_rate=exchange_rate(nats["zero"], nats["q"], rate, places),
        no_exchange_rate=why_no_exchange_rate(rate),
        by_layer=_progressive(thoughts, down=False),
        by_layer_down=_progressive(thoughts, down=True),
        sequences=len(tokens),
        tokens=int(tokens.sum()),
        particles=particles,
        fast_steps=thoughts.loop.steps,
        seed=thoughts.seed,
        guide=type(thoughts.loop.guide).__name__,
    )


@torch.no_grad()
def mutual_information(thoughts: Thoughts, particles: int = 1) -> Tensor:
    """[S] log q(z|x) - log mean_j q(z|x_j) over all sequences at hand, the mean over draws of each sequence."""
    densities = [_density(posterior) for posterior in thoughts.posteriors]
    found = []
    for particle in range(particles):
        log_q = torch.cat([_under_all(z, densities) for z in thoughts.draws("information", particle)])
        found.append(log_q.diagonal() - torch.logsumexp(log_q, 1) + math.log(len(log_q)))
    return torch.stack(found).mean(0)


def _under_all(z: Tensor, densities: list[Distribution]) -> Tensor:
    """[B, S] log q(z_i | x_j) of the draws z [B, N, D] under the posteriors of all sequences."""
    rows = [
        torch.cat([q.log_prob(part[:, None].expand(-1, *q.batch_shape, -1, -1)) for q in densities], 1)
        for part in z.split(CHUNK)
    ]
    return torch.cat(rows).double().cpu()


def _density(posterior: Posterior) -> Distribution:
    q = posterior.guide.scored_distribution(posterior.state)
    assert q is not None  # `Thoughts.fit` has seen to it
    return q


def _rate(posterior: Posterior, thoughts: Thoughts, particles: int) -> Tensor:
    """[B] KL(q || prior), exact where it can be."""
    q: Any = _density(posterior)
    prior = thoughts.model.prior().expand(q.batch_shape)
    kl = analytic_kl(q, prior) if posterior.guide.has_analytic_kl else None
    if kl is not None:
        return kl.double().cpu()
    z = posterior.with_noise(fold(thoughts.seed, "rate")).sample(particles)
    return (q.log_prob(z) - prior.log_prob(z)).mean(0).double().cpu()


def _rate_by_thought(thoughts: Thoughts) -> Tensor | None:
    """[S, N]; None where family or prior have no such parts."""
    if not thoughts.loop.guide.has_kl_by_thought:
        return None
    prior = thoughts.model.prior()
    each = [posterior.guide.kl_by_thought(posterior.state, prior) for posterior in thoughts.posteriors]
    known = [one.double().cpu() for one in each if one is not None]
    return torch.cat(known) if len(known) == len(each) else None


def _active(thoughts: Thoughts) -> dict[str, list[float] | None]:
    """Share of dimensions in use, by layer, under each count."""

    def by_layer(used: Tensor) -> list[float]:
        return [float(layer.double().mean()) for layer in used.chunk(thoughts.model.config.layers)]

    variance = thoughts.means.double().var(0, correction=0)
    found: dict[str, list[float] | None] = {f"variance > {level}": by_layer(variance > level) for level in VARIANCES}
    rate = _rate_by_dimension(thoughts)
    return found | {f"KL > {RATE} nats": None if rate is None else by_layer(rate > RATE)}


def _rate_by_dimension(thoughts: Thoughts) -> Tensor | None:
    """[N, D] mean KL of each latent dimension; None where q or the prior ties dimensions together."""
    prior: Any = thoughts.model.prior()
    total = torch.zeros(prior.event_shape, dtype=torch.float64)
    for posterior in thoughts.posteriors:
        q: Any = _density(posterior)
        if not all(isinstance(p, Independent) and isinstance(p.base_dist, Normal) for p in (q, prior)):
            return None
        total += kl_divergence(q.base_dist, prior.base_dist).sum(0).double().cpu()
    return total / len(thoughts.counts)


def _distortions(thoughts: Thoughts, particles: int) -> dict[str, Tensor]:
    """Nats [S] of each sequence with whose thoughts, the mean over particles."""
    found: dict[str, Tensor] = {}
    for particle in range(particles):
        own = thoughts.draws("distortion", particle)
        kinds: dict[str, list[Tensor] | None] = {"q": own, "prior": thoughts.from_prior(particle)}
        if particle == 0:
            kinds["zero"] = None  # read: of zeros a transport prior's map makes others
        if len(thoughts.counts) > 1:
            # Half a corpus away: a neighbour may be the next piece of the same document.
            other = torch.cat(own).roll(len(thoughts.counts) // 2, 0)
            kinds["shuffled"] = list(other.split([len(z) for z in own]))
        for name, z in kinds.items():
            share = 1 if name == "zero" else particles
            found[name] = found.get(name, 0) + _read(thoughts, z)[0] / share
    return found


def _progressive(thoughts: Thoughts, *, down: bool) -> list[Layer]:
    """Reconstruction with 0, 1, ... all layers' thoughts at their posterior means, the others' from the prior."""
    config, counts = thoughts.model.config, thoughts.counts
    each = config.thoughts // config.layers
    means = thoughts.means.split([batch.size for batch in thoughts.batches])
    found = []
    for layers in range(config.layers + 1):
        known = slice(config.thoughts - layers * each, None) if down else slice(0, layers * each)
        mixed = thoughts.from_prior()
        for z, mean in zip(mixed, means, strict=True):
            z[:, known] = mean[:, known].to(z)
        nats, right = (Mean.of_tokens(one, counts, thoughts.places) for one in _read(thoughts, mixed))
        found.append(Layer(layers, nats.mean, nats.stderr, right.mean, right.stderr))
    return found


def _read(thoughts: Thoughts, z: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """-log p(x | z) and the tokens that are the likeliest given those before, both [S], with thoughts `z` by batch.

    None: none are read.
    """
    decoder = thoughts.model.decoder
    nats, right = [], []
    for number, batch in enumerate(thoughts.batches):
        each = None if z is None else z[number]
        targets = batch.targets
        assert targets is not None  # a batch without targets has nothing to score
        assert batch.context is not None
        logits = decoder.logits(decoder(batch.context, each))
        losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)
        nats.append((losses * batch.mask).sum(-1))
        right.append(((logits.argmax(-1) == targets) & batch.mask).sum(-1))
    return torch.cat(nats).double().cpu(), torch.cat(right).double().cpu()

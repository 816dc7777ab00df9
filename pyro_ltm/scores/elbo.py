"""The bound: what a latent-thought model's likelihood is known to be at least, measured on noise the fit never saw.

Protocol: q is fitted to the sequence that is scored; fresh noise; the whole KL is charged; nats are summed over the
corpus and divided by its tokens. So the figure is an upper bound on the model's nats a token, whatever guide and
objective fitted q.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.distributed import team
from pyro_ltm.errors import RanAway
from pyro_ltm.inference import FastLoop, Posterior
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import Noise, draw, fold
from pyro_ltm.scores.dependence import Blocks, Places
from pyro_ltm.scores.estimate import (
    Count,
    Tally,
    described,
    mean_error,
    perplexity,
    plain,
    ratio_error,
    with_error,
)
from pyro_ltm.scores.exchange import ExchangeRate, exchange_rate, nats_without_thoughts, why_no_exchange_rate
from pyro_ltm.scores.importance import CurvePoint, doublings, effective_sample_size, importance_nats
from pyro_ltm.scores.pareto import ParetoK, pareto_k, why_no_pareto_k
from pyro_ltm.types import Batch, evaluating

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active when its posterior mean varies over sequences by more than this (arXiv:1509.00519)."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """An upper bound on the nats that a corpus costs, and what it is made of. Nats unless the name says otherwise.

    Attributes:
        nats_per_token: total nats / total tokens, distortion and rate together.
        nats_per_token_stderr: its standard error, which honours that sequences of one text depend on one another (see
            `dependence`), as all errors here do. blocks: over what it was taken.
        perplexity: exp(nats_per_token).
        bits_per_byte: total bits / UTF-8 bytes of the text; NaN when the bytes are not known. bits_per_byte_stderr: its
            standard error, the bytes held fixed.
        distortion_nats_per_token: E_q[-log p(x | z)] a token.
        kl_nats_per_sequence: KL(q || prior), the rate. kl_nats_per_sequence_stderr: its standard error.
        exchange_rate: nats of distortion saved a nat of rate, against none of them read (see `exchange`);
            no_exchange_rate: why there is none, else empty.
        iwae_nats_per_token: the importance-weighted bound with the same K draws (arXiv:1509.00519), never above the
            bound in expectation; equal to it for K = 1 up to the KL's estimate. iwae_nats_per_token_stderr: its error.
        iwae_curve: the same with 1, 2, 4, ... K draws.
        effective_sample_size: how many of the K draws count, mean over sequences; 1 says that the posterior is far from
            the true one and more draws would still lower the bound. effective_sample_size_stderr: its error.
        pareto_k: the tail of the importance weights; None where they have none to speak of, and no_pareto_k says why.
        active_fraction_by_layer: share of each layer's latent dimensions that are active.
        distortion_from_prior, distortion_zeroed, distortion_shuffled: distortion a token with thoughts from the prior,
            none read (as where all that layers read is zero), and of the sequence before (the last one's for the first;
            NaN for a corpus of one). Near the
            distortion: the decoder ignores its thoughts.
        guide: class of the posterior family that was fitted.
        tokens, sequences, particles, fast_steps, seed: what was measured, and how.
        sequence_nats, sequence_iwae_nats, sequence_rate, sequence_tokens: float64 [S], of each sequence, for paired
            differences; places: where they stand in their text. Not in `to_dict`.
    """

    nats_per_token: float
    nats_per_token_stderr: float
    blocks: Blocks
    perplexity: float
    bits_per_byte: float
    bits_per_byte_stderr: float
    distortion_nats_per_token: float
    kl_nats_per_sequence: float
    kl_nats_per_sequence_stderr: float
    exchange_rate: ExchangeRate | None
    no_exchange_rate: str
    iwae_nats_per_token: float
    iwae_nats_per_token_stderr: float
    iwae_curve: list[CurvePoint]
    effective_sample_size: float
    effective_sample_size_stderr: float
    pareto_k: ParetoK | None
    no_pareto_k: str
    distortion_from_prior: float
    distortion_zeroed: float
    distortion_shuffled: float
    active_fraction_by_layer: list[float]
    guide: str
    tokens: int
    sequences: int
    particles: int
    fast_steps: int
    seed: int
    sequence_nats: Tensor = field(repr=False, compare=False)
    sequence_iwae_nats: Tensor = field(repr=False, compare=False)
    sequence_rate: Tensor = field(repr=False, compare=False)
    sequence_tokens: Tensor = field(repr=False, compare=False)
    places: Places = field(repr=False, compare=False)

    def __repr__(self) -> str:
        iwae = with_error(self.iwae_nats_per_token, self.iwae_nats_per_token_stderr)
        rate = with_error(self.kl_nats_per_sequence, self.kl_nats_per_sequence_stderr)
        size = with_error(self.bits_per_byte, self.bits_per_byte_stderr)
        counted = with_error(self.effective_sample_size, self.effective_sample_size_stderr)
        others = (self.distortion_from_prior, self.distortion_zeroed, self.distortion_shuffled)
        lines = [
            f"perplexity {self.perplexity:.4g}, bits a byte {size}",
            f"distortion {self.distortion_nats_per_token:.4f} nats a token, rate {rate} nats a sequence",
            f"importance-weighted {iwae}, of {self.particles} draws count {counted}",
            "distortion with thoughts from the prior, none read, another text's: "
            + ", ".join(f"{value:.4f}" for value in others),
            f"fitted by {self.guide} in {self.fast_steps} fast steps, seed {self.seed}",
        ]
        return described(self, lines)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary for JSON; figures that are not known are None."""
        return plain(self)


@torch.no_grad()
def evaluate_bound(
    model: LatentThoughtModel,
    batches: Iterable[Batch],
    loop: FastLoop,
    *,
    particles: int = 4,
    count_bytes: Callable[[Batch], int] | None = None,
    seed: int = 0,
    progress: Count | None = None,
) -> Bound:
    """Fits q to every sequence and scores it on fresh noise.

    Figures depend on the sequences, their ids and `seed`, not on the size of the batches.

    Args:
        batches: the corpus; sequences already on the model's device.
        loop: fits q; the score is the same whatever it raises, and has noise of its own.
        particles: draws K from q for the distortion.
        count_bytes: UTF-8 bytes of text that a batch's targets stand for, for bits per byte; None: they are not known.
        progress: called after each batch.
    """
    with evaluating(model):
        sums = _Sums(model, particles, progress)
        for read in batches:
            batch = replace(model.precompute(read), hiding=(fold(seed, "score"), particles))
            sums.add(batch, loop.fit_to_score(model, batch, seed=fold(seed, "fit")), fold(seed, "score"))
            if count_bytes is not None:
                sums.bytes += count_bytes(read)
        return sums.result(loop, seed)


class _Sums:
    """Sums over the corpus; per sequence only what the standard error needs."""

    def __init__(self, model: LatentThoughtModel, particles: int, progress: Count | None):
        self.model = model
        self.particles = particles
        self.tally = Tally(progress)
        self.ess: list[Tensor] = []
        self.no_pareto_k = why_no_pareto_k(particles, model.config.thoughts)
        self.tails: list[Tensor] = []
        self.rates: list[Tensor] = []
        self.distortions: list[Tensor] = []
        self.zeroed: list[Tensor] = []
        self.iwae: dict[int, list[Tensor]] = {count: [] for count in doublings(particles)}
        self.sums: dict[str, list[float]] = {}
        self.first: Batch | None = None
        self.last: Tensor | None = None
        self.bytes = 0
        self.mean = torch.zeros(model.config.thoughts, model.config.thought_width, dtype=torch.float64)
        self.square = torch.zeros_like(self.mean)

    def add(self, batch: Batch, posterior: Posterior, seed: int) -> None:
        """Scores one batch on noise keyed by `seed`, which the fit never saw."""
        fresh = posterior.with_noise(seed)
        terms = fresh.score(self.model, batch, particles=self.particles)
        distortion, rate = terms.distortion.double(), terms.rate.double()
        log_weight = terms.log_weight.double()
        nats = distortion + rate
        if not bool(torch.isfinite(nats).all()):
            raise RanAway("the bound is not finite: the model's weights, or its posterior's, have run away")
        self.ess.append(effective_sample_size(log_weight).cpu())
        if not self.no_pareto_k:
            self.tails.append(pareto_k(log_weight).cpu())
        self.rates.append(rate.cpu())
        for count, values in self.iwae.items():
            values.append(importance_nats(log_weight, count).cpu())
        self._sum(distortion=distortion)
        self.distortions.append(distortion.cpu())
        means = fresh.mean()
        self.mean += means.double().sum(0).cpu()
        self.square += (means.double() ** 2).sum(0).cpu()
        if self.model.config.thoughts:
            self._score_other_thoughts(batch, fresh, seed)
        else:
            self.zeroed.append(distortion.cpu())
            self._sum(from_prior=distortion, zeroed=distortion, shuffled=distortion)  # none that could be others
        self.tally.add(batch, nats)

    def _score_other_thoughts(self, batch: Batch, fresh: Posterior, seed: int) -> None:
        """The distortion with thoughts that are not the sequence's own."""
        z = fresh.sample()[0]
        prior = self.model.prior().expand(torch.Size([batch.size]))
        from_prior = draw(prior, Noise(batch.ids, device=batch.device, seed=fold(seed, "prior")))
        self._sum(from_prior=-self._log_likelihood(batch, from_prior))
        zeroed = nats_without_thoughts(self.model, batch, z)
        self._sum(zeroed=zeroed)
        self.zeroed.append(zeroed.cpu())
        self._shuffle(batch, z)

    def _shuffle(self, batch: Batch, z: Tensor) -> None:
        """Scores each sequence with the thoughts of the one before; the corpus's first waits for its last."""
        if self.last is None:
            self.first = batch.select(torch.zeros(1, dtype=torch.int64, device=z.device))
            others, scored = z[:-1], batch.select(torch.arange(1, batch.size, device=z.device))
        else:
            others, scored = torch.cat([self.last, z[:-1]]), batch
        self.last = z[-1:]
        if scored.size:
            self._sum(shuffled=-self._log_likelihood(scored, others))

    def result(self, loop: FastLoop, seed: int) -> Bound:
        """The figures of the whole corpus."""
        nats, tokens, places = self.tally.whole()
        total, sequences = float(tokens.sum()), len(nats)
        self._close_circle(sequences)
        self._gather()
        mean, error = float(nats.sum()) / total, ratio_error(nats, tokens, places)
        bits = total / math.log(2) / self.bytes if self.bytes else math.nan  # a byte, for each nat a token
        iwae = {count: torch.cat(values) for count, values in self.iwae.items()}
        curve = [
            CurvePoint(count, float(one.sum()) / total, ratio_error(one, tokens, places).stderr)
            for count, one in iwae.items()
        ]
        ess, rates, distortions, zeroed = map(torch.cat, (self.ess, self.rates, self.distortions, self.zeroed))
        variance = self.square / sequences - (self.mean / sequences) ** 2
        active = (variance > ACTIVE_VARIANCE).double()
        layers = active.chunk(self.model.config.layers) if active.numel() else ()
        return Bound(
            nats_per_token=mean,
            nats_per_token_stderr=error.stderr,
            blocks=error.blocks,
            perplexity=perplexity(mean),
            bits_per_byte=mean * bits,
            bits_per_byte_stderr=error.stderr * bits,
            distortion_nats_per_token=sum(self.sums["distortion"]) / total,
            kl_nats_per_sequence=float(rates.mean()),
            kl_nats_per_sequence_stderr=mean_error(rates, places).stderr,
            exchange_rate=exchange_rate(zeroed, distortions, rates, places),
            no_exchange_rate=why_no_exchange_rate(rates) if self.model.config.thoughts else "no thoughts, no rate",
            iwae_nats_per_token=curve[-1].nats_per_token,
            iwae_nats_per_token_stderr=curve[-1].stderr,
            iwae_curve=curve,
            effective_sample_size=float(ess.mean()),
            effective_sample_size_stderr=mean_error(ess, places).stderr,
            pareto_k=ParetoK.of(torch.cat(self.tails), self.particles) if self.tails else None,
            no_pareto_k=self.no_pareto_k,
            distortion_from_prior=sum(self.sums["from_prior"]) / total,
            distortion_zeroed=sum(self.sums["zeroed"]) / total,
            distortion_shuffled=sum(self.sums["shuffled"]) / total,
            active_fraction_by_layer=[float(layer.mean()) for layer in layers],
            guide=type(loop.guide).__name__,
            tokens=int(total),
            sequences=sequences,
            particles=self.particles,
            fast_steps=loop.steps,
            seed=seed,
            sequence_nats=nats,
            sequence_iwae_nats=iwae[self.particles],
            sequence_rate=rates,
            sequence_tokens=tokens,
            places=places,
        )

    def _close_circle(self, sequences: int) -> None:
        """Scores the first sequence with the thoughts of the last one: of several processes, of that of the one before.

        One that has none is passed by.
        """
        lasts, rank = team().gather([None if self.last is None else self.last.cpu()]), team().rank
        before = [last for last in (*lasts[rank:], *lasts[:rank]) if last is not None]
        if sequences == 1 and self.first is not None:
            self._sum(shuffled=torch.tensor(math.nan))
        elif self.first is not None:
            self._sum(shuffled=-self._log_likelihood(self.first, before[-1].to(self.first.device)))

    def _gather(self) -> None:
        """Adds what the other processes have, where several share what is scored."""
        shared = team()
        self.ess, self.tails, self.rates, self.distortions, self.zeroed = map(
            shared.gather, (self.ess, self.tails, self.rates, self.distortions, self.zeroed)
        )
        self.iwae = {count: shared.gather(values) for count, values in self.iwae.items()}
        parts = shared.gather([self.sums])
        self.sums = {name: [value for part in parts for value in part.get(name, [])] for name in parts[0]}
        self.mean, self.square = (torch.stack(shared.gather([part])).sum(0) for part in (self.mean, self.square))
        self.bytes = sum(shared.gather([self.bytes]))

    def _log_likelihood(self, batch: Batch, thoughts: Tensor) -> Tensor:
        assert batch.targets is not None  # a batch without targets has nothing to score
        return self.model.likelihood(thoughts, batch).log_prob(batch.targets).double()

    def _sum(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.sums.setdefault(name, []).append(float(value.sum()))

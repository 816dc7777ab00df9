"""Scores of written texts: figures of the texts themselves, their nats under a scoring model, how fast they came."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_ltm.data.dataset import count_bytes
from pyro_ltm.data.tokenizer.round_trip import RoundTrip
from pyro_ltm.errors import UserError
from pyro_ltm.model import DecodingOptions
from pyro_ltm.reading import read_npy
from pyro_ltm.runs.run import Run, text_batches
from pyro_ltm.scores import Bound, evaluate_bound
from pyro_ltm.scores.estimate import plain
from pyro_ltm.tasks.mauve import Mauve, mauve
from pyro_ltm.tasks.text_metrics import TextMetrics, text_metrics
from pyro_ltm.tasks.zero_shot import EXACT, UPPER_BOUND


@dataclass(frozen=True)
class Speed:
    """How fast texts were written. `tokens`: new ones, the end of a text not counted; `seconds`: of the wall clock."""

    tokens: int
    seconds: float
    tokens_per_second: float
    batch_size: int
    threads: int
    device: str


class Scorer(Protocol):
    """A model that scores texts, such as `pyro_ltm.integrations.causal_lm.CausalLM`."""

    @property
    def is_exact(self) -> bool:
        """Whether its nats are exact, not a bound."""

    @property
    def feature_name(self) -> str:
        """The name of `features`, for people."""

    def score(self, texts: Sequence[str]) -> Any:
        """The nats of the texts under it: a `Figure` with `perplexity` and `bits_per_byte`, NaN where not known."""

    def why_no_bytes(self, texts: Sequence[str]) -> str:
        """Why there is no figure of the texts by the byte; empty where there is one."""

    def features(self, texts: Sequence[str]) -> Tensor:
        """[n, d] of n texts, for MAUVE."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The figures of a set of texts.

    Attributes:
        metrics: of the texts; reference_metrics: of the reference texts, where there are some.
        generative: nats a token under the scoring model, a `Bound` or what another scorer gives: exact for an
            autoregressive model, an upper bound for a model with thoughts.
        no_bytes: why the scoring model has no figure by the byte, of texts or reference; empty where it has.
        mauve: of the features that were given, or of the scoring model's own; features: says which.
        speed: None for texts that were only read.
        fast_steps: of each fit of a run that scored; None where none did. seed: of all noise.
    """

    metrics: TextMetrics
    reference_metrics: TextMetrics | None = None
    generative: Any = None
    reference_generative: Any = None
    generative_is_exact: bool | None = None
    no_bytes: str = ""
    mauve: Mauve | None = None
    features: str | None = None
    speed: Speed | None = None
    fast_steps: int | None = None
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what a scoring model found says with its `meaning` whether it is exact."""
        result = plain(self)
        if not self.no_bytes:
            del result["no_bytes"]
        for name in ("generative", "reference_generative"):
            if result[name]:
                result[name]["meaning"] = EXACT if self.generative_is_exact else UPPER_BOUND
        return result


def write_samples(
    run: Run, *, num: int, max_new_tokens: int | None = None, sampler: DecodingOptions | None = None, seed: int = 0
) -> tuple[list[str], Speed]:
    """Texts from the prior, and how fast they were written; a short text comes first, outside the clock."""
    run.generate(num=1, max_new_tokens=1, seed=seed)
    began = time.perf_counter()
    written = run.generate(num=num, max_new_tokens=max_new_tokens, sampler=sampler, seed=seed)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    seconds = time.perf_counter() - began
    tokens = sum(one.tokens for one in written)
    speed = Speed(tokens, seconds, tokens / seconds, num, torch.get_num_threads(), str(run.device))
    return [one.text for one in written], speed


def score_samples(
    texts: Sequence[str],
    *,
    reference: Sequence[str] | None = None,
    scorer: Scorer | None = None,
    features: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    speed: Speed | None = None,
) -> Samples:
    """Scores texts.

    Args:
        reference: texts to compare them with.
        scorer: a model that scores both, such as a `RunScorer`; without `features` its own are MAUVE's, where there
            are at least 10 texts on either side.
        features: of the texts and of the reference, [n, d] and [m, d].
        seed: of MAUVE's buckets.
    """
    found: dict[str, Any] = {"metrics": text_metrics(texts), "speed": speed, "seed": seed}
    if reference is not None:
        found["reference_metrics"] = text_metrics(reference)
    if isinstance(scorer, RunScorer):
        found["fast_steps"] = scorer.run.loop.with_steps(scorer.fast_steps).steps
    if scorer is not None:
        found |= {"generative": scorer.score(texts), "generative_is_exact": scorer.is_exact}
        found["no_bytes"] = scorer.why_no_bytes(texts) or scorer.why_no_bytes(reference or [])
        if reference is not None:
            found["reference_generative"] = scorer.score(reference)
    if features is not None:
        found |= {"mauve": mauve(*features, seed=seed), "features": "given"}
    elif scorer is not None and reference is not None and min(len(texts), len(reference)) >= 10:
        found["mauve"] = mauve(scorer.features(texts), scorer.features(reference), seed=seed)
        found["features"] = scorer.feature_name
    return Samples(**found)


def read_features(path: Path) -> Tensor:
    """An array [n, d] from a .npy file. Raises UserError when it is none."""
    array = read_npy(path)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise UserError(f"{path}: expected one array of numbers [texts, features]")
    if not np.isfinite(array).all():
        raise UserError(f"{path}: not all of its numbers are finite")
    return torch.from_numpy(array.astype(np.float64))


@dataclass(frozen=True)
class RunScorer:
    """A run of ours as a scorer. particles, fast_steps, seed: of its bound."""

    run: Run
    particles: int = 16
    fast_steps: int | None = None
    seed: int = 0

    @property
    def is_exact(self) -> bool:
        """A twin's nats are exact."""
        return not self.run.config.model.thoughts

    @property
    def feature_name(self) -> str:
        """The name of `features`, for people."""
        return f"mean last hidden states of {self.run.folder}; not comparable with published figures"

    def score(self, texts: Sequence[str]) -> Bound:
        """The bound of the texts, each from its beginning to its end."""
        return evaluate_bound(
            self.run.model,
            text_batches(self.run, texts),
            self.run.loop.with_density().with_steps(self.fast_steps),
            particles=1 if self.is_exact else self.particles,
            count_bytes=None if self.why_no_bytes(texts) else functools.partial(count_bytes, self.run.tokenizer),
            seed=self.seed,
        )

    def why_no_bytes(self, texts: Sequence[str]) -> str:
        """Whether its tokenizer gives the texts back."""
        tokenizer = self.run.tokenizer
        return RoundTrip.of(tokenizer, texts, tokenizer.encode_batch(texts)).why_no_bytes

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """[n, D] the mean over a text's tokens of the last hidden state, with thoughts all zero (the prior's mean)."""
        decoder, config = self.run.model.decoder, self.run.config.model
        rows = []
        for batch in text_batches(self.run, texts):
            z = torch.zeros(batch.size, config.thoughts, config.dim, device=batch.device)
            hidden = decoder(decoder.context(batch.inputs), z)
            weight = batch.mask[..., None].to(hidden)
            rows.append((hidden * weight).sum(1) / weight.sum(1).clamp(min=1))
        return torch.cat(rows).double().cpu()

"""Scores of written texts: figures of the texts themselves, their nats under a scoring model, how fast they came."""

from __future__ import annotations

import functools
import math
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
from pyro_ltm.inference import Generated, Rethinking
from pyro_ltm.inference.codec import encoded_after
from pyro_ltm.model import DecodingOptions
from pyro_ltm.noise import fold
from pyro_ltm.reading import read_npy
from pyro_ltm.runs.batches import text_batches
from pyro_ltm.runs.run import Run
from pyro_ltm.scores import Bound, evaluate_bound
from pyro_ltm.scores.continuation import Predictor, windows
from pyro_ltm.scores.estimate import Figure, plain, ratio_error
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


@dataclass(frozen=True, kw_only=True)
class AfterPrompts(Figure):
    """Nats a token of texts, each after its prompt; their ends are not scored.

    Attributes:
        bits_per_byte: total bits / UTF-8 bytes of the texts; NaN where the tokens do not determine the texts.
            bits_per_byte_stderr: its standard error.
        no_bytes: why there is no figure by the byte; empty where there is one.
    """

    bits_per_byte: float
    bits_per_byte_stderr: float
    no_bytes: str

    @classmethod
    def of_texts(cls, nats: Tensor, tokens: Tensor, texts: Sequence[str], no_bytes: str) -> AfterPrompts:
        """The figure of `texts` with nats and tokens [n]."""
        sizes = torch.tensor([len(text.encode()) for text in texts], dtype=torch.float64)
        by_byte, error = math.nan, math.nan
        if not no_bytes and float(sizes.sum()):
            bits = nats.double() / math.log(2)
            by_byte, error = float(bits.sum() / sizes.sum()), ratio_error(bits, sizes, None).stderr
        return cls.of(nats, tokens, bits_per_byte=by_byte, bits_per_byte_stderr=error, no_bytes=no_bytes)


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

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> AfterPrompts:
        """The nats of the texts, each after its prompt; of a model with thoughts by its predictive distribution."""

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
    run: Run,
    *,
    num: int,
    max_new_tokens: int | None = None,
    sampler: DecodingOptions | None = None,
    seed: int = 0,
    rethinking: Rethinking | None = None,
) -> tuple[list[str], Speed]:
    """Texts from the prior, and how fast they were written."""
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampler": sampler, "rethinking": rethinking}
    written, speed = timed(run, num, num=num, seed=seed, **how)
    return [one.text for one in written], speed


def timed(run: Run, together: int, **how: Any) -> tuple[list[Generated], Speed]:
    """The texts of `Run.generate`, `together` texts at a time, and how fast; a short text comes first, unclocked."""
    run.generate(num=1, max_new_tokens=1, seed=how.get("seed", 0))
    began = time.perf_counter()
    written = run.generate(**how)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    seconds = time.perf_counter() - began
    tokens = sum(one.tokens for one in written)
    return written, Speed(tokens, seconds, tokens / seconds, together, torch.get_num_threads(), str(run.device))


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

    def __post_init__(self) -> None:
        if self.run.config.model.is_diffusion:
            raise UserError(
                f"--scorer {self.run.folder}: a masked diffusion writes a text into a given room, and what it costs "
                "depends on that: take an autoregressive twin, or a run with thoughts"
            )

    @property
    def is_exact(self) -> bool:
        """A twin's nats are exact."""
        return self.run.config.model.is_exact

    @property
    def feature_name(self) -> str:
        """The name of `features`, for people."""
        return f"mean last hidden states of {self.run.folder}; not comparable with published figures"

    def score(self, texts: Sequence[str]) -> Bound:
        """The bound of the texts, each from its beginning to its end, long ones in consecutive sequences."""
        return evaluate_bound(
            self.run.model,
            text_batches(self.run, texts, whole=True),
            self.run.loop.with_density().with_steps(self.fast_steps),
            particles=1 if self.is_exact else self.particles,
            count_bytes=None if self.why_no_bytes(texts) else functools.partial(count_bytes, self.run.tokenizer),
            seed=self.seed,
        )

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> AfterPrompts:
        """Nats of the texts under the mixture over draws from q, fitted to the prompt alone (`scores.continuation`).

        Where both are longer than the model reads, in blocks of half its length, each after as much as fits before it.
        """
        tokenizer, longest = self.run.tokenizer, self.run.config.model.max_length
        predictor = Predictor(
            self.run.model, self.run.loop.with_steps(self.fast_steps), particles=self.particles, seed=self.seed
        )
        pieces, rows = [], []
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            before, new = encoded_after(tokenizer.encode, prompt, text)
            tokens, name = (tokenizer.end_of_text, *before, *new), functools.partial(fold, "text", row)
            stride = longest if len(tokens) <= longest + 1 else max(1, longest // 2)
            blocks = windows(tokens, name, given=1 + len(before), length=longest, stride=stride)
            pieces += blocks
            rows += [row] * len(blocks)
        nats, counts = torch.zeros(len(texts), dtype=torch.float64), torch.zeros(len(texts), dtype=torch.float64)
        for row, piece, scored in zip(rows, pieces, predictor.score(pieces), strict=True):
            nats[row] -= scored.log_likelihood
            counts[row] += len(piece.continuation)
        return AfterPrompts.of_texts(nats, counts, texts, self.why_no_bytes(texts))

    def why_no_bytes(self, texts: Sequence[str]) -> str:
        """Whether its tokenizer gives the texts back."""
        tokenizer = self.run.tokenizer
        return RoundTrip.of(tokenizer, texts, tokenizer.encode_batch(texts)).why_no_bytes

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """[n, D] the mean over a text's tokens of the last hidden state, with thoughts all zero (the prior's mean)."""
        decoder, config = self.run.model.decoder, self.run.config.model
        sums, counts = torch.zeros(len(texts), config.dim, dtype=torch.float64), torch.zeros(len(texts), 1)
        for batch in text_batches(self.run, texts, whole=True):
            assert batch.documents is not None  # the numbers of the texts
            z = torch.zeros(batch.size, config.thoughts, config.thought_width, device=batch.device)
            hidden = decoder(decoder.context(batch.inputs), z)
            sums.index_add_(0, batch.documents, (hidden * batch.mask[..., None]).sum(1).double().cpu())
            counts.index_add_(0, batch.documents, batch.mask.sum(1, keepdim=True).float().cpu())
        return sums / counts

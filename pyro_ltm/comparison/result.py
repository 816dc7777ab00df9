"""Results of a comparison: the score of each pair, and how they rank."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.reading import Count, fitted
from pyro_ltm.scores.convergence import Convergence
from pyro_ltm.scores.dependence import Blocks, Places
from pyro_ltm.scores.estimate import ratio_error
from pyro_ltm.scores.exchange import ExchangeRate, exchange_rate
from pyro_ltm.scores.pareto import ParetoK
from pyro_ltm.types import Batch

FORMAT = "pyro-ltm comparison 1"
PROTOCOL = (
    "Every pair sees the same sequences in the same batches, fits on noise of the same seed, and is scored alike "
    "whatever it optimized: on fresh noise that no fit has seen, the same for every pair, with the whole KL charged "
    "(in closed form where there is one). Bounds are upper bounds on nats a token: total nats / total tokens; standard "
    "errors are over documents, or over blocks of neighbouring sequences as far as these depend on one another; those "
    "of differences over each sequence's difference. Only fitting is on the clock."
)

Kind = Literal["posteriors", "training"]
"""Of posteriors under one decoder, or of a decoder trained under each pair."""

CLOSE = 0.01
"""A bound has arrived when it is within this share of its best."""

Key = tuple[str, str, int]
"""Guide, objective, fast steps."""

Seconds = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class Estimate:
    """Nats a token, its standard error (None for a single sequence), and over what that was taken."""

    nats_per_token: float
    stderr: float | None
    blocks: Blocks | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The honest bound after so many fast steps, and the `ms` of fitting a sequence that they took."""

    steps: int
    ms: float
    nats_per_token: float | None


@dataclass(frozen=True)
class Validation:
    """The validation bound of a decoder while it was trained."""

    step: Count
    tokens: Count
    seconds: Seconds
    nats_per_token: float | None
    stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderTraining:
    """How a decoder was trained: totals, each validation, and the first one within 1% of the best (`arrival`)."""

    steps: Count
    tokens: Count
    seconds: Seconds
    skipped: Count
    arrival: Validation | None = None
    validation: list[Validation] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """Honest figures of a guide fitted by an objective; None where there is none to give, and then `note` says why.

    Attributes:
        guide, objective: names, as a comparison shows them.
        fast_steps: asked for. steps_taken: the mean over sequences.
        elbo, iwae: upper bounds on the nats a token; iwae is importance-weighted, with all draws.
        ess: effective sample size of those draws, the mean over sequences; ess_stderr: its standard error.
        pareto_k: the tail of their weights. no_pareto_k: why there is none, where there is a bound.
        convergence: R-hat and effective sample size of a sampler's chains, where they were asked for.
        rate: KL(q || p), nats a sequence. distortion: E_q[-log p(x | z)], nats a token.
        exchange_rate: nats of distortion saved a nat of rate, against none of them read (see `scores.exchange`).
        log_joint: E_q[log p(x, z)], nats a sequence: the only figure of a point.
        steps_to_1pct, ms_per_sequence_to_1pct: to come within 1% of the best bound of `curve`.
        ms_per_fast_step: the median, of a batch. ms_per_sequence: the whole fit.
        peak_memory_bytes: of a fit of one fast step to the first batch, beyond the weights; None for a guide that has
            something left to do at the end of a fit. Times and memory of several processes are those of one of them.
        curve: the bound along the way. nats_by_sequence, rate_by_sequence: of `elbo` and `rate`, for paired
            differences; the rates are empty in a comparison of a release that did not write them.
        note: remarks on these figures.
        guide_training_seconds: for its shared parameters, before the fits, by all processes together; None where
            nothing was trained.
        training: of the decoder that was trained under the pair; None where none was.
    """

    guide: str = ""
    objective: str = ""
    fast_steps: int
    steps_taken: float | None = None
    elbo: Estimate | None = None
    iwae: Estimate | None = None
    ess: float | None = None
    ess_stderr: float | None = None
    pareto_k: ParetoK | None = None
    no_pareto_k: str = ""
    convergence: Convergence | None = None
    rate: float | None = None
    distortion: float | None = None
    exchange_rate: ExchangeRate | None = None
    log_joint: float | None = None
    steps_to_1pct: int | None = None
    ms_per_sequence_to_1pct: float | None = None
    ms_per_fast_step: float | None = None
    ms_per_sequence: float | None = None
    peak_memory_bytes: int | None = None
    curve: list[Checkpoint] = field(default_factory=list)
    nats_by_sequence: list[float] = field(default_factory=list)
    rate_by_sequence: list[float] = field(default_factory=list)
    note: str = ""
    guide_training_seconds: float | None = None
    training: DecoderTraining | None = None

    @property
    def key(self) -> Key:
        """Tells it from the other pairs of a comparison."""
        return self.guide, self.objective, self.fast_steps

    @property
    def level(self) -> float:
        """Its bound in nats a token; infinite where there is none."""
        return self.elbo.nats_per_token if self.elbo else math.inf

    def with_note(self, note: str) -> PairScore:
        """The same figures, with `note` before the remarks that are there."""
        return dataclasses.replace(self, note="; ".join(text for text in (note, self.note) if text))


@dataclass(frozen=True)
class Refused:
    """A guide and an objective that do not fit each other, and why."""

    guide: str
    objective: str
    reason: str


RIVALS = ("twin", "masked_diffusion")
"""The autoregressive twin, and the masked diffusion."""

MOST_SHOWN = 8
"""Pairs that a comparison shows of itself, the best ones."""


@dataclass
class Comparison:
    """Pairs of guide and objective, scored alike.

    Attributes:
        kind: `posteriors` under one decoder, or `training` of a decoder under each pair.
        settings: all that figures depend on; a comparison goes on only with equal ones.
        about: for people: the command, the run, the data. made_on: the machines that measured, in turn.
        definitions: class and options behind each name, by axis (`guides`, `objectives`).
        token_counts: targets of each sequence. places: where they stand in their text; None for a comparison of a
            release that did not write it, whose differences take sequences as independent.
        twin, masked_diffusion: the rivals without thoughts, trained alike, to compare with.
    """

    kind: Kind
    settings: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    made_on: list[dict[str, Any]] = field(default_factory=list)
    definitions: dict[str, dict[str, str]] = field(default_factory=lambda: {"guides": {}, "objectives": {}})
    token_counts: list[Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]] = field(default_factory=list)
    places: Places | None = None
    pairs: list[PairScore] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    twin: PairScore | None = None
    masked_diffusion: PairScore | None = None

    def __repr__(self) -> str:
        ranked = self.ranked()
        rows = [f"Comparison of {self.kind}: {len(self.pairs)} pairs, {len(self.token_counts)} sequences, nats a token"]
        for pair in ranked[:MOST_SHOWN]:
            bound = pair.elbo and f"{pair.elbo.nats_per_token:.4f} ± {pair.elbo.stderr or math.nan:.4f}"
            rows.append(f"  {bound or 'no bound'}  {pair.guide} × {pair.objective}, {pair.fast_steps} steps")
        more = len(ranked) - MOST_SHOWN
        return "\n".join([*rows, *([f"  and {more} more"] if more > 0 else [])])

    def find(self, key: Key) -> PairScore | None:
        """The pair of this guide, objective and number of fast steps, if it was scored."""
        return next((pair for pair in self.pairs if pair.key == key), None)

    def ranked(self) -> list[PairScore]:
        """The lowest bound first; those without one last."""
        return sorted(self.pairs, key=lambda pair: pair.level)

    @property
    def rivals(self) -> dict[str, PairScore]:
        """Those that were scored, under the names of their attributes."""
        found = {name: getattr(self, name) for name in RIVALS}
        return {name: rival for name, rival in found.items() if rival}

    @property
    def with_rivals(self) -> list[PairScore]:
        """All pairs as they were scored, and the rivals."""
        return [*self.pairs, *self.rivals.values()]

    @property
    def best(self) -> PairScore | None:
        """The pair with the lowest bound; None where none has any."""
        ranked = self.ranked()
        return ranked[0] if ranked and math.isfinite(ranked[0].level) else None

    @property
    def fast_steps(self) -> list[int]:
        """The numbers of fast steps that were scored."""
        return sorted({pair.fast_steps for pair in self.pairs})

    def difference_to_best(self, pair: PairScore) -> Estimate | None:
        """How much higher its bound is than the best one's, sequence by sequence; None where it has none."""
        best = self.best
        if best is None or pair.elbo is None:
            return None
        ours, theirs = (torch.tensor(one.nats_by_sequence, dtype=torch.float64) for one in (pair, best))
        return estimate(ours - theirs, torch.tensor(self.token_counts, dtype=torch.float64), self.places)

    def exchange_rate(self, pair: PairScore) -> ExchangeRate | None:
        """Nats of distortion saved a nat of rate: against the twin where there is one, else against no thoughts."""
        if self.twin is None or not self.twin.nats_by_sequence:
            return pair.exchange_rate
        if not pair.rate_by_sequence:
            return None
        rows = (self.twin.nats_by_sequence, pair.nats_by_sequence, pair.rate_by_sequence)
        without, nats, rate = (torch.tensor(row, dtype=torch.float64) for row in rows)
        return exchange_rate(without, nats - rate, rate, self.places)

    def tied_with_best(self) -> list[PairScore]:
        """Pairs that cannot be told from the best: less than two standard errors of the difference behind it."""
        tied = []
        for pair in self.ranked()[1:]:
            behind = self.difference_to_best(pair)
            if behind and behind.stderr is not None and behind.nats_per_token < 2 * behind.stderr:
                tied.append(pair)
        return tied

    def equal_seconds(self) -> dict[Key, dict[str, Any]]:
        """Each decoder's last validation within the seconds of the fastest training: a fair look at unlike costs.

        The rivals, which have no fast steps to take, set no limit to the others.
        """
        limit = min((pair.training.seconds for pair in self.pairs if pair.training), default=None)
        found: dict[Key, dict[str, Any]] = {}
        for pair in self.with_rivals:
            validations = pair.training.validation if pair.training else []
            within = [row for row in validations if limit is not None and row.seconds <= limit]
            if within:
                found[pair.key] = {**dataclasses.asdict(within[-1]), "limit_seconds": limit}
        return found

    def set_sequences(self, batches: Iterable[Batch]) -> None:
        """Notes the sequences: how many targets each has, and where it stands."""
        counts, places = zip(*((batch.mask.sum(-1).tolist(), Places.of(batch)) for batch in batches), strict=True)
        self.token_counts, self.places = [count for some in counts for count in some], Places.joined(places)

    def refuse(self, guide: str, objective: str, reason: str) -> None:
        """Notes a pair that does not fit, once."""
        others = [one for one in self.refused if (one.guide, one.objective) != (guide, objective)]
        self.refused = [*others, Refused(guide, objective, reason)]

    def define(self, axis: str, definitions: Mapping[str, str], where: Path | None) -> None:
        """Notes the class behind each name. Raises UserError where a name stood for something else before."""
        for name, definition in definitions.items():
            known = self.definitions[axis].setdefault(name, definition)
            if known != definition:
                raise UserError(
                    f"{where}: its {axis[:-1]} '{name}' was {known}, now {definition}; choose another --out"
                )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `compare.json`."""
        equal = self.equal_seconds()
        found: dict[str, Any] = {"format": FORMAT, "protocol": PROTOCOL}
        found |= msgspec.to_builtins(self, enc_hook=_builtin)
        rows = [*found["pairs"], *(found[name] for name in self.rivals)]
        for row, pair in zip(rows, self.with_rivals, strict=True):
            behind = self.difference_to_best(pair)
            row["difference_to_best"] = dataclasses.asdict(behind) if behind else None
            is_rival = any(pair is rival for rival in self.rivals.values())
            saved = None if is_rival else self.exchange_rate(pair)
            row["saved"] = dataclasses.asdict(saved) if saved else None
            if pair.training is None:
                row.pop("training", None)
            else:
                row["equal_seconds"] = equal.get(pair.key)
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Comparison:
        """Comparison from the output of `to_dict`. Raises UserError, naming the place, for anything else."""
        found = {RENAMED.get(key, key): value for key, value in found.items()}
        _require(found, cls, optional=("places", "masked_diffusion"))
        comparison = fitted(found, cls, dec_hook=_tensor)
        if set(comparison.definitions) != {"guides", "objectives"}:
            raise UserError("definitions: expected guides and objectives")
        count = len(comparison.token_counts)
        rows = {f"pairs[{index}]": row for index, row in enumerate(found["pairs"])}
        rows |= {name: found[name] for name in comparison.rivals}
        for (where, row), pair in zip(rows.items(), comparison.with_rivals, strict=True):
            _require(row, PairScore, optional=("training", *ADDED), where=f"{where}: ")
            if pair.elbo and len(pair.nats_by_sequence) != count:
                raise UserError(f"{where}: {len(pair.nats_by_sequence)} nats_by_sequence of {count} sequences")
        for name, values in comparison.places.to_dict().items() if comparison.places else ():
            if values is not None and len(values) != count:
                raise UserError(f"places.{name}: {len(values)} of {count} sequences")
        for names in comparison.definitions.values():
            for name, definition in names.items():
                kind, bracket, options = definition.partition("(")
                names[name] = f"{RENAMED_CLASSES.get(kind, kind)}{bracket}{options}"
        comparison.settings = {RENAMED.get(key, key): value for key, value in comparison.settings.items()}
        return comparison


RENAMED = {"members": "definitions", "teaching": "guide_training", "slow.alone": "slow.decoder_warmup"}
"""Keys, and keys of settings, as earlier releases wrote them."""
RENAMED_CLASSES = {"Annealed": "KLAnnealing"}
"""Classes of guides and objectives in the definitions of earlier releases."""
ADDED = ("pareto_k", "no_pareto_k", "convergence", "exchange_rate", "rate_by_sequence")
"""Figures of a pair that earlier releases did not write."""


def _require(row: Mapping[str, Any], kind: type[Any], *, optional: Sequence[str], where: str = "") -> None:
    """Raises UserError where a mapping lacks a field of `kind`."""
    for entry in dataclasses.fields(kind):
        if entry.name not in row and entry.name not in optional:
            raise UserError(f"{where}{entry.name} is missing")


def _builtin(value: Any) -> Any:
    """A tensor as a list; anything else that JSON does not have as text."""
    return value.tolist() if isinstance(value, Tensor) else str(value)


def _tensor(kind: type[Any], value: Any) -> Tensor:
    """A list of whole numbers as a tensor."""
    return torch.tensor(msgspec.convert(value, list[_Whole]), dtype=torch.int64)


_Whole = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]


def arrival(levels: Sequence[float | None], share: float = CLOSE) -> int | None:
    """Index of the first of these bounds within `share` of the lowest; None where none is known."""
    known = [level for level in levels if level is not None]
    if not known:
        return None
    limit = min(known) + share * abs(min(known))
    return next(index for index, level in enumerate(levels) if level is not None and level <= limit)


def estimate(nats: Tensor, tokens: Tensor, places: Places | None) -> Estimate:
    """Total nats / total tokens of sequences [S], with its standard error."""
    error = ratio_error(nats, tokens, places)
    return Estimate(float(nats.sum() / tokens.sum()), finite(error.stderr), error.blocks)


def finite(value: Tensor | float) -> float | None:
    """The figure as a float; None where it is not finite."""
    return float(value) if math.isfinite(value) else None


__all__ = ["Checkpoint", "Comparison", "DecoderTraining", "Estimate", "PairScore", "Refused", "Validation"]

"""What a comparison found: its pairs, how they rank, and the file that it is kept in.

`compare.json` is written whole after each pair, so that a comparison that was interrupted goes on from it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch

from pyro_ltm.comparison.pair_score import Estimate, Judgement, estimate
from pyro_ltm.errors import UserError
from pyro_ltm.files import clear_errors, write_text
from pyro_ltm.reading import Count, fitted, read_json
from pyro_ltm.scores.dependence import Places
from pyro_ltm.types import Batch

COMPARISON, TABLE = "compare.json", "compare.csv"
FORMAT = "pyro-ltm comparison 1"
PROTOCOL = (
    "Every pair sees the same sequences in the same batches, fits on noise of the same seed, and is judged alike "
    "whatever it optimized: on fresh noise that no fit has seen, the same for every pair, with the whole KL charged "
    "(in closed form where there is one). Bounds are upper bounds on nats a token: total nats / total tokens; standard "
    "errors are over documents, or over blocks of neighbouring sequences as far as these depend on one another; those "
    "of differences over each sequence's difference. Only fitting is on the clock."
)

Key = tuple[str, str, int]
"""Guide, objective, fast steps."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A guide fitted by an objective, and what came of it.

    Attributes:
        guide_training_seconds: what its shared parameters took before; None where it has none.
        training: of the decoder that was trained under it: `steps`, `tokens`, `seconds`, `skipped`, and `validation`,
            a list of `step`, `tokens`, `seconds`, `nats_per_token` and `stderr`; None where no decoder was trained.
    """

    guide: str
    objective: str
    figures: Judgement
    guide_training_seconds: float | None = None
    training: Mapping[str, Any] | None = None

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return self.guide, self.objective, self.figures.fast_steps

    @property
    def level(self) -> float:
        """Its bound in nats a token; infinite where there is none."""
        return self.figures.elbo.nats_per_token if self.figures.elbo else math.inf


@dataclass(frozen=True)
class Refused:
    """A guide and an objective that do not fit each other, and why."""

    guide: str
    objective: str
    reason: str


class Validation(msgspec.Struct):
    """The validation bound of a decoder while it was trained."""

    step: Count
    tokens: Count
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    nats_per_token: float | None
    stderr: float | None = None


class TrainingRecord(msgspec.Struct):
    """`Pair.training` in `compare.json`."""

    steps: Count
    tokens: Count
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    skipped: Count
    validation: list[Validation]
    arrival: Validation | None = None


class PairRecord(msgspec.Struct):
    """What a row of `compare.json` holds besides the figures."""

    guide: str
    objective: str
    guide_training_seconds: float | None
    training: TrainingRecord | None = None


Whole = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]


class PlacesRecord(msgspec.Struct):
    """`Comparison.places` in `compare.json`."""

    ids: list[Whole]
    documents: list[Whole] | None


class ComparisonRecord(msgspec.Struct):
    """`compare.json`."""

    kind: Literal["posteriors", "training"]
    settings: dict[str, Any]
    about: dict[str, Any]
    made_on: list[dict[str, Any]]
    members: dict[str, dict[str, str]]
    token_counts: list[Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]]
    pairs: list[dict[str, Any]]
    refused: list[Refused]
    twin: dict[str, Any] | None
    places: PlacesRecord | None = None


@dataclass
class Comparison:
    """Pairs judged alike.

    Attributes:
        kind: `posteriors` under one decoder, or `training` of a decoder under each pair.
        settings: all that figures depend on; a comparison goes on only with equal ones.
        about: for people: the command, the run, the data. made_on: the machines that measured, in turn.
        members: what stands behind each name, by axis.
        token_counts: targets of each sequence judged. places: where they stand in their text; None for a comparison
            kept by a release that did not say, whose differences take sequences as independent.
        twin: the autoregressive twin, trained alike, to compare with.
    """

    kind: str
    settings: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    made_on: list[dict[str, Any]] = field(default_factory=list)
    members: dict[str, dict[str, str]] = field(default_factory=lambda: {"guides": {}, "objectives": {}})
    token_counts: list[int] = field(default_factory=list)
    places: Places | None = None
    pairs: list[Pair] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    twin: Pair | None = None

    def find(self, key: Key) -> Pair | None:
        """The pair of this guide, objective and number of fast steps, if it was judged."""
        return next((pair for pair in self.pairs if pair.key == key), None)

    def ranked(self) -> list[Pair]:
        """The lowest bound first; those without one last."""
        return sorted(self.pairs, key=lambda pair: pair.level)

    @property
    def best(self) -> Pair | None:
        """The pair with the lowest bound; None where none has any."""
        ranked = self.ranked()
        return ranked[0] if ranked and math.isfinite(ranked[0].level) else None

    @property
    def fast_steps(self) -> list[int]:
        """The settings that were judged."""
        return sorted({pair.figures.fast_steps for pair in self.pairs})

    def difference_to_best(self, pair: Pair) -> Estimate | None:
        """How much higher its bound is than the best one's, sequence by sequence; None where it has none."""
        best = self.best
        if best is None or pair.figures.elbo is None:
            return None
        ours, theirs = (torch.tensor(one.figures.nats_by_sequence, dtype=torch.float64) for one in (pair, best))
        return estimate(ours - theirs, torch.tensor(self.token_counts, dtype=torch.float64), self.places)

    def tied_with_best(self) -> list[Pair]:
        """Pairs that cannot be told from the best: less than two standard errors of the difference behind it."""
        tied = []
        for pair in self.ranked()[1:]:
            behind = self.difference_to_best(pair)
            if behind and behind.stderr is not None and behind.nats_per_token < 2 * behind.stderr:
                tied.append(pair)
        return tied

    def set_sequences(self, batches: Iterable[Batch]) -> None:
        """Notes the sequences that are judged: how many targets each has, and where it stands."""
        counts, places = zip(*((batch.mask.sum(-1).tolist(), Places.of(batch)) for batch in batches), strict=True)
        self.token_counts, self.places = [count for some in counts for count in some], Places.joined(places)

    def refuse(self, guide: str, objective: str, reason: str) -> None:
        """Notes a pair that does not fit, once."""
        others = [one for one in self.refused if (one.guide, one.objective) != (guide, objective)]
        self.refused = [*others, Refused(guide, objective, reason)]

    def add_members(self, axis: str, members: Mapping[str, str], where: Path | None) -> None:
        """Notes what stands behind each name. Raises UserError where a name stood for something else before."""
        for name, meaning in members.items():
            known = self.members[axis].setdefault(name, meaning)
            if known != meaning:
                raise UserError(f"{where}: its {axis[:-1]} '{name}' was {known}, now {meaning}; choose another --out")

    def to_dict(self) -> dict[str, Any]:
        """What `compare.json` holds."""
        equal = self.equal_seconds()
        return {
            "format": FORMAT,
            "protocol": PROTOCOL,
            "kind": self.kind,
            "settings": self.settings,
            "about": self.about,
            "made_on": self.made_on,
            "members": self.members,
            "pairs": [self._row(pair, equal) for pair in self.pairs],
            "twin": self._row(self.twin, equal) if self.twin else None,
            "refused": [dataclasses.asdict(one) for one in self.refused],
            "token_counts": self.token_counts,
            "places": self.places.to_dict() if self.places else None,
        }

    def _row(self, pair: Pair, equal: Mapping[Key, Mapping[str, Any]]) -> dict[str, Any]:
        behind = self.difference_to_best(pair)
        row: dict[str, Any] = {"guide": pair.guide, "objective": pair.objective}
        row |= dataclasses.asdict(pair.figures)
        row["difference_to_best"] = dataclasses.asdict(behind) if behind else None
        row["guide_training_seconds"] = pair.guide_training_seconds
        if pair.training is not None:
            row["training"] = dict(pair.training)
            row["equal_seconds"] = equal.get(pair.key)
        return row

    def equal_seconds(self) -> dict[Key, dict[str, Any]]:
        """Each decoder's last validation within the seconds of the fastest training: a fair look at unlike costs.

        The twin, which has no fast steps to take, sets no limit to the others.
        """
        limit = min((float(pair.training["seconds"]) for pair in self.pairs if pair.training), default=None)
        found: dict[Key, dict[str, Any]] = {}
        for pair in [*self.pairs, *([self.twin] if self.twin else [])]:
            validation = pair.training["validation"] if pair.training else []
            within = [row for row in validation if limit is not None and row["seconds"] <= limit]
            if within:
                found[pair.key] = {**within[-1], "limit_seconds": limit}
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Comparison:
        """What `to_dict` gave. Raises UserError, naming the place, for anything else."""
        record = fitted(found, ComparisonRecord)
        if set(record.members) != {"guides", "objectives"}:
            raise UserError("members: expected guides and objectives")
        return cls(
            kind=record.kind,
            settings=record.settings,
            about=record.about,
            made_on=record.made_on,
            members=record.members,
            token_counts=record.token_counts,
            places=_places(record.places, len(record.token_counts)) if record.places else None,
            pairs=[_pair(row, f"pairs[{i}]", record.token_counts) for i, row in enumerate(record.pairs)],
            refused=record.refused,
            twin=_pair(record.twin, "twin", record.token_counts) if record.twin else None,
        )


def _pair(row: Mapping[str, Any], where: str, token_counts: Sequence[int]) -> Pair:
    """One of `pairs` in `compare.json`: its names beside the fields of `Judgement`."""
    try:
        if missing := [entry.name for entry in dataclasses.fields(Judgement) if entry.name not in row]:
            raise UserError(f"{missing[0]} is missing")
        named, figures = fitted(row, PairRecord), fitted(row, Judgement)
        if figures.elbo and len(figures.nats_by_sequence) != len(token_counts):
            raise UserError(f"{len(figures.nats_by_sequence)} nats_by_sequence of {len(token_counts)} sequences")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Pair(
        guide=named.guide,
        objective=named.objective,
        figures=figures,
        guide_training_seconds=named.guide_training_seconds,
        training=row.get("training"),
    )


def _places(found: PlacesRecord, count: int) -> Places:
    """Where `count` sequences stand."""
    for name, one in (("ids", found.ids), ("documents", found.documents)):
        if one is not None and len(one) != count:
            raise UserError(f"places.{name}: {len(one)} of {count} sequences")
    documents = None if found.documents is None else torch.tensor(found.documents)
    return Places(torch.tensor(found.ids), documents)


def check_target(folder: Path, kind: str) -> Comparison | None:
    """The comparison of this kind in `folder` to go on with; None where there is none yet.

    Raises:
        UserError: the folder cannot hold one, or holds a damaged one or one of another kind.
    """
    path = folder / COMPARISON
    if path.is_file():
        return _read(path, kind)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --out needs a folder")
    # Tokens that were prepared for a comparison, or were being prepared when it was killed, are its own.
    if folder.is_dir() and any(entry.name != "data" and not entry.name.startswith(".") for entry in folder.iterdir()):
        raise UserError(f"{folder}: holds something else and no {COMPARISON}; choose another --out")
    return None


def _read(path: Path, kind: str) -> Comparison:
    try:
        found = read_json(path, dict[str, Any])
        if found.get("format") != FORMAT:
            raise UserError(f"{path}: not a comparison of this release ({FORMAT})")
        comparison = Comparison.from_dict(found)
    except UserError as error:
        reason = str(error) if str(error).startswith(f"{path}: ") else f"{path}: damaged: {error}"
        raise UserError(f"{reason}; choose another --out") from None
    if comparison.kind != kind:
        kinds = f"a comparison of {comparison.kind}, and this is one of {kind}"
        raise UserError(f"{path.parent}: holds {kinds}; choose another --out")
    return comparison


def open_comparison(folder: Path | None, kind: str, settings: Mapping[str, Any]) -> Comparison:
    """The comparison in `folder` to go on with, else a new one; None keeps it in memory alone.

    Raises:
        UserError: as `check_target`; or the folder's comparison was made with other settings.
    """
    wanted = {key: _plain(value) for key, value in settings.items()}
    comparison = check_target(folder, kind) if folder is not None else None
    if comparison is None:
        comparison = Comparison(kind, wanted)
        if folder is not None:
            with clear_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            save(comparison, folder)
    for key in dict.fromkeys([*wanted, *comparison.settings]):
        was, now = comparison.settings.get(key), wanted.get(key)
        if key in FOR_SOME and None in (was, now):  # the pairs of one side have no use for it
            comparison.settings[key] = was or now
        elif was != now:
            what = DIGESTS.get(key, f"with {key} = {_brief(was)} and not {_brief(now)}")
            raise UserError(f"{folder}: its comparison was made {what}; choose another --out")
    return comparison


FOR_SOME = ("teaching",)
"""Settings that only guides with shared parameters look at."""

DIGESTS = {"model": "under another decoder", "data": "on other sequences"}
"""Settings that are digests, which tell a reader nothing."""


def _brief(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)


def save(comparison: Comparison, folder: Path | None) -> None:
    """Writes `compare.json` and `compare.csv`, each whole or not at all; nothing without a folder."""
    if folder is None:
        return
    found = comparison.to_dict()
    write_text(folder / COMPARISON, json.dumps(_plain(found), indent=1, allow_nan=False) + "\n")
    write_text(folder / TABLE, to_csv(found))


COLUMNS = {
    "guide": "guide",
    "objective": "objective",
    "fast_steps": "fast_steps",
    "elbo_nats_per_token": "elbo.nats_per_token",
    "elbo_stderr": "elbo.stderr",
    "difference_to_best": "difference_to_best.nats_per_token",
    "difference_stderr": "difference_to_best.stderr",
    "iwae_nats_per_token": "iwae.nats_per_token",
    "iwae_stderr": "iwae.stderr",
    "ess": "ess",
    "ess_stderr": "ess_stderr",
    "rate_nats_per_sequence": "rate",
    "distortion_nats_per_token": "distortion",
    "log_joint_nats_per_sequence": "log_joint",
    "steps_taken": "steps_taken",
    "steps_to_1pct": "steps_to_1pct",
    "ms_per_sequence_to_1pct": "ms_per_sequence_to_1pct",
    "ms_per_fast_step": "ms_per_fast_step",
    "ms_per_sequence": "ms_per_sequence",
    "peak_memory_bytes": "peak_memory_bytes",
    "guide_training_seconds": "guide_training_seconds",
    "training_seconds": "training.seconds",
    "training_tokens": "training.tokens",
    "equal_seconds_nats_per_token": "equal_seconds.nats_per_token",
    "equal_seconds_step": "equal_seconds.step",
    "note": "note",
}
"""Columns of the CSV, and where in a row of the JSON each stands."""


def to_csv(found: Mapping[str, Any]) -> str:
    """The pairs of a comparison (`Comparison.to_dict`), one a line, the twin last; unknown figures are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in [*found["pairs"], *([found["twin"]] if found["twin"] else [])]:
        values = [at(row, place) for place in COLUMNS.values()]
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def at(row: Mapping[str, Any], place: str) -> Any:
    """What stands at a dotted place of nested mappings; None where the way ends early."""
    found: Any = row
    for part in place.split("."):
        found = found.get(part) if found else None
    return found


def _plain(value: Any) -> Any:
    """`value` as JSON would give it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


__all__ = ["COMPARISON", "Comparison", "Pair", "Refused", "check_target", "open_comparison", "save", "to_csv"]

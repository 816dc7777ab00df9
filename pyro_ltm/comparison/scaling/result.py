"""The figures of a cell, which lie in its folder, and the study that is made of all of them: `study.json`, `study.csv`.

A cell's file is written once, when it is trained and scored. The study is made anew from all cells' files, so that of
several workers on one folder none writes over the rows of another.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from pyro_ltm.comparison.comparison_file import at
from pyro_ltm.comparison.scaling.grid import reads
from pyro_ltm.config import Config
from pyro_ltm.config.settings import flat
from pyro_ltm.digests import with_digest, without_digest
from pyro_ltm.errors import UserError, visible
from pyro_ltm.files import clear_errors, write_text
from pyro_ltm.locks import locked
from pyro_ltm.reading import Count, fitted, read_json

FORMAT = "pyro-ltm scaling study 1"
STUDY, TABLE, CELL, RUNS = "study.json", "study.csv", "cell.json", "runs"
NOT_RUN = "not run"
"""Key of `Study.about`: places of the grid that are no cells of their own."""

FIGURES = ("bound", "iwae", "predictive")
"""Figures of a cell below which no text's entropy lies; the reference protocol's is none of them."""

NATS = {"bound": "sequence_nats", "iwae": "sequence_iwae", "predictive": "sequence_predictive"}
"""Where a row keeps each of them by sequence."""
BY_SEQUENCE = (*NATS.values(), "sequence_tokens", "places")
"""Figures of a row that are long, and of use for paired differences alone."""

ADDED = ("predictive", "reference_protocol")
"""Settings of a study that may change: they ask for figures that cells get when they are trained, or later."""

PATIENCE = 600.0
"""Seconds to wait while another worker writes the study."""

Error = Annotated[float, msgspec.Meta(ge=0)] | None
"""A standard error; None where it is not known."""
Operations = Annotated[float, msgspec.Meta(gt=0)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
Family = Literal["ltm", "twin", "masked-diffusion"]


@dataclass(frozen=True)
class Level:
    """Nats a token, and the standard error."""

    nats_per_token: float
    stderr: Error


@dataclass(frozen=True)
class Look:
    """A validation of a cell while it was trained; its tokens are those read so far."""

    step: Count
    tokens: Count
    nats_per_token: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell as it was trained and scored.

    Attributes:
        name: of its folder. family: `ltm`, or a rival's. seed: of its training.
        axes: the value of each key on an axis that it looks at. settings: its name without the seed.
        steps: slow steps. tokens: read. corpus_tokens: in the training split, each once.
        parameters: of decoder, prior and guide. body: of these, those that are no embedding and no head.
        layers, dim, thoughts, fast_steps: of the model and its fits.
        training_operations, score_token_operations, write_token_operations: see `profiling.costs`.
        seconds: of training, without validations, by as many processes as `machine` says.
        bound: an upper bound on fresh noise; of a twin the exact figure. iwae: importance-weighted, with `particles`.
        predictive: each token from those before it. reference: by the reference's protocol, which is no bound.
        rate: KL(q || prior), nats a sequence. active: latent dimensions whose posterior mean varies, of
            `latent`.
        curve: validations while it was trained, of fewer sequences than `bound`.
        sequence_nats, sequence_iwae, sequence_predictive, sequence_tokens: of each sequence scored, for paired
            differences; empty where they were not kept. places: see `Places`.
        note: why there are no figures. without: why a figure that was asked for is not there, by its name.
        machine: where it was made; worker: by which process.
    """

    name: str
    family: Family
    seed: Count
    settings: str
    axes: dict[str, Any] = field(default_factory=dict)
    steps: Positive
    tokens: Count = 0
    corpus_tokens: Count = 0
    parameters: Positive = 1
    body: Count = 0
    layers: Positive
    dim: Positive
    thoughts: Count
    fast_steps: Count
    training_operations: Operations
    score_token_operations: Operations
    write_token_operations: Operations
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    bound: Level | None = None
    iwae: Level | None = None
    predictive: Level | None = None
    reference: Level | None = None
    floor: Level | None = None
    particles: Count = 0
    rate: float | None = None
    active: Count | None = None
    latent: Count = 0
    curve: list[Look] = field(default_factory=list)
    sequence_nats: list[float] = field(default_factory=list)
    sequence_iwae: list[float] = field(default_factory=list)
    sequence_predictive: list[float] = field(default_factory=list)
    sequence_tokens: list[Count] = field(default_factory=list)
    places: dict[str, list[Count] | None] = field(default_factory=dict)
    note: str = ""
    without: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    worker: str = ""

    @property
    def epochs(self) -> float:
        """How often the training text was read."""
        return self.tokens / self.corpus_tokens if self.corpus_tokens else 0.0

    def level(self, figure: str) -> Level | None:
        """One of `FIGURES`, as others are compared with it."""
        found: Level | None = getattr(self, self._own(figure))
        return found

    def nats(self, figure: str) -> list[float]:
        """The same by sequence; empty where it is not known."""
        found: list[float] = getattr(self, NATS[self._own(figure)])
        return found

    def _own(self, figure: str) -> str:
        """Without thoughts no draws are weighted, and what a twin says of a token is exact and a prediction."""
        return "bound" if self.family == "twin" or (figure == "iwae" and not self.thoughts) else figure


@dataclass
class Study:
    """All cells that are done, and the settings that they share.

    Attributes:
        settings: all that every figure depends on and no axis says. about: for people.
        rows: by name. laws: as `analysis.laws` gives them; none until the study is written up.
    """

    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    laws: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; figures by sequence stay in the cells' files."""
        rows = [{key: value for key, value in asdict(row).items() if key not in BY_SEQUENCE} for row in self.rows]
        parts = {"about": self.about, "settings": self.settings, "cells": rows, "laws": self.laws}
        return {"format": FORMAT, **parts}

    def read(self, out: Path) -> None:
        """Takes in the cells in `out` that are done. Those from before an axis have its setting of all cells."""
        self.rows = read_rows(out)
        keys = dict.fromkeys(key for row in self.rows for key in row.axes)
        for row in self.rows:
            known = {**self.settings, "slow.steps": row.steps}
            row.axes.update({key: known[key] for key in keys if key in known and reads(row.family, key)} | row.axes)

    def of(self, family: str) -> list[Row]:
        """The cells of a family that have figures."""
        return [row for row in self.rows if row.family == family and row.bound is not None]

    @property
    def failed(self) -> list[Row]:
        """The cells that ended without figures, and say why."""
        return [row for row in self.rows if row.bound is None]

    @property
    def families(self) -> list[str]:
        """Those that have cells with figures, the latent-thought model first."""
        return sorted({row.family for row in self.rows if row.bound}, key=lambda name: (name != "ltm", name != "twin"))


def read_row(folder: Path) -> Row | None:
    """The figures of the cell in `folder`; None where it is not done. Raises UserError where the file is damaged."""
    path = folder / CELL
    try:
        found = read_json(path, dict[str, Any])
        if found.get("format") != FORMAT:
            raise UserError(f"{path}: not a cell of this release ({FORMAT}); move the folder away to train it again")
        row = fitted(without_digest(found), Row)
        _check_by_sequence(row)
        return row
    except FileNotFoundError:
        return None
    except UserError as error:
        raise UserError(f"{_damage(path, error)}; remove the file to score the cell again") from None


def _damage(path: Path, error: UserError) -> str:
    """An error in words, with the path of the file where it lacks that."""
    return str(error) if str(error).startswith(f"{path}: ") else f"{path}: damaged: {error}"


def _check_by_sequence(row: Row) -> None:
    """Raises UserError where what is kept of each sequence does not go together."""
    ids, documents = row.places.get("ids") or [], row.places.get("documents", [])
    lengths = {len(row.sequence_nats), len(row.sequence_tokens), len(ids), len(ids if documents is None else documents)}
    lengths |= {len(nats) for nats in (row.sequence_iwae, row.sequence_predictive) if nats}
    if len(lengths) > 1:
        raise UserError("nats by sequence, sequence_tokens and places are of unlike lengths")


def write_row(folder: Path, row: Row) -> None:
    """Writes the figures of a cell into its folder. Raises UserError where that cannot be done."""
    with clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CELL, _json({"format": FORMAT, **asdict(row)}))


def check_target(out: Path) -> dict[str, Any] | None:
    """Contents of `study.json` in `out`; None where there is none yet.

    Raises:
        UserError: the folder cannot hold a study, holds something else, or a damaged one.
    """
    path = out / STUDY
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; --out needs a folder")
    try:
        found = without_digest(read_json(path, dict[str, Any]))
    except FileNotFoundError:
        own = ("data", RUNS)
        if out.is_dir() and any(entry.name not in own and not entry.name.startswith(".") for entry in out.iterdir()):
            raise UserError(f"{out}: holds something else and no {STUDY}; choose another --out") from None
        return None
    except UserError as error:
        raise UserError(f"{_damage(path, error)}; choose another --out") from None
    if found.get("format") != FORMAT or not isinstance(found.get("settings"), dict):
        raise UserError(f"{path}: not a study of this release ({FORMAT}); choose another --out")
    return found


def open_study(out: Path, settings: Mapping[str, Any], about: Mapping[str, Any]) -> Study:
    """The study in `out`, begun now where there is none, with all cells that are done.

    Raises:
        UserError: as `check_target`; or the study there has other settings.
    """
    with locked(out / STUDY, wait=PATIENCE):
        known = check_settings(out, settings)
        said = {key: visible(str(one)) for key, one in about.items()}
        study = Study(known, about=said)
        study.read(out)
        save(study, out)
    return study


def check_settings(out: Path, settings: Mapping[str, Any], *, unknown: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of the study in `out`, or `settings` where there is none; writes nothing.

    Args:
        unknown: keys of `settings` whose values are not known yet, and are not compared.

    Raises:
        UserError: as `open_study`.
    """
    wanted = msgspec.json.decode(msgspec.json.encode(settings))  # as the file gives them back
    before = check_target(out)
    if before is None:
        return dict(wanted)
    kept = {key: value for key, value in before["settings"].items() if key not in ADDED}  # a release before had them
    if lost := [key for key in kept if key not in wanted]:
        raise UserError(f"{out}: its study was made with {lost[0]}, which this release does not know")
    known = {**flat(Config()), **kept}  # a release before had fewer settings
    if differs := _difference(known, {key: value for key, value in wanted.items() if key not in unknown}):
        raise UserError(f"{out}: its study was made with {differs}; choose another --out")
    return kept


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first of the settings `wanted` that is another in `known`, in words; empty where none is."""
    for key, value in wanted.items():
        was = known.get(key)
        if isinstance(was, dict) and isinstance(value, dict):
            if inner := _difference(was, value):
                return f"{key}.{inner}"
        elif was != value:
            return f"{key} = {was!r} and not {value!r}"
    return ""


def refresh(study: Study, out: Path) -> None:
    """Takes in the cells that any worker has done meanwhile, and writes the study."""
    with locked(out / STUDY, wait=PATIENCE):
        study.read(out)
        save(study, out)


def read_rows(out: Path) -> list[Row]:
    """The cells in `out` that are done, by name."""
    folders = sorted((out / RUNS).iterdir()) if (out / RUNS).is_dir() else []
    rows = [read_row(folder) for folder in folders if folder.is_dir() and not folder.name.startswith(".")]
    return [row for row in rows if row is not None]


def save(study: Study, out: Path) -> None:
    """Writes `study.json` and `study.csv`, each whole or not at all."""
    with clear_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(out / STUDY, _json(study.to_dict()))
    write_text(out / TABLE, to_csv(study.rows))


COLUMNS = [
    *("name", "family", "seed", "steps", "tokens", "epochs", "parameters", "body", "layers", "dim", "thoughts"),
    *("fast_steps", "training_operations", "score_token_operations", "write_token_operations", "seconds"),
    *("bound.nats_per_token", "bound.stderr", "iwae.nats_per_token", "iwae.stderr", "predictive.nats_per_token"),
    *("predictive.stderr", "reference.nats_per_token", "reference.stderr", "floor.nats_per_token", "rate", "active"),
    *("latent", "note"),
]
"""Columns of the CSV, and where in a row each stands; before them, one for each key on an axis."""


def to_csv(rows: Sequence[Row]) -> str:
    """A line for each cell; unknown figures are empty."""
    out, axes = io.StringIO(), list(dict.fromkeys(key for row in rows for key in row.axes))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*axes, *COLUMNS])
    for row in rows:
        predictive = row.level("predictive")
        found = {**asdict(row), "epochs": row.epochs, "predictive": predictive and asdict(predictive)}
        values = [*(row.axes.get(key) for key in axes), *(at(found, column) for column in COLUMNS)]
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def _json(found: Mapping[str, Any]) -> str:
    whole = with_digest(msgspec.json.decode(msgspec.json.encode(found, enc_hook=str)))
    return msgspec.json.format(msgspec.json.encode(whole), indent=1).decode() + "\n"


__all__ = [
    "ADDED",
    "CELL",
    "FIGURES",
    "RUNS",
    "STUDY",
    "Level",
    "Look",
    "Row",
    "Study",
    "check_settings",
    "check_target",
    "open_study",
    "read_row",
    "read_rows",
    "refresh",
    "save",
    "write_row",
]

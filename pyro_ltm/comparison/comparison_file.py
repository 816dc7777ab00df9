"""The folder of a comparison: `compare.json`, from which one that was interrupted goes on, and `compare.csv`.

Both are written whole after each pair.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pyro_ltm.comparison.result import FORMAT, Comparison, Kind
from pyro_ltm.digests import with_digest, without_digest
from pyro_ltm.errors import UserError
from pyro_ltm.files import clear_errors, write_text
from pyro_ltm.reading import read_json

COMPARISON, TABLE = "compare.json", "compare.csv"

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
    "pareto_k_median": "pareto_k.median",
    "pareto_k_share_above": "pareto_k.share_above",
    "rhat_median": "convergence.rhat",
    "ess_bulk_median": "convergence.ess_bulk",
    "rate_nats_per_sequence": "rate",
    "exchange_rate": "saved.nats_per_nat",
    "exchange_rate_stderr": "saved.stderr",
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

FOR_SOME = ("guide_training",)
"""Settings that only guides with shared parameters look at."""

DIGESTS = {"model": "under another decoder", "data": "on other sequences"}
"""Settings that are digests, which tell a reader nothing."""


def check_target(folder: Path, kind: Kind) -> Comparison | None:
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


def _read(path: Path, kind: Kind) -> Comparison:
    try:
        found = read_json(path, dict[str, Any])
        if found.get("format") != FORMAT:
            raise UserError(f"{path}: not a comparison of this release ({FORMAT})")
        comparison = Comparison.from_dict(without_digest(found))
    except UserError as error:
        reason = str(error) if str(error).startswith(f"{path}: ") else f"{path}: damaged: {error}"
        raise UserError(f"{reason}; choose another --out") from None
    if comparison.kind != kind:
        kinds = f"a comparison of {comparison.kind}, and this is one of {kind}"
        raise UserError(f"{path.parent}: holds {kinds}; choose another --out")
    return comparison


def open_comparison(
    folder: Path | None, kind: Kind, settings: Mapping[str, Any], added: Mapping[str, Any] | None = None
) -> Comparison:
    """The comparison in `folder` to go on with, else a new one; None keeps it in memory alone.

    Args:
        added: settings that releases before this one did not have, with the values that their comparisons were made by.

    Raises:
        UserError: as `check_target`; or the folder's comparison was made with other settings.
    """
    wanted = msgspec.json.decode(msgspec.json.encode(settings, enc_hook=str))  # as the file gives them back
    comparison = check_target(folder, kind) if folder is not None else None
    if comparison is None:
        comparison = Comparison(kind, wanted)
        if folder is not None:
            with clear_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            save(comparison, folder)
    for key, value in (added or {}).items():
        comparison.settings.setdefault(key, value)
    for key in dict.fromkeys([*wanted, *comparison.settings]):
        was, now = comparison.settings.get(key), wanted.get(key)
        if key in FOR_SOME and None in (was, now):  # the pairs of one side have no use for it
            comparison.settings[key] = was or now
        elif was != now:
            what = DIGESTS.get(key, f"with {key} = {_brief(was)} and not {_brief(now)}")
            raise UserError(f"{folder}: its comparison was made {what}; choose another --out")
    return comparison


def _brief(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)


def save(comparison: Comparison, folder: Path | None) -> None:
    """Writes `compare.json` and `compare.csv`, each whole or not at all; nothing without a folder."""
    if folder is None:
        return
    found = comparison.to_dict()
    whole = with_digest(msgspec.json.decode(msgspec.json.encode(found)))
    write_text(folder / COMPARISON, msgspec.json.format(msgspec.json.encode(whole), indent=1).decode() + "\n")
    write_text(folder / TABLE, to_csv(found))


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
    """The value at a dotted place of nested mappings; None where the way ends early."""
    found: Any = row
    for part in place.split("."):
        found = found.get(part) if found else None
    return found


__all__ = ["COMPARISON", "check_target", "open_comparison", "save", "to_csv"]

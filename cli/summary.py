"""What a run's metrics say, picked out for `train` and `info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def summarize(folder: Path) -> dict[str, Any]:
    """The counts so far, the last validation, and the two levels that it has to beat; None where unknown."""
    from pyro_ltm.runs.folder import METRICS
    from pyro_ltm.runs.metrics import read_metrics

    rows = read_metrics(folder / METRICS)
    trained = _of_kind(rows, "train")
    checks = _of_kind(rows, "validation")
    start = _of_kind(rows, "start")
    last = trained[-1] if trained else {}
    return {
        "tokens": last.get("tokens", 0),
        "seconds": last.get("seconds", 0.0),
        "skipped": last.get("skipped", 0),
        "validation": {key: value for key, value in checks[-1].items() if key != "kind"} if checks else None,
        "untrained_nats_per_token": next((row.get("nats_per_token") for row in checks if row.get("step") == 0), None),
        "unigram_nats_per_token": start[0].get("unigram_nats_per_token") if start else None,
    }


def _of_kind(rows: list[Any], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row, dict) and row.get("kind") == kind]

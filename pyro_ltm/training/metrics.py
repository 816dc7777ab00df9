"""Metrics as JSON lines: one object a line, of kind `train` or `validation`, in the order they were measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pyro_ltm.files import clear_errors, write_text

NEEDED = {"validation": "nats_per_token", "start": "unigram_nats_per_token"}
"""The figure for which a row of each kind is read."""


class MetricsLog:
    """Appends rows to a JSONL file; each row is on disk before the next step begins."""

    def __init__(self, path: Path):
        self.path = path
        self._file: Any = None

    def write(self, kind: str, row: dict[str, Any]) -> None:
        """One row. Figures that are not finite become null, which JSON can hold."""
        clean = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        with clear_errors(self.path):
            if self._file is None:
                self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by `close`
            self._file.write(json.dumps({"kind": kind, **clean}) + "\n")

    def cut(self, *, after: int) -> None:
        """Drops rows past step `after`, and a last line that a kill left half-written."""
        self.close()
        if self.path.exists():
            kept = [row for row in read_metrics(self.path) if row["step"] <= after]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def close(self) -> None:
        """Closes the file; the next `write` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a metrics file; none when there is no such file. What is no row is left out."""
    rows = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line that was being written when the process died
                continue
            if isinstance(row, dict) and "step" in row and NEEDED.get(str(row.get("kind")), "kind") in row:
                rows.append(row)
    return rows

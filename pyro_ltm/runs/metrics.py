"""Metrics as JSON lines: one object a line, of kind `train`, `validation`, `start` or `plan`, as they were measured."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.files import clear_errors, sync, write_atomically, write_text
from pyro_ltm.reading import MEBIBYTE, Count, fitted, parse_json
from pyro_ltm.runs.folder import METRICS

Figure = float | None
"""None where it was not finite."""


class TrainRow(msgspec.Struct, tag_field="kind", tag="train"):
    """A slow step, as `Trainer` measures it; of the three levels it has the one that fits its noise.

    `note`: what the user was told after it.
    """

    step: Count
    tokens: Count
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    skipped: Count
    lr: Figure = None
    beta: Figure = None
    bound_nats_per_token: Figure = None
    own_noise_nats_per_token: Figure = None
    joint_nats_per_token: Figure = None
    distortion_nats_per_token: Figure = None
    kl_nats_per_sequence: Figure = None
    grad_norm: Figure = None
    note: str | None = None


class ValidationRow(msgspec.Struct, tag_field="kind", tag="validation"):
    """The figures of a validation that are read again; it holds all figures of a `Bound`.

    `average_*`: of the average of the weights, where the run has one.
    """

    step: Count
    nats_per_token: Figure
    nats_per_token_stderr: Figure = None
    average_nats_per_token: Figure = None
    average_nats_per_token_stderr: Figure = None
    distortion_nats_per_token: Figure = None
    distortion_shuffled: Figure = None
    kl_nats_per_sequence: Figure = None


class StartRow(msgspec.Struct, tag_field="kind", tag="start"):
    """The level of counting tokens."""

    step: Count
    unigram_nats_per_token: Figure


class PlanRow(msgspec.Struct, tag_field="kind", tag="plan"):
    """At `step` the number of slow steps was changed (see `Trainer.extend`), or the run branched from another.

    Attributes:
        decay: steps of the decay that began there; 0: none did. branch_of: that other run, as seen from this one.
    """

    step: Count
    steps: Count
    steps_before: Count
    rewarm: Count = 0
    decay: Count = 0
    branch_of: str | None = None


Row: Any = TrainRow | ValidationRow | StartRow | PlanRow


@dataclass(frozen=True)
class Mark:
    """How far a metrics file went at some moment: its bytes, and the checksum of them."""

    bytes: Count
    crc32: Count


class MetricsLog:
    """Appends rows to a JSONL file; each row is in the file before the next step begins.

    Args:
        writes: whether it does. Of several processes one alone does, and for the others the file is not there.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        self.path = path
        self._writes = writes
        self._file: io.FileIO | None = None
        self._end = Mark(0, 0)

    def write(self, kind: str, row: dict[str, Any]) -> None:
        """One row. Figures that are not finite become null, which JSON can hold."""
        if not self._writes:
            return
        clean = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        self._append((json.dumps({"kind": kind, **clean}) + "\n").encode())

    def _append(self, content: bytes) -> None:
        with clear_errors(self.path):
            if self._file is None:
                self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115 - closed by `close`
                self._end = _mark_of(self._content())
            left = memoryview(content)
            while left:
                left = left[self._file.write(left) :]
        self._end = _mark_of(content, self._end)

    def _content(self) -> bytes:
        assert self._file is not None
        self._file.seek(0)  # what is appended goes to the end from anywhere
        return self._file.readall()

    def mark(self) -> Mark:
        """Where the file ends now. One that somebody has taken away while it was written to is put back."""
        if not self._writes:
            return self._end
        self._append(b"")
        assert self._file is not None
        handle = self._file.fileno()
        if not self.path.exists() or not os.path.samestat(os.fstat(handle), os.stat(self.path)):
            content = self._content()
            self.close()
            write_atomically(self.path, lambda temporary: temporary.write_bytes(content))
        return self._end

    def sync(self) -> None:
        """Makes the rows last beyond a power cut. May be called from another thread."""
        with clear_errors(self.path):
            sync(self.path)

    def begins_with(self, mark: Mark) -> bool:
        """Whether the file, up to where it ended once, is as it was then."""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            return os.fstat(file.fileno()).st_size >= mark.bytes and _mark_of(file.read(mark.bytes)) == mark
        return mark.bytes == 0

    def cut(self, *, after: int) -> None:
        """Drops rows past step `after`, and a last line that a kill left half-written.

        At 0 nothing is done yet: of the rows before the first step, a change of plan alone stays.
        """
        self.close()
        if self._writes and self.path.exists():
            rows = read_metrics(self.path)
            rows = [row for row in rows if row["step"] <= after and (after or row["kind"] == "plan")]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def close(self) -> None:
        """Closes the file; the next `write` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _mark_of(content: bytes, before: Mark = Mark(0, 0)) -> Mark:
    return Mark(before.bytes + len(content), zlib.crc32(content, before.crc32))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; none when there is no such file.

    A last line that was being written when the process died is left out.

    Raises:
        UserError: a line before that is no row: with its number, and what was expected.
    """
    rows = []
    for number, line in _lines(path):
        try:
            row = parse_json(line, dict[str, Any])
            fitted(row, Row)
        except UserError as error:
            if not line.endswith(b"\n"):
                break
            raise UserError(f"{path}:{number}: damaged: {error}; take the line out of it") from None
        rows.append(row)
    return rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the lines that are not blank. Raises UserError when one is too long or cannot be read."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MEBIBYTE), b""), 1):
                if len(line) == MEBIBYTE:
                    raise UserError(f"{path}:{number}: damaged: a line of over 1 MiB; take it out")
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None


def summarize(folder: Path) -> dict[str, Any]:
    """The counts of a run so far, its last and its best validation, and the levels to beat; None where unknown."""
    rows = read_metrics(folder / METRICS)
    steps, checks, start = ([row for row in rows if row["kind"] == kind] for kind in ("train", "validation", "start"))
    last = steps[-1] if steps else {}
    return {
        "tokens": last.get("tokens", 0),
        "seconds": last.get("seconds", 0.0),
        "skipped": last.get("skipped", 0),
        "validation": {key: value for key, value in checks[-1].items() if key != "kind"} if checks else None,
        "best_validation": _best(checks),
        "untrained_nats_per_token": next((row["nats_per_token"] for row in checks if row["step"] == 0), None),
        "unigram_nats_per_token": start[0]["unigram_nats_per_token"] if start else None,
    }


def _best(checks: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Step and level of the lowest of these validations; the first, where several are."""
    known = [row for row in checks if row["nats_per_token"] is not None]
    best = min(known, key=itemgetter("nats_per_token"), default=None)
    return None if best is None else {key: best[key] for key in ("step", "nats_per_token")}

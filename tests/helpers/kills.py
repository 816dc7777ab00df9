"""A command in a process of its own, killed at random moments, started again, and at last left to end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from helpers.processes import Forked
from safetensors.torch import load_file

PATIENCE = 300.0
"""Seconds until what should have ended counts as hung."""


def eager() -> None:
    """Fits of a first part are kept after each batch, and not once a minute (`Forked(first=eager)`)."""
    from pyro_ltm.runs.partial_fits import PartialFits

    PartialFits.__init__.__kwdefaults__["seconds"] = -1.0  # type: ignore[index]


@dataclass(frozen=True)
class Victim:
    """A command that is killed.

    Attributes:
        arguments: of the command line, by the path that it writes.
        result: what it leaves there, apart from what a clock says and from where it lies; equal for equal work.
        begin: puts there what must be there before.
        once: when it is done, it is not to be started again.
    """

    arguments: Callable[[Path], list[object]]
    result: Callable[[Path], Any]
    begin: Callable[[Path], None] = lambda out: None
    once: bool = False

    def undisturbed(self, out: Path) -> float:
        """Lets it run in peace. Gives the seconds that took."""
        self.begin(out)
        began = time.monotonic()
        self.end(out)
        return time.monotonic() - began

    def end(self, out: Path) -> None:
        """Starts it and lets it end: well, and with nothing hidden left over."""
        process = Forked(*self.arguments(out), first=eager)
        _, err = process.communicate(PATIENCE)
        assert process.returncode == 0, err
        assert [path.name for path in out.parent.rglob(".*")] == []

    def kill_after(self, seconds: float, out: Path) -> bool:
        """Starts it, and kills it after so long. Whether it ran still."""
        process = Forked(*self.arguments(out), first=eager)
        time.sleep(seconds)
        return _killed(process)

    def kill_in_a_write(self, name: str, nth: int, out: Path, draw: random.Random) -> tuple[bool, bool]:
        """Starts it, and kills it soon after it began to write the file `name` for the `nth` time.

        Whether it ran still; and whether it wrote still: the new file is there, and not in its place yet.
        """
        process = Forked(*self.arguments(out), first=eager)
        folder, written, writes = out / f".{name}.{process.pid}.tmp", 0, False
        deadline = time.monotonic() + PATIENCE
        while written < nth and process.poll() is None:
            assert time.monotonic() < deadline
            before, writes = writes, folder.exists()
            written += writes and not before
        time.sleep(draw.uniform(0, 0.004))
        ran = _killed(process)
        return ran, ran and any(folder.glob("*"))


def until_hit(wanted: int, kill: Callable[[], bool]) -> None:
    """Kills until so many kills have hit, as `kill` says of each."""
    hits = tries = 0
    while hits < wanted:
        hits, tries = hits + kill(), tries + 1
        assert tries < 10 * wanted + 10, f"of {tries} kills {hits} hit: the others came too late"


def _killed(process: Forked) -> bool:
    ran = process.poll() is None
    process.kill()
    _, err = process.communicate(PATIENCE)
    assert process.returncode in (0, -9), err
    return ran and process.returncode == -9


def weights_and_metrics(out: Path) -> Any:
    """Of a run: its weights and whole checkpoint to the bit, and its rows without the seconds."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    tensors = {name: value.numpy().tobytes() for name, value in load_file(out / "trainer.safetensors").items()}
    weights = (out / "model.safetensors").read_bytes()
    return weights, tensors, [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def files(out: Path) -> Any:
    """Of a folder: every file to the byte."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def evaluation(out: Path) -> Any:
    """Of a run that was evaluated: all figures."""
    found = json.loads((out / "evaluation.json").read_text())
    return {key: value for key, value in found.items() if key not in ("run", "data", "crc32")}


def compared(out: Path) -> Any:
    """Of a comparison: the figures of each pair that no clock gives."""
    found = json.loads((out / "compare.json").read_text())
    names = ("guide", "objective", "fast_steps", "elbo", "iwae", "rate", "distortion", "nats_by_sequence", "note")
    return [[pair[name] for name in names] for pair in found["pairs"]]


def embedded(out: Path) -> Any:
    """Of a file of embeddings: the rows to the bit."""
    with np.load(out) as arrays:
        return arrays["embeddings"].tobytes(), arrays["document"].tolist()


def studied(out: Path) -> Any:
    """Of a study: the figures of each cell that no clock gives, its weights and rows; and that its page was written."""
    assert (out / "scaling.html").is_file()
    found = []
    for row in json.loads((out / "study.json").read_text())["cells"]:
        folder = out / "runs" / row["name"]
        by_sequence = json.loads((folder / "cell.json").read_text())["sequence_nats"]
        timeless = {key: value for key, value in row.items() if key not in ("seconds", "machine", "worker")}
        found.append((timeless, by_sequence, weights_and_metrics(folder)))
    return found

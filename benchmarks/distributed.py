"""Two processes of one thread each against one, on the CPU: tokens a second and memory, with DDP and with FSDP.

    python -m benchmarks.distributed --out runs/distributed [--seeds 0,1,2,3,4]
    python -m benchmarks.distributed --table runs/distributed

Rows come one by one, as `benchmarks.rows` says: a round of timings for each seed, and one row of memory; five minutes
on two cores that do nothing else. In a round one process, two with DDP, two with FSDP, and two that know nothing of
each other, each with half the batch, learn in turn from the same random tokens. The last pair shows what the cores,
whose memory is shared, allow at most. What counts is the time of the slow steps after the first, as the metrics say.
Memory is the most that the system gave to each process of a training of a larger model that saves after each step,
beyond what one of a tiny model takes, which is Python and its libraries; beside it what `pyro-ltm plan` foresees.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.interleave import machine, ratio
from benchmarks.pages import table
from benchmarks.rows import Rows, Study, run
from pyro_ltm.config import apply_settings
from pyro_ltm.data import prepare
from pyro_ltm.presets import preset
from pyro_ltm.profiling.devices import this_cpu
from pyro_ltm.profiling.plan import plan_training
from pyro_ltm.runs.metrics import read_metrics

Settings = Mapping[str, Any]
ALWAYS: Settings = {"slow.eval_every": 0, "slow.eval_sequences": 1}
TIMED: Settings = {
    **ALWAYS,
    "model.dim": 128,
    "model.layers": 2,
    "model.heads": 4,
    "model.thoughts": 8,
    "model.max_length": 256,
    "model.window": 64,
    "fast.steps": 4,
    "slow.batch_size": 8,
    "slow.accumulate": 2,
    "slow.steps": 7,
    "slow.save_every": 100_000,
}
LARGE: Settings = {
    **ALWAYS,
    "model.dim": 512,
    "model.thoughts": 6,
    "model.layers": 6,
    "model.heads": 8,
    "model.max_length": 64,
    "model.window": 64,
    "fast.steps": 2,
    "slow.batch_size": 4,
    "slow.accumulate": 2,
    "slow.steps": 2,
    "slow.save_every": 1,
    "slow.decoder_warmup": 0,
}
"""25 million parameters."""
SMALL = {**LARGE, "model.dim": 16, "model.heads": 2}
WORDS, SMALL_VOCABULARY, VOCABULARY = 60_000, 2048, 8192

ONE, APART = "one", "two, apart"
KINDS = {"two, DDP": "ddp", "two, FSDP": "fsdp"}
"""`distributed.kind` of the sides that share a training."""
SIDES = (ONE, *KINDS, APART)
MISSING = "not measured yet\n"


@dataclass(frozen=True)
class Row:
    """A round of timings with this seed; or, without one, memory."""

    seed: int | None

    @property
    def name(self) -> str:
        """Of its file."""
        return "memory" if self.seed is None else f"round-s{self.seed}"


def planned(seeds: Sequence[int]) -> Iterator[Row]:
    """The rounds, and memory."""
    yield from (Row(seed) for seed in (*seeds, None))


def measure(row: Row, _: Path, out: Path) -> dict[str, Any]:
    """Measures a row."""
    found = _memory(out) if row.seed is None else {"seconds": _round(out, row.seed), "tokens": _tokens(TIMED)}
    return {"row": row.name, **found, "machine": machine()}


def _tokens(settings: Settings) -> int:
    """In a slow step."""
    return int(settings["slow.batch_size"] * settings["slow.accumulate"] * settings["model.max_length"])


def _round(out: Path, seed: int) -> dict[str, float]:
    """Seconds of a slow step of each side, in turn; apart each of the two has half the sequences."""
    data, seconds = _prepared(out, SMALL_VOCABULARY, int(TIMED["model.max_length"])), {}
    half = {**TIMED, "slow.batch_size": TIMED["slow.batch_size"] // 2}
    for side in SIDES:
        place = out / "runs" / f"s{seed}" / side.replace(", ", "-")
        if side == APART:
            pair = [_Training(place / str(index), data, half, seed=seed) for index in range(2)]
        else:
            changed = TIMED if side == ONE else {**TIMED, "distributed.kind": KINDS[side]}
            pair = [_Training(place, data, changed, processes=1 if side == ONE else 2, seed=seed)]
        for training in pair:
            training.ended()
        seconds[side] = statistics.mean(training.seconds() for training in pair)
    return seconds


def _memory(out: Path) -> dict[str, Any]:
    """Bytes of each process at its peak, measured and foreseen; and of the libraries, which are taken off."""
    data = _prepared(out, VOCABULARY, int(LARGE["model.max_length"]))
    libraries = max(_Training(out / "runs" / "libraries", data, SMALL, processes=2).peaks())
    measured, foreseen = {}, {}
    for side in (ONE, *KINDS):
        count = 1 if side == ONE else 2
        changed = {**LARGE, "distributed.kind": KINDS.get(side, "ddp")}
        peaks = _Training(out / "runs" / side.replace(", ", "-"), data, changed, processes=count).peaks()
        measured[side] = [peak - libraries for peak in peaks]
        settings = [f"{key}={value}" for key, value in {**changed, "model.vocab_size": VOCABULARY}.items()]
        plan = plan_training(apply_settings(preset("nano"), settings), count, this_cpu())
        first = plan.sharing.peak_bytes
        foreseen[side] = [first, first - plan.copy_bytes][:count]
    return {"libraries": libraries, "bytes": measured, "foreseen": foreseen}


def _prepared(out: Path, vocabulary: int, length: int) -> Path:
    """Tokens of random numbers, which are nothing to learn."""
    folder, text, draw = out / f"tokens-{vocabulary}", out / "text.txt", random.Random(0)
    if not folder.exists():
        text.write_text(" ".join(str(draw.randrange(10_000)) for _ in range(WORDS)))
        prepare([str(text)], folder, vocab_size=vocabulary, sequence_length=length)
    return folder


class _Training:
    """A training under way in `processes`, started as `torchrun` starts them, of one thread each."""

    def __init__(self, out: Path, data: Path, settings: Settings, *, processes: int = 1, seed: int = 0):
        shutil.rmtree(out, ignore_errors=True)  # of a row that was left
        out.parent.mkdir(parents=True, exist_ok=True)
        self.out, self.logs = out, [out.with_name(f"{out.name}-{rank}.log") for rank in range(processes)]
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "pyro_ltm_cli", "train", "--preset", "nano", "--data", str(data)]
        command += ["--out", str(out), "--seed", str(seed), *words]
        # By itself glibc keeps up to a half more of what is freed.
        common = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
        if processes > 1:
            common |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self.processes = []
        for rank, log in enumerate(self.logs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            with log.open("wb") as said:
                self.processes.append(
                    subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **common, **own})
                )

    def ended(self) -> None:
        """Waits. Raises SystemExit with what they said where one failed."""
        if any(process.wait() for process in self.processes):
            raise SystemExit("".join(log.read_text(encoding="utf-8") for log in self.logs))

    def seconds(self) -> float:
        """The median of a slow step after the first."""
        clock = [row["seconds"] for row in read_metrics(self.out / "metrics.jsonl") if row["kind"] == "train"]
        return statistics.median(after - before for before, after in itertools.pairwise(clock))

    def peaks(self) -> list[int]:
        """Waits. Bytes that the system gave to each process at most."""
        found = [0] * len(self.processes)
        while any(process.poll() is None for process in self.processes):
            found = [max(peak, _peak(process.pid)) for peak, process in zip(found, self.processes, strict=True)]
            time.sleep(0.02)
        self.ended()
        return found


def _peak(process: int) -> int:
    """Bytes that Linux gave to a process at most until now; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def tables(found: Rows) -> dict[str, str]:
    """Both tables."""
    rounds = [row for row in found.values() if "seconds" in row]
    memory = [row for row in found.values() if "bytes" in row]
    return {
        "two processes": _speed(rounds) if rounds else MISSING,
        "two processes, memory": _bytes(memory[0]) if memory else MISSING,
    }


def _speed(rounds: Sequence[Any]) -> str:
    lines = []
    for side in SIDES:
        seconds = [row["seconds"][side] for row in rounds]
        level = statistics.median(seconds)
        times = ratio([row["seconds"][ONE] for row in rounds], seconds)
        spread = f"{times['median']:.2f} ({times['least']:.2f} to {times['most']:.2f})"
        lines.append([side, f"{rounds[0]['tokens'] / level:,.0f}", f"{level:.3f}", "" if side == ONE else spread])
    return table(["processes", "tokens a second", "s a slow step", f"times one ({len(rounds)} rounds)"], lines)


def _bytes(row: Any) -> str:
    def shown(sizes: Sequence[int]) -> list[str]:
        return [*(f"{size / 1e6:,.0f}" for size in sizes), ""][:2]

    lines = [[side, *shown(row["bytes"][side]), *shown(row["foreseen"][side])] for side in row["bytes"]]
    return table(["processes", "MB, first", "MB, second", "foreseen, first", "foreseen, second"], lines)


def _line(row: Any) -> str:
    values = row.get("seconds") or {side: [round(size / 1e6) for size in sizes] for side, sizes in row["bytes"].items()}
    return f"{row['row']}: " + "; ".join(f"{side} {value}" for side, value in values.items())


STUDY = Study("distributed", __doc__, planned, measure, tables, _line)

if __name__ == "__main__":
    run(STUDY)

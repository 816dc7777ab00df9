"""Two processes of one thread each against one: how many times as many tokens a second they train on.

    python -m benchmarks.distributed [--rounds 5] [--steps 6] [--kind ddp] [--out FILE.json]

Both train the same run, by the same global batch, on the CPU, in turn: in each round one process and then two, started
by `torchrun`, learn from random tokens. What counts is the time of the slow steps after the first, as the metrics say:
of each side the median over rounds, and the spread of the ratio round by round. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.interleave import machine
from pyro_ltm.data import prepare
from pyro_ltm.runs.metrics import read_metrics

SETTINGS = {
    "model.dim": 128,
    "model.layers": 2,
    "model.heads": 4,
    "model.thoughts": 8,
    "model.max_length": 256,
    "model.window": 64,
    "fast.steps": 4,
    "slow.batch_size": 8,
    "slow.accumulate": 2,
    "slow.eval_every": 0,
    "slow.eval_sequences": 1,
    "slow.save_every": 100000,
}


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--kind", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = measure(asked.rounds, asked.steps, asked.kind)
    print(f"{found['speed-up']:.2f} times ({found['least']:.2f} to {found['most']:.2f}), {asked.kind}")
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(rounds: int, steps: int, kind: str) -> dict[str, Any]:
    """Seconds of a slow step of one process and of two, and their ratio."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw = random.Random(0)
        (folder / "text.txt").write_text(" ".join(str(draw.randrange(10_000)) for _ in range(60_000)))
        prepare([str(folder / "text.txt")], folder / "tokens", vocab_size=2048, sequence_length=256)
        for number in range(rounds):
            for processes, found in seconds.items():
                found.append(_seconds(folder / f"{number}-{processes}", folder / "tokens", processes, steps, kind))
    ratios = [one / two for one, two in zip(*seconds.values(), strict=True)]
    level = {str(processes): statistics.median(found) for processes, found in seconds.items()}
    spread = {"least": min(ratios), "most": max(ratios)}
    return {"seconds": level, "speed-up": level["1"] / level["2"], **spread, "kind": kind, "machine": machine()}


def _seconds(out: Path, tokens: Path, processes: int, steps: int, kind: str) -> float:
    """Median seconds of a slow step after the first."""
    settings = {**SETTINGS, "slow.steps": steps, "distributed.kind": kind}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "pyro_ltm_cli", "train", "--preset", "nano", "--data", str(tokens), "--out", str(out), *words]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **threads})
    clock = [row["seconds"] for row in read_metrics(out / "metrics.jsonl") if row["kind"] == "train"]
    return statistics.median(after - before for before, after in itertools.pairwise(clock))


if __name__ == "__main__":
    main()

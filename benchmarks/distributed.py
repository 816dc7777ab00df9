"""Two processes of one thread each against one: how many times as many tokens a second they train on.

    python -m benchmarks.distributed [--rounds 5] [--steps 6] [--kind ddp] [--out FILE.json]

Both train the same run, by the same global batch, on the CPU, in turn: in each round one process and then two, started
by `torchrun`, learn from random tokens. What counts is the time of the slow steps after the first, as the metrics say:
of each side the median over rounds, and the spread of the ratio round by round. Nothing else may run on the machine.
Beside them two processes of one thread that know nothing of each other, each with half the batch: what the cores, whose
memory is shared, allow at most.
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
    print(f"two processes apart: {found['ceiling']:.2f} times")
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


ONE, TWO, APART = "1", "2", "2 apart"


def measure(rounds: int, steps: int, kind: str) -> dict[str, Any]:
    """Seconds of a slow step of one process, of two, and of two that do not work together; and their ratios."""
    seconds: dict[str, list[float]] = {ONE: [], TWO: [], APART: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw = random.Random(0)
        (folder / "text.txt").write_text(" ".join(str(draw.randrange(10_000)) for _ in range(60_000)))
        prepare([str(folder / "text.txt")], folder / "tokens", vocab_size=2048, sequence_length=256)
        half = {"slow.batch_size": int(SETTINGS["slow.batch_size"]) // 2}
        plans = {ONE: [(1, {})], TWO: [(2, {})], APART: [(1, half), (1, half)]}
        for number in range(rounds):
            for side, plan in plans.items():
                changed = {"slow.steps": steps, "distributed.kind": kind}
                runs = [
                    _started(folder / f"{number}-{side}-{index}", folder / "tokens", processes, changed | own)
                    for index, (processes, own) in enumerate(plan)
                ]
                seconds[side].append(statistics.mean(_seconds(*run) for run in runs))
    ratios = [one / two for one, two in zip(seconds[ONE], seconds[TWO], strict=True)]
    level = {side: statistics.median(found) for side, found in seconds.items()}
    spread = {"least": min(ratios), "most": max(ratios), "ceiling": level[ONE] / level[APART]}
    return {"seconds": level, "speed-up": level[ONE] / level[TWO], **spread, "kind": kind, "machine": machine()}


def _started(out: Path, tokens: Path, processes: int, changed: dict[str, Any]) -> tuple[subprocess.Popen[bytes], Path]:
    """A training under way, and its folder."""
    words = [word for key, value in {**SETTINGS, **changed}.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "pyro_ltm_cli", "train", "--preset", "nano", "--data", str(tokens), "--out", str(out), *words]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    log = (out.parent / f"{out.name}.log").open("wb")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **threads}), out


def _seconds(process: subprocess.Popen[bytes], out: Path) -> float:
    """Median seconds of a slow step after the first, when a training is over."""
    if process.wait():
        raise SystemExit((out.parent / f"{out.name}.log").read_text(encoding="utf-8"))
    clock = [row["seconds"] for row in read_metrics(out / "metrics.jsonl") if row["kind"] == "train"]
    return statistics.median(after - before for before, after in itertools.pairwise(clock))


if __name__ == "__main__":
    main()

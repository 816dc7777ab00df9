"""Runs the benchmarks of speed and writes what they found.

    python -m benchmarks --out runs/speed [--only speed,nano,pipeline,growth,race,levers] [--data DIR]
    python -m benchmarks --table benchmarks/speed-2026-11-26.json

The first measures (more than an hour on two cores of a machine that does nothing else), adds to OUT/speed.json part by
part, and plots. The second writes the figures in docs/speed.md and README from such a file; a test holds them together.
`--data` is a prepared folder of text for `levers` and `race` (docs/speed.md says which).
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import growth, levers, pipeline, speed, table
from benchmarks.interleave import machine

PARTS = ("speed", "nano", "pipeline", "growth", "race", "levers")


def measure(part: str, options: argparse.Namespace) -> Any:
    """One part's figures."""
    if part == "speed":
        return speed.run(options.preset, options.rounds)
    if part == "nano":
        return speed.run("nano", options.rounds)
    if part == "growth":
        return growth.run(options.rounds)
    if part == "pipeline":
        return pipeline.run(options.rounds)
    if options.data is None:
        raise SystemExit(f"{part}: name a prepared folder with --data")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if part == "race":
        return [levers.race(options.data, options.steps, seed) for seed in seeds]
    return levers.run(options.data, options.steps, seeds, options.rows.split(";") if options.rows else None)


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=300, help="slow steps of a row of `levers` and of `race`")
    parser.add_argument("--seeds", default="0", help="of `levers` and of `race`, with commas")
    parser.add_argument("--rows", help="which rows of `levers`, with semicolons; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=Path, help="write docs and README from this file, measure nothing")
    options = parser.parse_args()
    if options.table:
        table.write(json.loads(options.table.read_text()))
        return
    if not options.out:
        parser.error("name a folder with --out")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "speed.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in options.only.split(","):
        if part not in PARTS:
            parser.error(f"--only {part}: choose from {', '.join(PARTS)}")
        began = datetime.datetime.now(datetime.timezone.utc)
        result = measure(part, options)
        minutes = (datetime.datetime.now(datetime.timezone.utc) - began).total_seconds() / 60
        found[part] = {
            "date": began.date().isoformat(),
            "minutes": round(minutes, 1),
            "machine": machine(),
            "found": result,
        }
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{part}: {minutes:.1f} minutes, in {path}", flush=True)
    if "growth" in found:
        growth.plot(found["growth"]["found"], options.out / "growth.png")
    print(table.targets(found))
    print(f"Next:\n  python -m benchmarks --table {path}")


if __name__ == "__main__":
    main()

"""Which recipe comes nearest to the floor? One small model a row on `worlds`, each judged the same way.

    pyro-ltm prepare worlds:documents=20000 --sequence-length 128 --out data/worlds
    python -m benchmarks.worlds --data data/worlds --out runs/worlds [--rows "16 fast steps;twin"]

Nats a document on the first validation documents (--documents), whose exact entropy stands beside them: the bound
(ELBO) and the importance-weighted bound with 16 draws, after the row's own fast loop and after 64 steps of Adam at 0.1.
Appends one JSON line a row to OUT/worlds.jsonl; a row that is there already is skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pyro_ltm.config import apply_settings
from pyro_ltm.data import TokenDataset
from pyro_ltm.inference import build
from pyro_ltm.optimizers import Adam
from pyro_ltm.presets import preset
from pyro_ltm.runs import Run
from pyro_ltm.runs.batches import dataset_batches
from pyro_ltm.scores import evaluate_bound, evaluate_floor
from pyro_ltm.training import Trainer

ROWS: dict[str, tuple[int, list[str]]] = {  # slow steps, and what differs from nano with a window of 8
    "twin": (1500, ["model.thoughts=0"]),
    "twin, 3000 steps": (3000, ["model.thoughts=0"]),
    "4 fast steps": (1500, ["fast.steps=4"]),
    "4 fast steps, 2 thoughts": (1000, ["fast.steps=4", "model.thoughts=2"]),
    "4 fast steps, semi-amortized": (1000, ["fast.steps=4", "guide.name=semi-amortized"]),
    "8 fast steps, stl": (1000, ["fast.steps=8", "objective.name=stl"]),
    "8 fast steps, fast lr 1": (1000, ["fast.steps=8", "optimizer.lr=1.0"]),
    "16 fast steps": (1000, ["fast.steps=16"]),
    "16 fast steps, 3000 steps": (3000, ["fast.steps=16"]),
    "16 fast steps, 8 thoughts": (1000, ["fast.steps=16", "model.thoughts=8"]),
    "16 fast steps, no warm-up": (1000, ["fast.steps=16", "objective.warmup=0.0"]),
    "16 fast steps, warm-up 1": (1000, ["fast.steps=16", "objective.warmup=1.0"]),
    "16 fast steps, 500 steps": (500, ["fast.steps=16"]),
    "16 fast steps, eps 0.1, 500 steps": (500, ["fast.steps=16", "optimizer.eps=0.1"]),
    "16 fast steps, eps 0.01, 500 steps": (500, ["fast.steps=16", "optimizer.eps=0.01"]),
    "16 fast steps, eps 0.01, 1500 steps": (1500, ["fast.steps=16", "optimizer.eps=0.01"]),
    "16 fast steps, cyclical": (1000, ["fast.steps=16", "objective.name=cyclical"]),
    "16 fast steps, free bits 6": (1000, ["fast.steps=16", "objective.name=free-bits", "objective.nats=6.0"]),
}


def measure(row: str, data: Path, seed: int, documents: int) -> dict[str, Any]:
    """Trains the row and gives its figures, in nats a document."""
    steps, changes = ROWS[row]
    train, validation = TokenDataset(data), TokenDataset(data, "validation")
    fixed = [f"model.vocab_size={train.vocab_size}", f"slow.steps={steps}", "slow.eval_every=0", f"seed={seed}"]
    config = apply_settings(preset("nano"), [*fixed, "model.window=8", *changes])
    model, loop = build(config)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder), config, model, loop, train.tokenizer)
        began = time.perf_counter()
        Trainer(run, train, None).fit()
        seconds = time.perf_counter() - began
    floor = evaluate_floor(validation, sequences=documents, window=config.model.receptive_field)

    def judge(optimizer: Any, fast_steps: int) -> dict[str, float]:
        found = evaluate_bound(
            model,
            dataset_batches(validation, 50, "cpu", limit=documents),
            dataclasses.replace(loop, optimizer=optimizer).with_steps(fast_steps),
            particles=16,
            seed=1,
        )
        size = found.tokens / documents
        return {
            "elbo": round(found.nats_per_token * size, 2),
            "iwae": round(found.iwae_nats_per_token * size, 2),
            "rate": round(found.kl_nats_per_sequence, 2),
        }

    return {
        "row": row,
        "seed": seed,
        "documents": documents,
        "steps": steps,
        "settings": changes,
        "seconds": round(seconds),
        "floor": round(float(floor.sequence_nats.mean()), 2),
        "own": judge(loop.optimizer, loop.steps),
        "long": judge(Adam(lr=0.1), 64),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, the lowest importance-weighted bound first."""
    lines = [
        "| row | slow steps | ELBO, own loop | ELBO, long loop | IWAE-16, long loop | rate |",
        "|---|---|---|---|---|---|",
    ]
    for one in sorted(rows, key=lambda one: one["long"]["iwae"]):
        own, long = one["own"], one["long"]
        lines.append(
            f"| {one['row']} | {one['steps']} | {own['elbo']} | {long['elbo']} | {long['iwae']} | {long['rate']} |"
        )
    return "\n".join([*lines, "", f"Floor: {rows[0]['floor']} nats a document."])


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", default=";".join(ROWS), help="which rows, with semicolons")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "worlds.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for row in options.rows.split(";"):
        if not any(one["row"] == row and one["seed"] == options.seed for one in done):
            done.append(measure(row, options.data, options.seed, options.documents))
            with log.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    print(table(done))


if __name__ == "__main__":
    main()

"""How long training stands still for a checkpoint: while all of it is written, and while it is copied to be written.

    python -m benchmarks.checkpoints --preset medium --out stalls.json

The model of a preset with AdamW's whole state. `whole`: until everything is on the disk, as before checkpoints were
written in the background. `copy`: until the step can go on; the first one also takes memory for the copy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

import pyro_ltm as ltm
from pyro_ltm.comparison.loop import environment
from pyro_ltm.data import TokenDataset
from pyro_ltm.inference.build import build
from pyro_ltm.runs.run import Run
from pyro_ltm.training.trainer import Trainer

TEXT = "".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(400))


def trainer_of(preset: str, vocab_size: int, folder: Path) -> Trainer:
    """A trainer whose optimizer has taken a step."""
    (folder / "birds.txt").write_text(TEXT)
    tokens = ltm.prepare([str(folder / "birds.txt")], folder / "tokens", vocab_size=280, sequence_length=16)
    config = ltm.apply_settings(ltm.preset(preset), [f"model.vocab_size={vocab_size}", "data.sequence_length=16"])
    data = TokenDataset(tokens.path)
    run = Run.create(folder / "run", config, *build(config), data.tokenizer)
    trainer = Trainer(run, data, None)
    for parameter in run.trainable.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return trainer


def measure(trainer: Trainer, repeats: int) -> dict[str, list[float]]:
    """Seconds of each save: of the copy, and of the whole."""
    found: dict[str, list[float]] = {"copy": [], "whole": []}
    for _ in range(repeats):
        trainer.counters.step += 1
        began = time.perf_counter()
        write = trainer.checkpoint.snapshot(trainer.counters)
        found["copy"].append(time.perf_counter() - began)
        write()
        found["whole"].append(time.perf_counter() - began)
    trainer.metrics.close()
    return found


def main() -> None:
    """Measures, shows the medians and writes all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--vocab-size", type=int, default=50258)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(options.preset, options.vocab_size, Path(folder))
        parameters = sum(parameter.numel() for parameter in trainer.run.trainable.parameters())
        found = measure(trainer, options.repeats)
        size = os.path.getsize(Path(folder) / "run" / "trainer.safetensors")
    result = {"preset": options.preset, "parameters": parameters, "bytes": size, "seconds": found}
    result |= {"machine": environment(), "load": os.getloadavg(), "host": platform.machine()}
    print(f"{parameters:,} parameters, a checkpoint of {size / 1e6:,.0f} MB")
    print(f"first copy {found['copy'][0]:.2f} s, later ones {statistics.median(found['copy'][1:]):.2f} s")
    print(f"whole {statistics.median(found['whole'][1:]):.2f} s")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

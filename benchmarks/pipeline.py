"""Work around the training step: start-up of the command, preparing text, waiting for data."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.interleave import interleaved, ratio, summary
from pyro_ltm.config import apply_settings
from pyro_ltm.data import TokenDataset, prepare, read_source
from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.presets import preset
from pyro_ltm.profiling.speed import measure_speed

CORPUS = "python-docs"
COPIES = 4
GROUP = 1 << 20  # characters handed to the tokenizer at a time, as `prepare` does


def start_up(rounds: int) -> dict[str, Any]:
    """Seconds of `pyro-ltm --help`, a process each; and of Python doing nothing, which is part of it."""
    program = [sys.executable, "-m", "pyro_ltm_cli.main", "--help"]
    works = {
        "pyro-ltm --help": lambda: subprocess.run(program, capture_output=True, check=True),
        "python -c pass": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
    }
    return {name: summary(seconds) for name, seconds in interleaved(works, max(rounds, 7)).items()}


def preparing(folder: Path, rounds: int) -> dict[str, Any]:
    """Tokens a second of `prepare` from a text file, beside the tokenizer alone on the same text in memory."""
    texts = [document.text for document in read_source(CORPUS)] * COPIES
    file = folder / "text.txt"
    file.write_text("\n\n".join(texts), encoding="utf-8")
    made = prepare([CORPUS], out=folder / "tokens", vocab_size=2048)
    tokenizer: Tokenizer = made.tokenizer()
    groups: list[list[str]] = [[]]
    for text in texts:
        if sum(map(len, groups[-1])) > GROUP:
            groups.append([])
        groups[-1].append(text)
    works = {
        "prepare": lambda: prepare(
            [str(file)], out=folder / "again", tokenizer=tokenizer, overwrite=True, validation_fraction=0.0
        ),
        "tokenizer alone": lambda: [tokenizer.encode_batch(group) for group in groups],
    }
    seconds = interleaved(works, rounds)
    share = ratio(seconds["tokenizer alone"], seconds["prepare"])
    tokens = sum(len(ids) for group in groups for ids in tokenizer.encode_batch(group))
    return {
        "characters": sum(map(len, texts)),
        "tokens_per_second": {name: tokens / summary(taken)["median"] for name, taken in seconds.items()},
        "share_of_the_tokenizers_speed": share,
    }


def waiting(folder: Path, rounds: int) -> dict[str, Any]:
    """Share of a training step of the preset nano that goes into reading its batch."""
    data = TokenDataset(folder / "tokens")
    config = apply_settings(preset("nano"), [f"model.vocab_size={data.vocab_size}"])
    speed = measure_speed(config, data, rounds=rounds)
    return {"data_seconds": speed.data_seconds, "step_seconds": speed.step_seconds}


def run(rounds: int = 5) -> dict[str, Any]:
    """All three."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "start_up": start_up(rounds),
            "preparing": preparing(folder, rounds),
            "waiting": waiting(folder, rounds),
        }

"""Memory does not grow with the text: it is read, encoded and trained on as a stream. Peaks of real processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyro_ltm.data import TokenFolder

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")

PEAK = """
def peak(process="self"):  # bytes that a process has had in memory at a time, files that it maps counted too
    lines = open(f"/proc/{process}/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
"""

TWICE = """
import sys
from pyro_ltm.data import Tokenizer, filling, prepare, shards
filling.GROUP = shards.CHUNK = 1 << 16  # so that what is in memory at a time is little beside the texts
tokenizer, peaks = Tokenizer.load(sys.argv[1]), []
for text in sys.argv[2:]:
    folder = prepare([text], text + ".tokens", tokenizer=tokenizer, packing="document")
    folder.check_contents()
    peaks.append(peak())
print(*peaks)
"""

COMMAND = """
import atexit, json, resource, sys
from pyro_ltm_cli.main import main
report = sys.argv.pop(1)
def note():
    children = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    json.dump({"peak": peak(), "children": children}, open(report, "w"))
atexit.register(note)
main()
"""


def write_text(path: Path, size: int) -> Path:
    """Documents of words, a record a line, of `size` bytes in all."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(8, 16))) for _ in range(300)]
    sentences = [" ".join(draw.choices(words, k=100)) for _ in range(2000)]
    with open(path, "w") as file:
        while size > 0:
            size -= file.write(json.dumps({"text": " ".join(draw.choices(sentences, k=draw.randint(1, 8)))}) + "\n")
    return path


def test_sixteen_times_the_text_takes_no_more_memory(tmp_path: Path, small_tokenizer) -> None:
    small_tokenizer.save(tmp_path / "tokenizer.json")
    sizes = [1 << 18, 1 << 22]
    texts = [write_text(tmp_path / f"{size}.jsonl", size) for size in sizes]
    command = [sys.executable, "-c", PEAK + TWICE, tmp_path / "tokenizer.json", *texts]
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    before, after = map(int, said.split())
    # Its text alone would take 4 MiB, and its tokens as Python's numbers eight times that.
    assert after - before < sizes[1], (before, after)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_two_gigabytes_within_one_and_a_half(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.jsonl", int(os.environ.get("PYRO_LTM_TEXT_BYTES", 2_000_000_000)))

    def run(*arguments: object) -> dict[str, int]:
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", PEAK + COMMAND, tmp_path / "peak.json", *map(str, arguments)], check=True)
        peaks = json.loads((tmp_path / "peak.json").read_text())
        print(*arguments[:1], peaks, f"{time.monotonic() - started:.0f} s", flush=True)
        return dict(peaks)

    size = ["model.dim=64", "model.layers=2", "model.heads=2", "model.thoughts=4", "fast.steps=2", "slow.eval_every=5"]
    settings = [word for setting in [*size, "slow.eval_sequences=64"] for word in ("--set", setting)]
    few = write_text(
        tmp_path / "few.jsonl", 20_000_000
    )  # the same words: a tokenizer of all text is half as long again
    peaks = [
        run("prepare", few, "--out", tmp_path / "few"),
        run(
            "prepare",
            text,
            "--out",
            tmp_path / "tokens",
            "--workers",
            2,
            "--packing",
            "document",
            *("--tokenizer", tmp_path / "few" / "tokenizer.json"),
        ),
        run("prepare", "--check", "--out", tmp_path / "tokens"),
        run("train", "--data", tmp_path / "tokens", "--out", tmp_path / "run", "--steps", 10, *settings),
    ]
    assert max(max(peak.values()) for peak in peaks) < 1.5 * (1 << 30)
    assert TokenFolder.open(tmp_path / "tokens").meta["splits"]["train"]["tokens"] > 1e8

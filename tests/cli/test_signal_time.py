"""From a signal to the end of a training whose slow steps take seconds: within the half minute that systems give."""

from __future__ import annotations

import json
import random
import signal
import sys
import time

import pytest

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

GIVEN = 30.0
"""Seconds."""
PATIENCE = 500.0
COMMON = ("slow.decoder_warmup=0", "slow.eval_sequences=8", "data.vocab_size=300")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    draw = random.Random(0)
    known = ["".join(draw.choices("aeioulmnrst", k=draw.randint(2, 7))) for _ in range(300)]
    path.write_text("".join(" ".join(draw.choices(known, k=9)) + ".\n" for _ in range(4_000)))
    return path


def kinds(out):
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(True) if path.exists() else []
    return [json.loads(line)["kind"] for line in lines if line.endswith("\n")]


def after_a_step(out):
    """In the next one; or in the validation, where there is one after each step."""
    return kinds(out)[-1:] == ["train"]


def in_the_first_step(out):
    """Where there is no validation before it."""
    return (out / "model.safetensors").exists()


def in_the_first_validation(out):
    return kinds(out) == ["start"]


def in_a_checkpoint(out):
    """Of the first step, which is written while the second is taken."""
    return "train" in kinds(out) and any(out.glob(".trainer.safetensors.*.tmp"))


MOMENTS = {
    "step": (after_a_step, ()),
    "long step": (in_the_first_step, ("fast.steps=2000", "data.validation_fraction=0")),
    "long validation": (in_the_first_validation, ("fast.steps=2000",)),
    "validation": (after_a_step, ("slow.eval_every=1",)),
    "checkpoint": (in_a_checkpoint, ("slow.save_every=1",)),
    "twin": (after_a_step, ("model.thoughts=0", "slow.accumulate=8")),
}


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("moment", MOMENTS)
def test_it_ends_in_time(moment, source, fork, tmp_path):
    reached, settings = MOMENTS[moment]
    options = [part for setting in (*COMMON, *settings) for part in ("--set", setting)]
    out = tmp_path / "run"
    process = fork("train", "--preset", "mini", "--data", source, "--out", out, *options)
    deadline = time.monotonic() + PATIENCE
    while not reached(out):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    if moment != "checkpoint":
        time.sleep(2)  # well within it
    before = kinds(out)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, err = process.communicate(timeout=PATIENCE)
    seconds = time.monotonic() - started
    print(f"{moment}: {seconds:.1f} s")
    assert process.returncode == 0, err
    assert f"Stopped: at step {before.count('train')} of 4000; everything is saved" in err
    assert kinds(out) == before, "it was left"
    assert seconds < GIVEN

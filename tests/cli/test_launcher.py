"""`torchrun` as a process of its own, which starts those that train: that takes long. In short: `test_elastic.py`."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers.ranks import PATIENCE, rows, wait_for_step

pytestmark = pytest.mark.long

GIVEN = 30.0
"""Seconds from a signal until `torchrun` kills."""


def torchrun(*arguments, restarts=0, each=()):
    """`each` stands before the command line of every process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    command += ["--max-restarts", restarts, "--no-python", *each, sys.executable, "-m", "pyro_ltm_cli", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(word) for word in command], **pipes)


def test_torchrun_trains(settings, trained, tmp_path):
    process = torchrun("train", "--data", trained / "data", "--out", tmp_path / "run", "--json", *settings())
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["step"] == 4
    assert err.count("step 4/4  validation") == 1
    expected = rows(trained)
    for row, other in zip(rows(tmp_path / "run"), expected, strict=True):
        assert row["kind"] == other["kind"]
        key = {"train": "bound_nats_per_token", "validation": "nats_per_token"}.get(row["kind"], "step")
        assert row[key] == pytest.approx(other[key], rel=1e-6)


@pytest.fixture
def words(settings, trained):
    """A command that trains for 40 steps, by the kind of sharing and the path that it writes."""
    plan = {"slow.steps": 40, "slow.save_every": 5, "slow.eval_every": 0}

    def build(kind, out):
        changed = settings(**plan, **{"distributed.kind": kind})
        return ["train", "--data", trained / "data", "--out", out, "--resume", *changed]

    return build


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_torchrun_starts_again_what_was_killed(kind, rank, words, tmp_path):
    whole = tmp_path / "whole"
    process = torchrun(*words(kind, tmp_path / "run"), restarts=2)
    wait_for_step(8, tmp_path / "run", process)
    workers = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children()}
    workers[f"{rank}"].kill()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "goes on from step" in err
    shutil.move(tmp_path / "run", whole)
    assert [row["step"] for row in rows(whole) if row["kind"] == "train"] == list(range(1, 41))


@pytest.mark.parametrize(
    ("kind", "number"), [("ddp", signal.SIGTERM), ("fsdp", signal.SIGTERM), ("ddp", signal.SIGHUP)]
)
def test_a_signal_to_torchrun_saves(kind, number, words, tmp_path):
    """Each process ends well and in time, the launcher with 1; what says that all is saved is the line on stderr."""
    out, codes = tmp_path / "run", tmp_path / "codes"
    codes.mkdir()
    keep_code = 'trap : TERM HUP; "$@"; echo $? > "$0/$RANK"'  # such a trap is none in the command itself
    process = torchrun(*words(kind, out), each=("sh", "-c", keep_code, codes))
    wait_for_step(3, out, process)
    process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - began < GIVEN
    assert {path.name: path.read_text() for path in codes.iterdir()} == {"0": "0\n", "1": "0\n"}
    assert process.returncode == 1
    step = rows(out)[-1]["step"]
    assert step < 40
    assert err.count(f"Stopped: at step {step} of 40; everything is saved; go on with the same command") == 1
    assert f'\\"step\\": {step},'.encode() in (out / "trainer.safetensors").read_bytes()[:100_000]

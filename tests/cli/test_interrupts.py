"""Killed or interrupted at any moment, a run goes on and ends as one that was left alone."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

STEPS = 30
PATIENCE = 120.0
"""Seconds until something that should have happened counts as failed."""


@pytest.fixture(scope="module")
def command(settings, tmp_path_factory):
    """`command(out)`: the arguments of a run whose preparation and training take long enough to be hit."""
    draw = random.Random(0)
    known = ["".join(draw.choices("aeioulmnrst", k=draw.randint(2, 7))) for _ in range(300)]
    text = tmp_path_factory.mktemp("text") / "long.txt"
    text.write_text("".join(" ".join(draw.choices(known, k=9)) + "\n" for _ in range(12_000)))
    changed = {"slow.steps": STEPS, "slow.save_every": 7, "slow.eval_every": 10, "fast.steps": 4}

    def build(out):
        return ["train", "--data", text, "--out", out, *settings(**changed)]

    return build


@pytest.fixture(scope="module")
def undisturbed(command, spawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    process = spawn(*command(out))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out


def preparing(out):
    """Text is being turned into tokens."""
    return any(out.glob(".*.partial"))


def rows(count):
    """So many lines of metrics are written."""

    def reached(out):
        path = out / "metrics.jsonl"
        return path.exists() and path.read_bytes().count(b"\n") >= count

    return reached


def after(seconds):
    """So much time has passed."""
    started = time.monotonic()
    return lambda out: time.monotonic() - started >= seconds


def wait_for(moment, process, out):
    """Waits until `moment(out)`. Gives whether it came before the process ended."""
    deadline = time.monotonic() + PATIENCE
    while not moment(out):
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return True


def kill_at(moment, spawn, arguments, out):
    process = spawn(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    hit = wait_for(moment, process, out)
    process.kill()
    process.communicate(timeout=PATIENCE)
    return hit


def assert_same_run(out, undisturbed):
    """The same weights to the last bit, and the same metrics but for what a clock says."""

    def metrics(folder):
        kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in kept]

    assert (out / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert metrics(out) == metrics(undisturbed)


def finish(spawn, arguments, out):
    process = spawn(*arguments)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err


def test_killed_while_preparing_and_while_training(command, spawn, undisturbed, tmp_path):
    out = tmp_path / "run"
    arguments = [*command(out), "--resume"]  # as well where there is nothing to resume yet
    assert kill_at(preparing, spawn, arguments, out)
    assert kill_at(rows(random.Random(1).randint(10, STEPS)), spawn, arguments, out)
    finish(spawn, arguments, out)
    assert_same_run(out, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_killed_many_times(seed, command, spawn, undisturbed, tmp_path):
    draw = random.Random(seed)
    out = tmp_path / "run"
    arguments = [*command(out), "--resume"]
    moments = [after(draw.uniform(0, 4)) for _ in range(3)] + [preparing]
    moments += [rows(draw.randint(1, STEPS)) for _ in range(5)]
    for moment in moments:
        kill_at(moment, spawn, arguments, out)
    finish(spawn, arguments, out)
    assert_same_run(out, undisturbed)


def test_ctrl_c_saves_and_says_how_to_go_on(command, spawn, undisturbed, tmp_path):
    out = tmp_path / "a folder" / "run"
    process = spawn(*command(out), "--json")
    assert wait_for(rows(5), process, out)
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert stdout == ""
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    assert line.startswith("Stopped: at step ")
    assert f"of {STEPS}; everything is saved" in line
    called, *arguments = shlex.split(line.partition("go on with: ")[2])
    assert called == "pyro-ltm"
    finish(spawn, arguments, out)
    assert_same_run(out, undisturbed)


def test_ctrl_c_while_preparing_leaves_nothing(command, spawn, tmp_path):
    out = tmp_path / "run"
    # an interrupt between open() and its with leaves the file to the interpreter, which closes it and warns
    process = spawn(*command(out), ignore=("ResourceWarning",))
    assert wait_for(preparing, process, out)
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert (stdout, err.splitlines()[-1]) == ("", "Stopped: interrupted; nothing half-written was left behind")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_killed_while_preparing_alone_then_prepared_anew(command, spawn, tmp_path, text):
    """What a kill leaves behind is hidden, and in nobody's way."""
    out = tmp_path / "data"
    arguments = ["prepare", command(out)[2], "--out", out, "--vocab-size", 300]
    process = spawn(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_for(lambda folder: any(tmp_path.glob(".*.partial")), process, out)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert not out.exists()
    finish(spawn, arguments, out)
    assert (out / "meta.json").exists()

"""Killed or interrupted at any moment, a run goes on and ends as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import select
import shlex
import shutil
import signal
import sys
import threading
import time
from functools import partial

import pytest
from helpers.processes import FORKS

from pyro_ltm.data import TokenFolder, filling, prepare
from pyro_ltm.files import unfinished

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
    text.write_text("".join(" ".join(draw.choices(known, k=9)) + "\n" for _ in range(5_000)))
    changed = {"slow.steps": STEPS, "slow.save_every": 7, "slow.eval_every": 10, "fast.steps": 4}

    def build(out):
        return ["train", "--data", text, "--out", out, *settings(**changed)]

    return build


@pytest.fixture(scope="module")
def undisturbed(command, fork, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    process = fork(*command(out))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out


def preparing(out):
    """Text is being turned into tokens."""
    return any(out.glob(".*.unfinished"))


def rows(count):
    """So many lines of metrics are written since this was first asked: what was there before does not count."""
    before, written = None, 0

    def reached(out):
        nonlocal before, written
        path = out / "metrics.jsonl"
        now = path.read_bytes().count(b"\n") if path.exists() else 0
        written += max(0, now - (now if before is None else before))  # there are fewer when a run goes on
        before = now
        return written >= count

    return reached


def after(seconds):
    """So much time has passed since this was made."""
    started = time.monotonic()
    return lambda out: time.monotonic() - started >= seconds


def wait_for(moment, process, out):
    """Waits until `moment(out)`. Gives whether it came before the process ended."""
    deadline = time.monotonic() + PATIENCE
    while not moment(out):
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return True


def kill_at(moment, fork, arguments, out):
    """Starts it and kills it at this moment. Gives whether it ran until then; else it had ended, and well."""
    process = fork(*arguments)
    wait_for(moment, process, out)
    process.kill()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode == -signal.SIGKILL


def assert_same_run(out, undisturbed):
    """The same weights to the last bit, and the same metrics but for what a clock says."""

    def metrics(folder):
        kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in kept]

    assert (out / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert metrics(out) == metrics(undisturbed)


def finish(fork, arguments, out):
    """Ends what was killed before, after which nothing hidden is left: no lock, no temporary, no half of a folder."""
    process = fork(*arguments)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert list(out.parent.rglob(".*")) == []


def test_killed_while_preparing_and_while_training(command, fork, undisturbed, tmp_path):
    out = tmp_path / "run"
    arguments = [*command(out), "--resume"]  # as well where there is nothing to resume yet
    assert kill_at(preparing, fork, arguments, out)
    assert kill_at(rows(random.Random(1).randint(10, STEPS)), fork, arguments, out)
    finish(fork, arguments, out)
    assert_same_run(out, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_killed_many_times(seed, command, fork, undisturbed, tmp_path):
    """Nine kills, each of a process that ran."""
    draw, missed = random.Random(seed), 0
    out = tmp_path / "run"
    arguments = [*command(out), "--resume"]
    moments = [lambda: preparing] + [lambda: after(draw.uniform(0, 4))] * 3
    moments += [lambda: rows(draw.randint(1, STEPS))] * 5
    for moment in moments:
        while not kill_at(moment(), fork, arguments, out):  # it had ended: it begins anew, so that the next one may hit
            assert_same_run(out, undisturbed)
            shutil.rmtree(out)
            missed += 1
            assert missed < 20
    finish(fork, arguments, out)
    assert_same_run(out, undisturbed)


def test_ctrl_c_saves_and_says_how_to_go_on(command, fork, undisturbed, tmp_path):
    out = tmp_path / "a folder" / "run"
    process = fork(*command(out), "--json")
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
    finish(fork, arguments, out)
    assert_same_run(out, undisturbed)


ANEW = "Stopped: interrupted before training; nothing half-written was left behind: the same command begins anew"


@pytest.mark.parametrize(
    ("name", "number", "code", "said"),
    [
        ("train", signal.SIGINT, 130, ANEW),
        ("train", signal.SIGTERM, 0, ANEW),
        ("compare --train", signal.SIGUSR1, 0, ANEW),
        ("scale", signal.SIGHUP, 0, ANEW),
        ("prepare", signal.SIGTERM, 128 + 15, "Stopped: interrupted; nothing half-written was left behind"),
    ],
)
def test_stopped_while_preparing_it_leaves_nothing(name, number, code, said, command, fork, tmp_path):
    out = tmp_path / "run"
    words = command(out)[1:]
    place = out if name == "prepare" else out / "data"
    if name == "prepare":
        words = [words[1], "--out", out, "--vocab-size", 300]
    if name == "compare --train":
        words += ["--guides", "mean-field", "--objectives", "elbo"]
    # an interrupt between open() and its with leaves the file to the interpreter, which closes it and warns
    process = fork(*name.split(), *words, ignore=(ResourceWarning,))
    assert wait_for(lambda _: unfinished(place).is_dir(), process, out)
    process.send_signal(number)
    stdout, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout, err.splitlines()[-1]) == (code, "", said), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_of_a_long_text_is_kept_at_a_signal(command, invoke, tmp_path, monkeypatch):
    """And the same command goes on from there."""
    out = tmp_path / "run"
    save, passed = filling.Filling.save, []

    def save_and_signal(self, saved):
        save(self, saved)
        if len(passed) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        passed.append(saved.passed[-1:])

    monkeypatch.setattr(filling, "GROUP", 10_000)
    monkeypatch.setattr(filling, "SAVED", 20_000)
    monkeypatch.setattr(filling.Filling, "save", save_and_signal)
    before = signal.getsignal(signal.SIGTERM)
    result = invoke(*command(out))
    assert signal.getsignal(signal.SIGTERM) is before
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    kept = f"what is done of the text is kept in {out / '.data.unfinished'}: the same command goes on from there"
    assert result.stderr.splitlines()[-1] == f"Stopped: interrupted before training; {kept}"
    first = json.loads((out / ".data.unfinished" / filling.PROGRESS).read_text())["passed"]
    del passed[:]
    passed += [None] * 3
    result = invoke(*command(out), "--steps", 1)
    assert result.exit_code == 0, result.stderr
    assert passed[3][0] > first[0], "it went on from there"


def test_killed_while_preparing_alone_then_prepared_anew(command, fork, tmp_path, text):
    """What a kill leaves behind is hidden, and in nobody's way."""
    out = tmp_path / "data"
    arguments = ["prepare", command(out)[2], "--out", out, "--vocab-size", 300]
    process = fork(*arguments)
    assert wait_for(lambda folder: any(tmp_path.glob(".*.unfinished")), process, out)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert not out.exists()
    finish(fork, arguments, out)
    assert (out / "meta.json").exists()


@pytest.mark.parametrize(
    "name", ["SIGXCPU", *(pytest.param(name, marks=pytest.mark.long) for name in ("SIGHUP", "SIGUSR1", "SIGTERM"))]
)
def test_every_signal_to_end_saves_first(name, settings, invoke, trained, tmp_path, monkeypatch):
    """A closed terminal sends SIGHUP, and more than once; a batch system warns with SIGUSR1. That is a good end."""
    from pyro_ltm.runs.metrics import MetricsLog

    write = MetricsLog.write

    def write_and_signal(self, kind, row):
        write(self, kind, row)
        if kind == "train" and row["step"] == 3:
            os.kill(os.getpid(), getattr(signal, name))
            os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    monkeypatch.setattr(MetricsLog, "write", write_and_signal)
    changed = settings(**{"slow.steps": 5, "slow.save_every": 100})
    result = invoke("train", "--data", trained / "data", "--out", tmp_path / "run", *changed)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert "Stopped: at step 3 of 5; everything is saved; go on with: pyro-ltm train --resume" in result.stderr
    assert signal.getsignal(getattr(signal, name)) is before
    monkeypatch.undo()
    result = invoke("train", "--resume", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "goes on from step 3 of 5" in result.stderr


def test_a_signal_before_the_first_step(settings, invoke, trained, tmp_path, monkeypatch):
    from pyro_ltm.runs.metrics import MetricsLog

    write = MetricsLog.write

    def write_and_signal(self, kind, row):
        write(self, kind, row)
        if kind == "start":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "write", write_and_signal)
    result = invoke("train", "--data", trained / "data", "--out", tmp_path / "run", *settings())
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert "Stopped: at step 0 of 4; everything is saved; go on with: pyro-ltm train --resume" in result.stderr
    monkeypatch.undo()
    result = invoke("train", "--resume", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "run/model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_under_nohup_a_hang_up_is_none(settings, invoke, trained, tmp_path, monkeypatch):
    from pyro_ltm.runs.metrics import MetricsLog

    write = MetricsLog.write

    def write_and_signal(self, kind, row):
        write(self, kind, row)
        os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(MetricsLog, "write", write_and_signal)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = invoke("train", "--data", trained / "data", "--out", tmp_path / "run", *settings())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.exit_code == 0, result.stderr


def test_a_terminal_that_is_closed(command, fork, tmp_path):
    """Nothing can be shown any more, and that is no reason to lose what was learned."""
    out, shown = tmp_path / "run", []
    ours, theirs = os.openpty()
    process = fork(*command(out), first=partial(use_terminal, os.ttyname(theirs)))
    reader = threading.Thread(target=drain, args=(ours, partial(rows(5), out), shown))
    reader.start()
    reader.join(PATIENCE)  # which closes the terminal
    os.close(theirs)
    process.send_signal(signal.SIGHUP)
    said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, *said) == (0, "", "")
    assert b"step" in b"".join(shown), "it was shown on the terminal"
    resumed = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    tensors = (out / "trainer.safetensors").read_bytes()
    assert f'\\"step\\": {resumed},'.encode() in tensors[:100_000]


def use_terminal(name):
    """In a new process: it begins a session, and reads from a terminal and writes to it."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR | os.O_NOCTTY)
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    os.close(terminal)


def drain(terminal, until, shown):
    """Reads what is shown on a terminal, then closes it."""
    while not until():
        ready, _, _ = select.select([terminal], [], [], 0.05)
        if ready:
            shown.append(os.read(terminal, 4096))
    os.close(terminal)


def overwrite(ready, out, texts):
    """Prepares one text after the other, each in place of the one before."""
    ready.send("ready")
    while True:
        for text in texts:
            prepare([text], out, vocab_size=280, sequence_length=16, overwrite=True)


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.long)])
def test_an_overwrite_killed_at_any_moment_leaves_the_old_folder_or_the_new_one(kills, tmp_path):
    draw, fingerprints, out = random.Random(kills), [], tmp_path / "out" / "tokens"
    options = {"vocab_size": 280, "sequence_length": 16}
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for seed, path in enumerate(texts):
        path.write_text("".join(f"The {i % 7}th bird sang {i % (11 + seed)} songs.\n" for i in range(200)))
        fingerprints.append(prepare([str(path)], out, overwrite=True, **options).fingerprint)
    for _ in range(kills):
        ready, theirs = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=overwrite, args=(theirs, out, [str(path) for path in texts]))
        process.start()
        assert ready.poll(PATIENCE)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL, "it ran until then"
        assert TokenFolder.open(out).fingerprint in fingerprints
    prepare([str(texts[0])], out, overwrite=True, **options)
    assert os.listdir(out.parent) == ["tokens"]

"""Whatever ends a command: one line where a user can do something about it, a traceback where the fault is ours."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pyro_ltm.runs import Run


@pytest.fixture
def failing(monkeypatch, invoke):
    """Calls a command that meets `error` while it loads a run."""

    def call(error):
        def load(*args, **options):
            raise error

        monkeypatch.setattr(Run, "load", load)
        return invoke("generate", "run")

    return call


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory(error, failing, refused):
    result = failing(error)
    refused(result.exit_code, result.stdout, result.stderr, "out of memory", "--batch-size")


def test_the_system_refuses(failing, refused):
    result = failing(PermissionError(13, "Permission denied", "somewhere/model.safetensors"))
    refused(result.exit_code, result.stdout, result.stderr, "somewhere/model.safetensors: Permission denied")


def test_interrupted(failing):
    result = failing(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "Stopped: interrupted; nothing half-written was left behind\n"


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours"), KeyError("ours")])
def test_a_fault_of_ours_is_not_hidden(error, failing):
    with pytest.raises(type(error), match="ours"):
        failing(error)


EMITS = """
import click
from pyro_ltm_cli import main, output
info = click.Command("info", callback=lambda run: output.emit({"run": run}), params=[click.Argument(["run"])])
main.LazyGroup.get_command = lambda *_: info
main.main()
"""
REAL = "from pyro_ltm_cli.main import main; main()"


@pytest.fixture(params=[EMITS, pytest.param(REAL, marks=pytest.mark.long)], ids=["in its place", "info"])
def info(request, trained):
    """`info(stdout)`: `pyro-ltm info RUN` in a process of its own, or a command that prints and loads no model."""

    def start(stdout):
        command = [sys.executable, "-W", "error", "-c", request.param, "info", str(trained)]
        buffered = os.environ | {"PYTHONUNBUFFERED": ""}  # what could not be written is tried once more at the end
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=buffered)

    return start


def test_quiet_when_the_reader_goes_away(info):
    """As in `pyro-ltm info RUN | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    process = info(writer)
    os.close(writer)
    assert process.communicate(timeout=60)[1] == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line(info, refused):
    with open("/dev/full", "w") as full:
        process = info(full)
        _, err = process.communicate(timeout=60)
    refused(process.returncode, "", err, "No space left on device")
    assert err.count("\n") == 1


def flip_a_digit(path, key):
    """Another figure in the place of the first one of this key, as a flipped bit leaves it."""
    before = path.read_text()
    place = before.index(f'"{key}":') + len(key) + 3
    digit = next(at for at in range(place, len(before)) if before[at].isdigit())
    path.write_text(before[:digit] + str(int(before[digit]) ^ 1) + before[digit + 1 :])


def test_a_figure_that_changed_on_the_disk_is_not_gone_on_with(refuse, refused, invoke, own_run, tmp_path):
    assert invoke("evaluate", own_run, "--sequences", 4).exit_code == 0
    flip_a_digit(own_run / "evaluation.json", "nats_per_token")
    refuse("report", own_run, "--evaluation", own_run / "evaluation.json", says=("evaluation.json", "checksum"))
    result = invoke("evaluate", own_run, "--sequences", 4)
    assert result.exit_code == 0
    assert "checksum is not that of what it holds (crc32); it is kept as evaluation-damaged.json" in result.stderr
    compare = ["compare", own_run, "--guides", "mean-field", "--objectives", "elbo", "--sequences", 2]
    assert invoke(*compare, "--out", tmp_path / "c").exit_code == 0
    assert invoke(*compare, "--out", tmp_path / "c").exit_code == 0
    flip_a_digit(tmp_path / "c" / "compare.json", "ess")
    result = invoke(*compare, "--out", tmp_path / "c")
    refused(result.exit_code, result.stdout, result.stderr, "compare.json: damaged", "checksum", "another --out")


def test_thoughts_and_weights_that_changed_on_the_disk(refuse, invoke, own_run, tmp_path):
    assert invoke("infer", own_run, "--text", "kalo", "--out", tmp_path / "t.safetensors").exit_code == 0
    for path in (tmp_path / "t.safetensors", own_run / "model.safetensors"):
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
        thoughts = ["--thoughts", tmp_path / "t.safetensors"]
        refuse("generate", own_run, *thoughts, says=(path.name, "damaged: its checksum is not that of what it holds"))
        path.write_bytes(bytes(content[:-9]) + bytes([content[-9] ^ 1]) + bytes(content[-8:]))

"""A disk that is full, and one that cannot be written to: a small file system of its own, where one may be mounted."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest


class Disk:
    """A file system in memory at `path`, of so many bytes."""

    def __init__(self, path: Path, size: int):
        self.path = path
        path.mkdir()
        done = self._mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
        if done.returncode:
            path.rmdir()
            pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")

    def _mount(self, *how: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", *how, str(self.path)], capture_output=True, text=True)

    def change(self, how: str) -> None:
        """Mounts it once more, otherwise: `size=...`, or `ro`."""
        done = self._mount("-o", f"remount,{how}")
        assert done.returncode == 0, done.stderr

    def fill(self) -> None:
        """Takes all the room that there is."""
        with open(self.path / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass


@pytest.fixture
def disk(tmp_path):
    if shutil.which("mount") is None:
        pytest.skip("no file system may be mounted here: there is no mount")
    made = []

    def make(size):
        made.append(Disk(tmp_path / "disk", size))
        return made[0]

    yield make
    for one in made:
        subprocess.run(["umount", "--lazy", str(one.path)], check=True)


WRITERS = {
    "train": lambda out, trained, text, short: ["train", "--data", trained / "data", "--out", out / "run"],
    "train on text": lambda out, trained, text, short: ["train", "--data", text, "--out", out / "run"],
    "prepare": lambda out, trained, text, short: ["prepare", text, "--out", out / "data", "--vocab-size", 300],
    "embed": lambda out, trained, text, short: ["embed", trained, "--data", short, "--out", out / "rows.npz"],
    "train --resume": lambda out, trained, text, short: ["train", "--resume", "--out", out / "evaluated", "--steps", 9],
}


@pytest.mark.parametrize(("how", "says"), [("full", "no space left"), ("read-only", "read-only file system")])
def test_nothing_can_be_written(how, says, disk, invoke, refused, settings, trained, text, tmp_path):
    """Each command ends with one line, and what was there stays as it was."""
    place = disk(8 << 20)
    run = place.path / "evaluated"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("plots"))
    short = tmp_path / "short.txt"
    short.write_text("mison dulo.\n")
    assert invoke("evaluate", run, "--sequences", 4).exit_code == 0
    place.fill() if how == "full" else place.change("ro")
    before = contents(place.path)
    for name, arguments in WRITERS.items():
        more = settings() if name in ("train", "train on text") else []
        result = invoke(*arguments(place.path, trained, text, short), *more)
        line = refused(result.exit_code, result.stdout, result.stderr)
        assert says in line.lower(), (name, line)
        assert str(place.path) in line, (name, line)
        assert contents(place.path) == before, name
    result = invoke("evaluate", run, "--sequences", 4)
    assert result.exit_code == 0, "its figures are shown all the same"
    assert [says in line.lower() for line in result.stderr.splitlines() if "evaluation.json" in line] == [True]
    assert contents(place.path) == before


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_full_while_it_trains_it_goes_on_when_there_is_room(disk, invoke, refused, settings, trained):
    """The checkpoints before that which found no room stay, and are gone on from."""
    place = disk(256 << 10)  # for one checkpoint and not for two
    run = place.path / "run"
    arguments = ["train", "--data", trained / "data", "--out", run, *settings(**{"slow.save_every": 1})]
    result = invoke(*arguments)
    refused(result.exit_code, result.stdout, result.stderr, "no space left to write it", str(run))
    place.change("size=8m")
    result = invoke("train", "--resume", "--out", run)
    assert result.exit_code == 0, result.stderr
    assert "goes on from step 1 of 4" in result.stderr
    assert (run / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()

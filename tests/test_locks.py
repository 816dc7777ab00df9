"""One process at a time writes a folder; a lock outlives nobody, and leaves nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import random
import socket
import threading
import time

import pytest

from pyro_ltm import locks
from pyro_ltm.errors import UserError
from pyro_ltm.locks import locked

PATIENCE = 30.0
DEAD = 2**22 + 1
"""No process has this number: Linux gives none above 2^22."""


@pytest.fixture(params=["flock", "existence"])
def system(request, monkeypatch):
    """A file system with locks, and one without."""
    if request.param == "existence":

        def refuse(handle, operation):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def in_thread(function):
    """Runs `function` in another thread and gives what it returned or raised."""
    found = []

    def run():
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    return found[0]


def attempt(target, wait=0.0):
    with locked(target, wait=wait):
        return "locked"


def test_the_second_is_refused_and_told_by_whom(system, tmp_path):
    with locked(tmp_path / "run"):
        refusal = in_thread(lambda: attempt(tmp_path / "run"))
        assert isinstance(refusal, UserError)
        assert f"is being written by process {os.getpid()} on host {socket.gethostname()} since 20" in str(refusal)
        assert ("remove " in str(refusal)) == (system == "existence")
        assert in_thread(lambda: attempt(tmp_path / "other")) == "locked"
    assert in_thread(lambda: attempt(tmp_path / "run")) == "locked"
    assert os.listdir(tmp_path) == []


def test_the_refusal_names_the_command_and_not_what_it_was_given(system, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/pyro-ltm", "train", "--data", "a secret"])
    with locked(tmp_path / "run"):
        refusal = str(in_thread(lambda: attempt(tmp_path / "run")))
        assert "(pyro-ltm train)" in refusal
        assert "secret" not in refusal
        assert "secret" not in (tmp_path / ".run.lock").read_text()


def test_the_same_folder_by_another_name(system, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with locked(tmp_path / "run"):
        for name in ("link", "run/.", "run/../run"):
            assert isinstance(in_thread(lambda name=name: attempt(tmp_path / name)), UserError)


def test_who_holds_it_passes(system, tmp_path):
    with locked(tmp_path / "run"):
        with locked(tmp_path / "run"):
            pass
        assert isinstance(in_thread(lambda: attempt(tmp_path / "run")), UserError)


def test_one_waits(system, tmp_path):
    with locked(tmp_path / "run"):
        waiting = threading.Thread(target=lambda: found.append(in_thread(lambda: attempt(tmp_path / "run", PATIENCE))))
        found: list[object] = []
        waiting.start()
        time.sleep(3 * locks.POLL)
        assert not found
    waiting.join(PATIENCE)
    assert found == ["locked"]


def test_folders_above_are_made_and_go_again_when_nothing_came(system, tmp_path):
    with locked(tmp_path / "a/b/run"):
        assert (tmp_path / "a/b").is_dir()
    assert os.listdir(tmp_path) == []
    with locked(tmp_path / "a/b/run"):
        (tmp_path / "a/kept").touch()
    assert os.listdir(tmp_path / "a") == ["kept"]


def test_a_stale_file_is_no_lock(tmp_path):
    (tmp_path / ".run.lock").write_text("what a killed process left")
    assert attempt(tmp_path / "run") == "locked"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("host", "process", "stale"),
    [(socket.gethostname(), DEAD, True), (socket.gethostname(), os.getppid(), False), ("elsewhere", DEAD, False)],
)
def test_a_lock_by_existence_is_stale_when_its_process_is_gone_from_this_host(
    host, process, stale, tmp_path, monkeypatch
):
    monkeypatch.setattr(locks, "fcntl", None)
    path = tmp_path / ".run.lock"
    path.write_text(json.dumps({"host": host, "process": process, "since": "then", "remove": "this"}))
    if stale:
        assert attempt(tmp_path / "run") == "locked"
        assert os.listdir(tmp_path) == []
    else:
        with pytest.raises(UserError, match=f"process {process} on host {host}.*remove .*run.lock"):
            attempt(tmp_path / "run")
        assert path.exists()


def test_in_a_folder_that_may_not_be_written_the_lock_lies_inside(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with locked(tmp_path / "run"):
        assert os.listdir(tmp_path) == ["run"]
        assert os.listdir(tmp_path / "run") == [".lock"]


def test_a_fork_holds_nothing(tmp_path):
    """A worker that outlives its parent must not keep the lock, nor free its parent's."""
    with locked(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            refused = False
            try:
                with locked(tmp_path / "run"):
                    pass
            except UserError:
                refused = not locks._handles
            os._exit(0 if refused else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert isinstance(in_thread(lambda: attempt(tmp_path / "run")), UserError)


def compete(folder, seed, existence):
    """Adds one to a number in a file, many times, in the way that loses some unless it is alone."""
    if existence:
        locks.fcntl = None
    draw = random.Random(seed)
    for _ in range(40):
        with locked(folder / "count", wait=PATIENCE):
            count = int((folder / "count").read_text())
            time.sleep(draw.uniform(0, 0.001))
            (folder / "count").write_text(str(count + 1))


@pytest.mark.parametrize("existence", [False, True])
def test_nothing_is_lost_among_many(existence, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.0005)
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=compete, args=(tmp_path, seed, existence)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
    assert (tmp_path / "count").read_text() == "160"
    assert os.listdir(tmp_path) == ["count"]

"""Several real processes in a group, as `torchrun` starts them, but forked: the seconds of their imports are saved."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from helpers.processes import FORKS, Forked, without_extras

PATIENCE = 250


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environments(size: int) -> list[dict[str, str]]:
    """What `torchrun` says to each of `size` processes."""
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function`, of a module, gives in each of `size` processes; they are in a group. An error is raised here."""
    answers = []
    for environment in environments(size):
        ours, theirs = multiprocessing.Pipe()
        process = FORKS.Process(target=_run, args=(environment, theirs, function, arguments))
        process.start()
        theirs.close()
        answers.append((process, ours))
    found = []
    for process, ours in answers:
        assert ours.poll(PATIENCE), "a process hangs"
        found.append(pickle.loads(ours.recv_bytes()))
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
    wrong = [value for good, value in found if not good]
    assert not wrong, next((value for value in wrong if "distributed.Lost: " not in value), wrong[0])
    return [value for _, value in found]


def _run(environment: dict[str, str], answer: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    from pyro_ltm.distributed import joined

    gc.freeze()  # as in `helpers.processes`
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with joined():
            answer.send_bytes(pickle.dumps((True, function(*arguments))))
    except BaseException:
        answer.send_bytes(pickle.dumps((False, traceback.format_exc())))
        sys.exit(1)


def call_command(words: list[str], folder: Path) -> None:
    """`pyro-ltm` in the process that this is; its id and exit code go into `folder`, and how often one began."""
    import pyro_ltm_cli.main
    import torch

    torch.set_num_threads(1)
    without_extras(setattr)
    (folder / os.environ["RANK"]).write_text(str(os.getpid()))
    with (folder / "starts").open("a") as starts:
        starts.write("x")
    sys.argv, code = ["pyro-ltm", *words], None
    try:
        pyro_ltm_cli.main.main()
    except SystemExit as end:
        code = end.code
    (folder / f"{os.environ['RANK']} ended").write_text(str(code or 0))
    if code:
        sys.exit(code)


def call_command_and_end(words: list[str], folder: Path) -> None:
    """And waits for no word of torch's agent, which gives none once it was sent a signal.

    What it says goes into a file: its stderr is that of the test which started the server that it is forked from.
    """
    with (folder / f"{os.environ['RANK']} said").open("w", encoding="utf-8") as said:
        os.dup2(said.fileno(), 2)
    call_command(words, folder)
    os._exit(0)


class Ranks:
    """The command line in several processes; `file_size` is that of the first alone."""

    def __init__(
        self, *arguments: object, size: int = 2, file_size: int = 0, first: Callable[[], None] | None = None
    ) -> None:
        self.processes: list[Forked] = []
        for environment in environments(size):
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                limit = 0 if self.processes else file_size
                self.processes.append(Forked(*arguments, first=first, file_size=limit))

    def kill(self) -> bool:
        """Kills all of them; whether all ran still."""
        for process in self.processes:
            process.kill()
        codes = set(self.end()[0])
        assert codes <= {0, -9}
        return codes == {-9}

    def end(self) -> tuple[list[int | None], str, str]:
        """Exit codes, and what all of them said on stdout, and on stderr."""
        said = [process.communicate(timeout=PATIENCE) for process in self.processes]
        out, err = ("".join(one) for one in zip(*said, strict=True))
        kept = [line for line in err.splitlines(True) if not line.startswith("[rank")]  # torch was imported before
        return [process.returncode for process in self.processes], out, "".join(kept)


class Runs(Protocol):
    """A process that can be asked whether it runs."""

    def poll(self) -> int | None:
        """Its exit code, or None."""


def wait_until(true: Callable[[], object], *processes: Runs) -> None:
    """Waits until something is true, while these processes run."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def rows(out: Path) -> list[dict[str, Any]]:
    """The whole rows of a run's metrics, which it may be writing."""
    path = out / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]


def wait_for_step(step: int, out: Path, *processes: Runs) -> None:
    """Waits until the run has taken this step."""
    wait_until(lambda: any(row["step"] >= step for row in rows(out)), *processes)

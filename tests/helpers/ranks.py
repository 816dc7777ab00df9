"""Several real processes in a group, as `torchrun` starts them, but forked: the seconds of their imports are saved."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.processes import FORKS, without_extras

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

    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with joined():
            answer.send_bytes(pickle.dumps((True, function(*arguments))))
    except BaseException:
        answer.send_bytes(pickle.dumps((False, traceback.format_exc())))
        sys.exit(1)


def call_command(words: list[str], folder: Path) -> None:
    """`pyro-ltm` in the process that this is; its id goes into `folder`, by its rank, and how often one was started."""
    import pyro_ltm_cli.main
    import torch

    torch.set_num_threads(1)
    without_extras(setattr)
    (folder / os.environ["RANK"]).write_text(str(os.getpid()))
    with (folder / "starts").open("a") as starts:
        starts.write("x")
    sys.argv = ["pyro-ltm", *words]
    try:
        pyro_ltm_cli.main.main()
    except SystemExit as end:
        if end.code:
            raise

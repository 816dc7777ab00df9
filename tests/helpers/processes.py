"""The command line in a process of its own, forked from one that has imported all of it: seconds less for each."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

LOADED = ["datasets", "matplotlib.figure", "pyro_ltm", "pyro_ltm.comparison", "pyro_ltm.reports", "pyro_ltm.training"]
LOADED += ["pyro_ltm_cli.commands.compare", "pyro_ltm_cli.commands.prepare", "pyro_ltm_cli.commands.train"]
# The last two: what torch imports to make an optimizer, and what modules of tests import.
LOADED += ["pyro_ltm_cli.main", "torch._dynamo", "pytest"]
if sys.platform != "win32":
    FORKS = multiprocessing.get_context("forkserver")
    FORKS.set_forkserver_preload(LOADED)


def without_extras(put: Callable[[Any, str, Any], None]) -> None:
    """Commands paint no pictures, and time no training to announce it: each takes as long as a tiny training does."""
    from pyro_ltm_cli import estimate

    from pyro_ltm.reports import plots

    put(plots, "to_png", lambda figure: b"\x89PNG\r\n\x1a\n")
    put(estimate, "announce", lambda *_: None)


class Forked:
    """A running `pyro-ltm` with the part of subprocess.Popen's face that tests use; a warning in it is an error.

    It works `without_extras`.

    Args:
        file_size: No file that it writes may be larger, in bytes, as on a disk that is full. 0: any size.
        ignore: Warnings that are no errors.
        first: What the process does before all else.
    """

    def __init__(
        self,
        *arguments: object,
        file_size: int | None = None,
        ignore: tuple[type[Warning], ...] = (),
        first: Callable[[], None] | None = None,
    ) -> None:
        pipes = [FORKS.Pipe(duplex=False) for _ in range(2)]
        words, place = [str(argument) for argument in arguments], (os.getcwd(), dict(os.environ))
        options = (words, *(writer for _, writer in pipes), place, file_size, ignore, first)
        self.process = FORKS.Process(target=_call, args=options)
        self.process.start()
        self.said = ["", ""]
        self.readers = [threading.Thread(target=self._read, args=(n, pipe)) for n, (pipe, _) in enumerate(pipes)]
        for (_, writer), reader in zip(pipes, self.readers, strict=True):
            writer.close()
            reader.start()

    def _read(self, number: int, pipe: Connection) -> None:
        with os.fdopen(os.dup(pipe.fileno()), encoding="utf-8") as file:
            pipe.close()
            self.said[number] = file.read()

    def poll(self) -> int | None:
        """As Popen's: the exit code, negative for a signal, or None while it runs."""
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Waits for its end. What it wrote to stdout and stderr."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise subprocess.TimeoutExpired("pyro-ltm", timeout)
        for reader in self.readers:
            reader.join(timeout)
        return self.said[0], self.said[1]


def _call(
    words: list[str],
    out: Connection,
    err: Connection,
    place: tuple[str, dict[str, str]],
    file_size: int,
    ignore: tuple[type[Warning], ...],
    first: Callable[[], None] | None,
) -> None:
    """In the new process, which was forked from one in another folder with another environment."""
    import pyro_ltm_cli.main

    gc.freeze()  # to look through what was imported would copy the pages of a million objects

    without_extras(setattr)
    os.chdir(place[0])
    os.environ.clear()
    os.environ.update(place[1])
    for number, name, pipe in ((1, "stdout", out), (2, "stderr", err)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
        setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False, buffering=1))  # noqa: SIM115
    for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(number, action)
    warnings.resetwarnings()
    warnings.simplefilter("error")
    for warning in ignore:
        warnings.simplefilter("ignore", warning)
    if file_size:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if first:
        first()
    sys.argv = ["pyro-ltm", *words]
    pyro_ltm_cli.main.main()


def train_until_killed(step: int, **options: object) -> None:
    """`pyro_ltm.train` in a process of its own, which dies by SIGKILL as soon as it has done `step` slow steps."""
    process = FORKS.Process(target=_train, args=(step, options))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def _train(last: int, options: dict[str, object]) -> None:
    import torch

    from pyro_ltm.training import Progress, train

    def die(progress: Progress) -> None:
        if progress.step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    train(**options, on_progress=die)  # type: ignore[arg-type]

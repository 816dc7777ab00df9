"""Writing while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One piece of work at a time, in a thread of its own; its error is raised by the next call of any method."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "pyro-ltm-save")
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins `work`; `wait` comes before it."""
        self.wait()
        self._work = self._thread.submit(work)

    def check(self) -> None:
        """Raises what the work ended in, where it has ended in an error."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Comes back when the work is done. Raises what it ended in."""
        if self._work is not None:
            work, self._work = self._work, None
            work.result()

    def close(self) -> None:
        """Waits, and ends the thread. What is under way then ends as it may: nobody asks any more."""
        self._thread.shutdown()

"""Several processes at one task: who each is, what they tell one another, how they end. One process has none of it.

`torchrun` starts them and says in their environment who they are (RANK, WORLD_SIZE, ...). `joined` makes a group of
them, by gloo on CPUs and NCCL on CUDA devices, which `current` gives for as long as the block runs. Its face is that of
one process by itself, which sends nothing, so that nobody need ask how many there are.

The first process, the leader, writes files and speaks. An error is told by the process that has it; the others, whose
connections to it break, end after it without a word. Of one that was killed those that are left tell.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeGuard, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.interruption import Stopped

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a process waits for what others send. They end sooner where one of them dies."""

GOODBYE = 10.0
"""Seconds in which the end of a connection that is broken is noticed; far more than it takes."""

POLL = 0.02
"""Seconds between two looks at whether the leader has said something."""

HEARING = 1.0
"""Seconds between two looks at whether another process has left what all are doing."""


class Lost(UserError):
    """Another process of the group has ended before its time."""


class World:
    """One process by itself: nothing is sent, and every answer is its own.

    Attributes:
        rank: which of the processes this is, from 0. size: how many there are.
        local_rank: which of those on this machine.
        failure: the error, told by one of them, that ended the last `gather`.
    """

    rank = 0
    size = 1
    local_rank = 0
    failure: BaseException | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device that this process computes on where `name` is asked for: of several CUDA devices its own."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.size > 1 else name

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return tensor

    def any(self, *answers: bool) -> list[bool]:
        """Of each question, whether any process says yes."""
        return list(answers)

    def gather(self, values: Sequence[T]) -> list[T]:
        """The values of all processes, in the order of their ranks. Raises what one of them sent by `fail` instead."""
        return list(values)

    def fail(self, error: BaseException) -> BaseException:
        """Ends the `gather` of the others, which comes next, by `error`; of several such errors all have the first."""
        return error

    def tell(self, value: T | None) -> T | None:
        """The value that the leader gives here; the others wait for it, however long it takes."""
        return value

    @contextmanager
    def leaving_together(self) -> Iterator[None]:
        """Where one process is `Stopped` in the block, all are, at its end at the latest. Nothing may be sent in it."""
        yield

    def others_leave(self) -> bool:
        """Whether another process was stopped in the block that this one is in; to be asked as often as one likes."""
        return False

    def part(self, count: int) -> slice:
        """Of `count` things in a row, those that this process takes: neighbours, and of few the leader some."""
        begin, end = (-(-rank * count // self.size) for rank in (self.rank, self.rank + 1))
        return slice(begin, end)

    def speaks_of_end(self) -> bool:
        """Whether it is for this process to say how all of them end: the first that asks does."""
        return True


class Group(World):
    """One of several processes.

    Args:
        store: what all of them reach from the first moment on, before and after they can send.
        rank, size, local_rank: see `World`.
        last_words: of the leader, where it keeps the store.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, local_rank: int, last_words: LastWords | None = None):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store, self._told, self._last_words = store, 0, last_words
        self._speaks: bool | None = None
        self._blocks, self._look_at = 0, 0.0

    def sum(self, tensor: Tensor) -> Tensor:  # noqa: D102 - as World's
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def any(self, *answers: bool) -> list[bool]:  # noqa: D102
        return [bool(count) for count in self.sum(torch.tensor(answers, dtype=torch.int64)).tolist()]

    def gather(self, values: Sequence[T]) -> list[T]:  # noqa: D102
        found = self._all(list(values))
        self.failure = next((each for each in found if isinstance(each, BaseException)), None)
        if self.failure:
            raise self.failure
        return [value for each in found for value in each]

    def fail(self, error: BaseException) -> BaseException:  # noqa: D102
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of a class of the user's own
            error = UserError(f"{type(error).__name__}: {error}")
        self.failure = error = next(each for each in self._all(error) if isinstance(each, BaseException))
        return error

    def _all(self, value: Any) -> list[Any]:
        """The values that all processes give here, in the order of their ranks."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def tell(self, value: T | None) -> T | None:  # noqa: D102
        self._told += 1
        key = f"told {self._told}"
        if self.leads:
            self._store.set(key, pickle.dumps(value))  # type: ignore[arg-type]
            return value
        while not self._store.check([key]):
            if self._store.check(["ended"]):
                raise Lost(LOST)
            time.sleep(POLL)
        told: T | None = pickle.loads(self._store.get(key))
        return told

    @contextmanager
    def leaving_together(self) -> Iterator[None]:  # noqa: D102
        self._blocks += 1
        try:
            yield
        except Stopped:
            self._store.set(f"left {self._blocks}", "")  # some may be in the middle of it for long
            self.any(True)
            raise
        if any(self.any(False)):
            raise Stopped

    def others_leave(self) -> bool:  # noqa: D102
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + HEARING
        return self._store.check([f"left {self._blocks}"])

    def speaks_of_end(self) -> bool:  # noqa: D102
        if self._speaks is None:
            try:
                self._speaks = self._store.add("ended", 1) == 1
            except RuntimeError:  # the leader kept the store, and is gone
                self._speaks = self._last_words is None or not self._last_words.heard()
        return self._speaks


class LastWords(threading.Thread):
    """Waits for word that the group ends. Where the leader keeps the store, that is gone when anybody could ask.

    Args:
        store: the group's, by a connection of its own, for no other call gets through while one waits.
    """

    def __init__(self, store: dist.Store):
        super().__init__(name="pyro-ltm-last-words", daemon=True)
        self._store, self._heard = store, False
        self.start()

    def run(self) -> None:
        """Ends with the word, or with the store."""
        with suppress(RuntimeError):
            while not self._heard:
                try:
                    self._store.wait(["ended"])
                    self._heard = True
                except RuntimeError:
                    self._store.check(["ended"])  # it is there still: nobody has said anything for so long

    def heard(self) -> bool:
        """Whether somebody has said how it ends, of a group whose store is gone."""
        self.join(GOODBYE)
        return self._heard


LOST = "another process of this command has ended before its time; a training goes on with --resume"

_current: World = World()
_sharing = False


def current() -> World:
    """The group that this process is in."""
    return _current


def team() -> World:
    """The processes that share what is scored here (`sharing`); elsewhere each scores by itself."""
    return _current if _sharing else World()


@contextmanager
def sharing() -> Iterator[None]:
    """Within it all processes score the same sequences together: each its part, and each has the figures of all."""
    global _sharing
    before, _sharing = _sharing, True
    try:
        yield
    finally:
        _sharing = before


@contextmanager
def failing_together() -> Iterator[None]:
    """Within `sharing`: an error of one process ends the block in all. They send by `gather` alone in it, and do so."""
    shared = team()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if shared.size == 1 or error is shared.failure or isinstance(error, Lost) or is_loss(error):
            raise
        raise shared.fail(error) from None


def are_several() -> bool:
    """Whether the environment says that this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ


@contextmanager
def joined() -> Iterator[World]:
    """This process in the group of those that were started with it, for as long as the block runs; else by itself.

    Raises:
        Lost: another one has ended meanwhile.
    """
    global _current
    if _current.size > 1 or not are_several():
        with _losses():
            yield _current
        return
    _current = _group()
    try:
        with _losses():
            yield _current
        dist.destroy_process_group()
    except BaseException:
        _current.speaks_of_end()
        raise
    finally:
        _current = World()


def _group() -> Group:
    """The group of this process. Raises UserError where the others cannot be reached."""
    rank, size, local = (int(os.environ.get(name) or 0) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    backend = "gloo"
    if torch.cuda.is_available() and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
        name = f"pyro-ltm/{_agreed(store, rank, size)}"
        store = dist.PrefixStore(name, store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        last_words = LastWords(dist.PrefixStore(name, _connection())) if rank and not _agent_keeps_store() else None
        _all_connected(store, rank, size)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"process {rank} of {size} cannot reach the others: {error}") from None
    return Group(store, rank, size, local, last_words)


def _agent_keeps_store() -> bool:
    """Whether the store outlives the processes: `torchrun` keeps it, where each is not started by itself."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _connection() -> dist.Store:
    """One more connection to the store that the leader keeps."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=PATIENCE)


def _agreed(store: dist.Store, rank: int, size: int) -> str:
    """A name for this group, which no earlier one in the store had: `torchrun` keeps its store when it starts anew.

    What lies there may be of processes that are dead. So each asks by a name of its own, and goes by the answer to it.
    """
    own, deadline = uuid4().hex, time.monotonic() + PATIENCE.total_seconds()
    if rank:
        store.set(f"pyro-ltm/asks/{rank}", own)
        name = store.get(f"pyro-ltm/answer/{own}").decode()  # waits
        store.set(f"pyro-ltm/{name}/there/{rank}", "")
        return name
    missing = set(range(1, size))
    while missing:
        for other in sorted(missing):
            if store.check([f"pyro-ltm/{own}/there/{other}"]):
                missing.discard(other)
            elif store.check([f"pyro-ltm/asks/{other}"]):
                store.set(f"pyro-ltm/answer/{store.get(f'pyro-ltm/asks/{other}').decode()}", own)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {', '.join(map(str, sorted(missing)))} have not come")
        time.sleep(POLL if missing else 0.0)
    return own


def _all_connected(store: dist.Store, rank: int, size: int) -> None:
    """Waits until every process is connected: one with nothing to do would be gone before the last has reached it."""
    for stage in ("connected", "seen"):
        if store.add(stage, 1) == size:
            store.set(f"all {stage}", "")
        if stage == "connected" or rank == 0:  # the leader may keep the store, and leaves it last
            store.wait([f"all {stage}"])


@contextmanager
def _losses() -> Iterator[None]:
    """Raises Lost for what torch raises where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if _current.size == 1 or not is_loss(error):
            raise
        raise Lost(LOST) from error


def is_loss(error: BaseException) -> bool:
    """Whether torch raised it because another process is gone; gloo has no class of its own for that."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def gathered(tensor: Tensor) -> Tensor:
    """A tensor of which each process keeps a share (DTensor) gathered from all: all must ask. Any other as it is."""
    found: Tensor = tensor.full_tensor() if is_shared(tensor) else tensor
    return found


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor where it keeps one of `like`, else the tensor itself. Nothing is sent."""
    if not is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    at: Any = like
    found: Tensor = distribute_tensor(tensor.to(like.device), at.device_mesh, at.placements, src_data_rank=None)
    return found


def is_shared(tensor: Any) -> TypeGuard[Any]:
    """Whether each process keeps a share of it."""
    return hasattr(tensor, "full_tensor")  # a class that takes long to import

"""A command in several processes, as `torchrun` starts them: which can be, which process speaks, and how all end."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from .output import note

if TYPE_CHECKING:
    from pyro_ltm.distributed import World

COMMANDS = ("train", "evaluate", "compare", "scale", "infer", "embed")
"""Those that share their work."""

_world: World | None = None
"""The group of this process, while there are several."""


def are_several() -> bool:
    """Whether this is one of several processes, and they are in a group."""
    return _world is not None


@contextmanager
def together() -> Iterator[None]:
    """In several processes: the block runs in a group of them, in which the first alone is heard; else as it is."""
    if int(os.environ.get("WORLD_SIZE") or 1) < 2:
        yield
        return
    # Torch warns from below Python of what is so and what others have ended of; read when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from pyro_ltm.distributed import joined

    global _world
    streams = sys.stdout, sys.stderr
    with joined() as _world, open(os.devnull, "w", encoding="utf-8") as nowhere:
        if not _world.leads:
            sys.stdout = sys.stderr = nowhere
        try:
            yield
        except SystemExit as end:
            if end.code:
                raise
        finally:
            sys.stdout, sys.stderr = streams
            _world = None


def loss(error: RuntimeError) -> str:
    """The words for an error that another process left by its end; empty of all others."""
    if _world is None:
        return ""
    from pyro_ltm.distributed import LOST, is_loss

    return LOST if is_loss(error) else ""


def tell_end(line: str) -> None:
    """Says on stderr how the command ends; of several processes the first that has something to say does."""
    if _world is None:
        note(line)
    elif _world.speaks_of_end():
        note(line, file=sys.__stderr__)


def leads() -> bool:
    """Whether this is the process that writes and speaks."""
    return _world is None or _world.leads


def go_on_with(words: Sequence[str]) -> str:
    """How people go on by the command of these words, which of several processes they gave to whatever started all."""
    return "go on with the same command" if are_several() else f"go on with: {shlex.join(words)}"


def share_of(total: int) -> int:
    """Of `total` things that the processes share, how many the first takes."""
    return total if _world is None else _world.part(total).stop


@contextmanager
def of_leader(context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """`context()` in the first process; the others have nothing of it, but begin the block no sooner."""
    with context() if leads() else nullcontext():
        if _world is not None:
            _world.tell(None)
        yield


def only_leader() -> None:
    """Ends the command here in all processes but the first, which writes what is to be written and speaks."""
    if not leads():
        raise click.exceptions.Exit(0)

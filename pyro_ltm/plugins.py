"""Classes from outside the library: `module:Class` of the user's own, and those that installed packages announce."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_ltm.config import suggest
from pyro_ltm.errors import UserError


def find_class(path: str) -> Any:
    """The object that `module:Class` names, imported from where Python looks, else from the current directory.

    Raises:
        UserError: there is no such module, it cannot be imported, or there is nothing of this name in it.
    """
    name, _, place = path.partition(":")
    with suppress(FileNotFoundError):  # the directory itself was removed
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # for good: the module may import its neighbours later
    importlib.invalidate_caches()  # it may have been written a moment ago
    try:
        with blamed(f"{path}: its module cannot be imported"):
            found: Any = importlib.import_module(name)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            where = "on Python's path or in the current directory"
            raise UserError(f"{path}: there is no module {cause.name} {where}") from None
        raise
    module = found
    for part in place.split("."):
        if not hasattr(found, part):
            file = getattr(module, "__file__", None) or name
            raise UserError(f"{path}: there is no {place} in {file}{suggest(part, dir(found))}")
        found = getattr(found, part)
    return found


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turns whatever goes wrong in code of somebody else's into a UserError of one line that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {type(error).__name__}: {error}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """The innermost line of the traceback that is neither Python's nor an installed package's."""
    libraries = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib"))
    ours = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [one for one in frames if not one.filename.startswith((*libraries, ours, "<frozen"))]
    return f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""


@dataclass(frozen=True)
class Installed:
    """A class that an installed package announces by an entry point.

    Attributes:
        name: by which it is chosen. path: `module:Class`. source: the package and its version.
    """

    name: str
    path: str
    source: str

    def load(self) -> Any:
        """The class. Raises UserError where it cannot be imported."""
        try:
            return find_class(self.path)
        except UserError as error:
            raise UserError(f"'{self.name}' of the package {self.source}: {error}") from error.__cause__


def installed(axis: str) -> list[Installed]:
    """All entry points in the group of an axis (`pyro_ltm.guides` and so on), by name; none is imported."""
    found = set()
    for entry in importlib.metadata.entry_points(group=f"pyro_ltm.{axis}s"):
        dist = entry.dist
        source = f"{dist.name} {dist.version}" if dist is not None else entry.module
        found.add(Installed(entry.name, entry.value.partition("[")[0].strip(), source))
    return sorted(found, key=lambda one: (one.name, one.source))


__all__ = ["Installed", "blamed", "find_class", "installed"]

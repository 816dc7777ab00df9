"""Fits that are kept in files while others are still to do, so that a process that was killed need not repeat them."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.distributed import team
from pyro_ltm.errors import Damaged, warn
from pyro_ltm.files import left
from pyro_ltm.reading import read_safetensors
from pyro_ltm.runs.folder import write_tensors

FORMAT = "pyro-ltm fits 2"
PLACES = "places"
"""Of a file's tensors, the one that says which sequences its fits are of, by their numbers: int64 [S]."""

SECONDS = 60.0
"""Between two times that they are written."""


class PartialFits:
    """The fits of some of many sequences, in hidden files next to the one that is to hold them all.

    Each of several processes that share the work (`distributed.sharing`) writes a file of its own and reads those of
    all, so that any number of processes goes on from what any other number has done. Hold the lock of `out`.

    Args:
        out: what is written in the end. key: tells these fits from others (`key_of`); the file of another is passed
            over, and so is one that is damaged, of which `say` hears.
    """

    def __init__(self, out: Path, key: str, *, seconds: float = SECONDS, say: Callable[[str], None] = warn):
        rank = team().rank
        self.path = out.with_name(f".{out.name}.{rank}.fits" if rank else f".{out.name}.fits")
        self._key, self._seconds, self._saved = key, seconds, time.monotonic()
        found = {path: fits for path in _files(out) if (fits := self._read(path, say))}
        self._parts = [found[self.path]] if self.path in found else []
        self._earlier = _joined(list(found.values()))
        places = self._earlier.get(PLACES, torch.empty(0)).tolist()
        self._rows = {place: row for row, place in enumerate(places)}

    @property
    def earlier(self) -> int:
        """Sequences that were fitted before."""
        return len(self._rows)

    def take(self, first: int, count: int) -> dict[str, Tensor]:
        """The fits of so many sequences from number `first` on; empty where one of them is still to do."""
        rows = [self._rows[place] for place in range(first, first + count) if place in self._rows]
        if len(rows) < count:
            return {}
        return {name: value[rows] for name, value in self._earlier.items() if name != PLACES}

    def add(self, first: int, fits: Mapping[str, Tensor]) -> None:
        """Adds the fits of the sequences from number `first` on, and writes all when it is time."""
        count = len(next(iter(fits.values())))
        self._parts.append({**fits, PLACES: torch.arange(first, first + count)})
        if time.monotonic() - self._saved > self._seconds:
            self._parts = [_joined(self._parts)]
            write_tensors(self.path, self._parts[0], {"key": self._key}, form=FORMAT)
            self._saved = time.monotonic()

    @staticmethod
    def clear(out: Path) -> None:
        """Removes the files of `out`, and what killed processes left of them: all is done."""
        for path in _files(out):
            path.unlink(missing_ok=True)
        for unfinished in left(out.with_name(f".{out.name}"), r"(\d+\.)?fits\.\d+\.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def _read(self, path: Path, say: Callable[[str], None]) -> dict[str, Tensor]:
        """The fits in a file; empty where they are others, or none."""
        try:
            tensors, header = read_safetensors(path)
        except FileNotFoundError:
            return {}
        except Damaged as error:
            say(f"{error}; its sequences are fitted again")
            return {}
        is_ours = f'"{self._key}"' in header.get(FORMAT, "") and PLACES in tensors
        return tensors if is_ours and len({value.shape[:1] for value in tensors.values()}) == 1 else {}


def _files(out: Path) -> list[Path]:
    return left(out, r"(\d+\.)?fits")


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def key_of(sequences: Iterable[Sequence[int]], *what: Any) -> str:
    """A digest of token sequences and of `what` else decides their fits."""
    digest = hashlib.blake2b(repr(what).encode(), digest_size=16)
    for tokens in sequences:
        digest.update(torch.tensor([len(tokens), *tokens]).numpy().tobytes())
    return digest.hexdigest()

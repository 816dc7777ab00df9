"""Fits that are kept in a file while others are still to do, so that a process that was killed need not repeat them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.errors import Damaged, warn
from pyro_ltm.reading import read_safetensors
from pyro_ltm.runs.folder import write_tensors

FORMAT = "pyro-ltm fits 1"
SECONDS = 60.0
"""Between two times that they are written."""


class PartialFits:
    """The fits of a first part of many sequences, in a hidden file next to the one that is to hold them all.

    Hold the lock of `out`.

    Args:
        out: what is written in the end. key: tells these fits from others (`key_of`); the file of another is passed
            over, and so is one that is damaged, of which `say` hears.
    """

    def __init__(self, out: Path, key: str, *, seconds: float = SECONDS, say: Callable[[str], None] = warn):
        self.path = _place(out)
        self._key, self._seconds, self._saved = key, seconds, time.monotonic()
        self._parts: list[Mapping[str, Tensor]] = []
        self._earlier = self._read(say)

    @property
    def earlier(self) -> int:
        """Sequences that were fitted before."""
        return min((len(value) for value in self._earlier.values()), default=0)

    def take(self, first: int, count: int) -> dict[str, Tensor]:
        """The fits of so many sequences from number `first` on; empty where they are still to do."""
        if first + count > self.earlier:
            return {}
        return {name: value[first : first + count] for name, value in self._earlier.items()}

    def add(self, fits: Mapping[str, Tensor]) -> None:
        """Adds the next fits, and writes all when it is time."""
        self._parts.append(fits)
        if time.monotonic() - self._saved > self._seconds:
            whole = {name: torch.cat([part[name] for part in self._parts]) for name in fits}
            self._parts = [whole]
            write_tensors(self.path, whole, {"key": self._key}, form=FORMAT)
            self._saved = time.monotonic()

    @staticmethod
    def clear(out: Path) -> None:
        """Removes the file of `out`: all is done."""
        _place(out).unlink(missing_ok=True)

    def _read(self, say: Callable[[str], None]) -> dict[str, Tensor]:
        try:
            tensors, header = read_safetensors(self.path)
        except FileNotFoundError:
            return {}
        except Damaged as error:
            say(f"{error}; its sequences are fitted again")
            return {}
        return tensors if f'"{self._key}"' in header.get(FORMAT, "") else {}


def _place(out: Path) -> Path:
    return out.with_name(f".{out.name}.fits")


def key_of(sequences: Iterable[Sequence[int]], *what: Any) -> str:
    """A digest of token sequences and of `what` else decides their fits."""
    digest = hashlib.blake2b(repr(what).encode(), digest_size=16)
    for tokens in sequences:
        digest.update(torch.tensor([len(tokens), *tokens]).numpy().tobytes())
    return digest.hexdigest()

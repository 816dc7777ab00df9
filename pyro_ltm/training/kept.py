"""The checkpoints of a run: the last, trainer.safetensors, and from before it trainer-STEP.safetensors.

An earlier one is of use where the last is damaged.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from torch import Tensor

from pyro_ltm.config import Scalar
from pyro_ltm.errors import Damaged, UserError
from pyro_ltm.files import clear_errors
from pyro_ltm.reading import Count
from pyro_ltm.runs.folder import TRAINER, read_tensors
from pyro_ltm.runs.metrics import Mark

STATE = "optimizer."
"""Prefix of the names of the optimizer's tensors."""

DAMAGED = "trainer-damaged.safetensors"
"""Where a checkpoint that was damaged is put aside."""


@dataclass
class Counters:
    """Counts over a whole run, resumed or not, and its best validation so far in nats a token, if it keeps that.

    `validation_due`: that after the last step was left at a signal, and comes before the next step.
    `unused_in_a_row`, `runaway_in_a_row`, `lowest_rate`: what `Health` goes by.
    """

    step: Count = 0
    tokens: Count = 0
    seconds: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    skipped: Count = 0
    skipped_in_a_row: Count = 0
    best_step: Count = 0
    best_nats: float | None = None
    unused_in_a_row: Count = 0
    runaway_in_a_row: Count = 0
    lowest_rate: float | None = None
    validation_due: bool = False


@dataclass(kw_only=True)
class CheckpointMeta(Counters):
    """The header of a checkpoint, the counters among it.

    Attributes:
        position: sequences read. data: fingerprint of what was trained on.
        states: tensors of the optimizer. numbers: what it counts outside of tensors. settings: the configuration, by
            dotted keys. metrics: the rows so far. origin: see `WeightsMeta`. They are None in checkpoints of older
            releases.
    """

    position: Count
    data: str
    states: Count | None = None
    numbers: dict[str, int | float] | None = None
    settings: dict[str, Scalar] | None = None
    metrics: Mark | None = None
    origin: str | None = None


def kept(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    last, earlier = folder / TRAINER, {}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if found := re.fullmatch(r"trainer-(\d{1,16})\.safetensors", name):
                earlier[int(found[1])] = folder / name
    return [last] * last.is_file() + [earlier[step] for step in sorted(earlier, reverse=True)]


def keep_last(folder: Path, step: int) -> None:
    """Gives the last checkpoint, of `step`, a name as an earlier one as well. Raises UserError when it cannot."""
    last, earlier = folder / TRAINER, folder / f"trainer-{step}.safetensors"
    if not last.is_file():
        return
    with clear_errors(last):
        earlier.unlink(missing_ok=True)
        try:
            os.link(last, earlier)
        except OSError:  # a file system without second names: until the next is written, this is the newest
            os.replace(last, earlier)


def remove_oldest(folder: Path, count: int) -> None:
    """Removes all checkpoints but the `count` newest."""
    for path in kept(folder)[count:]:
        path.unlink(missing_ok=True)


def last_good(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Tensor], CheckpointMeta] | None:
    """The newest checkpoint that is as it was written, its tensors and header; None where a run has saved none.

    `say` hears which others, newer ones, are damaged or missing.

    Raises:
        UserError: none of them is good, or one is of another release.
    """
    paths, faults = kept(folder), []
    if paths and paths[0].name != TRAINER:
        faults.append(f"{folder / TRAINER}: missing")
    for path in paths:
        try:
            tensors, meta = read_checkpoint(path)
        except Damaged as error:
            faults.append(str(error))
            continue
        if faults:
            say(f"{'; '.join(faults)}; goes on from {path.name}, the checkpoint of step {meta.step}")
        return path, tensors, meta
    if faults:
        raise UserError(
            f"{'; '.join(faults)}; no other checkpoint is good, and nothing was changed: put one back from a copy, or "
            f"begin a new run, such as with --init-from {folder}"
        )
    return None


def put_last(folder: Path, good: Path) -> None:
    """Makes `good` the last checkpoint, and puts aside the damaged one that came after it."""
    last = folder / TRAINER
    with clear_errors(last):
        for newer in itertools.takewhile(lambda path: path != good, kept(folder)):
            os.replace(newer, folder / DAMAGED)
        if good != last:
            os.replace(good, last)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], CheckpointMeta]:
    """The tensors of a checkpoint and its header.

    Raises:
        Damaged: it is missing, cut short, not as it was written, or holds what no training can have saved.
        UserError: it is of another release.
    """
    tensors, meta = read_tensors(path, CheckpointMeta)
    states = {name: value for name, value in tensors.items() if name.startswith(STATE)}
    if meta.states not in (None, len(states)):
        raise Damaged(f"{path}: damaged: it has {len(states)} tensors of the optimizer's {meta.states}")
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise Damaged(f"{path}: damaged: not all that it holds is finite")
    numbers = {f"{STATE}{name}": value for name, value in (meta.numbers or {}).items()}
    for name, value in {**states, **numbers}.items():
        if name.endswith((".step", "_sq")) and bool(torch.as_tensor(value < 0).any()):
            raise Damaged(f"{path}: damaged: {name} is below zero")
    return tensors, meta

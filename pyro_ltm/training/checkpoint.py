"""A checkpoint: all that training needs to go on, in one file (RUN/trainer.safetensors)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from pyro_ltm.data import TokenDataset
from pyro_ltm.distributed import current
from pyro_ltm.errors import UserError
from pyro_ltm.reading import Count
from pyro_ltm.runs.folder import (
    CONFIG,
    TRAINER,
    WEIGHTS,
    check_tensors,
    check_weights,
    load_weights,
    read_tensors,
    write_tensors,
)
from pyro_ltm.runs.run import Run
from pyro_ltm.training.optimizer_state import Number, OptimizerState, rehearse
from pyro_ltm.training.schedule import changes, flat, renamed

STATE = "optimizer."
"""Prefix of the names of the optimizer's tensors."""


@dataclass
class Counters:
    """Counts over a whole run, resumed or not, and its best validation so far in nats a token, if it keeps that."""

    step: Count = 0
    tokens: Count = 0
    seconds: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    skipped: Count = 0
    skipped_in_a_row: Count = 0
    best_step: Count = 0
    best_nats: float | None = None


@dataclass(kw_only=True)
class CheckpointMeta(Counters):
    """The header of a checkpoint, the counters among it.

    Attributes:
        position: sequences read. data: fingerprint of what was trained on.
        states: tensors of the optimizer. numbers: what it counts outside of tensors. settings: the configuration, by
            dotted keys. They are None in checkpoints of older releases.
    """

    position: Count
    data: str
    states: Count | None = None
    numbers: dict[str, int | float] | None = None
    settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The file in which the training of a run, with its optimizer, is saved, and from which it goes on.

    Attributes:
        data: what is trained on.
        others: tensors of the weights beside the last, by `average` and `best`.
    """

    run: Run
    optimizer: torch.optim.Optimizer
    data: TokenDataset
    others: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.run.folder / TRAINER

    def save(self, counters: Counters) -> None:
        """Writes the whole state in one file, then all weights by themselves for everyone else."""
        state = OptimizerState.of(self.optimizer)
        meta = CheckpointMeta(
            **vars(counters),
            position=self._position(counters),
            data=self.data.folder.fingerprint,
            states=len(state.tensors),
            numbers=state.numbers,
            settings=flat(self.run.config),
        )
        tensors = self.run.trainable.state_dict() | _prefixed(STATE, state.tensors)
        for kind, weights in self.others.items():
            tensors |= _prefixed(f"{kind}.", weights)
        if current().leads:
            write_tensors(self.path, tensors, vars(meta))
        self._save_weights(counters)

    def load(self) -> Counters | None:
        """Puts weights and optimizer as they were saved, and gives the counters; None where nothing was saved yet.

        Raises:
            UserError: the checkpoint is damaged, or was made on other data or by another configuration.
        """
        if not self.path.exists():
            return None
        tensors, meta = read_tensors(self.path, CheckpointMeta)
        self._check_meta(meta)
        state = _of_prefix(STATE, tensors)
        if meta.states not in (None, len(state)):
            raise UserError(f"{self.path}: damaged: it has {len(state)} tensors of the optimizer's {meta.states}")
        others = (STATE, *(f"{kind}." for kind in self.others))
        weights = {name: value for name, value in tensors.items() if not name.startswith(others)}
        check_weights(self.run.trainable, weights, self.path)
        self._load_state(state, meta.numbers or {})
        load_weights(self.run.trainable, weights, self.path)
        self._load_others(tensors)
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise UserError(f"{self.path}: damaged: not all that it holds is finite")
        counters = Counters(**{entry.name: getattr(meta, entry.name) for entry in fields(Counters)})
        if meta.position != self._position(counters):
            raise UserError(f"{self.path}: damaged: its data position is not that of step {counters.step}")
        # A kill between the files of a checkpoint leaves older weights in the others.
        self._save_weights(counters)
        return counters

    def _load_others(self, tensors: dict[str, Tensor]) -> None:
        """Puts the weights beside the last back. Raises UserError when they are not those of the run."""
        for kind, weights in self.others.items():
            saved = _of_prefix(f"{kind}.", tensors)
            check_tensors(weights, saved, f"{self.path}: its {kind} weights do not fit the run's {CONFIG}")
            for name, value in saved.items():
                weights[name].copy_(value)

    def _save_weights(self, counters: Counters) -> None:
        """Writes the weights by themselves: the last, and the others that the run has."""
        if not current().leads:
            return
        self.run.save_weights(counters.step)
        for kind, tensors in self.others.items():
            step = counters.best_step if kind == "best" else counters.step
            write_tensors(self.run.folder / WEIGHTS[kind], tensors, {"step": step})

    def _position(self, counters: Counters) -> int:
        """Sequences read since the start of training."""
        return counters.step * self.run.config.slow.sequences

    def _check_meta(self, meta: CheckpointMeta) -> None:
        """Raises UserError when the checkpoint was made on other data, or by another configuration than the run's."""
        if meta.data != self.data.folder.fingerprint:
            raise UserError(f"{self.run.folder}: was not trained on {self.data.folder.path}; give its own data")
        settings = renamed(meta.settings) if meta.settings else flat(self.run.config)
        if changed := changes(self.run.config, settings, meta.step):
            raise UserError(
                f"{self.run.folder}: its checkpoint was made by another configuration than its {CONFIG} is now: "
                f"{changed[0]} was {settings.get(changed[0])!r}; put it back as it was"
            )

    def _load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Number]) -> None:
        """Puts the optimizer's state back; weights are to be loaded after it.

        Raises:
            UserError: a part of it is missing, of another shape or type than the optimizer's, or of none.
        """
        wanted = rehearse(self.optimizer, tensors) if tensors else OptimizerState()
        problem = f"{self.path}: its optimizer state does not fit the run's configuration"
        check_tensors(_prefixed(STATE, wanted.tensors), _prefixed(STATE, tensors), problem)
        if wanted.numbers.keys() != numbers.keys():
            raise UserError(f"{problem}: it counts {sorted(numbers)} and should count {sorted(wanted.numbers)}")
        for name, value in {**tensors, **numbers}.items():
            if name.endswith((".step", "_sq")) and bool(torch.as_tensor(value < 0).any()):
                raise UserError(f"{self.path}: damaged: {STATE}{name} is below zero")
        if tensors:
            OptimizerState(tensors, numbers).give(self.optimizer)


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def _of_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that `_prefixed` named, by their own names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

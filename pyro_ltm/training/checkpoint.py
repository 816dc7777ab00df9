"""A checkpoint: all that training needs to go on, in one file (RUN/trainer.safetensors)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from pyro_ltm.config.settings import flat, renamed
from pyro_ltm.data import TokenDataset
from pyro_ltm.distributed import current, gathered, share_of
from pyro_ltm.errors import UserError
from pyro_ltm.files import sweep_temporaries
from pyro_ltm.runs.folder import (
    CONFIG,
    MODEL,
    TRAINER,
    WEIGHTS,
    check_tensors,
    check_weights,
    write_tensors,
)
from pyro_ltm.runs.metrics import MetricsLog
from pyro_ltm.runs.provenance import known_origin, origin_of, weights_meta
from pyro_ltm.runs.run import Run
from pyro_ltm.training.kept import STATE, CheckpointMeta, Counters, keep_last, last_good, put_last, remove_oldest
from pyro_ltm.training.optimizer_state import Number, OptimizerState, rehearse
from pyro_ltm.training.schedule import changes


@dataclass
class Checkpoint:
    """The files in which the training of a run, with its optimizer, is saved, and from which it goes on.

    Attributes:
        data: what is trained on.
        others: tensors of the weights beside the last, by `average` and `best`.
        say: hears of a damaged checkpoint for which an earlier one stands in.
    """

    run: Run
    optimizer: torch.optim.Optimizer
    data: TokenDataset
    metrics: MetricsLog
    others: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        self._copy: dict[str, Tensor] = {}  # its memory is used again: to get new memory takes longer than to copy
        self._saved: int | None = None

    def snapshot(self, counters: Counters) -> Callable[[], None]:
        """A copy of the whole state as it is now, and the function that writes it.

        That function first writes one file with everything, then all weights by themselves for everyone else. Until it
        is done, there may be no other snapshot.
        """
        state = OptimizerState.of(self.optimizer)
        meta = CheckpointMeta(
            **vars(counters),
            position=self._position(counters),
            data=self.data.folder.fingerprint,
            states=len(state.tensors),
            numbers=state.numbers,
            settings=flat(self.run.config),
            metrics=self.metrics.mark(),
            origin=known_origin(self.run.folder),
        )
        weights = self.run.trainable.state_dict()
        tensors = weights | _prefixed(STATE, state.tensors)
        for kind, beside in self.others.items():
            tensors |= _prefixed(f"{kind}.", beside)
        for name in self._copy.keys() - tensors.keys():
            del self._copy[name]
        for name, value in tensors.items():  # one after another, so that other processes hold one whole tensor at most
            self._take(name, gathered(value.detach()))
        return (lambda: self._write(meta, list(weights))) if current().leads else lambda: None

    def _take(self, name: str, value: Tensor) -> None:
        """Copies a tensor into memory of the CPU that is this object's own, where this is the process that writes."""
        if not current().leads:
            return
        ours = self._copy.get(name)
        if ours is None or ours.shape != value.shape or ours.dtype != value.dtype:
            ours = self._copy[name] = torch.empty_like(value, device="cpu", memory_format=torch.contiguous_format)
        ours.copy_(value)

    def _write(self, meta: CheckpointMeta, weights: list[str]) -> None:
        folder = self.run.folder
        self.metrics.sync()
        if self._saved not in (None, meta.step):
            keep_last(folder, self._saved)
        write_tensors(folder / TRAINER, self._copy, asdict(meta))
        self._saved = meta.step
        remove_oldest(folder, self.run.config.slow.keep_checkpoints)
        self._write_weights(meta, {name: self._copy[name] for name in weights}, self._copy)

    def _write_weights(self, counters: Counters, weights: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        """Writes the weights by themselves: the last, and the others that the run has."""
        folder, meta = self.run.folder, weights_meta(self.run.folder, self.run.config, counters.step)
        write_tensors(folder / MODEL, weights, meta)
        for kind in self.others:
            step = counters.best_step if kind == "best" else counters.step
            write_tensors(folder / WEIGHTS[kind], _of_prefix(f"{kind}.", tensors), {**meta, "step": step})

    def load(self) -> Counters | None:
        """Puts weights and optimizer as they were saved, and gives the counters; None where nothing was saved yet.

        Where the last checkpoint is damaged, an earlier one takes its place.

        Raises:
            UserError: all checkpoints are damaged, or the run's was made on other data or by another configuration.
        """
        found = self._find()
        if found is None:
            return None
        path, tensors, meta = found
        self._check_meta(meta)
        state = _of_prefix(STATE, tensors)
        others = (STATE, *(f"{kind}." for kind in self.others))
        weights = {name: value for name, value in tensors.items() if not name.startswith(others)}
        check_weights(self.run.trainable, weights, path)
        self._load_state(state, meta.numbers or {}, f"{path}: its optimizer state does not fit the run's configuration")
        own = self.run.trainable.state_dict()
        self.run.trainable.load_state_dict({name: share_of(value, own[name]) for name, value in weights.items()})
        self._load_others(tensors, f"weights do not fit the run's {CONFIG}")
        counters = Counters(**{entry.name: getattr(meta, entry.name) for entry in fields(Counters)})
        if meta.position != self._position(counters):
            raise UserError(f"{path}: damaged: its data position is not that of step {counters.step}")
        self._saved = counters.step
        if current().leads:
            # A kill right after the last write leaves the folder of its temporary, one between the files of a
            # checkpoint older weights in the others.
            sweep_temporaries(self.run.folder / TRAINER)
            self._write_weights(counters, weights, tensors)
            self._check_metrics(meta)
        return counters

    def _find(self) -> tuple[Path, dict[str, Tensor], CheckpointMeta] | None:
        """The last good checkpoint, which is the last from here on. Of several processes the first sees to that."""
        world, folder = current(), self.run.folder
        if not world.leads:
            world.any(False)  # waits for it
        found = last_good(folder, self.say)
        if world.leads:
            if found is not None:
                put_last(folder, found[0])
            world.any(False)
        return found and (folder / TRAINER, *found[1:])

    def _check_metrics(self, meta: CheckpointMeta) -> None:
        """Says so where the rows up to the checkpoint are not those that were written."""
        if meta.metrics and not self.metrics.begins_with(meta.metrics):
            self.say(
                f"{self.metrics.path}: not as it was when step {meta.step} was saved: rows were lost or changed; "
                "training goes on all the same"
            )

    def _load_others(self, tensors: dict[str, Tensor], problem: str) -> None:
        """Puts the weights beside the last back. Raises UserError when they are not those of the run."""
        for kind, weights in self.others.items():
            saved = _of_prefix(f"{kind}.", tensors)
            check_tensors(weights, saved, f"{self.run.folder / TRAINER}: its {kind} {problem}")
            for name, value in saved.items():
                weights[name].copy_(share_of(value, weights[name]))

    def _position(self, counters: Counters) -> int:
        """Sequences read since the start of training."""
        return counters.step * self.run.config.slow.sequences

    def _check_meta(self, meta: CheckpointMeta) -> None:
        """Raises UserError when the checkpoint is another run's: of other data, weights or another configuration."""
        last, own, origin = self.run.folder / TRAINER, self.data.folder.fingerprint, origin_of(self.run.folder)
        if meta.data != own and self.run.data_fingerprint == own:
            raise UserError(f"{last}: of another run, which learned from other data: put its own file back")
        if meta.data != own:
            raise UserError(f"{self.run.folder}: was not trained on {self.data.folder.path}; give its own data")
        if None not in (meta.origin, origin) and meta.origin != origin:
            raise UserError(f"{last}: of another run, which began with other weights: put its own file back")
        settings = renamed(meta.settings) if meta.settings else flat(self.run.config)
        for key, value in changes(self.run.config, settings, meta.step).items():
            raise UserError(
                f"{self.run.folder}: its checkpoint was made by another configuration than its {CONFIG} is now: "
                f"{key} was {value!r}; put it back as it was"
            )

    def _load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Number], problem: str) -> None:
        """Puts the optimizer's state back; weights are to be loaded after it.

        Raises:
            UserError: a part of it is missing, of another shape or type than the optimizer's, or of none.
        """
        wanted = rehearse(self.optimizer, tensors) if tensors else OptimizerState()
        check_tensors(_prefixed(STATE, wanted.tensors), _prefixed(STATE, tensors), problem)
        if wanted.numbers.keys() != numbers.keys():
            raise UserError(f"{problem}: it counts {sorted(numbers)} and should count {sorted(wanted.numbers)}")
        if tensors:
            shares = {name: share_of(value, wanted.tensors[name]) for name, value in tensors.items()}
            OptimizerState(shares, numbers).give(self.optimizer)


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def _of_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that `_prefixed` named, by their own names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

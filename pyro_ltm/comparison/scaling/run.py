"""A study run: every cell trained in a folder of its own and scored once, by any number of workers on one folder.

A worker may be several processes, which train and score each cell together: the first claims it, and writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_ltm.comparison.loop import environment
from pyro_ltm.comparison.scaling.grid import Cell, Grid, named, part
from pyro_ltm.comparison.scaling.result import (
    NOT_RUN,
    RUNS,
    Level,
    Look,
    Row,
    Study,
    open_study,
    read_row,
    refresh,
    write_row,
)
from pyro_ltm.comparison.together import by_all, end_together, sharing_a_score
from pyro_ltm.comparison.trainings import decoder_training, open_tokens, open_validation, with_validations
from pyro_ltm.config import Config, ModelConfig
from pyro_ltm.config.settings import PLAN, flat
from pyro_ltm.data import Reading, TokenDataset
from pyro_ltm.data.sources import sources_of
from pyro_ltm.distributed import current
from pyro_ltm.errors import OutOfMemory, RanAway, UserError, is_out_of_memory
from pyro_ltm.locks import Busy, locked
from pyro_ltm.profiling.costs import count_costs
from pyro_ltm.runs.batches import check_fits
from pyro_ltm.runs.evaluation_file import evaluation_record, write_evaluation
from pyro_ltm.runs.protocols import Evaluation, evaluate_protocols, protocols_of
from pyro_ltm.runs.run import Run
from pyro_ltm.scores.estimate import Figure
from pyro_ltm.training.launch import train
from pyro_ltm.training.parallel import check_shares

PAUSE = 2.0
"""Seconds until a worker looks again at cells that others have in hand."""


@dataclass(frozen=True)
class Scoring:
    """How every cell is scored, on validation text.

    Attributes:
        sequences: from the first; None: all. particles: draws from each posterior.
        predictive: score the prediction of each token from those before it as well.
        reference_protocol: give the reference implementation's figure beside, which is no bound.
    """

    sequences: int | None = 64
    particles: int = 16
    batch_size: int = 32
    predictive: bool = False
    reference_protocol: bool = False

    def evaluate(self, run: Run, data: TokenDataset) -> Evaluation:
        """The figures of a run, by each protocol that is asked for and that it has; a twin's bound predicts as well."""
        more = {"prefix": self.predictive, "reference": self.reference_protocol}
        asked = [name for name, wanted in more.items() if wanted and run.config.model.thoughts]
        protocols = ["bound", *(name for name in asked if name in protocols_of(run))]
        how: dict[str, Any] = {"sequences": self.sequences, "batch_size": self.batch_size, "protocols": protocols}
        draws = self.particles if run.config.model.thoughts or run.config.model.is_diffusion else 1
        with sharing_a_score():
            return evaluate_protocols(run, data, particles=draws, **how)


@dataclass(frozen=True)
class Callbacks:
    """Whom a worker tells how far it is.

    Attributes:
        on_cell: called with a line before a cell is trained, and where others are waited for.
        training: callbacks of `train`.
    """

    on_cell: Callable[[str], None] = lambda line: None
    training: Mapping[str, Any] = field(default_factory=dict)


def tokens_of(
    config: Config, sources: Sequence[str], out: Path, reading: Reading | None = None, on_prepare: Any = None
) -> Path:
    """The folder of tokens that all cells learn from: the one named, or `out/data`, prepared once by whoever is first.

    Raises:
        UserError: as `prepare`; or there is nothing to hold out, on which cells could be scored.
    """
    world, folder = current(), None
    if world.leads:
        with locked(out / "data", wait=math.inf):
            folder = open_tokens(config, sources_of(sources), out, reading, on_prepare)
    folder = world.tell(folder)
    assert folder is not None
    return folder


@by_all
def run_study(
    grid: Grid,
    *,
    data: Path,
    out: Path | str,
    scoring: Scoring | None = None,
    shard: tuple[int, int] = (1, 1),
    retry_failed: bool = False,
    about: Mapping[str, Any] | None = None,
    device: str = "cpu",
    watch: Callbacks | None = None,
) -> Study:
    """Trains and scores the cells of a grid that are not done yet, each in `out/runs/NAME`, and gives the whole study.

    Several workers may run on one folder at once. None begins a cell that another has in hand: it goes on with the
    others and comes back, and ends when all of its cells are done; those of a worker that was killed it takes over.
    A worker of several processes (`torchrun`) is each of them, with the same arguments.

    Args:
        data: the folder of tokens that all learn from.
        shard: which part of the cells, of how many: (1, 1) is all of them.
        retry_failed: train those once more that ended without figures, from their last checkpoint. about: for people.

    Raises:
        UserError: bad input; the folder holds a study with other settings.
        Stopped: interrupted; the same call goes on.
    """
    out, watch, scoring = Path(out), watch or Callbacks(), scoring or Scoring()
    validation = open_validation(grid.common, data)
    cells = part(grid.cells(), *shard)
    for cell in cells:
        named(cell.name, lambda cell=cell: check_fits(cell.config, validation))
        named(cell.name, lambda cell=cell: check_shares(cell.config, current().size))
    settings = study_settings(grid, validation.folder.fingerprint, scoring, device)
    leads = current().leads
    about = {**(about or {}), **({NOT_RUN: grid.not_run} if grid.not_run else {})}
    study = open_study(out, settings, about) if leads else Study(settings)
    again = [row for row in study.failed if retry_failed]
    work = _Work(out / RUNS, data, validation, scoring, device, watch, again)
    waiting, said = list(cells), 0
    while waiting:
        busy = []
        for cell in waiting:
            end_together()
            if (found := work.attempt(cell, f"{cells.index(cell) + 1} of {len(cells)}")) is None:
                busy.append(cell)
            elif found and leads:
                refresh(study, out)
        if busy and len(busy) == len(waiting):  # nothing else is left to do
            if len(busy) != said:
                watch.on_cell(f"waiting for other workers, who have the last {len(busy)} in hand")
            said = len(busy)
            time.sleep(PAUSE)
        waiting = busy
    if leads:
        refresh(study, out)
    whole = current().tell(study)
    assert whole is not None
    return whole


def study_settings(grid: Grid, data: str, scoring: Scoring, device: str) -> dict[str, Any]:
    """All settings that the cells of a study share, which `study.json` keeps. `data`: the tokens' fingerprint."""
    settings = {**_shared(grid.common), "data": data, "device": device.partition(":")[0]}
    return settings | {**dataclasses.asdict(scoring), "budget": dataclasses.asdict(grid.budget)}


def _shared(common: Config) -> dict[str, Any]:
    """Settings that all cells share unless an axis says otherwise."""
    unsaid = ("seed", *PLAN[1:], "slow.save_minutes")
    return {key: value for key, value in flat(common).items() if key not in unsaid}


@dataclass(frozen=True)
class _Work:
    """The work on cells: all that is the same for each."""

    runs: Path
    data: Path
    validation: TokenDataset
    scoring: Scoring
    device: str
    watch: Callbacks
    again: Sequence[Row] = ()

    def attempt(self, cell: Cell, place: str) -> bool | None:
        """Does a cell, if it is not done; True where it did, None where another has it in hand."""
        folder, world = self.runs / cell.name, current()
        with contextlib.ExitStack() as stack:
            claimed = world.tell(self._claim(folder, stack) if world.leads else None)
            if claimed:
                self.watch.on_cell(f"{cell.name} ({place})")
                row = self.row(cell, folder)
                if world.leads:
                    write_row(folder, row)
        return claimed

    def _claim(self, folder: Path, stack: contextlib.ExitStack) -> bool | None:
        """Takes the lock of a cell that is to be done; False where it is done, None where another has it in hand."""
        if self._is_done(folder):
            return False
        try:
            stack.enter_context(locked(folder))
        except Busy:
            return None
        return not self._is_done(folder)  # since it was looked at

    def _is_done(self, folder: Path) -> bool:
        """Whether there is a row, and none that is to be made once more: that of whoever did so is another."""
        row = read_row(folder)
        return row is not None and row not in self.again

    def row(self, cell: Cell, folder: Path) -> Row:
        """A cell trained and scored; one that ran away, or found no memory, has a note in place of figures.

        Of several processes one that finds no memory in training notes that itself, and ends all: the others wait for
        what it would have sent.
        """
        costs, model = count_costs(cell.config), cell.config.model
        known: dict[str, Any] = {
            "name": cell.name,
            "family": cell.family,
            "seed": cell.config.seed,
            "settings": cell.name.removesuffix(f"--seed={cell.config.seed}"),
            "axes": dict(cell.axes),
            "steps": cell.config.slow.steps,
            "layers": model.layers,
            "dim": model.dim,
            "thoughts": model.thoughts,
            "fast_steps": cell.config.fast.steps if model.thoughts else 0,
            "training_operations": costs.training(cell.config),
            "score_token_operations": costs.score_token,
            "write_token_operations": costs.write_token,
            "machine": environment(),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
        }
        config, how = with_validations(cell.config), dict(self.watch.training)
        try:
            run = train(config, data=self.data, out=folder, resume=True, device=self.device, **how)
            found = self.scoring.evaluate(run, self.validation)
        except RanAway as error:
            return Row(**known, note=f"failed: {error}")
        except (OutOfMemory, MemoryError, RuntimeError) as error:  # on another machine there may be enough
            if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
                raise
            row = Row(**known, note="failed: out of memory")
            if current().size > 1 and error is not current().failure:
                write_row(folder, row)
                then = "the same command with --resume goes on with the others"
                raise UserError(f"{folder}: out of memory, and the cell notes it; {then}") from None
            return row
        if not current().leads:
            return Row(**known)
        write_evaluation(run, evaluation_record(run, found, data=f"{self.data} (validation)"))
        return Row(**known, **_trained(run), **_scored(found, model))


def _trained(run: Run) -> dict[str, Any]:
    """How a run was trained, and its size."""
    how = decoder_training(run.folder)
    weights = {id(one): one.numel() for one in run.trainable.parameters()}
    tables = (getattr(run.model.decoder, name, None) for name in ("tok_embeddings", "output"))
    outer = {id(table.weight) for table in tables if table is not None}
    return {
        "tokens": how.tokens,
        "seconds": how.seconds,
        "corpus_tokens": run.dataset("train").tokens,
        "parameters": sum(weights.values()),
        "body": sum(size for name, size in weights.items() if name not in outer),
        "curve": [Look(one.step, one.tokens, one.nats_per_token) for one in how.validation],
    }


def _scored(found: Evaluation, model: ModelConfig) -> dict[str, Any]:
    """The figures of an evaluation."""
    bound = found.bound
    assert bound is not None
    iwae = Figure.of(bound.sequence_iwae_nats, bound.sequence_tokens, bound.places)
    levels: dict[str, Any] = {"bound": bound, "iwae": iwae, "predictive": found.prefix}
    levels |= {"reference": found.reference, "floor": found.floor}
    layers, latent = bound.active_fraction_by_layer, model.thoughts * model.thought_width
    return {
        **{
            name: _level(figure.nats_per_token, figure.nats_per_token_stderr)
            for name, figure in levels.items()
            if figure
        },
        "particles": bound.particles,
        "rate": bound.kl_nats_per_sequence,
        "active": round(sum(layers) / len(layers) * latent) if layers else None,
        "latent": latent,
        "sequence_nats": [round(nats, 4) for nats in bound.sequence_nats.tolist()],
        "sequence_tokens": [int(count) for count in bound.sequence_tokens.tolist()],
        "places": bound.places.to_dict(),
    }


def _level(nats: float, stderr: float) -> Level:
    return Level(nats, stderr if stderr == stderr else None)


__all__ = ["Callbacks", "Scoring", "run_study", "study_settings", "tokens_of"]

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

from torch import Tensor

from pyro_ltm.comparison.loop import environment
from pyro_ltm.comparison.scaling.grid import LTM, TWIN, Cell, Grid, named, part
from pyro_ltm.comparison.scaling.result import (
    ADDED,
    NATS,
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
from pyro_ltm.scores import Bound
from pyro_ltm.scores.estimate import Figure
from pyro_ltm.training.launch import train
from pyro_ltm.training.parallel import check_shares

PROTOCOL = {"predictive": "prefix", "reference": "reference"}
"""By which protocol of evaluation a figure beside the bound is had."""

PAUSE = 2.0
"""Seconds until a worker looks again at cells that others have in hand."""


@dataclass(frozen=True)
class Scoring:
    """How every cell is scored, on validation text.

    Attributes:
        sequences: from the first; None: all. particles: draws from each posterior.
        predictive: score the prediction of each token from those before it as well; a twin's bound is that.
        reference_protocol: give the reference implementation's figure beside, which is no bound.
    """

    sequences: int | None = 64
    particles: int = 16
    batch_size: int = 32
    predictive: bool = False
    reference_protocol: bool = False

    def evaluate(self, run: Run, data: TokenDataset, protocol: str = "bound") -> Evaluation:
        """The figures of a run by one protocol."""
        how: dict[str, Any] = {"sequences": self.sequences, "batch_size": self.batch_size, "protocols": [protocol]}
        draws = self.particles if run.config.model.thoughts or run.config.model.is_diffusion else 1
        with sharing_a_score():
            return evaluate_protocols(run, data, particles=draws, **how)

    def wanted(self, family: str) -> list[str]:
        """The figures beside the bound that are asked for, of those that such a cell can have."""
        asked = {
            "predictive": self.predictive and family != TWIN,
            "reference": self.reference_protocol and family == LTM,
        }
        return [name for name, one in asked.items() if one]

    def lacking(self, row: Row) -> list[str]:
        """Of these the ones that a cell with a bound has not, and of which it does not say why."""
        some = self.wanted(row.family) if row.bound else []
        return [name for name in some if getattr(row, name) is None and name not in row.without]

    def begun(self, row: Row | None, *, again: bool = False) -> Row | None:
        """The row of a cell that is begun, to be given what it lacks; None where it is to be trained.

        `again`: whatever ended without figures counts as not begun.
        """
        if row is None or not again:
            return row
        return dataclasses.replace(row, without={}) if row.bound else None


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

    A cell that lacks a figure which `scoring` asks for gets it, and is not trained again.

    Several workers may run on one folder at once. None begins a cell that another has in hand: it goes on with the
    others and comes back, and ends when all of its cells are done; those of a worker that was killed it takes over.
    A worker of several processes (`torchrun`) is each of them, with the same arguments.

    Args:
        data: the folder of tokens that all learn from.
        shard: which part of the cells, of how many: (1, 1) is all of them.
        retry_failed: train those once more that ended without figures, from their last checkpoint, and score those
            that lack one. about: for people.

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
    again = [row for row in study.rows if retry_failed and (row.bound is None or row.without)]
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
    scored = {key: value for key, value in dataclasses.asdict(scoring).items() if key not in ADDED}
    return settings | {**scored, "budget": dataclasses.asdict(grid.budget)}


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
                row, said = world.tell(self._begun(folder) if world.leads else None), f"{cell.name} ({place})"
                if row is None:
                    self.watch.on_cell(said)
                    row = _written(folder, self.row(cell, folder))
                else:
                    self.watch.on_cell(f"{said}, trained before: {' and '.join(self.scoring.lacking(row))}")
                if self.scoring.lacking(row):
                    _written(folder, self.extended(cell, folder, row))
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
        """Whether a cell has all that it can have."""
        row = self._begun(folder)
        return row is not None and not self.scoring.lacking(row)

    def _begun(self, folder: Path) -> Row | None:
        """As `Scoring.begun`; of rows to be made once more, that of whoever did so is another."""
        row = read_row(folder)
        return self.scoring.begun(row, again=row in self.again)

    def row(self, cell: Cell, folder: Path) -> Row:
        """A cell trained, with its bound; one that ran away, or found no memory, has a note in place of figures.

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
        except (RanAway, OutOfMemory, MemoryError, RuntimeError) as error:
            row = Row(**known, note=f"failed: {_reason(error)}")
            if not isinstance(error, RanAway) and current().size > 1 and error is not current().failure:
                write_row(folder, row)
                then = "the same command with --resume goes on with the others"
                raise UserError(f"{folder}: out of memory, and the cell notes it; {then}") from None
            return row
        scored = _scored(found, model)
        if not current().leads:
            return Row(**known, **scored)
        self._keep(run, found)
        return Row(**known, **_trained(run), **scored)

    def extended(self, cell: Cell, folder: Path, row: Row) -> Row:
        """A cell with the figures that it lacks, or with the reason why it has none; the others stay as they are."""
        run = Run.load(folder, device=current().device(self.device), known=cell.config)
        for name in self.scoring.lacking(row):
            row = dataclasses.replace(row, **self._figure(run, name, row.without))
        return row

    def _figure(self, run: Run, name: str, without: Mapping[str, str]) -> dict[str, Any]:
        """A figure of a trained run as its row keeps it, or why it has none beside those that it is `without`."""
        protocol = PROTOCOL[name]
        if protocol not in protocols_of(run):
            return {"without": {**without, name: f"the KL to its prior, {run.config.prior.name}, has no closed form"}}
        try:
            found = self.scoring.evaluate(run, self.validation, protocol)
        except (RanAway, OutOfMemory, MemoryError, RuntimeError) as error:
            return {"without": {**without, name: _reason(error)}}
        if current().leads:
            self._keep(run, found)
        figure = getattr(found, protocol)
        return {name: _level(figure), **({NATS[name]: _rounded(figure.sequence_nats)} if name in NATS else {})}

    def _keep(self, run: Run, found: Evaluation) -> None:
        """Writes what was found into the run's folder, beside its figures by other protocols."""
        write_evaluation(run, evaluation_record(run, found, data=f"{self.data} (validation)"))


def _written(folder: Path, row: Row) -> Row:
    """The row, which the first of several processes has written."""
    if current().leads:
        write_row(folder, row)
    return row


def _reason(error: Exception) -> str:
    """Why there are no figures; raises the error again where it is no such reason. Elsewhere may be more memory."""
    if isinstance(error, RanAway):
        return str(error)
    if isinstance(error, OutOfMemory) or is_out_of_memory(error):
        return "out of memory"
    raise error


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
    levels: dict[str, Figure | Bound | None] = {"bound": bound, "iwae": iwae, "floor": found.floor}
    layers, latent = bound.active_fraction_by_layer, model.thoughts * model.thought_width
    return {
        **{name: _level(figure) for name, figure in levels.items() if figure},
        "particles": bound.particles,
        "rate": bound.kl_nats_per_sequence,
        "active": round(sum(layers) / len(layers) * latent) if layers else None,
        "latent": latent,
        "sequence_nats": _rounded(bound.sequence_nats),
        "sequence_iwae": _rounded(bound.sequence_iwae_nats) if model.thoughts else [],
        "sequence_tokens": [int(count) for count in bound.sequence_tokens.tolist()],
        "places": bound.places.to_dict(),
    }


def _level(figure: Figure | Bound) -> Level:
    stderr = figure.nats_per_token_stderr
    return Level(figure.nats_per_token, stderr if stderr == stderr else None)


def _rounded(nats: Tensor) -> list[float]:
    return [round(one, 4) for one in nats.tolist()]


__all__ = ["Callbacks", "Scoring", "run_study", "study_settings", "tokens_of"]

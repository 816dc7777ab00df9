"""A run that goes on from the checkpoint of another, which stays as it is: several decays of one stable run."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from pyro_ltm.config import Config
from pyro_ltm.errors import Damaged, UserError
from pyro_ltm.files import new_folder
from pyro_ltm.runs.base import load_config, save_config, share_base
from pyro_ltm.runs.data import open_data
from pyro_ltm.runs.folder import CONFIG, METRICS, TOKENIZER, TRAINER, WEIGHTS
from pyro_ltm.runs.metrics import MetricsLog
from pyro_ltm.runs.notes import ORIGIN, note_data, origin_note, relative, write_note
from pyro_ltm.training.kept import read_checkpoint
from pyro_ltm.training.schedule import plan_row, replanned


def check_branch(trunk: Path, out: Path) -> None:
    """Raises UserError when `trunk` has no checkpoint, or something is at `out` already."""
    if not (trunk / CONFIG).is_file() or not (trunk / TRAINER).is_file():
        raise UserError(f"{trunk}: has no {CONFIG} with a {TRAINER} to branch from; give a run that train wrote")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is there already; a branch needs a new folder, and goes on with --resume")


def branch(trunk: Path, out: Path, *, steps: int, rewarm: int = 0, decay: int = 0) -> Config:
    """Makes the new folder `out`: the run `trunk` at its last checkpoint, by another plan. Resuming it trains it.

    The trunk may be in training meanwhile. Its data are not copied.

    Args:
        steps, rewarm, decay: as in `Trainer.extend`.

    Returns:
        The configuration of the new run.

    Raises:
        UserError: the data of `trunk` are gone, or the plan does not fit (see `replanned`).
    """
    saved, data = load_config(trunk), open_data(trunk, "train")
    with new_folder(out) as folder:
        for name in (TOKENIZER, TRAINER, *filter(lambda name: (trunk / name).is_file(), WEIGHTS.values())):
            shutil.copyfile(trunk / name, folder / name)
        at = _step_of(folder, trunk)  # of the copy: the trunk may save meanwhile
        plan = saved
        if decay or rewarm or steps != saved.slow.steps:
            plan = replanned(saved, trunk, at=at, steps=steps, rewarm=rewarm, decay=decay)
        save_config(folder, share_base(plan, folder))
        note_data(folder, data)
        if (origin := origin_note(trunk)) is not None:
            write_note(folder / ORIGIN, msgspec.structs.replace(origin, run=relative(trunk / origin.run, folder)))
        _copy_metrics(trunk, folder, at, {**plan_row(at, saved, plan), "branch_of": relative(trunk, folder)})
    return plan


def _step_of(folder: Path, trunk: Path) -> int:
    """The step of the checkpoint in `folder`, which was copied from `trunk`. Raises UserError when it is damaged."""
    try:
        return read_checkpoint(folder / TRAINER)[1].step
    except Damaged as error:
        reason = str(error).replace(str(folder), str(trunk))
        raise UserError(f"{reason}; --resume --out {trunk} goes on from an earlier checkpoint") from None


def _copy_metrics(trunk: Path, folder: Path, at: int, row: dict[str, object]) -> None:
    """The trunk's rows up to step `at`, and one that says that the run branched there."""
    if (trunk / METRICS).is_file():
        shutil.copyfile(trunk / METRICS, folder / METRICS)
    metrics = MetricsLog(folder / METRICS)
    metrics.cut(after=at)
    metrics.write("plan", row)
    metrics.close()

"""A run that goes on from the checkpoint of another, which stays as it is: several decays of one stable run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import msgspec

from pyro_ltm.config import Config
from pyro_ltm.config.settings import PLAN
from pyro_ltm.errors import Damaged, UserError
from pyro_ltm.files import new_folder
from pyro_ltm.runs.base import load_config, save_config, share_base
from pyro_ltm.runs.data import open_data
from pyro_ltm.runs.folder import CONFIG, METRICS, TOKENIZER, TRAINER, WEIGHTS
from pyro_ltm.runs.metrics import MetricsLog
from pyro_ltm.runs.notes import ORIGIN, note_data, origin_note, relative, write_note
from pyro_ltm.training.kept import CheckpointMeta, kept, read_checkpoint
from pyro_ltm.training.schedule import plan_row, replanned


def check_branch(trunk: Path, out: Path) -> None:
    """Raises UserError when `trunk` has no checkpoint, or something is at `out` already."""
    if not (trunk / CONFIG).is_file() or not (trunk / TRAINER).is_file():
        raise UserError(f"{trunk}: has no {CONFIG} with a {TRAINER} to branch from; give a run that train wrote")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is there already; a branch needs a new folder, and goes on with --resume")


def branch(trunk: Path, out: Path, *, steps: int, rewarm: int = 0, decay: int = 0, at: int | None = None) -> Config:
    """Makes the new folder `out`: the run `trunk` at one of its checkpoints, by another plan. Resuming it trains it.

    The trunk may be in training meanwhile. Its data are not copied.

    Args:
        steps, rewarm, decay: as in `Trainer.extend`.
        at: slow step of a checkpoint that the trunk keeps (`slow.keep_checkpoints`); None: its last.

    Returns:
        The configuration of the new run.

    Raises:
        UserError: the trunk keeps no checkpoint of step `at`, its data are gone, or the plan does not fit (see
            `replanned`).
    """
    saved, data = load_config(trunk), open_data(trunk, "train")
    with new_folder(out) as folder:
        meta = _copy_checkpoint(trunk, folder, at)
        if at is not None:
            saved = _planned_then(saved, meta)
        plan = saved
        if decay or rewarm or steps != saved.slow.steps:
            plan = replanned(saved, trunk, at=meta.step, steps=steps, rewarm=rewarm, decay=decay)
        save_config(folder, share_base(plan, folder))
        note_data(folder, data)
        if (origin := origin_note(trunk)) is not None:
            write_note(folder / ORIGIN, msgspec.structs.replace(origin, run=relative(trunk / origin.run, folder)))
        row = {**plan_row(meta.step, saved, plan), "branch_of": relative(trunk, folder)}
        _copy_metrics(trunk, folder, meta.step, row)
    return plan


def _copy_checkpoint(trunk: Path, folder: Path, at: int | None) -> CheckpointMeta:
    """Copies the last checkpoint of `trunk` into `folder`, or that of step `at`, with the tokenizer; its header.

    Raises UserError when it is damaged, or there is none of that step.
    """
    earlier = trunk / f"trainer-{at}.safetensors"
    source = earlier if earlier.is_file() else trunk / TRAINER
    shutil.copyfile(source, folder / TRAINER)
    try:
        meta = read_checkpoint(folder / TRAINER)[1]  # of the copy: the trunk may save meanwhile
    except Damaged as error:
        reason = str(error).replace(str(folder / TRAINER), str(source))
        raise UserError(f"{reason}; --resume --out {trunk} goes on from an earlier checkpoint") from None
    if at is not None and meta.step != at:
        steps = [meta.step, *(int(path.stem.split("-")[1]) for path in kept(trunk)[1:])]
        raise UserError(
            f"{trunk}: keeps no checkpoint of step {at}, only of {', '.join(map(str, steps))}: name one of these with "
            "--at (slow.keep_checkpoints says how many a run keeps)"
        )
    shutil.copyfile(trunk / TOKENIZER, folder / TOKENIZER)
    # Those beside an earlier checkpoint are of a later step; resuming writes its own.
    for name in WEIGHTS.values() if at is None else ():
        if (trunk / name).is_file():
            shutil.copyfile(trunk / name, folder / name)
    return meta


def _planned_then(config: Config, meta: CheckpointMeta) -> Config:
    """`config` with the plan by which the checkpoint was made: the run may have been extended since."""
    settings: dict[str, Any] = meta.settings or {}
    then = {key.removeprefix("slow."): settings[key] for key in PLAN if isinstance(settings.get(key), int)}
    return dataclasses.replace(config, slow=dataclasses.replace(config.slow, **then))


def _copy_metrics(trunk: Path, folder: Path, at: int, row: dict[str, object]) -> None:
    """The trunk's rows up to step `at`, and one that says that the run branched there."""
    if (trunk / METRICS).is_file():
        shutil.copyfile(trunk / METRICS, folder / METRICS)
    metrics = MetricsLog(folder / METRICS)
    metrics.cut(after=at)
    metrics.write("plan", row)
    metrics.close()

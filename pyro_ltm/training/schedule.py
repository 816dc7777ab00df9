"""The plan of a training: its rates at each step, how it is extended, and what two plans differ in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_ltm.config import Config, SlowConfig
from pyro_ltm.config.settings import ANYHOW, PLAN, differences, flat, without_free
from pyro_ltm.errors import UserError
from pyro_ltm.optimizers import schedule


def learning_rate(step: int, slow: SlowConfig) -> float:
    """The learning rate of slow step `step`, from 0: linear warm-up, then from the peak down to `lr_final` of it.

    It would reach that at step `slow.steps`, the first that is not taken. A cosine and a line fall from the end of the
    warm-up on (a line to 0: arXiv:2502.15938). Warm-up, stable, decay (`wsd`, arXiv:2404.06395) stays at the peak until
    `decay_begin`, and falls by 1 - sqrt(share of the decay done), of which arXiv:2405.18392 found that it serves better
    than a line.

    Where the number of steps was changed, the schedule is that of the new number from there on, and the rate rises to
    it in `rewarm` steps.
    """
    if step < slow.warmup:
        return slow.lr * (step + 1) / slow.warmup
    again = (step - slow.changed_at + 1) / slow.rewarm if slow.rewarm else 1.0
    begin = decay_begin(slow) if slow.schedule == "wsd" else slow.warmup
    done, steps = max(0, step - begin), slow.steps - begin
    if slow.schedule == "wsd":
        left = slow.lr_final + (1 - slow.lr_final) * (1 - math.sqrt(done / max(1, steps)))
    else:
        left = schedule(slow.schedule, done, steps, slow.lr_final)
    return slow.lr * left * min(1.0, again)


def decay_begin(slow: SlowConfig) -> int:
    """The slow step, from 0, at which the decay of `wsd` begins; `slow.steps` where it has none."""
    return max(slow.warmup, slow.steps - (slow.decay_steps or round(slow.decay * slow.steps)))


def phase(step: int, config: Config) -> tuple[bool, float]:
    """Whether a slow step is without thoughts, and the share done of those with thoughts: the clock of a warm-up.

    It goes by the first plan: a run that is extended does not anneal its objective once more.
    """
    first, slow = config.decoder_warmup_steps, config.slow
    return step < first, min(1.0, max(0, step - first) / max(1, (slow.planned or slow.steps) - first))


def extended(config: Config, *, steps: int, at: int, rewarm: int = 0, decay: int = 0) -> Config:
    """`config` with another number of slow steps from step `at` on, of which the last `decay` are those of `wsd`."""
    planned = config.slow.planned or config.slow.steps
    slow = dataclasses.replace(
        config.slow, steps=steps, planned=planned, changed_at=at, rewarm=rewarm, decay_steps=decay
    )
    return dataclasses.replace(config, slow=slow)


def replanned(config: Config, folder: Path, *, at: int, steps: int, rewarm: int = 0, decay: int = 0) -> Config:
    """The configuration of the run in `folder`, `at` steps done, that goes on to `steps` steps, or decays in `decay`.

    Raises:
        UserError: so many steps are done already, or no decay can begin there.
    """
    slow = config.slow
    if decay:
        _check_decay(slow, folder, at)
        return extended(config, steps=at + decay, at=at, decay=decay)
    if steps <= at:
        raise UserError(f"{folder}: has done {at} slow steps already; give more than that with --steps")
    if at == 0:  # nothing is done yet by the first plan
        return dataclasses.replace(config, slow=dataclasses.replace(slow, steps=steps))
    return extended(config, steps=steps, at=at, rewarm=rewarm)


def _check_decay(slow: SlowConfig, folder: Path, at: int) -> None:
    """Raises UserError where the rate is not at its peak when `at` steps are done."""
    if slow.schedule != "wsd":
        raise UserError(f"{folder}: --decay is of slow.schedule = wsd, and this run's is {slow.schedule}")
    if at == 0 or at < max(slow.warmup, slow.changed_at + slow.rewarm):
        raise UserError(f"{folder}: at step {at} its rate rises still; --decay begins once it is at its peak")
    if at > (begin := decay_begin(slow)):
        raise UserError(
            f"{folder}: at step {at} its rate falls since step {begin}: go on without --decay, or branch from a run "
            "that is at its peak"
        )


def plan_row(at: int, before: Config, after: Config) -> dict[str, Any]:
    """Row of `metrics.jsonl` for a change of plan at step `at` (see `PlanRow`)."""
    now = after.slow
    row = {"step": at, "steps": now.steps, "steps_before": before.slow.steps}
    return {**row, "rewarm": now.rewarm, "decay": now.decay_steps}


def going_on_as(saved: Config, asked: Config) -> Config:
    """The configuration of a run that goes on: as `saved`, but for what it may go on with otherwise, as `asked`."""
    settings = flat(asked)
    free = {key.removeprefix("slow."): settings[key] for key in ANYHOW}
    return dataclasses.replace(saved, slow=dataclasses.replace(saved.slow, **free))


def changes(config: Config, settings: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Keys, and their values, in which `settings`, by which a checkpoint at `step` was made, are not the run's.

    Its plan may be another one where it was extended at that very step: then it was killed before the next checkpoint.
    """
    then = without_free(settings)
    changed = differences(without_free(flat(config)), then)
    slow, planned = config.slow, settings.get("slow.planned") or settings.get("slow.steps")
    if slow.changed_at == step and slow.planned == planned:
        changed = [key for key in changed if key not in PLAN]
    return {key: then.get(key) for key in changed}


def check_same(config: Config, saved: Config, folder: Path) -> None:
    """Raises UserError naming in what the run in `folder` may not go on otherwise than configured.

    It may in its steps, and in what changes no figure (`ANYHOW`).
    """
    ours, theirs = without_free(flat(config)), without_free(flat(saved))
    # What one who names no more than other steps, or the whole command once more, does not know.
    for key in (*PLAN, "model.thought_stride"):
        ours[key] = ours[key] if ours[key] and key != "slow.steps" else theirs[key]
    if keys := [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]:
        changes = ", ".join(f"{key} = {theirs.get(key)!r} became {ours.get(key)!r}" for key in keys)
        raise UserError(
            f"{folder}: cannot resume with another configuration ({changes}); leave it out, or start a new run"
        )

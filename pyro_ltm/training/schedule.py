"""The plan of a training: its rates at each step, how it is extended, and what two plans differ in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pyro_ltm.config import RENAMED, Config, SlowConfig

PLAN = ("slow.steps", "slow.planned", "slow.changed_at", "slow.rewarm")
"""Keys that `extended` sets."""

COMPONENTS = ("guide.", "objective.", "optimizer.")
"""Their options that a plan does not name are their class's, so one that is named is a difference."""


def learning_rate(step: int, slow: SlowConfig) -> float:
    """Linear warm-up, then half a cosine down to `lr_final` of the peak at the last step.

    Where the number of steps was changed, the cosine is that of the new number from there on, and rises to it in
    `rewarm` steps.
    """
    if step < slow.warmup:
        return slow.lr * (step + 1) / slow.warmup
    share = (step - slow.warmup) / max(1, slow.steps - slow.warmup)
    again = (step - slow.changed_at + 1) / slow.rewarm if slow.rewarm else 1.0
    return slow.lr * (slow.lr_final + (1 - slow.lr_final) * 0.5 * (1 + math.cos(math.pi * share))) * min(1.0, again)


def phase(step: int, config: Config) -> tuple[bool, float]:
    """Whether a slow step is without thoughts, and the share done of those with thoughts: the clock of a warm-up.

    It goes by the first plan: a run that is extended does not anneal its objective once more.
    """
    first, slow = config.decoder_warmup_steps, config.slow
    return step < first, min(1.0, max(0, step - first) / max(1, (slow.planned or slow.steps) - first))


def extended(config: Config, *, steps: int, at: int, rewarm: int = 0) -> Config:
    """`config` with another number of slow steps from step `at` on."""
    planned = config.slow.planned or config.slow.steps
    slow = dataclasses.replace(config.slow, steps=steps, planned=planned, changed_at=at, rewarm=rewarm)
    return dataclasses.replace(config, slow=slow)


def flat(config: Config) -> dict[str, Any]:
    """Dotted keys to values."""
    found: dict[str, Any] = {}
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            options = value.pop("options", {})
            found.update({f"{key}.{name}": entry for name, entry in {**value, **options}.items()})
        else:
            found[key] = value
    return found


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration of an earlier release, by the names that its keys have now."""

    def now(key: str) -> str:
        section, dot, name = key.rpartition(".")
        return f"{section}{dot}{RENAMED.get(key, name)}"

    return {now(key): value for key, value in settings.items()}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys in which two flat configurations differ. One that a release has and another has not is none."""
    return [
        key
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key) and (key.startswith(COMPONENTS) or (key in ours and key in theirs))
    ]


def changes(config: Config, settings: Mapping[str, Any], step: int) -> list[str]:
    """Keys in which a run's configuration is not `settings`, by which its checkpoint at `step` was made.

    Its plan may be another one where it was extended at that very step: then it was killed before the next checkpoint.
    """
    changed = differences(flat(config), settings)
    slow, planned = config.slow, settings.get("slow.planned") or settings.get("slow.steps")
    if slow.changed_at == step and slow.planned == planned:
        changed = [key for key in changed if key not in PLAN]
    return changed

"""A configuration as dotted keys and values, and in what two of them differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pyro_ltm.config.sections import Config
from pyro_ltm.config.toml import RENAMED

PLAN = ("slow.steps", "slow.planned", "slow.changed_at", "slow.rewarm", "slow.decay_steps")
"""Keys of the plan of a training, which may be changed while it goes on."""

SPLIT = ("slow.batch_size", "slow.accumulate")
"""Keys by whose product a slow step reads so many sequences; how they split it changes no figure but by rounding."""

ANYHOW = (*SPLIT, "slow.recompute", "slow.save_every", "slow.save_minutes", "slow.keep_checkpoints")
"""Keys by which a run may go on otherwise: they change no figure."""

COMPONENTS = ("guide.", "objective.", "optimizer.", "slow_optimizer.", "prior.")
"""Their options that a plan does not name are their class's, so one that is named is a difference."""


def flat(config: Config) -> dict[str, Any]:
    """Dotted keys to values."""
    found: dict[str, Any] = {}
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            options = value.pop("options", {})
            found.update({f"{key}.{name}": entry for name, entry in {**value, **options}.items()})
        else:
            found[key] = value
    del found["graft.base"]  # where the base lies; which it is, its digest says
    del found["distributed.kind"]  # a run may go on with another
    return found


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration of an earlier release as this one names it."""

    def now(key: str) -> str:
        section, dot, name = key.rpartition(".")
        return f"{section}{dot}{RENAMED.get(key, name)}"

    # Before slow optimizers and priors had names there was one of each.
    first = {"slow_optimizer.name": "adamw", "prior.name": "gaussian"}
    return first | {now(key): value for key, value in settings.items()}


def without_free(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration without the keys by which a run may go on otherwise; of `SPLIT` the product stays."""
    kept = {key: value for key, value in settings.items() if key not in ANYHOW}
    return {**kept, " × ".join(SPLIT): math.prod(settings.get(key, 1) for key in SPLIT)}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys in which two flat configurations differ. One that a release has and another has not is none."""
    return [
        key
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key) and (key.startswith(COMPONENTS) or (key in ours and key in theirs))
    ]

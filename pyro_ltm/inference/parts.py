"""Parts of a configuration from Python: guide, objective, optimizers and prior by name, as classes or as objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pyro_ltm.config import Component, Config, suggest
from pyro_ltm.errors import UserError
from pyro_ltm.inference.families import FAMILIES
from pyro_ltm.objectives import OBJECTIVES
from pyro_ltm.optimizers import OPTIMIZERS
from pyro_ltm.optimizers.slow import SLOW_OPTIMIZERS
from pyro_ltm.priors import PRIORS
from pyro_ltm.registry import Registry

AXES: dict[str, Registry[Any]] = {
    "guide": FAMILIES,
    "objective": OBJECTIVES,
    "optimizer": OPTIMIZERS,
    "slow_optimizer": SLOW_OPTIMIZERS,
    "prior": PRIORS,
}
"""The registry of each component of a configuration."""


def components(parts: Mapping[str, Any]) -> dict[str, Component]:
    """The configuration of `parts`: by axis a name, a class, or an object, which is held; None is left out.

    Raises:
        UserError: no such axis, or a part is none of its axis.
    """
    for axis in parts:
        if axis not in AXES:
            raise UserError(f"unknown part '{axis}'{suggest(axis, AXES)}: choose from {', '.join(AXES)}")
    return {axis: AXES[axis].component(part) for axis, part in parts.items() if part is not None}


def with_parts(config: Config, **parts: Any) -> Config:
    """`config` with a guide, an objective and so on, each a name, a class, or an object (see `components`)."""
    changed: dict[str, Any] = {**components(parts)}
    return dataclasses.replace(config, **changed)


def with_known(config: Config, known: Config) -> Config:
    """`config`, a description that was read, with the objects that `known` holds where it describes the same."""
    return with_parts(config, **{axis: one for axis, one in known.components.items() if one == getattr(config, axis)})

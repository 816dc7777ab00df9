"""Names from the command line to guides and objectives, for comparisons."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pyro_ltm.config import Component, Config
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference import FAMILIES
from pyro_ltm.inference.build import build_guide, build_objective, check_config, new_guide
from pyro_ltm.objectives import OBJECTIVES, Objective
from pyro_ltm.registry import Registry, T, parameters_of
from pyro_ltm.runs.run import Run

Parts = Sequence[Any] | Mapping[str, Any]
"""Guides or objectives: names, classes or objects, or such by the names to show."""

ALL = "all"
OWN_WEIGHTS = "started from the run's own weights"


def split_names(text: str, registry: Registry[T]) -> list[str]:
    """The names in `a,b:8,c`; `all` stands for every member.

    Raises:
        UserError: a name that is not known, options that it does not have, or no name at all.
    """
    names = [name.strip() for name in text.split(",")]
    if ALL in names:
        names = [name for given in names for name in (list(registry) if given == ALL else [given])]
    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise UserError(f"no {registry.axis} named: choose from {', '.join(registry)}, or {ALL}")
    for name in names:
        registry.parse(name)
    return names


@dataclass(frozen=True)
class NamedGuides:
    """Guides by name, notes on them, and names of guides that could not be built, with the reason."""

    guides: dict[str, Guide] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All names, those of missing guides last."""
        return [*self.guides, *self.missing]


def named_parts(parts: Parts) -> dict[str, Any]:
    """Parts by the names to show: those given with them, else a name itself, or that of a class."""
    if isinstance(parts, Mapping):
        return dict(parts)
    return {one if isinstance(one, str) else getattr(one, "__name__", type(one).__name__): one for one in parts}


def guides_for(run: Run, parts: Parts) -> NamedGuides:
    """Guides for a run's decoder, each given by a name, a class, or an object, of which it is a copy.

    A guide with shared parameters starts from the run's own where the run was trained with the same guide. One that
    with its default options does not fit the decoder is missing.

    Raises:
        UserError: options out of their range, or a part that is no guide.
    """
    found = NamedGuides()
    own = _resolved(FAMILIES, run.config.guide)
    for name, part in named_parts(parts).items():
        component = FAMILIES.component(part)
        try:
            guide = new_guide(component, run.config, run.device)
        except UserError as error:
            if component.options or not isinstance(part, str):
                raise
            found.missing[name] = str(error)
            continue
        if guide.learning != "none" and isinstance(part, str) and _resolved(FAMILIES, component) == own:
            guide, found.notes[name] = copy.deepcopy(run.loop.guide), OWN_WEIGHTS
        found.guides[name] = guide
    return found


def objectives_for(run: Run, parts: Parts) -> dict[str, Objective]:
    """Objectives, each given by a name, a class, or an object, of which it is a copy.

    The one that the run was trained with, by its name, has what it has learned.
    """
    own, found = _resolved(OBJECTIVES, run.config.objective), {}
    for name, part in named_parts(parts).items():
        component = OBJECTIVES.component(part)
        if isinstance(part, str) and run.loop.objective.learned is not None and _resolved(OBJECTIVES, component) == own:
            found[name] = copy.deepcopy(run.loop.objective)
        else:
            found[name] = build_objective(component, run.config.model, run.device)
    return found


def pair_config(config: Config, guide: Any, objective: Any) -> Config:
    """`config` with this guide and this objective, which keeps the warm-up of the KL where it knows any."""
    chosen = OBJECTIVES.component(objective)
    warmup = config.objective.options.get("warmup")
    whole = chosen.given is not None and not isinstance(chosen.given, type)
    if warmup is not None and not whole and "warmup" in parameters_of(OBJECTIVES.class_of(chosen)):
        changed = dataclasses.replace(chosen, options={"warmup": warmup, **chosen.options})
        chosen = changed.holding(chosen.given)
    return dataclasses.replace(config, guide=FAMILIES.component(guide), objective=chosen)


def unfit_config(config: Config) -> str:
    """Why the parts that a configuration names do not fit one another or the decoder; empty where they do."""
    objective = build_objective(config.objective, config.model)
    try:
        with torch.device("meta"):
            guide = build_guide(config.guide, config.model, seed=config.seed)
        if reason := objective.refusal(guide):
            return reason
        check_config(config)
    except UserError as error:
        if config.guide.options and "guide:" in str(error):
            raise  # options out of their range
        return str(error)
    return ""


def _resolved(registry: Registry[T], component: Component) -> tuple[str, dict[str, object]]:
    """Name and all options, those left at their defaults among them."""
    if ":" in component.name and component.given is None:
        parsed = registry.parse(component.name)
        component = Component(name=parsed.name, options={**parsed.options, **component.options})
    parameters = parameters_of(registry.class_of(component)).values()
    defaults = {entry.name: entry.default for entry in parameters if entry.default is not entry.empty}
    return component.name, {**defaults, **component.options}

"""Names from the command line to guides and objectives, for comparisons."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from pyro_ltm.config import Component, Config
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference import FAMILIES
from pyro_ltm.inference.build import build_guide, check_config
from pyro_ltm.noise import fold
from pyro_ltm.objectives import OBJECTIVES, Objective
from pyro_ltm.registry import Registry, T
from pyro_ltm.runs.run import Run

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


def guides_for(run: Run, names: Sequence[str]) -> NamedGuides:
    """Guides for a run's decoder by the names given.

    A guide with shared parameters starts from the run's own where the run was trained with the same guide. One that
    with its default options does not fit the decoder is missing.

    Raises:
        UserError: options out of their range.
    """
    found = NamedGuides()
    own = _resolved(FAMILIES, run.config.guide)
    for name in names:
        component = FAMILIES.parse(name)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(fold(run.config.seed, "weights"))
                guide = build_guide(component, run.config.model, seed=run.config.seed).to(run.device)
        except UserError as error:
            if component.options:
                raise
            found.missing[name] = str(error)
            continue
        if guide.learning != "none" and _resolved(FAMILIES, component) == own:
            guide, found.notes[name] = copy.deepcopy(run.loop.guide), OWN_WEIGHTS
        found.guides[name] = guide
    return found


def objectives_for(names: Iterable[str], *, layers: int) -> dict[str, Objective]:
    """Objectives by the names given."""
    return {name: OBJECTIVES.build(OBJECTIVES.parse(name), layers=layers) for name in names}


def pair_config(config: Config, guide: str, objective: str) -> Config:
    """`config` with this guide and this objective, which keeps the warm-up of the KL where it knows any."""
    chosen = OBJECTIVES.parse(objective)
    warmup = config.objective.options.get("warmup")
    if warmup is not None and "warmup" in inspect.signature(OBJECTIVES[chosen.name]).parameters:
        chosen = Component(name=chosen.name, options={"warmup": warmup, **chosen.options})
    return dataclasses.replace(config, guide=FAMILIES.parse(guide), objective=chosen)


def unfit_config(config: Config) -> str:
    """Why the parts that a configuration names do not fit one another or the decoder; empty where they do."""
    objective = OBJECTIVES.build(config.objective, layers=config.model.layers)
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
    if ":" in component.name:
        parsed = registry.parse(component.name)
        component = Component(name=parsed.name, options={**parsed.options, **component.options})
    parameters = inspect.signature(registry[component.name]).parameters.values()
    defaults = {entry.name: entry.default for entry in parameters if entry.default is not entry.empty}
    return component.name, {**defaults, **component.options}

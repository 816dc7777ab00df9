"""The loop of every comparison: refuse what does not fit, skip what is there, score the others, save after each."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_ltm.comparison.comparison_file import open_comparison, save
from pyro_ltm.comparison.pair_score import Progress
from pyro_ltm.comparison.result import Comparison, Key, Kind, PairScore
from pyro_ltm.comparison.together import end_together, sharing_a_score
from pyro_ltm.distributed import current
from pyro_ltm.errors import UserError, is_out_of_memory, visible
from pyro_ltm.types import Batch

Report = Callable[[str, int | None], Progress]
"""Begins to count the sequences of a piece of work; what it gives is called with those done and the nats a token."""


@dataclass(frozen=True)
class Plan:
    """The pairs to score, and all that their figures depend on.

    Attributes:
        kind, settings, definitions: as in `Comparison`.
        refusals: of each guide and objective, why they do not fit; empty where they do.
        fast_steps: numbers of fast steps, each scored by itself.
        added: of `settings`, those that earlier releases did not have, with what they did then.
    """

    kind: Kind
    settings: Mapping[str, Any]
    definitions: Mapping[str, Mapping[str, str]]
    refusals: Mapping[tuple[str, str], str]
    fast_steps: Sequence[int]
    added: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> list[Key]:
        """Pairs that fit, in order."""
        return [(*pair, steps) for pair, why in self.refusals.items() if not why for steps in self.fast_steps]


def find_refusals(
    guides: Iterable[str], objectives: Sequence[str], why: Callable[[str, str], str]
) -> dict[tuple[str, str], str]:
    """Of each guide and objective, why they do not fit: `Plan.refusals`. Raises UserError where no pair fits."""
    found = {(guide, objective): why(guide, objective) for guide in guides for objective in objectives}
    if all(found.values()):
        raise UserError(f"no guide fits an objective: {next(iter(found.values()))}")
    return found


def run_plan(
    plan: Plan,
    batches: Sequence[Batch],
    score: Callable[[Key, str], PairScore],
    *,
    out: Path | None,
    about: Mapping[str, Any] | None,
    rivals: Mapping[str, Callable[[], PairScore]] | None = None,
) -> Comparison:
    """Scores all pairs of a plan that are not in `out` yet. Of several processes the first opens and writes it.

    Args:
        score: gives the figures of a pair; called with its key and its place among the pairs, such as `2/6`.
        out: the folder in which each pair is saved once it is scored; None: in memory alone.
        about: for people: what was run. rivals: give the figures of some of `RIVALS`, by name; None: without any.

    Raises:
        UserError: `out` holds a comparison with other settings.
        Stopped: one of several processes was sent a signal to end; what is scored is saved.
    """
    world = current()
    comparison = world.tell(_begun(plan, batches, out, about) if world.leads else None)
    assert comparison is not None
    out = out if world.leads else None
    for name, rival in (rivals or {}).items():
        if name not in comparison.rivals:
            end_together()
            setattr(comparison, name, world.tell(rival()))
            save(comparison, out)
    for index, key in enumerate(plan.keys, 1):
        if comparison.find(key) is None:
            end_together()
            pair = world.tell(score(key, f"{index}/{len(plan.keys)}"))  # seconds and bytes are those of the first
            assert pair is not None
            comparison.pairs.append(pair)
            save(comparison, out)
    return comparison


def _begun(plan: Plan, batches: Sequence[Batch], out: Path | None, about: Mapping[str, Any] | None) -> Comparison:
    """The comparison in `out` to go on with, or a new one, saved with all that is known of it before it is scored."""
    comparison = open_comparison(out, plan.kind, plan.settings, plan.added)
    for axis, definitions in plan.definitions.items():
        comparison.define(axis, definitions, out)
    comparison.set_sequences(batches)
    comparison.about |= {key: visible(one) if isinstance(one, str) else one for key, one in (about or {}).items()}
    if (machine := environment()) not in comparison.made_on:
        comparison.made_on.append(machine)
    for (guide, objective), why in plan.refusals.items():
        if why:
            comparison.refuse(guide, objective, why)
    save(comparison, out)
    return comparison


def attempt(work: Callable[[], PairScore], key: Key) -> PairScore:
    """The score that `work` gives; a pair that ends in an error has no figures, and does not end the comparison.

    Several processes share the work.
    """
    try:
        with sharing_a_score():
            found = work()
        return dataclasses.replace(found, guide=key[0], objective=key[1])
    except (UserError, torch.linalg.LinAlgError) as error:
        return failed(key, error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return failed(key, "out of memory")


def failed(key: Key, error: object) -> PairScore:
    """The score of a pair that ended in an error: a note."""
    note = f"failed: {' '.join(str(error).split())}"
    return PairScore(guide=key[0], objective=key[1], fast_steps=key[2], note=note)


def environment() -> dict[str, Any]:
    """Versions, machine, threads and processes, where there are several: what times depend on."""
    from pyro_ltm import __version__

    several = {"processes": current().size} if current().size > 1 else {}
    return several | {
        "pyro_ltm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    """The name of the CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()

"""Guides and objectives compared under one decoder, each pair by the same honest figures.

Takes objects, so that a guide or an objective of anyone's own is compared without a change in the library.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import nn

from pyro_ltm.comparison.pair_score import Count, Judgement, judge
from pyro_ltm.comparison.result import Comparison, Pair, open_comparison, save
from pyro_ltm.comparison.train_guide import GuideTraining, train_guide
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference import check_fit
from pyro_ltm.locks import locks_out
from pyro_ltm.noise import fold
from pyro_ltm.objectives import Objective, PyroObjective, as_objective
from pyro_ltm.optimizers import Adam, FastOptimizer
from pyro_ltm.runs.folder import fingerprint
from pyro_ltm.types import Batch

Report = Callable[[str, int | None], Count]
"""Begins to count the sequences of a piece of work; what it gives is called with those done and the nats a token."""


@locks_out
def compare_posteriors(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    guides: Mapping[str, Guide],
    objectives: Mapping[str, ELBO],
    optimizer: FastOptimizer | None = None,
    fast_steps: Sequence[int] = (16,),
    particles: int = 64,
    curve_particles: int = 8,
    seed: int = 0,
    teaching: GuideTraining | None = None,
    notes: Mapping[str, str] | None = None,
    missing: Mapping[str, str] | None = None,
    out: Path | str | None = None,
    about: Mapping[str, Any] | None = None,
    report: Report | None = None,
    **fitting: Any,
) -> Comparison:
    """Fits every guide by every objective under a trained decoder, and judges them all alike.

    Args:
        model: a Pyro program with the sites `thoughts` and `tokens`; it is not changed.
        batches: the sequences, on the model's device; each pair sees all of them.
        guides, objectives: by the names to show. Guides are not changed: those with shared parameters are copied.
        fast_steps: one or several numbers of fast steps, each judged by itself.
        particles: draws K. curve_particles: draws for each point of the curves.
        teaching: how guides with shared parameters learn first; None takes them as they are.
        notes: more to say of a guide, by its name. missing: guides that could not be made, and why.
        out: a folder in which each pair is kept once it is judged; pairs found there are not judged again.
        about: for people: what was run. fitting: more for `fit_posterior`, such as its `noise`.

    Raises:
        UserError: no pair fits, nothing to score, or `out` holds a comparison with other settings.
    """
    missing = missing or {}
    if not batches or not objectives or not fast_steps or not (guides or missing):
        raise UserError("nothing to compare: give sequences, guides, objectives and fast steps")
    optimizer = optimizer or Adam()
    folder = Path(out) if out is not None else None
    settings = {
        "sequences": sum(batch.size for batch in batches),
        "batch_size": batches[0].size,
        "model": fingerprint(model),
        "data": data_fingerprint(batches),
        "particles": particles,
        "curve_particles": curve_particles,
        "seed": seed,
        "optimizer": describe(optimizer),
        "fitting": dict(fitting),
        "device": str(batches[0].inputs.device.type),
        "dtype": str(getattr(getattr(model, "decoder", None), "compute_dtype", None)),
        "teaching": {key: getattr(teaching, key) for key in ("steps", "lr", "described")} if teaching else None,
    }
    held = {name: as_objective(one).at(1.0) for name, one in objectives.items()}
    reasons = {(g, o): unfit(guides[g], held[o], optimizer, **fitting) for g in guides for o in held}
    reasons |= {(g, o): reason for g, reason in missing.items() for o in held}
    if all(reasons.values()):
        raise UserError(f"no guide fits an objective: {next(iter(reasons.values()))}")
    comparison = open_comparison(folder, "posteriors", settings)
    comparison.add_members("guides", {name: describe(one) for name, one in guides.items()}, folder)
    comparison.add_members("objectives", {name: describe(one) for name, one in held.items()}, folder)
    comparison.set_sequences(batches)
    begin(comparison, about)
    for (guide_name, objective_name), reason in reasons.items():
        if reason:
            comparison.refuse(guide_name, objective_name, reason)
    save(comparison, folder)
    wanted = [(*pair, steps) for pair, reason in reasons.items() if not reason for steps in fast_steps]
    for index, key in enumerate(wanted, 1):
        if comparison.find(key):
            continue
        guide_name, objective_name, steps = key
        label = f"{guide_name} × {objective_name}, {steps} steps ({index}/{len(wanted)})"
        pair = _judge_pair(
            model,
            batches,
            key,
            guides[guide_name],
            held[objective_name],
            teaching,
            (notes or {}).get(guide_name, ""),
            label=label,
            report=report,
            optimizer=optimizer,
            particles=particles,
            curve_particles=curve_particles,
            seed=seed,
            fitting=fitting,
        )
        comparison.pairs.append(pair)
        save(comparison, folder)
    return comparison


def _judge_pair(
    model: nn.Module,
    batches: Sequence[Batch],
    key: tuple[str, str, int],
    guide: Guide,
    objective: ELBO,
    teaching: GuideTraining | None,
    note: str,
    *,
    label: str,
    report: Report | None,
    optimizer: FastOptimizer,
    particles: int,
    curve_particles: int,
    seed: int,
    fitting: Mapping[str, Any],
) -> Pair:
    """Teaches a copy of the guide where it has something to learn, then judges it."""
    seconds = None
    shared: dict[str, Any] = {"guide": guide, "objective": objective, "optimizer": optimizer, "fast_steps": key[2]}

    def work() -> Judgement:
        nonlocal seconds
        if any(parameter.requires_grad for parameter in guide.parameters()):
            shared["guide"] = copy.deepcopy(guide)
            if teaching and teaching.steps:
                count = report(f"teach {label}", None) if report else None
                taught = fold(seed, "teach")
                seconds = train_guide(model, teaching=teaching, seed=taught, count=count, **shared, **fitting)
        count = report(label, sum(batch.size for batch in batches)) if report else None
        draws: dict[str, Any] = {"particles": particles, "curve_particles": curve_particles, "seed": seed}
        return judge(model, batches, count=count, **draws, **shared, **fitting)

    figures = attempt(work, fast_steps=key[2])
    figures = dataclasses.replace(figures, note="; ".join(text for text in (note, figures.note) if text))
    return Pair(guide=key[0], objective=key[1], figures=figures, guide_training_seconds=seconds)


def attempt(work: Callable[[], Judgement], *, fast_steps: int) -> Judgement:
    """What `work` finds; a pair that ends in an error has no figures, and does not end the comparison."""
    try:
        return work()
    except (UserError, torch.linalg.LinAlgError) as error:
        return Judgement(fast_steps=fast_steps, note=f"failed: {' '.join(str(error).split())}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or _is_out_of_memory(error):
            return Judgement(fast_steps=fast_steps, note="failed: out of memory")
        raise


def unfit(guide: Guide, objective: Objective, optimizer: FastOptimizer, **fitting: Any) -> str:
    """Why a pair cannot be fitted; empty where it can."""
    if reason := objective.refusal(guide):
        return reason
    try:
        tolerance = float(fitting.get("tolerance", 0.0))
        check_fit(guide, objective, optimizer, fitting.get("noise", "fresh"), tolerance=tolerance)
    except UserError as error:
        return str(error)
    return ""


def begin(comparison: Comparison, about: Mapping[str, Any] | None) -> None:
    """Notes what is run now, and on what machine."""
    comparison.about |= dict(about or {})
    machine = environment()
    if machine not in comparison.made_on:
        comparison.made_on.append(machine)


def environment() -> dict[str, Any]:
    """Versions, machine and threads: what times depend on."""
    from pyro_ltm import __version__

    return {
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


def describe(thing: Any) -> str:
    """The class of a guide, an objective or an optimizer with its plain options, and the digest of its weights."""
    thing = thing.elbo if isinstance(thing, PyroObjective) else thing
    entries: dict[str, Any] = {"particles": thing.num_particles} if isinstance(thing, ELBO) else {}
    hidden = {"training", "num_particles", *vars(Trace_ELBO())}
    for name, value in vars(thing).items():
        if not name.startswith("_") and name not in hidden and isinstance(value, bool | int | float | str):
            entries[name] = value
    if isinstance(thing, nn.Module) and any(True for _ in thing.parameters()):
        entries["weights"] = fingerprint(thing)[:12]
    return f"{type(thing).__name__}({', '.join(f'{name}={value}' for name, value in entries.items())})"


def data_fingerprint(batches: Sequence[Batch]) -> str:
    """A digest of sequences, their masks and their ids."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for value in (batch.inputs, batch.targets, batch.mask, batch.ids):
            if value is not None:
                digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _processor() -> str:
    """The name of the CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


__all__ = ["Comparison", "GuideTraining", "compare_posteriors"]

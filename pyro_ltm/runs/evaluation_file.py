"""The evaluation in a run folder, RUN/evaluation.json, and its schema as far as it is read again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pyro_ltm.digests import with_digest, without_digest
from pyro_ltm.errors import UserError, warn
from pyro_ltm.files import clear_errors, write_text
from pyro_ltm.locks import locked
from pyro_ltm.reading import Count, fitted, read_json
from pyro_ltm.runs.folder import EVALUATION
from pyro_ltm.runs.protocols import DISTANCES, PROTOCOLS, RIVALS, SCORED, Evaluation
from pyro_ltm.runs.run import Run
from pyro_ltm.scores.dependence import Blocks

PATIENCE = 10.0
"""Seconds to wait while another process writes its evaluation of the same run."""

DAMAGED, AGAIN = "evaluation-damaged.json", "; evaluate the run again"


Error = Annotated[float, msgspec.Meta(ge=0)] | None
"""A standard error; None where it is not known."""


class Level(msgspec.Struct):
    """A figure in nats a token."""

    nats_per_token: float
    nats_per_token_stderr: Error = None
    blocks: Blocks | None = None
    is_bound: bool | None = None


class Scored(Level, kw_only=True):
    """A figure of a run, and how it was taken."""

    sequences: Count
    tokens: Count
    fast_steps: Count
    seed: int
    particles: Count | None = None


class Point(msgspec.Struct):
    """The importance-weighted bound with so many draws."""

    particles: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    nats_per_token: float
    stderr: Error


class TailRecord(msgspec.Struct):
    """Pareto k of the importance weights."""

    median: float
    threshold: float
    share_above: float


class BoundRecord(Scored, kw_only=True):
    """The protocol `bound`."""

    particles: Count
    effective_sample_size: float | None = None
    pareto_k: TailRecord | None = None
    iwae_curve: Annotated[list[Point], msgspec.Meta(min_length=1)]
    active_fraction_by_layer: list[float | None]
    ais: dict[str, Level] = {}
    exchange_rate: Exchange | None = None


class FloorRecord(Level, kw_only=True):
    """A world's entropy, and that of the best predictor with a window."""

    window: Count
    windowed: Level
    by_prefix: list[Any] = []


class Gap(msgspec.Struct):
    """How far a figure lies from another."""

    nats_per_token: float
    stderr: Error


class Part(msgspec.Struct):
    """The share of the way from twin to floor that a figure has closed."""

    share: float
    stderr: Error


class Exchange(msgspec.Struct):
    """Nats of distortion saved a nat of rate."""

    nats_per_nat: float
    stderr: Error


class EvaluationRecord(msgspec.Struct):
    """An evaluation of a run at a step, by whichever protocols."""

    run: str
    step: Count
    data: str
    dtype: str | None = None
    fingerprint: str | None = None
    twin_fingerprint: str | None = None
    settings: list[str] = []
    bound: BoundRecord | None = None
    prefix: Scored | None = None
    reference: Scored | None = None
    twin: Level | None = None
    masked_diffusion: Level | None = None
    masked_diffusion_fingerprint: str | None = None
    floor: FloorRecord | None = None
    above_floor: dict[str, Gap] = {}
    below_twin: dict[str, Gap] = {}
    below_masked_diffusion: dict[str, Gap] = {}
    closed: dict[str, Part] = {}
    exchange_rate: Exchange | None = None


def read_evaluation(run: Run, file: Path | None = None) -> dict[str, Any] | None:
    """The evaluation of this run in `file`; by default that in the run itself, or None where it has none.

    A run at a step is known by its `fingerprint`.

    Raises:
        UserError: the file cannot be read, is not what `evaluate` prints, or is of another run or another of its steps.
    """
    path = file or run.folder / EVALUATION
    if file is None and not path.is_file():
        return None
    try:
        found = without_digest(read_json(path, dict[str, Any]))
        _check(found)
    except FileNotFoundError:
        raise UserError(
            f"{path}: cannot be read: no such file; expected what `pyro-ltm evaluate --json` prints"
        ) from None
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        what = "not what `pyro-ltm evaluate --json` prints"
        raise UserError(f"{path}: {what}: {reason}{AGAIN}") from None
    whose, of = f"{found['run']} at step {found['step']}", found.get("fingerprint")
    if file and of != run.fingerprint:
        raise UserError(
            f"{path}: of {whose}; its fingerprint is not that of {run.folder} as it is now: evaluate it again"
        )
    return found if of == run.fingerprint else None  # else older figures would be shown with newer thoughts


def evaluation_record(
    run: Run, found: Evaluation, *, data: str, settings: Sequence[str] = (), **rivals: Run
) -> dict[str, Any]:
    """An evaluation as `evaluate --json` prints it: `found`, and of which run, data and rivals it is.

    Args:
        run: as it was trained. settings: how its posteriors were fitted otherwise.
        rivals: `twin` and `masked_diffusion`, where they are scored beside it.
    """
    result = {**found.to_dict(), **run.about, "fingerprint": run.fingerprint, "data": data, "dtype": run.precision}
    if settings:
        result["settings"] = list(settings)
    for name, rival in rivals.items():
        which = {"run": str(rival.folder), "step": rival.step, "fingerprint": rival.fingerprint}
        result |= {f"{name}_{key}": value for key, value in which.items()}
    return result


def write_evaluation(run: Run, result: Mapping[str, Any], *, say: Callable[[str], None] = warn) -> Mapping[str, Any]:
    """Writes an evaluation of the run's own data into RUN/evaluation.json, and gives what the file then holds.

    Figures of other protocols, of the same weights on the same sequences, stay in it. A damaged file is put aside, and
    `say` hears of it.

    Raises:
        UserError: the run folder cannot be written, or another process does not end writing its evaluation.
    """
    with locked(run.folder / EVALUATION, wait=PATIENCE):  # not the run's lock: it may be in training
        try:
            before = read_evaluation(run)
        except UserError as error:
            before = None
            aside = run.folder / DAMAGED
            with clear_errors(aside):
                os.replace(run.folder / EVALUATION, aside)
            say(f"{str(error).removesuffix(AGAIN)}; it is kept as {aside.name}")
        if before is not None:
            result = merged(before, result)
        write_text(run.folder / EVALUATION, json.dumps(with_digest(result), indent=2) + "\n")
        return result


def merged(before: Mapping[str, Any], result: Mapping[str, Any]) -> Mapping[str, Any]:
    """`result`, and of `before` the protocols that it lacks, where both are of one run, its rivals, and one text.

    And in one precision, which files of earlier releases do not tell.
    """
    others = [name for name in PROTOCOLS if name in before and name not in result]
    same = all(before.get(key) == result.get(key) for key in ("fingerprint", "data", "settings"))
    same = same and before.get("dtype") in (None, result.get("dtype"))
    rivals = {name: _fingerprints(name, before, result) for name in RIVALS}
    several = any(len(prints) > 1 for prints in rivals.values())
    if not others or not same or several or _scored(before) != _scored(result):
        return result
    joined = {**before, **result}
    for name in (name for name, prints in rivals.items() if prints):
        joined[name] = {**before.get(name, {}), **result.get(name, {})}
    if "floor" in before and "prefix" in others:
        joined["floor"] = {**joined.get("floor", {}), "by_prefix": before["floor"].get("by_prefix", [])}
    if "bound" in result and "exchange_rate" not in result:
        joined.pop("exchange_rate", None)  # of the bound that is replaced
    for name in DISTANCES:
        earlier = {figure: gap for figure, gap in before.get(name, {}).items() if _protocol(figure) in others}
        joined[name] = {**earlier, **result.get(name, {})}
    return {key: value for key, value in joined.items() if value != {}}


def _fingerprints(rival: str, *found: Mapping[str, Any]) -> set[str]:
    """Of the runs of this name beside which evaluations stand."""
    return {one[f"{rival}_fingerprint"] for one in found if f"{rival}_fingerprint" in one}


def _scored(found: Mapping[str, Any]) -> tuple[Any, Any]:
    """How many sequences and tokens an evaluation is of."""
    one = next(found[name] for name in PROTOCOLS if name in found)
    return one["sequences"], one["tokens"]


def _protocol(figure: str) -> str:
    """Which protocol a figure of an evaluation's distances belongs to."""
    return "prefix" if figure == "prefix" or figure.startswith("after ") else "bound"


def _check(found: Mapping[str, Any]) -> None:
    """Raises UserError, naming the place, where `found` is not what `evaluate --json` prints."""
    record = fitted(found, EvaluationRecord)
    for key in SCORED:
        if key in found and found[key] is None:
            raise UserError(f"{key}: expected object, got null")
    if record.bound is None and record.prefix is None and record.reference is None:
        raise UserError("bound is missing, and so are prefix and reference")
    if record.bound and record.bound.particles > 1 and record.bound.effective_sample_size is None:
        raise UserError("bound.effective_sample_size is missing")

"""A study read: what lies on the frontier, how each cell stands to its rivals, and the law of each family."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pyro_ltm.comparison.scaling.grid import EQUALITIES, LTM, STEP_UP, reads
from pyro_ltm.comparison.scaling.law import FACTORS, RESAMPLINGS, Law, Observations, fit_law, values_of, why_no_law
from pyro_ltm.comparison.scaling.result import FIGURES, Row, Study
from pyro_ltm.scores.dependence import Places
from pyro_ltm.scores.estimate import Difference, difference

Point = tuple[float, float]


def frontier(points: Iterable[Point]) -> list[Point]:
    """Of points (cost, nats) those that no other undercuts in one and equals or undercuts in the other, by cost."""
    found: list[Point] = []
    for point in sorted(points):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


WRITING = "writing"
"""Equality by what a written token takes: the rival is of any shape, and no dearer to write with, or to train."""


@dataclass(frozen=True)
class Gap:
    """How far a cell lies below a rival of its seed, which is of its shape but for `WRITING`.

    Attributes:
        equal: one of `EQUALITIES`, or `WRITING`.
        by: difference in each of `FIGURES` that both have, positive where the cell is lower, paired by sequence.
    """

    row: Row
    rival: Row
    equal: str
    by: Mapping[str, Difference]

    @property
    def nats_per_token(self) -> float:
        """The difference by the bound."""
        return self.by["bound"].nats_per_token

    @property
    def stderr(self) -> float:
        """Its standard error."""
        return self.by["bound"].stderr


def gaps(study: Study) -> list[Gap]:
    """Each latent-thought cell against its rivals, at equal tokens, training operations and operations of writing."""
    rivals: dict[Any, list[Row]] = defaultdict(list)
    keys = {key for row in study.rows for key in row.axes if key != "slow.steps"}
    for family in study.families:
        for row in study.of(family) if family != LTM else ():
            rivals[family, shape(study, row, keys, family)].append(row)
    found = []
    for row in study.of(LTM):
        for family in study.families[1:]:
            same = [one for one in rivals[family, shape(study, row, keys, family)] if _are_paired(row, one)]
            for equal in EQUALITIES:
                theirs = [one for one in same if _is_equal(row, one, equal)]
                if theirs:
                    found.append(_gap(row, min(theirs, key=lambda one: _too_few(row, one)), equal))
            others = [one for one in study.of(family) if one.seed == row.seed and _are_paired(row, one)]
            if theirs := [one for one in others if _is_no_dearer(row, one)]:
                found.append(_gap(row, min(theirs, key=_nats), WRITING))
    return found


def _gap(row: Row, rival: Row, equal: str) -> Gap:
    figures = [name for name in FIGURES if row.nats(name) and rival.nats(name)]
    return Gap(row, rival, equal, {name: below(row, rival, name) for name in figures})


def shape(study: Study, row: Row, keys: Iterable[str], family: str) -> tuple[Any, ...]:
    """The values of all keys on axes that a family looks at, and the seed: equal for a cell and its rivals."""
    looked_at = sorted(key for key in keys if reads(family, key))
    return (row.seed, *(str(row.axes.get(key, study.settings.get(key))) for key in looked_at))


def _are_paired(row: Row, rival: Row) -> bool:
    return bool(row.sequence_tokens) and row.sequence_tokens == rival.sequence_tokens


def _is_no_dearer(row: Row, rival: Row) -> bool:
    """Whether a token that the rival writes takes no more operations, and its training as few as an equal's."""
    return rival.write_token_operations <= row.write_token_operations and (
        rival.training_operations <= row.training_operations or _is_equal(row, rival, "flops")
    )


def _is_equal(row: Row, rival: Row, equal: str) -> bool:
    if equal == "tokens":
        return rival.steps == row.steps
    share = rival.steps * row.training_operations / rival.training_operations  # its steps, if it were equal to the last
    return share - 1 <= rival.steps <= STEP_UP * share + 1  # a rung of the ladder above; under a budget a step apart


def _too_few(row: Row, rival: Row) -> tuple[bool, float]:
    """By this a rival comes first that has as many training operations as `row`, and of these the nearest."""
    more = rival.training_operations - row.training_operations
    return more < 0, abs(more)


def below(row: Row, rival: Row, figure: str = "bound") -> Difference:
    """How many nats a token `row` lies below `rival` by one of `FIGURES`, paired by sequence."""
    nats = [torch.tensor(one.nats(figure), dtype=torch.float64) for one in (rival, row)]
    tokens = torch.tensor(row.sequence_tokens, dtype=torch.float64)
    ids, documents = row.places["ids"], row.places["documents"]
    places = Places(torch.tensor(ids), None if documents is None else torch.tensor(documents))
    return difference(nats[0], nats[1], tokens, places)


IN_A_LAW = (
    *("fast.steps", "model.thoughts", "model.dim", "model.layers", "model.heads", "model.hidden"),
    *("model.embedding_scale", "model.init_std", "slow.steps", "slow.batch_size", "slow.accumulate"),
)
"""Keys on axes that the factors of a law stand for: parameters, tokens, fast steps and thoughts."""


def beside(row: Row, keys: Sequence[str] = IN_A_LAW) -> str:
    """The values of a cell's axes but for these keys, in words; empty where there are none."""
    return ", ".join(f"{key} {value}" for key, value in sorted(row.axes.items()) if key not in keys)


def laws(study: Study, *, resamplings: int = RESAMPLINGS) -> list[dict[str, Any]]:
    """A law for each family, and each value of all that no power can stand for, for JSON; where there is none, `why`.

    That is what no factor stands for, and a factor that has two values alone. There is no law, either, where the cells
    do not determine what was fitted.
    """
    found = []
    for family in study.families:
        groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for row in study.of(family):
            groups[(beside(row),)].append(row)
        for symbol in FACTORS:
            parts: dict[tuple[str, ...], list[Row]] = defaultdict(list)
            for where, rows in groups.items():
                values = values_of(rows, symbol)
                for row, value in zip(rows, values, strict=True):
                    parts[where + _apart(value, symbol, values)].append(row)
            groups = parts
        for where, rows in sorted(groups.items()):
            seen = Observations.of(rows)
            why = why_no_law(seen)
            law = {"why": why} if why else _law(fit_law(seen, resamplings=resamplings))
            of = {"family": family, "where": ", ".join(filter(None, where)), "of": [row.name for row in rows]}
            found.append({**of, **law})
    return found


def _law(fitted: Law) -> dict[str, Any]:
    """A law for JSON; one that the cells do not determine is no law but why, with what was fitted beside it."""
    if not fitted.doubts:
        return asdict(fitted)
    return {"why": f"the cells do not determine it: {'; '.join(fitted.doubts)}", "undetermined": asdict(fitted)}


def _apart(value: int, symbol: str, values: Sequence[int]) -> tuple[str, ...]:
    """The value of a factor by which cells are fitted apart; nothing of one that a power can stand for."""
    return (f"{FACTORS[symbol].replace('_', ' ')} {value:,}",) if len(set(values)) == 2 else ()


def predicted_by(law: Mapping[str, Any], row: Row) -> float | None:
    """Nats a token that a law, as `laws` gives it, has for a cell; None where it is not one of its cells."""
    values = {name: getattr(row, FACTORS[name]) for name in law["coefficients"]}
    if row.name not in law["of"] or not all(values.values()):
        return None
    powers = (law["coefficients"][name] * value ** -law["exponents"][name] for name, value in values.items())
    return float(law["floor"] + sum(powers))


def _nats(row: Row) -> float:
    assert row.bound is not None
    return row.bound.nats_per_token


def averaged(rows: Sequence[Row], value: Callable[[Row], float | None]) -> dict[str, tuple[Row, float]]:
    """The mean over seeds of a value, by setting, with one of its cells; without cells that have none."""
    groups: dict[str, list[tuple[Row, float]]] = defaultdict(list)
    for row in rows:
        if (one := value(row)) is not None:
            groups[row.settings].append((row, one))
    return {name: (group[0][0], sum(one for _, one in group) / len(group)) for name, group in groups.items()}


__all__ = ["WRITING", "Gap", "averaged", "below", "beside", "frontier", "gaps", "laws", "predicted_by", "shape"]

"""The price of a study before it is run: operations counted, and hours at this machine's or another's pace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_ltm.comparison.scaling.grid import Cell
from pyro_ltm.comparison.scaling.result import Row
from pyro_ltm.comparison.scaling.run import PROTOCOL, Scoring
from pyro_ltm.comparison.trainings import with_validations
from pyro_ltm.profiling.costs import count_costs, count_score
from pyro_ltm.profiling.speed import measure_speed

Pace = Callable[[Cell], float]
"""Operations a second at which a cell is trained."""


@dataclass(frozen=True)
class Price:
    """Price of a cell.

    Attributes:
        training_operations: of all its slow steps. scoring_operations: of its validations and of all its figures.
        tokens: that it reads, counted as if all sequences were full. seconds: of all of it.
    """

    cell: Cell
    training_operations: int
    scoring_operations: int
    tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        cell = {"name": self.cell.name, "family": self.cell.family, "steps": self.cell.config.slow.steps}
        return {**cell, **{key: value for key, value in vars(self).items() if key != "cell"}}


def price_of(cell: Cell, scoring: Scoring, pace: Pace, *, done: Row | None = None) -> Price:
    """The price of a cell; of one that is `done` but for figures that it lacks, of these alone."""
    slow, costs = with_validations(cell.config).slow, count_costs(cell.config)
    length, sequences = cell.config.data.sequence_length, scoring.sequences or slow.eval_sequences
    figures = scoring.lacking(done) if done else ["bound", *scoring.wanted(cell.family)]
    protocols = [PROTOCOL.get(name, name) for name in figures]
    scored = sequences * sum(count_score(cell.config, name, particles=scoring.particles) for name in protocols)
    if done:
        return Price(cell, 0, scored, 0, scored / pace(cell))
    looks = 1 + -(-slow.steps // slow.eval_every)
    scored += round(looks * slow.eval_sequences * length * costs.score_token)
    training = costs.training(cell.config)
    tokens = slow.steps * slow.sequences * length
    return Price(cell, training, scored, tokens, (training + scored) / pace(cell))


def measured_pace(cells: Sequence[Cell], *, device: str = "cpu") -> Pace:
    """This machine's pace, from a step of the smallest and of the largest shape of each family.

    Between the two, and beyond them, a shape goes at the pace between, or at the nearer one.
    """
    known: dict[str, list[tuple[float, float]]] = {}
    for family in dict.fromkeys(cell.family for cell in cells):
        steps = {count_costs(cell.config).slow_step: cell for cell in cells if cell.family == family}
        known[family] = []
        for count in sorted({min(steps), max(steps)}):
            seconds = measure_speed(steps[count].config, device=device, rounds=1).step_seconds
            known[family].append((math.log(count), math.log(count / seconds)))

    def pace(cell: Cell) -> float:
        (low, slow), (high, fast) = (known[cell.family][index] for index in (0, -1))
        size = math.log(count_costs(cell.config).slow_step)
        share = min(max((size - low) / (high - low), 0.0), 1.0) if high > low else 0.0
        return math.exp(slow + share * (fast - slow))

    return pace


__all__ = ["Pace", "Price", "measured_pace", "price_of"]

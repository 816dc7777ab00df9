"""The price of a study before it is run: operations counted, and hours at this machine's or another's pace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_ltm.comparison.scaling.grid import Cell
from pyro_ltm.comparison.scaling.run import Scoring
from pyro_ltm.comparison.trainings import with_validations
from pyro_ltm.profiling.costs import count_costs
from pyro_ltm.profiling.speed import measure_speed

Pace = Callable[[Cell], float]
"""Operations a second at which a cell is trained."""


@dataclass(frozen=True)
class Price:
    """Price of a cell.

    Attributes:
        training_operations: of all its slow steps. scoring_operations: of its validations and its score, at least.
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


def price_of(cell: Cell, scoring: Scoring, pace: Pace) -> Price:
    """The price of a cell."""
    slow, costs = with_validations(cell.config).slow, count_costs(cell.config)
    looks = 1 + -(-slow.steps // slow.eval_every)
    length = cell.config.data.sequence_length
    scored = looks * slow.eval_sequences + (scoring.sequences or slow.eval_sequences)
    training, looking = costs.training(cell.config), round(scored * length * costs.score_token)
    tokens = slow.steps * slow.sequences * length
    return Price(cell, training, looking, tokens, (training + looking) / pace(cell))


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

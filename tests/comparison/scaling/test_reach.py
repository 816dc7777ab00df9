"""Tokens to reach a level, of curves that are known."""

from __future__ import annotations

import dataclasses

from helpers.scaling_rows import row

from pyro_ltm.comparison.scaling.reach import reached
from pyro_ltm.comparison.scaling.result import Look, Study


def cell(name, levels, **more):
    """A cell of ten slow steps that read 1,000 tokens, validated after each two; None: not finite."""
    curve = [Look(0, 0, 0.5), *(Look(2 * n, 200 * n, nats) for n, nats in enumerate(levels, 1))]
    whole = {"steps": 10, "training_operations": 50.0, "axes": {"model.dim": 8}, "settings": name}
    return row(8, more.pop("fast_steps", 1), name=name, curve=curve, **whole, **more)


TWIN = cell("twin", [5.0, 4.0, 3.0, 2.5, 2.75], family="twin", thoughts=0, fast_steps=0)


def found(*rows):
    return {
        one.row.name: (one.goal, one.twin and one.twin.name, one.tokens, one.operations, one.why)
        for one in reached(Study({}, list(rows)))
    }


def test_a_cell_comes_to_the_last_level_of_its_twin_or_not():
    """The twin's first weights, at 0.5, and its best validation, at 2.5, are no goal."""
    early = cell("early", [4.0, 2.75, 2.9, 2.6, 2.5])
    late = cell("late", [5.0, None, 4.0, 3.0, 2.7])
    never = cell("never", [5.0, 4.0, 3.5, 3.25, 3.5])
    blind = cell("blind", [])
    assert found(early, late, never, blind, TWIN) == {
        "early": (2.75, "twin", 400, 20.0, ""),
        "late": (2.75, "twin", 1000, 50.0, ""),
        "never": (2.75, "twin", None, None, "not in 1,000 tokens: 3.2500 was the lowest"),
        "blind": (None, "twin", None, None, "no validation while it was trained"),
    }


def test_without_a_twin_of_equal_tokens_the_level_is_one_that_all_come_to():
    longer = dataclasses.replace(TWIN, steps=20)
    rows = (cell("good", [4.0, 3.0, 2.0, 2.0, 2.0]), cell("poor", [5.0, 4.0, 3.0, 3.5, 3.25]))
    for more in ((), (longer,)):
        assert found(*rows, *more) == {
            "good": (3.0, None, 400, 20.0, ""),
            "poor": (3.0, None, 600, 30.0, ""),
        }


def test_a_twin_that_was_not_validated_sets_no_level():
    silent = dataclasses.replace(TWIN, curve=[])
    (one,) = found(cell("a", [3.0]), silent).values()
    assert one == (None, "twin", None, None, "its twin had no validation while it was trained")

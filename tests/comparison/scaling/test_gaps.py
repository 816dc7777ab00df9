"""Which rival stands beside a cell, and the differences by each figure."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.scaling_rows import row

from pyro_ltm.comparison.scaling.analysis import WRITING, gaps
from pyro_ltm.comparison.scaling.result import Level, Study


def twin(name, nats, *, write, train, size=40, seed=0):
    """A twin whose figures, by sequence too, are these."""
    scored = {"bound": Level(nats, 0.01), "sequence_nats": [10 * nats] * 3, "thoughts": 0}
    costs = {"write_token_operations": write, "training_operations": train}
    axes = {"model.dim": size}
    return row(size, 0, family="twin", name=name, settings=name, seed=seed, axes=axes, **scored, **costs)


def compared(*rivals):
    """By whom a cell that takes 8 operations a written token and 100 of training is met, at equal cost of writing."""
    cell = row(10, 4, write_token_operations=8.0, training_operations=100.0)
    found = [gap for gap in gaps(Study({}, [cell, *rivals])) if gap.equal == WRITING]
    return [gap.rival.name for gap in found]


def test_at_equal_cost_of_writing_the_lowest_that_is_no_dearer_stands_beside_a_cell():
    same, cheap = twin("same", 3.0, write=8.0, train=100.0), twin("cheap", 2.0, write=1.0, train=10.0, size=10)
    assert compared(same, cheap) == ["cheap"], "cheaper and lower: the cell has no advantage at its own cost"
    assert compared(same, twin("cheap", 3.5, write=1.0, train=10.0)) == ["same"]
    for dearer in (twin("write", 1.0, write=8.1, train=90.0), twin("train", 1.0, write=1.0, train=150.0)):
        assert compared(same, dearer) == ["same"]
        assert compared(dearer) == []
    assert compared(same, twin("rung", 2.0, write=1.0, train=109.0)) == ["rung"], "as long as one of equal operations"
    assert compared(twin("seed", 2.0, write=1.0, train=10.0, seed=1)) == []


def test_a_difference_is_given_by_each_figure_that_both_have():
    cell = row(10, 4, sequence_iwae=[25.0, 26.0, 24.0], sequence_predictive=[31.0, 33.0, 32.0])
    rival = twin("twin", 3.0, write=1.0, train=10.0, size=10)
    for one in gaps(Study({}, [cell, rival])):
        found = {name: gap.nats_per_token for name, gap in one.by.items()}
        assert found == pytest.approx({"bound": 3.0 - cell.bound.nats_per_token, "iwae": 0.5, "predictive": -0.2})
        assert one.by["predictive"].stderr > 0
    plain = dataclasses.replace(cell, sequence_iwae=[], sequence_predictive=[])
    assert {name for one in gaps(Study({}, [plain, rival])) for name in one.by} == {"bound"}
    diffusion = dataclasses.replace(rival, family="masked-diffusion", name="d", sequence_predictive=[30.0, 30.0, 30.0])
    (one,) = {gap.by["predictive"].nats_per_token for gap in gaps(Study({}, [cell, diffusion]))}
    assert one == pytest.approx(-0.2), "beside what it predicts itself"

"""The law of scaling: known ones are found again, intervals hold the truth, and what is not known is not said."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.scaling_rows import COEFFICIENTS, EXPONENTS, FLOOR, row, rows

from pyro_ltm.comparison.scaling.analysis import frontier, gaps, laws, predicted_by
from pyro_ltm.comparison.scaling.law import Observations, fit_law, why_no_law
from pyro_ltm.comparison.scaling.result import Level, Study


def test_finds_a_known_law():
    law = fit_law(Observations.of(rows()), resamplings=5)
    assert law.floor == pytest.approx(FLOOR, rel=1e-6)
    assert law.coefficients == pytest.approx(COEFFICIENTS, rel=1e-5)
    assert law.exponents == pytest.approx(EXPONENTS, rel=1e-6)
    assert law.error < 1e-6
    assert law.held_out < 1e-6 < law.held_out_constant
    assert law.held_out_cells == 6
    assert (law.settings, law.cells) == (16, 32)
    assert law.constant == {"D": 1000.0, "N": 4.0}


def covered(tries: int, resamplings: int) -> dict[str, int]:
    """How often, of so many noisy data sets, the intervals hold the truth."""
    found = {"E": 0, "P": 0, "T": 0}
    for seed in range(tries):
        law = fit_law(Observations.of(rows(noise=3e-3, seed=seed, seeds=1)), resamplings=resamplings)
        intervals = {"E": law.floor_interval, **law.exponent_intervals}
        for name, truth in {"E": FLOOR, **EXPONENTS}.items():
            found[name] += intervals[name][0] <= truth <= intervals[name][1]
    return found


def test_intervals_hold_the_truth():
    """95 of 100: of 3 tries fewer than 2 hold it once in 140 times."""
    assert min(covered(3, 20).values()) >= 2


@pytest.mark.long
def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of 40 tries at 95% fewer than 33 hold it once in five hundred times."""
    assert min(covered(40, 200).values()) >= 33


def test_the_same_cells_give_the_same_law_whatever_their_order():
    seen = rows(noise=3e-3)
    first, second = (fit_law(Observations.of(some), resamplings=5) for some in (seen, seen))
    assert first == second
    assert fit_law(Observations.of(seen[::-1]), resamplings=5) == first
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        assert fit_law(Observations.of(seen), resamplings=5) == first
    finally:
        torch.set_num_threads(threads)


def test_a_law_has_settled_and_lies_in_its_own_intervals():
    """From other starts it is the same law."""
    seen = Observations.of(rows(noise=3e-3))
    first, other = (fit_law(seen, resamplings=40, seed=seed) for seed in (0, 1))
    assert not first.doubts
    assert other.exponents == pytest.approx(first.exponents, rel=1e-4)
    assert other.floor == pytest.approx(first.floor, rel=1e-4)
    for law in (first, other):
        assert law.floor_interval[0] <= law.floor <= law.floor_interval[1]
        for name, (low, high) in law.exponent_intervals.items():
            assert low <= law.exponents[name] <= high


def test_cells_that_do_not_determine_a_law_give_none():
    """Levels all alike; those that do not depend on the size; and those that rise with it and fall again."""
    sizes, generator = (10_000, 40_000, 160_000, 640_000), torch.Generator().manual_seed(0)
    noise = iter((1e-3 * torch.randn(64, generator=generator)).tolist())
    alike = {(size, steps): 0.72 + next(noise) for size in sizes for steps in (1, 4, 16, 64)}
    falls = {(size, steps): 0.6 + 0.1 / steps for size, steps in alike}
    zigzag = {place: falls[place] + (0.4 if place[0] in sizes[1:3] else 0.0) for place in falls}
    doubts = ("may be 0", "exponent of parameters may be", "misses its own cells")
    for nats, doubt in zip((alike, falls, zigzag), doubts, strict=True):
        seen = [
            dataclasses.replace(one, bound=Level(nats[one.parameters, one.fast_steps] + next(noise) * 0.1, 0.01))
            for one in rows(seeds=1)
        ]
        law = fit_law(Observations.of(seen), resamplings=10)
        assert any(doubt in line for line in law.doubts), law
        (found,) = laws(Study({}, seen), resamplings=10)
        assert found["why"].startswith("the cells do not determine it: ")
        assert "floor" not in found
        assert set(found["undetermined"]["exponents"]) == {"P", "T"}


def test_outliers_do_not_move_it_far():
    seen = rows()
    bad = dataclasses.replace(seen[9], bound=Level(2 * seen[9].bound.nats_per_token, 0.01))
    law = fit_law(Observations.of([*seen[:9], bad, *seen[10:]]), resamplings=5)
    assert law.exponents == pytest.approx(EXPONENTS, rel=0.02)


def test_says_where_it_fails():
    """Nats that do not depend on the fast steps; and a law that breaks beyond the small cells."""
    flat = [
        dataclasses.replace(one, bound=Level(2 + 60 * one.parameters**-0.35 + 1e-3 * (index % 3), 0.01))
        for index, one in enumerate(rows())
    ]
    law = fit_law(Observations.of(flat), resamplings=40)
    assert any("exponent of fast steps may be 0" in doubt for doubt in law.doubts)
    broken = [
        dataclasses.replace(one, bound=Level(9.0, 0.01)) if one.training_operations > 1e7 else one for one in rows()
    ]
    law = fit_law(Observations.of(broken), resamplings=5)
    assert any("largest cells, left out" in remark for remark in law.remarks)


some = rows(steps=(1, 2, 4), sizes=(10, 100, 1000), seeds=1)


@pytest.mark.parametrize(
    ("some", "why"),
    [
        (rows(sizes=(100, 200)), "parameters varies, and a power of it needs 3 different values"),
        (rows(sizes=(100,), steps=(4,)), "no factor varies"),
        ([some[i] for i in range(9) if (i + i // 3) % 3 < 2], "has 5 numbers and needs 7 settings; there are 6"),
        ([], "no factor varies"),
    ],
)
def test_too_few_cells_are_absent_with_the_reason(some, why):
    assert why in why_no_law(Observations.of(some))


def test_a_law_for_each_value_of_what_no_power_can_stand_for():
    """Another window; and one of two numbers of thoughts."""
    narrow = [dataclasses.replace(one, axes={"model.window": 8, "fast.steps": one.fast_steps}) for one in rows()]
    wide = [
        dataclasses.replace(one, axes={"model.window": 64}, name=f"wide-{one.name}", bound=lower(one, 1))
        for one in rows()
    ]
    found = laws(Study({}, [*narrow, *wide]), resamplings=2)
    assert [law["where"] for law in found] == ["model.window 64", "model.window 8"]
    assert [law["floor"] for law in found] == pytest.approx([1.0, 2.0], abs=1e-4)
    assert predicted_by(found[1], narrow[3]) == pytest.approx(narrow[3].bound.nats_per_token)
    assert predicted_by(found[0], narrow[3]) is None
    few = [dataclasses.replace(one, thoughts=8, name=f"eight-{one.name}", bound=lower(one, 0.5)) for one in rows()]
    found = laws(Study({}, [*rows(), *few]), resamplings=2)
    assert {law["where"]: law["floor"] for law in found} == pytest.approx({"thoughts 4": 2.0, "thoughts 8": 1.5})


def lower(row, nats):
    return Level(row.bound.nats_per_token - nats, 0.01)


@pytest.mark.parametrize("seeds", [2, 3])
def test_seeds_that_read_a_few_tokens_more_or_less_are_no_other_length(seeds):
    """Documents of unlike length come in another order: of three seeds tokens would be a factor with three values."""
    alike = [dataclasses.replace(one, tokens=916_000) for one in rows(seeds=seeds)]
    uneven = [dataclasses.replace(one, tokens=916_000 + 150 * one.seed) for one in alike]
    found, same = (laws(Study({}, some), resamplings=5) for some in (uneven, alike))
    assert found == same
    assert found[0]["constant"]["D"] == 916_000


def test_frontier_by_hand():
    points = [(3.0, 2.0), (1.0, 5.0), (2.0, 5.0), (2.0, 4.0), (4.0, 2.0), (5.0, 1.0), (6.0, 1.5)]
    assert frontier(points) == [(1.0, 5.0), (2.0, 4.0), (3.0, 2.0), (5.0, 1.0)]
    assert frontier([]) == []


def test_the_rival_of_equal_operations_has_no_fewer_where_one_has_as_many():
    cell = row(10_000, 4, training_operations=9.5e4, steps=5)
    twins = [
        row(10_000, 0, family="twin", steps=steps, training_operations=steps * 1e4, name=f"twin-{steps}", thoughts=0)
        for steps in (9, 10, 11)
    ]

    def met(*rivals):
        return [gap.rival.steps for gap in gaps(Study({}, [cell, *rivals])) if gap.equal == "flops"]

    assert met(*twins) == [10]
    assert met(twins[0]) == [9]

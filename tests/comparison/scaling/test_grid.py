"""The cells of a study: which there are, how long each is trained, and what is refused."""

from __future__ import annotations

import pytest
from helpers.tiny_run import configure

from pyro_ltm.comparison.scaling.grid import DIFFUSION, LTM, TWIN, Axis, Budget, Grid, part, rounded_up
from pyro_ltm.errors import UserError
from pyro_ltm.profiling.costs import count_costs

COMMON = configure("model.vocab_size=280", "model.layers=2", "model.thoughts=4")


def grid(*axes, **more):
    return Grid(COMMON, tuple(map(Axis.parse, axes)), **more)


def names(cells):
    return [cell.name for cell in cells]


def test_all_combinations_with_a_twin_for_each_shape():
    cells = grid("model.dim=16,32", "fast.steps=2,8", equal=("tokens",), seeds=(0, 3)).cells()
    assert names(cells)[:6] == [
        "ltm--seed=0",
        "ltm--fast.steps=8--seed=0",
        "ltm--model.dim=32--seed=0",
        "ltm--fast.steps=8--model.dim=32--seed=0",
        "twin--slow.steps=4--seed=0",
        "twin--model.dim=32--slow.steps=4--seed=0",
    ]
    assert len(cells) == 12
    assert {cell.config.seed for cell in cells} == {0, 3}
    assert cells[3].axes == {"model.dim": 32, "fast.steps": 8}
    assert cells[5].axes == {"model.dim": 32}, "a twin has no fast steps"
    assert cells[5].config.model.thoughts == 0
    assert [cell.family for cell in cells[:6]] == [LTM] * 4 + [TWIN] * 2


def test_cells_that_differ_in_their_thoughts_alone_share_a_twin():
    cells = grid("model.thoughts=2,4", "model.thought_dim=0,8", "model.thought_stride=0,1", equal=("tokens",)).cells()
    assert names(cells)[8:] == ["twin--slow.steps=4--seed=0"]
    assert cells[-1].axes == {}


def test_a_rival_of_equal_operations_is_given_at_most_a_tenth_more():
    cells = grid("fast.steps=1,16", equal=("flops",)).cells()
    for ltm, twin in zip(cells[:2], cells[2:], strict=True):
        spent, given = (count_costs(one.config).training(one.config) for one in (ltm, twin))
        step = count_costs(twin.config).slow_step
        assert spent <= given <= 1.1 * spent + step
    assert [rounded_up(count) for count in (0.2, 1, 1.05, 100, 100.1)] == [1, 1, 2, 107, 107]


def test_a_new_axis_keeps_the_names_of_cells_that_are_there():
    before = set(names(grid("model.dim=16,32", equal=("tokens",)).cells()))
    assert before <= set(names(grid("model.dim=16,32", "fast.steps=2,8", equal=("tokens",)).cells()))
    assert before <= set(names(grid("model.dim=16,32,48", equal=("tokens",)).cells()))


def test_a_cell_without_thoughts_is_the_twin():
    cells = grid("model.thoughts=0,2,4", "fast.steps=1,2", equal=("tokens",)).cells()
    assert [cell.family for cell in cells] == [TWIN, LTM, LTM, LTM, LTM]


def test_places_that_are_not_cells_of_their_own_are_said():
    assert grid("model.thoughts=2,4", "fast.steps=1,2").not_run == ""
    said = grid("model.thoughts=0,2,4", "fast.steps=1,2", seeds=(0, 1)).not_run
    assert said.startswith("2 of 6 places of the grid have model.thoughts = 0: they are the twin")


def test_settings_change_together():
    """Neither of two values fits the other's model by itself."""
    cells = grid("model.dim+model.heads=6+3,40+5", "model.layers+model.thoughts=1+1,3+6", rivals=()).cells()
    shapes = [(one.config.model.dim, one.config.model.heads, one.config.model.layers) for one in cells]
    assert shapes == [(6, 3, 1), (6, 3, 3), (40, 5, 1), (40, 5, 3)]


def test_a_budget_of_tokens_or_of_operations_is_what_every_cell_gets():
    by_tokens = grid("fast.steps=1,4", "slow.batch_size=3,6", budget=Budget(tokens=1000), equal=("tokens",)).cells()
    for cell in by_tokens:
        each = cell.config.slow.batch_size * 16
        assert cell.config.slow.steps == 1000 // each
    for cell in grid("fast.steps=1,4", budget=Budget(flops=1e9), equal=("flops",)).cells():
        spent = count_costs(cell.config).training(cell.config)
        assert spent <= 1e9 < spent + count_costs(cell.config).slow_step
    warm = configure("model.vocab_size=280", "slow.decoder_warmup=0.4")
    (cell,) = Grid(warm, budget=Budget(flops=3e8), rivals=()).cells()
    assert cell.config.decoder_warmup_steps > 2
    assert 0.95 * 3e8 < count_costs(cell.config).training(cell.config) <= 3e8


def test_masked_diffusion_is_a_rival():
    cells = grid("fast.steps=2,4", rivals=(TWIN, DIFFUSION), equal=("tokens",)).cells()
    assert names(cells)[2:] == ["twin--slow.steps=4--seed=0", "masked-diffusion--slow.steps=4--seed=0"]
    assert cells[-1].config.model.kind == DIFFUSION


def test_parts_are_all_of_it_and_nothing_twice():
    cells = grid("model.dim=16,32", "fast.steps=1,2,3").cells()
    for count in (1, 3, 4, len(cells) + 2):
        found = [name for index in range(1, count + 1) for name in names(part(cells, index, count))]
        assert sorted(found) == sorted(names(cells))
    with pytest.raises(UserError, match="--shard 3/2"):
        part(cells, 3, 2)


def test_names_say_what_they_can_and_stay_different():
    long = ",".join("0." + "0" * 60 + str(digit) for digit in (1, 2))
    found = names(grid(f"optimizer.lr={long}", "guide.name=low-rank:1,low-rank:2", rivals=()).cells())
    assert len(set(found)) == 4
    assert max(map(len, found)) < 255
    assert not any(letter in name for name in found for letter in ":/ ")


@pytest.mark.parametrize(
    ("axes", "more", "says"),
    [
        (["model.dim"], {}, "--axis model.dim: expected KEY=V1,V2,..., such as model.dim=64,128"),
        (["model.dim=16,"], {}, "expected KEY=V1,V2"),
        (["model.dim+model.heads=16,32"], {}, "'16' has 1 values for 2 keys"),
        (["model.dmi=16,32"], {}, "--axis model.dmi=16: unknown key model.dmi (did you mean 'dim'?)"),
        (["model.dim=16,17"], {}, "--axis model.dim=17: model.dim = 17 with model.heads = 2"),
        (["fast.steps=two"], {}, "fast.steps = 'two': expected a whole number"),
        (["model=3", "model.dim=16"], {}, "model.dim and a key above it are both set"),
        (["guide.name=none"], {}, "unknown guide 'none'"),
        (["seed=0,1"], {}, "--seeds 0,1,2"),
        (["data.vocab_size=300,400"], {}, "a study for each preparation"),
        (["model.kind=masked-diffusion"], {}, "--rivals"),
        (["model.dim=16", "model.dim=32"], {}, "--axis model.dim: is on two axes"),
        ([], {"rivals": ("triplet",)}, "--rivals triplet: choose from twin, masked-diffusion"),
        (["slow.steps=2,4"], {"budget": Budget(tokens=1e4)}, "leave one out"),
        ([], {"budget": Budget(tokens=10)}, "--budget-tokens 10: a slow step alone reads 48 tokens"),
        ([], {"budget": Budget(flops=10)}, "--budget-flops 10: a slow step alone takes"),
    ],
)
def test_bad_grids_are_refused_in_a_line(axes, more, says):
    with pytest.raises(UserError) as found:
        grid(*axes, **more).cells()
    assert says in str(found.value)
    with pytest.raises(UserError, match="exclude each other"):
        Budget(tokens=1, flops=1)


def test_a_masked_diffusion_is_no_cell_that_would_be_called_a_twin():
    with pytest.raises(UserError, match=r"model\.kind = masked-diffusion: .* --rivals masked-diffusion"):
        Grid(configure("model.kind=masked-diffusion"))

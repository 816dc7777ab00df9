"""What holds for every objective, by walking the registry."""

from __future__ import annotations

import dataclasses
import math

import pyro
import pytest
import torch
from helpers.stand_ins import LinearGaussian, NoClosedForm

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Delta, MeanField
from pyro_ltm.noise import DrawFrom, Noise
from pyro_ltm.objectives import MMD, OBJECTIVES, FreeBits, Objective
from pyro_ltm.registry import parameters_of

# Their gradient to q is that of the value (with the noise held).
PLAIN = [
    "elbo:3", "analytic-elbo:3", "iwae:3", "renyi:0.5:3", "renyi:2:3", "vr-max:3", "beta:0.5:3",
    "beta:4", "annealed", "cyclical", "free-bits:0.01:total", "free-bits:0.01:layer", "free-bits:0.01:thought",
    "free-bits:100:total", "target-rate:4:3", "mean-rate:4:3", "mmd:1:100", "mmd:0:10", "mmd:-1:10",
]  # fmt: skip


def build(name, **options):
    return OBJECTIVES.build(Component(name=name, options=options), layers=2)


def guide_for(objective):
    guide = MeanField(2, 2)
    return Delta(2, 2, init_loc=0.5) if objective.refusal(guide) else guide


@pytest.mark.parametrize("name", OBJECTIVES)
def test_cards_and_arguments(name):
    kind = OBJECTIVES[name]
    assert all(dataclasses.asdict(kind.card).values())
    assert not any("\n" in line for line in dataclasses.asdict(kind.card).values())
    parameters = parameters_of(kind)
    assert set(kind.arguments) <= set(parameters)
    for parameter in parameters.values():
        assert type(parameter.default) in (bool, int, float, str), "each option can be written in TOML"
    assert kind.__doc__
    kind()


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("renyi:0.5:16", {"alpha": 0.5, "particles": 16}),
        ("iwae:4", {"particles": 4}),
        ("dreg:4", {"particles": 4}),
        ("jackknife:4", {"particles": 4}),
        ("vr-max:4", {"particles": 4}),
        ("tail-adaptive:4", {"particles": 4}),
        ("beta:2", {"beta": 2.0}),
        ("cyclical:6", {"cycles": 6}),
        ("annealed:0.3:fit", {"warmup": 0.3, "over": "fit"}),
        ("free-bits:3:thought", {"nats": 3.0, "per": "thought"}),
        ("target-rate:8", {"nats": 8.0}),
        ("mean-rate:8", {"nats": 8.0}),
        ("chi:3", {"order": 3.0}),
        ("mmd:0:50", {"alpha": 0.0, "weight": 50.0}),
    ],
)
def test_arguments_after_the_name(text, options):
    assert OBJECTIVES.parse(text) == Component(name=text.split(":")[0], options=options)


def options_of(kind):
    return [(name, kind, value) for name, value in parameters_of(OBJECTIVES[kind]).items()]


@pytest.mark.parametrize(
    ("option", "kind", "parameter"),
    [row for kind in OBJECTIVES for row in options_of(kind)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_option_is_taken_that_means_nothing(option, kind, parameter):
    bad = {float: (math.nan, math.inf, -math.inf), int: (0, -1), str: ("", "xyzzy")}
    for value in bad[type(parameter.default)]:
        with pytest.raises(UserError, match=f"objective: {option} = "):
            OBJECTIVES[kind](**{option: value})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("renyi", {"alpha": -0.1}),
        ("beta", {"beta": -0.1}),
        ("annealed", {"warmup": 1.1}),
        ("annealed", {"warmup": -0.1}),
        ("cyclical", {"rise": 1.1}),
        ("cyclical", {"rise": -0.1}),
        ("cyclical", {"cycles": 1 << 21}),
        ("free-bits", {"nats": -0.1}),
        ("target-rate", {"nats": 0.0}),
        ("mean-rate", {"nats": 0.0}),
        ("mean-rate", {"multiplier": 1e-3}),
        ("tail-adaptive", {"particles": 1}),
        ("jackknife", {"particles": 1}),
        ("mmd", {"alpha": 1.1}),
        ("mmd", {"weight": -0.1}),
        ("chi", {"order": 1.0}),
        ("chi", {"particles": 1}),
        ("iwae", {"particles": 4097}),
        ("elbo", {"warmup": 1.1}),
    ],
)
def test_ends_of_the_ranges(name, options):
    (option,) = options
    with pytest.raises(UserError, match=rf"objective: {option} = .*: (from|a number|at least)"):
        OBJECTIVES[name](**options)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_minus_the_value_or_an_upper_bound_itself(name):
    model = LinearGaussian()
    batch, objective = model.data(4), build(name)
    guide = guide_for(objective)
    state = guide.init(batch) | objective.local(batch)
    values = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        values.append(objective.differentiable_loss(model, guide, batch, state))
    pyro.set_rng_seed(3)
    value = objective.value(objective.terms(model, guide, batch, state))
    assert value.shape == (4,)
    assert torch.equal(*values)
    if name != "jackknife":  # whose q is fitted by another bound
        assert torch.equal(values[0], (value if name == "chi" else -value).sum())


def differences(loss, leaves, step=1e-5):
    """The slope of `loss` along one direction through all leaves, and along it what autograd has."""
    ways = [torch.randn_like(leaf) for leaf in leaves]
    pyro.set_rng_seed(7)
    gradients = torch.autograd.grad(loss(), leaves)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for leaf, way in zip(leaves, ways, strict=True):
                leaf.add_(sign * step * way)
        pyro.set_rng_seed(7)
        values.append(loss().detach())
        with torch.no_grad():
            for leaf, way in zip(leaves, ways, strict=True):
                leaf.sub_(sign * step * way)
    slope = sum(float((gradient * way).sum()) for gradient, way in zip(gradients, ways, strict=True))
    return float(values[0] - values[1]) / (2 * step), slope


@pytest.mark.parametrize("name", PLAIN)
def test_the_gradient_to_q_is_that_of_the_value(place, name):
    here = place(4, widen=0.5)
    objective = build(name).at(0.3)
    numeric, slope = differences(lambda: objective.differentiable_loss(*here.arguments), here.leaves)
    # Central differences of step 1e-5: third derivatives times 1e-10, roundoff 1e-16 / 1e-5 of some hundred nats.
    assert numeric == pytest.approx(slope, rel=1e-6, abs=1e-7)
    assert slope != 0


def test_that_is_every_objective_without_a_loss_of_its_own_for_q():
    rest = {name for name, kind in OBJECTIVES.items() if kind.guide_loss is not Objective.guide_loss} | {"map"}
    missing = set(OBJECTIVES) - {name.split(":")[0] for name in PLAIN} - rest
    assert not missing, f"no `guide_loss` of its own: add to PLAIN, in this file, {', '.join(missing)}"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_to_the_decoder_is_that_of_the_value(name):
    model = LinearGaussian()
    batch, objective = model.data(4), build(name)
    guide = guide_for(objective)
    state = guide.init(batch)
    numeric, slope = differences(
        lambda: objective.decoder_loss(objective.terms(model, guide, batch, state)).sum(), list(model.parameters())
    )
    assert numeric == pytest.approx(slope, rel=1e-6, abs=1e-6)
    assert slope != 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_points_are_refused_with_a_reason(name):
    objective = build(name)
    if name in ("map", "mmd"):
        objective.check(Delta(2, 2))
        return
    reason = f"Delta has no density, which {type(objective).__name__} needs"
    assert objective.refusal(Delta(2, 2)) == reason
    with pytest.raises(UserError, match=reason):
        objective.terms(LinearGaussian(), Delta(2, 2), LinearGaussian().data(2), {"loc": torch.zeros(2, 2, 2)})


def test_other_refusals():
    without = {name for name in OBJECTIVES if build(name).refusal(NoClosedForm(2, 2))}
    assert without == {"analytic-elbo", "map"}
    assert {name for name in OBJECTIVES if build(name).refusal(MeanField(2, 2))} == {"map"}
    assert FreeBits(per="thought").refusal(NoClosedForm(2, 2))
    assert MMD(alpha=0.5).refusal(Delta(2, 2))


def test_which_raise_likelihood_and_nothing_else():
    bounds = {"elbo", "analytic-elbo", "stl", "iwae", "dreg", "jackknife", "renyi", "vr-max"}
    assert {name for name, kind in OBJECTIVES.items() if kind.likelihood_alone} == bounds


def test_a_misspelt_flag_is_refused():
    with pytest.raises(TypeError, match=r"Odd\.needs_densities: no such flag \(did you mean 'needs_density'\?\)"):

        class Odd(FreeBits):
            needs_densities = False


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_end_of_training_is_the_whole_objective(name):
    objective = build(name)
    end = objective.at(1.0)
    assert (end.beta, end.num_particles) == (objective.beta, objective.num_particles)
    assert type(end) is type(objective)
    assert end.within(1.0).beta == objective.beta


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_sequence_does_not_know_its_batch_unless_the_objective_says_so(name):
    model = LinearGaussian()
    batch, objective = model.data(4), build(name)
    guide = guide_for(objective)
    state = {key: value + torch.randn_like(value) for key, value in guide.init(batch).items()}
    rows = torch.tensor([2])
    bounds = []
    for part in (torch.arange(4), rows):
        with DrawFrom(Noise(batch.ids[part], seed=5)):
            held = {key: value[part] for key, value in state.items()}
            bounds.append(objective.value(objective.terms(model, guide, batch.select(part), held)))
    difference = (bounds[0][rows] - bounds[1]).abs()
    assert bool((difference > 1e-3).all()) == objective.couples_batch
    assert bool((difference < 1e-9).all()) != objective.couples_batch

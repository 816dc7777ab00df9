"""Every guide with every objective and optimizer: it runs and improves, or is refused with what does fit."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.stand_ins import NoClosedForm
from helpers.tiny import D, N, telling_model

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import GUIDES
from pyro_ltm.inference import OPTIMIZERS, fit_posterior
from pyro_ltm.objectives import OBJECTIVES, MonteCarloELBO

AXES = {"guide": GUIDES, "objective": OBJECTIVES, "optimizer": OPTIMIZERS}
EXTRA = {"stand-in without a closed-form KL": NoClosedForm}


@pytest.mark.parametrize(("guide_name", "objective_name"), [*itertools.product([*GUIDES, *EXTRA], OBJECTIVES)])
def test_every_pair_runs_and_improves_or_is_refused(guide_name, objective_name):
    torch.set_default_dtype(torch.float64)
    model, batch = telling_model()
    if guide_name in EXTRA:
        guide = EXTRA[guide_name](N, D)
    else:
        guide = GUIDES.build(Component(name=guide_name), thoughts=N, dim=D)
    objective = OBJECTIVES.build(Component(name=objective_name))
    if not fits(objective, guide):
        with pytest.raises(UserError) as caught:
            fit_posterior(model, batch, guide=guide, objective=objective)
        fitting = [name for name, kind in OBJECTIVES.items() if fits(kind(), guide)]
        assert any(f"'{name}'" in str(caught.value) for name in fitting), "the error names none that fits"
        assert type(guide).__name__ in str(caught.value)
        return
    scores = []
    for steps in (0, 40):
        posterior = fit_posterior(model, batch, guide=guide, objective=objective, steps=steps)
        weights = MonteCarloELBO(particles=200).terms(model, guide, batch, posterior.state).log_weight
        scores.append(weights.detach())
    gain = scores[1].mean(0) - scores[0].mean(0)
    error = (scores[0].var(0) + scores[1].var(0)).div(200).sqrt()
    assert (gain > 4 * error).all()


def fits(objective, guide):
    try:
        objective.check(guide)
    except UserError:
        return False
    return True


def test_the_walk_reaches_a_refusal():
    assert not all(fits(kind(), NoClosedForm(N, D)) for kind in OBJECTIVES.values())


@pytest.mark.parametrize("axis", AXES)
def test_registries_are_mappings(axis):
    registry = AXES[axis]
    assert len(registry) == len(list(registry)) > 0
    name = next(iter(registry))
    assert name in registry
    assert "nothing of the kind" not in registry


@pytest.mark.parametrize("axis", AXES)
def test_registries_suggest_on_a_typing_error(axis):
    registry = AXES[axis]
    for name in registry:
        with pytest.raises(UserError) as caught:
            registry.build(Component(name=name[:-1]))
        message = str(caught.value)
        assert f"unknown {axis} '{name[:-1]}'" in message
        assert "did you mean" in message
        assert all(other in message for other in registry)
    with pytest.raises(UserError, match="choose from"):
        registry["xyzzy"]


@pytest.mark.parametrize(
    ("axis", "name", "options", "says"),
    [
        ("guide", "mean-field", {"init_locc": 1.0}, r"guide\.init_locc \(did you mean 'init_loc'\?\)"),
        ("guide", "mean-field", {"thoughts": 3}, r"guide\.thoughts"),
        ("guide", "mean-field", {"init_loc": "wide"}, r"guide\.init_loc = 'wide'"),
        ("guide", "mean-field", {"seed": 1.5}, r"guide\.seed = 1\.5"),
        ("objective", "elbo", {"particle": 2}, r"objective\.particle \(did you mean 'particles'\?\)"),
        ("objective", "elbo", {"particles": True}, r"objective\.particles = True"),
        ("objective", "analytic-elbo", {"beta": -1.0}, r"beta = -1\.0"),
        ("optimizer", "adam", {"learning": 1.0}, r"optimizer\.learning"),
        ("optimizer", "adam", {"lr": -1.0}, r"lr = -1\.0"),
    ],
)
def test_registries_refuse_options_that_are_wrong(axis, name, options, says):
    shared = {"thoughts": N, "dim": D} if axis == "guide" else {}
    with pytest.raises(UserError, match=says):
        AXES[axis].build(Component(name=name, options=options), **shared)


def test_registries_build_with_options():
    guide = GUIDES.build(Component(name="mean-field", options={"init_loc": 1}), thoughts=N, dim=D)
    assert (guide.thoughts, guide.dim, guide.init_loc) == (N, D, 1)
    assert isinstance(guide.init_loc, float), "a whole number for an option that is a float becomes one"
    objective = OBJECTIVES.build(Component(name="elbo", options={"particles": 3, "warmup": 0.5}))
    assert (objective.num_particles, objective.warmup) == (3, 0.5)
    assert OPTIMIZERS.build(Component(name="adam", options={"lr": 0.1})).lr == 0.1

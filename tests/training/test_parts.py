"""Parts of one's own: named, as classes and as objects, in training and afterwards, and what a run keeps of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import own_classes
from helpers.own_classes import Half, Isotropic, NAdam, Plain, Wide
from pyro.infer import Trace_ELBO

import pyro_ltm as ltm
from pyro_ltm.comparison.posteriors import compare_run
from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import LowRank
from pyro_ltm.inference.build import check_config
from pyro_ltm.inference.parts import with_parts
from pyro_ltm.optimizers import Adam

HERE = own_classes.__name__
SMALL = ["model.dim=8", "model.layers=1", "model.heads=1", "model.thoughts=2", "model.max_length=16"]
SMALL += ["slow.batch_size=2", "slow.eval_sequences=4", "slow.warmup=0", "fast.steps=1"]
CONFIG = ltm.apply_settings(ltm.preset("nano"), [*SMALL, "slow.steps=2", "objective.name=elbo"])


def parts():
    """One of each axis, two of them classes."""
    objects = {"guide": Isotropic(2, 8, width=0.5), "objective": Half(2), "slow_optimizer": NAdam(momentum_decay=0.01)}
    return {**objects, "optimizer": Plain, "prior": Wide}


def in_session(name):
    """A class that no name brings back, as one of a notebook."""

    class Local(Isotropic):
        pass

    Local.__qualname__, Local.__module__ = name, "__main__"
    return Local


@pytest.fixture(scope="module")
def trained(tokens):
    return ltm.train(CONFIG, data=tokens, out=tokens.parent / "own", **parts())


def test_a_run_is_trained_by_objects_and_opened_by_the_names_that_it_keeps_only_with_leave(trained):
    with pytest.raises(UserError, match=r"config\.toml: guide\.name = .*Isotropic' is code .* --allow-code"):
        ltm.Run.load(trained.folder)
    again = ltm.Run.load(trained.folder, allow_code=True)
    assert again.config == trained.config
    assert again.config.guide == Component(name=f"{HERE}:Isotropic", options={"width": 0.5})
    assert again.config.objective == Component(name=f"{HERE}:Half", options={"particles": 2})
    assert again.config.slow_optimizer == Component(name=f"{HERE}:NAdam", options={"momentum_decay": 0.01})
    assert (again.config.optimizer.name, again.config.prior.name) == (f"{HERE}:Plain", f"{HERE}:Wide")
    assert again.fingerprint == trained.fingerprint
    assert {type(part) for part in (again.loop.guide, again.loop.optimizer, again.model.prior)} == {
        Isotropic,
        Plain,
        Wide,
    }
    assert again.evaluate(sequences=2, particles=1) == trained.evaluate(sequences=2, particles=1)
    given = ltm.Run.load(trained.folder, **parts())
    assert given.fingerprint == trained.fingerprint


def test_names_and_objects_train_alike_and_objects_stay_as_they_were(trained, tokens):
    settings = [f"{axis}.name={one.name}" for axis, one in trained.config.components.items()]
    settings += ["guide.width=0.5", "objective.particles=2", "slow_optimizer.momentum_decay=0.01"]
    named = ltm.train(ltm.apply_settings(CONFIG, settings), data=tokens, out=tokens.parent / "named")
    assert named.config == trained.config
    for ours, theirs in zip(named.trainable.parameters(), trained.trainable.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    prior = Wide(2, 8)
    ltm.train(CONFIG, data=tokens, out=tokens.parent / "kept", prior=prior)
    assert torch.equal(prior.log_width, Wide(2, 8).log_width), "a copy is trained"


def test_a_run_goes_on_by_the_same_parts(trained, tokens):
    longer = ltm.apply_settings(trained.config, ["slow.steps=3"])
    with pytest.raises(UserError, match="allow-code"):
        ltm.train(None, data=None, out=trained.folder, resume=True)
    for how in ({"branch_from": trained.folder}, {"init_from": trained.folder, "data": tokens}):
        with pytest.raises(UserError, match="allow-code"):
            ltm.train(None, **{"data": None, **how}, out=tokens.parent / "refused")
    assert not (tokens.parent / "refused").exists()
    with pytest.raises(UserError, match=r"guide\.width = 0\.5 became 0\.25"):
        ltm.train(
            longer, data=None, out=trained.folder, resume=True, **{**parts(), "guide": Isotropic(2, 8, width=0.25)}
        )
    branch = ltm.train(longer, data=None, out=tokens.parent / "branch", branch_from=trained.folder)
    assert branch.step == 3
    begun = ltm.train(None, data=tokens, init_from=trained.folder, out=tokens.parent / "begun", allow_code=True)
    assert type(begun.loop.guide) is Isotropic


def test_an_object_that_no_name_brings_back_is_described_and_given_again(tokens):
    kind, out = in_session("Mine"), tokens.parent / "session"
    run = ltm.train(CONFIG, data=tokens, out=out, guide=kind(2, 8, width=0.5))
    assert run.config.guide == Component(name="<__main__.Mine>", options={"width": 0.5})
    assert "Run.load needs it again" in (out / "config.toml").read_text()
    for leave in (False, True):
        with pytest.raises(
            UserError, match=r"guide <__main__\.Mine> was an object in Python.*Run\.load\(FOLDER, guide="
        ):
            ltm.Run.load(out, allow_code=leave)
    again = ltm.Run.load(out, guide=kind(2, 8, width=0.5))
    assert again.fingerprint == run.fingerprint
    assert ltm.train(None, data=None, out=out, resume=True, guide=kind(2, 8, width=0.5)).step == 2
    with pytest.raises(UserError, match=r"was an object in Python"):
        ltm.train(None, data=None, out=out, resume=True)


def test_what_an_object_is_named_says_how_to_make_it_again():
    def written(**part):
        ((axis, _),) = part.items()
        found = getattr(with_parts(CONFIG, **part), axis)
        return found.name, dict(found.options)

    assert written(guide=LowRank(2, 8, 3)) == ("low-rank", {"rank": 3})
    assert written(guide="low-rank:3") == ("low-rank", {"rank": 3})
    assert written(guide=LowRank) == ("low-rank", {})
    assert written(optimizer=replace(Adam(lr=0.25), eps=0.5))[1]["lr"] == 0.25
    assert written(guide=Isotropic(2, 8, width=torch.tensor(0.5))) == (f"<{HERE}.Isotropic>", {})
    changed = Isotropic(2, 8, width=0.5)
    changed.width = 0.25
    assert written(guide=changed)[0] == f"<{HERE}.Isotropic>", "its options do not make it again"
    assert written(objective=Trace_ELBO())[0] == "<pyro.infer.trace_elbo.Trace_ELBO>"


def test_a_part_of_the_wrong_axis_or_shape_is_refused_before_training():
    for part, says in (
        ({"guide": Half(2)}, r"guide: helpers\.own_classes\.Half: does not extend pyro_ltm\.guides\.base\.Guide"),
        ({"gude": Half(2)}, r"unknown part 'gude' \(did you mean 'guide'\?\)"),
        ({"guide": Isotropic(4, 8)}, "Isotropic is of 4 thoughts of width 8, and the model has 2 of width 8"),
        ({"objective": Trace_ELBO()}, "Trace_ELBO .* no decoder is trained"),
    ):
        with pytest.raises(UserError, match=says):
            check_config(with_parts(CONFIG, **part))


def test_a_trained_run_is_fitted_by_others(trained):
    texts = ["The 3th bird sang 2 songs to the 1 trees."]
    for guide in (Isotropic(2, 8, width=0.25), Isotropic, "low-rank:1", f"{HERE}:Isotropic:0.25"):
        _, posterior = trained.infer(texts, guide=guide, objective=Trace_ELBO() if guide is Isotropic else None)
        assert posterior.mean().shape == (1, 2, 8)
    bound = trained.evaluate(sequences=2, particles=1, guide=LowRank(2, 8), objective="elbo", optimizer=Adam())
    assert (bound.guide, trained.evaluate(sequences=2, particles=1).guide) == ("LowRank", "Isotropic")
    assert trained.with_parts() is trained
    with pytest.raises(UserError, match="only its fits can change"):
        trained.with_parts(prior="gaussian")


def test_a_comparison_takes_classes_names_and_objects(trained):
    guides = ["low-rank:1", Isotropic, f"{HERE}:Isotropic:0.25"]
    found = compare_run(
        trained,
        guides=guides,
        objectives={"ours": Half(2), "elbo": "elbo"},
        sequences=2,
        particles=2,
        curve_particles=1,
    )
    names = ["low-rank:1", "Isotropic", f"{HERE}:Isotropic:0.25"]
    assert [(pair.guide, pair.objective) for pair in found.pairs] == [(g, o) for g in names for o in ("ours", "elbo")]
    assert all(pair.elbo is not None for pair in found.pairs)

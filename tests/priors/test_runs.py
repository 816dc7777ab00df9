"""A run under each prior: trained, stopped and resumed, loaded, scored against the floor of its world, and written."""

from __future__ import annotations

import pytest
import torch

import pyro_ltm as ltm
from pyro_ltm.errors import UserError
from pyro_ltm.inference import build
from pyro_ltm.priors import PRIORS
from pyro_ltm.runs import Run
from pyro_ltm.runs.protocols import evaluate_protocols

TINY = [
    *("model.dim=8", "model.layers=2", "model.heads=2", "model.thoughts=2", "model.max_length=64", "model.window=4"),
    *("fast.steps=2", "slow.steps=4", "slow.batch_size=3", "objective.name=stl"),
    *("slow.eval_every=0", "slow.eval_sequences=2", "slow.save_every=2", "slow.warmup=1", "slow.lr=0.02"),
    "model.thought_dim=6",
]


def configure(*settings):
    return ltm.apply_settings(ltm.preset("nano"), [*TINY, *settings])


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tokens"
    source = "worlds:size=2,length=2,documents=60"
    return ltm.prepare([source], folder, vocab_size=300, sequence_length=64, packing="document").path


QUICK = ("mixture", "transport")
"""One whose KL is estimated and one with a closed form; the others in the long run."""


CASES = {name: [f"prior.name={name}"] for name in PRIORS if name != "gaussian"}
CASES["vamp, encoder"] = ["prior.name=vamp", "guide.name=semi-amortized"]


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.long) for case in CASES]
)
def test_trains_resumes_is_loaded_scored_and_writes(case, tokens, tmp_path):
    config = configure(*CASES[case])
    whole = ltm.train(config, data=tokens, out=tmp_path / "whole")

    def kill(progress):
        if progress.validation is None and progress.step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        ltm.train(config, data=tokens, out=tmp_path / "parts", on_progress=kill)
    ltm.train(None, data=None, out=tmp_path / "parts", resume=True)
    loaded = Run.load(tmp_path / "parts")
    assert loaded.config.prior == config.prior
    first = build(loaded.config)[0].state_dict()
    learned = [key for key in first if key.startswith(("prior.", "decoder.transport"))]
    assert learned
    for key, value in whole.trainable.state_dict().items():
        assert torch.equal(value, loaded.trainable.state_dict()[key]), key
    assert loaded.fingerprint == whole.fingerprint
    assert any(not torch.equal(loaded.model.state_dict()[key], first[key]) for key in learned)
    found = evaluate_protocols(loaded, loaded.dataset(), sequences=4, particles=2, protocols=("bound", "prefix"))
    assert found.above_floor["bound"].nats_per_token > 0
    texts = loaded.generate(num=2, max_new_tokens=5)
    again = loaded.generate(num=1, max_new_tokens=5)
    assert [one.text for one in texts[:1]] == [one.text for one in again]
    assert loaded.generate(prompt="The", num=1, max_new_tokens=3)[0].tokens <= 3


def test_decoder_and_guide_begin_alike_under_every_prior():
    plain, other = (build(configure("model.vocab_size=300", f"prior.name={name}"))[0] for name in ("gaussian", "flow"))
    for key, value in plain.decoder.state_dict().items():
        assert torch.equal(value, other.decoder.state_dict()[key])


def test_a_twin_has_no_prior_of_its_own():
    twin, _ = build(configure("model.vocab_size=300", "prior.name=flow", "model.thoughts=0"))
    assert not twin.prior.state_dict()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["objective.name=analytic-elbo"], r"AnalyticELBO needs.*Mixture has none: use.*'stl'.*the prior 'gaussian'"),
        (["objective.name=free-bits:2:thought"], r"Mixture has none"),
        (["objective.name=mmd"], r"MMD needs.*Mixture has none"),
        (["objective.name=beta", "fast.noise=fixed"], r"one draw cannot estimate the KL to the prior Mixture"),
        (["prior.components=1"], r"prior: components = 1: from 2 to"),
        (["prior.name=mixtures"], r"unknown prior 'mixtures' \(did you mean 'mixture'\?\)"),
        (["prior.spread=0.0"], r"prior: spread"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(settings, says, tokens, tmp_path):
    with pytest.raises(UserError, match=says):
        ltm.train(configure("prior.name=mixture", *settings), data=tokens, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_prior_begins_with_a_decoder_alone(tokens, tmp_path):
    first = ltm.train(configure("prior.name=mixture"), data=tokens, out=tmp_path / "first")
    config = configure("prior.name=layered", "slow.lr=0.0")
    second = ltm.train(config, data=tokens, out=tmp_path / "second", init_from=tmp_path / "first")
    one, other = first.model.decoder.state_dict(), second.model.decoder.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items())

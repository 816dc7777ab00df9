"""A prior fitted to the posteriors of a trained run."""

from __future__ import annotations

import json
import math

import click.testing
import pytest
import torch
from helpers.tiny import D, N, tiny_batch, tiny_config
from pyro_ltm_cli.main import cli

import pyro_ltm as ltm
from pyro_ltm.comparison.named import objectives_for
from pyro_ltm.comparison.posteriors import describe
from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import Posterior
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import Noise, fold
from pyro_ltm.priors import PRIORS
from pyro_ltm.runs import Run
from pyro_ltm.training.fit_prior import fit_prior, foretell, learn

WIDTH = 0.5


def two_kinds(count=40):
    """Posteriors of width 0.5 around 2 and around -2: their aggregate is a mixture of two Normals."""
    batch = tiny_batch(count)
    centre = (4.0 * (torch.arange(count) % 2) - 2)[:, None, None].expand(count, N, D)
    state = {"loc": centre.clone(), "log_variance": torch.full((count, N, D), 2 * math.log(WIDTH))}
    noise = Noise(batch.ids, seed=0)
    return batch, Posterior(MeanField(N, D), state, batch.ids, noise, torch.zeros(0, count))


def nats_of(component, steps=60):
    """-log p(z) of fresh draws, mean over sequences, under a prior fitted to others."""
    prior = PRIORS.build(component, thoughts=N, dim=D, layers=2)
    model, pair = LatentThoughtModel(tiny_config(), prior=prior), two_kinds()
    learn(model, [pair], steps=steps, lr=0.1)
    with torch.no_grad():
        return float(-model.prior().log_prob(pair[1].with_noise(99).sample(8)).mean()), model


def test_it_finds_the_aggregate_where_the_family_has_it():
    """The entropy of the mixture is that of one kind and one bit; of a Normal with its moments, far more."""
    each = 0.5 * math.log(2 * math.pi * math.e)
    entropy = N * D * (each + math.log(WIDTH)) + math.log(2)
    found, _ = nats_of(Component(name="mixture:4"))
    assert entropy - 0.5 < found < entropy + 4
    normal, model = nats_of(Component(name="gaussian:true"))
    assert normal == pytest.approx(N * D * (each + 0.5 * math.log(4 + WIDTH**2)), rel=0.01)
    assert model.prior().stddev.mean().item() == pytest.approx((4 + WIDTH**2) ** 0.5, rel=0.05)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    source = "worlds:size=2,length=2,documents=60"
    ltm.prepare([source], folder / "tokens", vocab_size=300, sequence_length=64, packing="document")
    tiny = [
        *("model.dim=8", "model.layers=2", "model.heads=2", "model.thoughts=2", "model.max_length=64", "slow.steps=2"),
        *("model.window=4", "fast.steps=2", "slow.batch_size=3", "slow.eval_every=0", "slow.eval_sequences=2"),
    ]
    config = ltm.apply_settings(ltm.preset("nano"), tiny)
    ltm.train(config, data=folder / "tokens", out=folder / "run")
    return folder / "run"


def test_the_run_stays_and_another_has_the_prior(trained, tmp_path):
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    words = ["fit-prior", trained, "--prior", "mixture:3", "--out", tmp_path / "new", "--sequences", 8, "--steps", 5]
    words += ["--batch-size", 4, "--score-sequences", 4, "--json"]
    result = click.testing.CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["sequences"], found["steps"]) == (8, 5)
    assert found["gained"]["nats_per_token"] == pytest.approx(
        found["before"]["nats_per_token"] - found["after"]["nats_per_token"]
    )
    assert {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()} == before
    old, new = Run.load(trained), Run.load(tmp_path / "new")
    assert new.config.prior == Component(name="mixture", options={"components": 3})
    assert new.config.objective.name == "stl"
    for name, value in old.model.decoder.state_dict().items():
        assert torch.equal(value, new.model.decoder.state_dict()[name])
    again = new.evaluate(sequences=4, batch_size=4)
    assert again.nats_per_token == pytest.approx(found["after"]["nats_per_token"], rel=1e-6)
    assert new.generate(num=1, max_new_tokens=3)


def test_a_prior_that_reads_prompts_is_judged_by_what_they_tell_it(trained, tmp_path):
    """Its bound is that of N(0, I) whatever it learns. A shift c of its mean spares c z - c^2 / 2 in each dimension."""
    words = ["fit-prior", trained, "--prior", "conditional", "--out", tmp_path / "new", "--sequences", 8, "--steps", 5]
    words += ["--batch-size", 4, "--score-sequences", 4]
    result = click.testing.CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    run = Run.load(tmp_path / "new")
    data, shift = run.dataset("validation"), 0.3
    found = foretell(run, data, 4, 4, 0)
    spared = f"{found.nats_per_sequence:.2f} ± {found.stderr:.2f} nats less"
    assert f"Once the beginning of a text is known, its thoughts cost {spared} under conditional." in result.stdout
    last = run.model.prior.network[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([shift, 0.0]).repeat_interleave(len(last.bias) // 2))
    batch = data.batch(range(4))
    posterior = run.loop.fit_to_score(run.model, batch, seed=fold(0, "fit"))
    z = posterior.with_noise(fold(0, "score")).sample()[0]
    spared = (shift * z - shift**2 / 2).sum((1, 2))
    assert foretell(run, data, 4, 4, 0).nats_per_sequence == pytest.approx(float(spared.mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gaussian", r"prior 'gaussian' has nothing to learn: fit gaussian:true"),
        ("transport", r"prior 'transport' is a map that the decoder learns with"),
        ("mixtur", r"unknown prior 'mixtur' \(did you mean 'mixture'\?\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(name, says, trained, tmp_path):
    with pytest.raises(UserError, match=says):
        fit_prior(Run.load(trained), Component(name=name), out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="is there already"):
        fit_prior(Run.load(trained), Component(name="mixture"), out=trained)


def test_what_the_objective_has_learned_stays(trained, tmp_path):
    run = Run.load(trained).with_parts(objective="mean-rate:3")
    run.loop.objective.learned.move(torch.tensor(1.0))
    how = {"sequences": 4, "steps": 1, "batch_size": 4, "score": False}
    new = fit_prior(run, Component(name="mixture:2"), out=tmp_path / "new", **how).run
    assert torch.equal(new.loop.objective.learned(), run.loop.objective.learned())
    assert float(new.loop.objective.learned()) == pytest.approx(0.1 * math.e)
    for same in (new.with_parts(guide="full-rank"), new.with_parts(objective="mean-rate:3")):
        assert torch.equal(same.loop.objective.learned(), run.loop.objective.learned())
    another = new.with_parts(objective="mean-rate:4").loop.objective
    assert float(another.learned()) == pytest.approx(0.1)
    compared = objectives_for(new, ["mean-rate:3", "mean-rate:4"])
    assert [float(one.learned()) for one in compared.values()] == pytest.approx([0.1 * math.e, 0.1])
    assert describe(compared["mean-rate:3"]) != describe(
        objectives_for(run.with_parts(objective="elbo"), ["mean-rate:3"])["mean-rate:3"]
    )

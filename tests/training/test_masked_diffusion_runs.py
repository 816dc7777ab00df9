"""A run of a masked diffusion: configured, killed, resumed, loaded, and scored beside its autoregressive twin."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.tiny_run import configure

import pyro_ltm as ltm
from pyro_ltm.config import apply_settings, dump_toml, load_toml
from pyro_ltm.errors import UserError
from pyro_ltm.inference.build import build
from pyro_ltm.model.masked_diffusion import MaskedDiffusion
from pyro_ltm.runs.protocols import evaluate_protocols
from pyro_ltm.runs.twin import check_twin
from pyro_ltm.training import train_step
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch

KIND = "model.kind=masked-diffusion"


def test_the_kind_implies_that_there_are_no_thoughts(tmp_path):
    config = configure(KIND)
    assert config.model.thoughts == 0
    path = tmp_path / "config.toml"
    path.write_text(dump_toml(config), encoding="utf-8")
    assert load_toml(path, whole=True) == config
    path.write_text('[model]\nkind = "masked-diffusion"\n', encoding="utf-8")
    assert load_toml(path, configure()).model == config.model
    back = apply_settings(config, ["model.kind=autoregressive"])
    assert back.model == configure().model.twin == config.model.twin


def test_what_does_not_fit_the_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.thoughts = 2 with model\.kind = masked-diffusion.*set 0"):
        configure(KIND, "model.thoughts=2")
    path = tmp_path / "config.toml"
    path.write_text('[model]\nthoughts = 2\nkind = "masked-diffusion"\n', encoding="utf-8")
    with pytest.raises(UserError, match="this kind has no thoughts"):
        load_toml(path, configure())
    with pytest.raises(UserError, match=r"did you mean 'masked-diffusion'.*choose from"):
        configure("model.kind=masked-difusion")
    with pytest.raises(UserError, match=r"model\.kind = masked-diffusion: the base of a graft"):
        dataclasses.replace(configure(KIND), graft=dataclasses.replace(configure().graft, base="base", layers="0"))


def test_a_run_is_killed_resumed_and_scored(tiny_run, tmp_path):
    data = ltm.Run.load(tiny_run).dataset("train").folder.path
    options = ("slow.eval_every=2", "slow.accumulate=2", "model.dropout=0.1", "model.value_embeddings=true")
    config = configure(KIND, *options)
    shown = []
    whole = ltm.train(config, data=data, out=tmp_path / "whole", on_progress=shown.append)
    assert {progress.figure for progress in shown} == {"diffusion"}

    def kill(progress):
        if progress.validation is None and progress.step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        ltm.train(config, data=data, out=tmp_path / "parts", on_progress=kill)
    parts = ltm.train(None, data=None, out=tmp_path / "parts", resume=True)
    ours, theirs = whole.model.state_dict(), parts.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    loaded = ltm.Run.load(tmp_path / "parts")
    assert isinstance(loaded.model, MaskedDiffusion)
    assert loaded.fingerprint == whole.fingerprint
    found, again = loaded.evaluate(sequences=4), whole.evaluate(sequences=4, batch_size=3)
    assert found.nats_per_token == pytest.approx(again.nats_per_token, rel=1e-6)
    assert found.kl_nats_per_sequence == 0
    assert found.iwae_nats_per_token == found.nats_per_token  # a mean of bounds: nothing is gained by more draws


def test_it_scores_the_targets_of_its_twin(tiny_run, tmp_path):
    data = ltm.Run.load(tiny_run).dataset("train").folder.path
    ours = ltm.train(configure(KIND), data=data, out=tmp_path / "diffusion")
    twin = ltm.train(configure("model.thoughts=0"), data=data, out=tmp_path / "twin")
    assert check_twin(ours, twin) == []
    one, other = ours.evaluate(sequences=5), twin.evaluate(sequences=5)
    assert one.tokens == other.tokens
    assert one.bits_per_byte / one.nats_per_token == pytest.approx(other.bits_per_byte / other.nats_per_token)
    assert torch.equal(one.sequence_tokens, other.sequence_tokens)


def test_a_slow_step_descends_the_bound_of_its_own_draws():
    model, loop = build(configure(KIND, "model.vocab_size=40"))
    tokens = torch.randint(0, 40, (3, 13), generator=torch.Generator().manual_seed(0))
    batch = Batch.from_tokens(tokens)
    learned = dataclasses.replace(batch, dropout=5)
    loss = -model.log_prob_without_thoughts(learned).sum() / batch.tokens()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    report = train_step(model, [batch], loop, slow_optimizer(model, loop.guide, configure().slow), clip=0.0, seed=5)
    torch.testing.assert_close(report.bound, loss.detach())
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-8)
    hiding = model.decoder.tok_embeddings.weight.grad[40]
    assert float(hiding.abs().max()) > 0  # the embedding of what is hidden learns, too


def test_the_error_honours_what_the_draws_leave(tiny_run, tmp_path):
    """Over seeds a figure moves by no more than its standard error, which sequences of one text give besides."""
    data = ltm.Run.load(tiny_run).dataset("train").folder.path
    run = ltm.train(configure(KIND, "slow.steps=30", "slow.lr=0.01"), data=data, out=tmp_path / "run")
    found = [run.evaluate(sequences=40, particles=1, seed=seed) for seed in range(12)]
    spread = torch.tensor([one.nats_per_token for one in found], dtype=torch.float64).std()
    claimed = sum(one.nats_per_token_stderr for one in found) / len(found)
    more = sum(run.evaluate(sequences=40, particles=8, seed=seed).nats_per_token_stderr for seed in range(3)) / 3
    # 12 seeds give a spread within a factor of two, save once in a thousand.
    assert 0.3 * claimed < float(spread) < 2 * claimed
    assert more < 0.8 * claimed


@pytest.mark.parametrize("steps", [20, pytest.param(800, marks=pytest.mark.long)])
def test_on_a_world_no_figure_lies_below_the_floor(steps, tmp_path):
    """Documents end in the middle of their sequences: a decoder that is told where would lie below, once it is good."""
    source = f"worlds:size=2,length=2,documents={300 if steps == 20 else 2000}"
    data = ltm.prepare([source], tmp_path / "tokens", vocab_size=480, sequence_length=20, packing="document").path
    shape = ("model.dim=32", "model.max_length=20", "model.window=32", "slow.batch_size=32", f"slow.steps={steps}")
    config = apply_settings(ltm.preset("nano"), [KIND, *shape, "slow.eval_every=0", "slow.eval_sequences=1"])
    run = ltm.train(config, data=data, out=tmp_path / "run")
    found = evaluate_protocols(run, run.dataset(), protocols=("bound", "prefix"), particles=8, sequences=20)
    assert found.floor is not None
    assert set(found.above_floor) >= {"bound", "prefix"}
    assert all(gap.nats_per_token > 0 for gap in found.above_floor.values())
    if steps == 800:
        assert found.above_floor["bound"].nats_per_token < 0.3  # so close that the end of a document would show

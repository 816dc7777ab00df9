"""Dropout: of the slow step alone, keyed by seed and sequence, the same when computed again."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.plain_options import option_logits
from helpers.tiny import D, N, tiny_batch, tiny_config, tiny_model

from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.model import TokenSequence
from pyro_ltm.noise import dropout_mask
from pyro_ltm.objectives import IWAE, AnalyticELBO
from pyro_ltm.training import train_step

RATE, SITES = 0.25, ("attention", "cross_attention", "feed_forward")


def model_of(**options):
    return tiny_model(tiny_config(dropout=RATE, **options))


def gradients(model, batches, *, objective=None, seed=0, decoder_only=False):
    model.zero_grad(set_to_none=True)
    loop = FastLoop(MeanField(model.config.thoughts, D), objective or AnalyticELBO(), steps=2)
    held = torch.optim.SGD(model.parameters(), lr=0.0)
    report = train_step(model, batches, loop, held, clip=0.0, seed=seed, decoder_only=decoder_only)
    return report, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"layers": 1}, {"value_embeddings": True, "qk_norm": True}])
def test_drops_the_embedding_and_each_output(options):
    torch.set_default_dtype(torch.float64)
    model, batch = model_of(**options), dataclasses.replace(tiny_batch(), dropout=7)
    thoughts = torch.randn(3, N, D)
    masks = model.decoder.dropout_mask(batch)
    names = ["embedding", *(f"{at}.{site}" for at in range(model.config.layers) for site in SITES)]
    by_name = dict(zip(names, masks, strict=True))
    logits = option_logits(
        dict(model.decoder.named_parameters()),
        model.config,
        batch.inputs,
        thoughts,
        lambda name, x: torch.where(by_name[name], x / (1 - RATE), 0 * x),
    )
    nats = logits.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0].sum(-1)
    ours = TokenSequence(model.decoder, thoughts, batch).log_prob(batch.targets)
    torch.testing.assert_close(ours, nats, atol=1e-9, rtol=0)
    undropped = TokenSequence(model.decoder, thoughts, tiny_batch()).log_prob(batch.targets)
    assert (undropped - ours).abs().min() > 1e-3


def test_keeps_its_share_by_sequence_and_seed():
    ids = torch.arange(6)
    drawn = dropout_mask(ids, (50, 40), 0.7, seed=1, device=torch.device("cpu"))
    share = drawn.double().mean((1, 2))
    assert ((share - 0.7).abs() < 4 * (0.21 / 2000) ** 0.5).all()
    again = dropout_mask(ids[[4, 2]], (50, 40), 0.7, seed=1, device=torch.device("cpu"))
    assert torch.equal(again, drawn[[4, 2]])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[:1], dropout_mask(ids[:1], (50, 40), 0.7, seed=2, device=torch.device("cpu")))


@pytest.mark.parametrize("decoder_only", [False, True], ids=["with thoughts", "without"])
def test_the_same_under_micro_batches_recompute_and_whatever_the_global_generator(decoder_only):
    model, batch = model_of(), tiny_batch(4)
    report, whole = gradients(model, [batch], decoder_only=decoder_only)
    torch.rand(3)  # moves torch's own generator
    again, same = gradients(model, [batch], decoder_only=decoder_only)
    assert torch.equal(report.bound, again.bound)
    assert all(torch.equal(whole[name], same[name]) for name in whole)
    model.decoder.recompute = True
    _, recomputed = gradients(model, [batch], decoder_only=decoder_only)
    assert all(torch.equal(whole[name], recomputed[name]) for name in whole)
    parts, split = gradients(
        model, [batch.select(rows) for rows in torch.arange(4).split(2)], decoder_only=decoder_only
    )
    torch.testing.assert_close(parts.bound, report.bound)
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-4)
    other, _ = gradients(model, [batch], seed=1, decoder_only=decoder_only)
    assert other.bound != report.bound


def test_twins_are_dropped_alike():
    model, batch = model_of(), dataclasses.replace(tiny_batch(), dropout=3)
    twin = model_of(thoughts=0)
    state = model.decoder.state_dict()
    twin.decoder.load_state_dict({name: w for name, w in state.items() if "cross_attention" not in name})
    assert torch.equal(model.log_prob_without_thoughts(batch), twin.log_prob_without_thoughts(batch))


def test_particles_are_weighed_under_one_decoder():
    model, batch = model_of(), dataclasses.replace(tiny_batch(), dropout=3)
    z = torch.randn(3, N, D)
    each = TokenSequence(model.decoder, z.expand(4, 3, N, D), batch).log_prob(batch.targets)
    torch.testing.assert_close(each, each[:1].expand(4, 3))
    report, _ = gradients(model, [tiny_batch()], objective=IWAE(particles=3))
    assert bool(report.finite)


def test_fits_and_scores_drop_nothing():
    batch, dropping, plain = tiny_batch(), model_of(), tiny_model(tiny_config())
    loop = FastLoop(MeanField(N, D), AnalyticELBO(), steps=2)
    for fit in ("fit", "fit_to_score"):
        first, second = (getattr(loop, fit)(model, batch) for model in (dropping, plain))
        assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
        dropping.train()
    report, _ = gradients(dropping, [batch])
    assert report.bound != gradients(plain, [batch])[0].bound


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiles_in_one_graph():
    torch.compiler.reset()
    batch, plain, fast = tiny_batch(), model_of(), model_of()
    fast.decoder.compile(backend="eager", fullgraph=True)
    (report, grads), (compiled_report, compiled_grads) = (gradients(model, [batch]) for model in (plain, fast))
    torch.compiler.reset()
    torch.testing.assert_close(report.bound, compiled_report.bound, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads, compiled_grads, atol=1e-5, rtol=1e-4)

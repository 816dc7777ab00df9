"""Each option of the decoder, alone and with all others, everywhere that a decoder works."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.covering import covered
from helpers.loops import fit_posterior
from helpers.plain_options import option_logits
from helpers.tiny import T, enlarge, tiny_batch, tiny_config, tiny_decoder, tiny_model, tiny_tokens

from pyro_ltm.config import ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.token_subsample import subsampled
from pyro_ltm.model import Decoder, DecodingOptions, LatentThoughtModel, sample_tokens
from pyro_ltm.model.kernels import packed
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.training import train_step

ALONE = {
    "none": {},
    "qk_norm": {"qk_norm": True},
    "logit_softcap": {"logit_softcap": 2.0},
    "value_embeddings": {"value_embeddings": True},
    "value_embeddings, three layers": {"value_embeddings": True, "layers": 3, "thoughts": 6},
    "relu2": {"feed_forward": "relu2"},
    "not tied, thoughts nearer": {"tied": False, "thought_stride": 2},
    "zero_init": {"zero_init": True},
    "zero_cross_attention": {"zero_cross_attention": True},
    "dropout": {"dropout": 0.1},
    "thought_dim": {"thought_dim": 3},
}
ALL = {key: value for options in ALONE.values() for key, value in options.items()}
OPTIONS = {**ALONE, "all": ALL, "all, without thoughts": {**ALL, "thoughts": 0}}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def test_every_option_is_here():
    added = {entry.name for entry in dataclasses.fields(ModelConfig) if entry.metadata.get("added")}
    assert added - {"kind"} <= ALL.keys()  # which is another decoder: test_masked_diffusion.py


def parts(options, **changes):
    """A decoder whose every part matters, tokens and thoughts, in the default dtype."""
    config = tiny_config(**{**options, **changes})
    return tiny_decoder(config), tiny_tokens(3)[:, :-1], torch.randn(3, config.thoughts, config.thought_width)


def mean_field(model):
    return MeanField(model.config.thoughts, model.config.thought_width)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


@each_option
def test_logits_and_gradients_are_those_of_the_formulas(double, options):
    decoder, tokens, thoughts = parts(options)
    leaves = [*decoder.parameters(), *([thoughts.requires_grad_()] if thoughts.numel() else [])]
    ours = decoder.logits(decoder(decoder.context(tokens), thoughts))
    plain = option_logits(dict(decoder.named_parameters()), decoder.config, tokens, thoughts)
    torch.testing.assert_close(ours, plain, atol=1e-10, rtol=0)
    weight = torch.randn_like(ours)
    slopes = [torch.autograd.grad((logits * weight).sum(), leaves) for logits in (ours, plain)]
    for mine, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10 * max(1, float(theirs.abs().max())), rtol=0)
        assert mine.abs().max() > 0, "a parameter has no effect"


@pytest.mark.parametrize(
    ("option", "learns"), covered(itertools.product(OPTIONS, ("thoughts", "weights", "nothing")), times=1)
)
def test_token_log_probs_are_those_of_the_logits(double, option, learns):
    decoder, tokens, thoughts = parts(OPTIONS[option])
    targets = tiny_tokens(3)[:, 1:].flatten()
    if learns != "weights":
        decoder.requires_grad_(False)
    if learns == "thoughts" and thoughts.numel():
        thoughts.requires_grad_()
    leaves = [x for x in (*decoder.parameters(), thoughts) if x.requires_grad]
    found = []
    for plainly in (True, False):
        hidden = decoder(decoder.context(tokens), thoughts).flatten(0, 1)
        if plainly:
            nats = -F.cross_entropy(decoder.logits(hidden), targets, reduction="none")
        else:
            nats = decoder.token_log_probs(hidden, targets)
        counts = torch.linspace(-1, 2, len(nats))
        found.append((nats, *(torch.autograd.grad((nats * counts).sum(), leaves) if leaves else ())))
    torch.testing.assert_close(*found, atol=1e-10, rtol=1e-10)


@each_option
def test_writing_with_a_cache_is_reading_at_once(double, options):
    decoder, tokens, thoughts = parts(options, window=4)
    with torch.no_grad():
        whole = decoder.logits(decoder(decoder.context(tokens), thoughts))
        hidden, cache = decoder.prefill(tokens[:, :3], thoughts)
        torch.testing.assert_close(decoder.logits(hidden), whole[:, 2], atol=1e-10, rtol=0)
        for at in range(3, T):
            logits = decoder.logits(decoder.step(tokens[:, at], cache))
            torch.testing.assert_close(logits, whole[:, at], atol=1e-10, rtol=0)


@each_option
def test_slices_are_pieces_of_the_whole(double, options):
    decoder, tokens, thoughts = parts(options, window=3)
    context = decoder.context(tokens)
    whole = decoder(context, thoughts)
    for piece in (slice(0, 4), slice(4, 9), slice(9, T)):
        torch.testing.assert_close(decoder.forward_slice(context, thoughts, piece), whole[:, piece], atol=1e-10, rtol=0)


@each_option
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_weights_and_cached_contexts_change_nothing(options, dtype):
    config = tiny_config(**options)
    model = LatentThoughtModel(config, dtype)
    enlarge(model.decoder, seed=0)
    model.requires_grad_(False)
    batch, thoughts = tiny_batch(), torch.randn(3, config.thoughts, config.thought_width, requires_grad=True)

    def figures(batch):
        nats = model_log_prob(model, batch, thoughts)
        return nats.detach(), *(torch.autograd.grad(nats.sum(), thoughts) if config.thoughts else ())

    plain = figures(batch)
    with model.fused_weights():
        fused = figures(model.precompute(batch))
    near = 1e-5 if dtype == torch.float32 else 2**-6
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, atol=near * max(1.0, float(other.abs().max())), rtol=0)


def model_log_prob(model, batch, thoughts):
    from pyro_ltm.model import TokenSequence

    return TokenSequence(model.decoder, thoughts, batch).log_prob(batch.targets)


@each_option
def test_bfloat16_stays_near(options):
    config = tiny_config(**options)
    full, half = tiny_decoder(config), Decoder(config, torch.bfloat16)
    half.load_state_dict(full.state_dict())
    tokens, thoughts = tiny_tokens(3), torch.randn(3, config.thoughts, config.thought_width)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
    exact, rough = (d(d.context(inputs), thoughts).flatten(0, 1) for d in (full, half))
    logits = [d.logits(h) for d, h in ((full, exact), (half, rough))]
    # As in test_decoder.py: some dozen roundings of 2^-9, and squares double one.
    assert (logits[1] - logits[0]).square().mean().sqrt() < 6 * 12**0.5 * 2**-9 * logits[0].std()
    nats = half.token_log_probs(rough, targets)
    plain = -F.cross_entropy(logits[1], targets, reduction="none")
    torch.testing.assert_close(nats, plain, atol=2**-7 * float(logits[1].detach().abs().max()), rtol=0)


@pytest.mark.parametrize("options", [*ALONE.values(), ALL], ids=[*ALONE, "all"])
def test_second_derivatives_exist(double, options):
    decoder, tokens, thoughts = parts(options)
    decoder.requires_grad_(False)
    targets = tiny_tokens(3)[:, 1:].flatten()

    def nats(z):
        return decoder.token_log_probs(decoder(decoder.context(tokens), z).flatten(0, 1), targets)[:4]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert torch.autograd.gradcheck(nats, thoughts.requires_grad_(), fast_mode=True)
        assert torch.autograd.gradgradcheck(nats, thoughts, fast_mode=True, atol=1e-4)


@each_option
def test_layers_computed_again_give_the_same_gradients(options):
    decoder, tokens, thoughts = parts(options)

    def gradients(recompute):
        decoder.recompute = recompute
        decoder.zero_grad(set_to_none=True)
        decoder(decoder.context(tokens), thoughts).square().sum().backward()
        return {name: parameter.grad for name, parameter in decoder.named_parameters() if parameter.grad is not None}

    kept, again = gradients(False), gradients(True)
    assert kept.keys() == again.keys()
    assert all(torch.equal(again[name], gradient) for name, gradient in kept.items())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiles_in_one_graph():
    torch.compiler.reset()
    reports = []
    for compiled in (False, True):
        model = tiny_model(tiny_config(**ALL))
        if compiled:
            model.decoder.compile(backend="eager", fullgraph=True)
        reports.append((slow_step(model).bound, *(p.grad for p in model.parameters())))
    torch.testing.assert_close(*reports, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()


def slow_step(model, *, steps=2, decoder_only=False):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loop = FastLoop(mean_field(model), AnalyticELBO(), steps=steps if model.config.thoughts else 0)
    batches = [tiny_batch()]
    return train_step(model, batches, loop, optimizer, clip=0.0, seed=0, decoder_only=decoder_only)


@each_option
def test_steps_of_training_and_a_fit_on_stretches(options):
    model = tiny_model(tiny_config(**options))
    assert bool(slow_step(model).finite)
    assert bool(slow_step(model, decoder_only=True).finite)
    model.requires_grad_(False)
    if model.config.thoughts:
        batch = tiny_batch()
        fit_posterior(model, batch, guide=mean_field(model), objective=AnalyticELBO(), steps=2)
        thoughts = torch.randn(3, model.config.thoughts, model.config.thought_width)
        pieces = [model_log_prob(model, subsampled(batch, 3, step=at, seed=0), thoughts) / 3 for at in range(3)]
        torch.testing.assert_close(sum(pieces), model_log_prob(model, batch, thoughts), atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(not packed.packs(), reason="this torch has no oneDNN")
@each_option
def test_packed_weights_write_the_same(options, monkeypatch):
    monkeypatch.setattr("pyro_ltm.model.kernels.packed.WEIGHTS", 0)
    monkeypatch.setattr("pyro_ltm.model.kernels.packed.TOKENS", 0)
    decoder, tokens, thoughts = parts(options)
    faster = packed.packed(decoder, 3, 4)
    assert faster is not decoder
    with torch.no_grad():
        _, cache = decoder.prefill(tokens[:, :3], thoughts)
        usual, fast = (d.logits(d.step(tokens[:, 3], copy.deepcopy(cache))) for d in (decoder, faster))
    torch.testing.assert_close(fast, usual, atol=1e-5, rtol=1e-5)
    greedy = DecodingOptions(temperature=0)
    written = sample_tokens(decoder, thoughts, tokens[:, :3], 5, sampler=greedy)
    monkeypatch.undo()
    assert torch.equal(written, sample_tokens(decoder, thoughts, tokens[:, :3], 5, sampler=greedy))


@each_option
def test_weights_load_and_the_twin_has_its_part_of_them(options):
    config = tiny_config(**options)
    decoder, other = tiny_decoder(config), Decoder(config)
    other.load_state_dict(decoder.state_dict())
    twin = Decoder(config.twin)
    assert config.twin.twin == config.twin
    kept = {name: value for name, value in decoder.state_dict().items() if "cross_attention" not in name}
    twin.load_state_dict(kept)
    tokens, thoughts = tiny_tokens(3)[:, :-1], torch.randn(3, config.thoughts, config.thought_width)
    with torch.no_grad():
        assert torch.equal(decoder(decoder.context(tokens), None), twin(twin.context(tokens), thoughts[:, :0]))
        assert torch.equal(decoder(decoder.context(tokens), thoughts), other(other.context(tokens), thoughts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logit_softcap": -1.0}, r"model\.logit_softcap = -1\.0: must be at least 0"),
        (
            {"feed_forward": "relu"},
            r"model\.feed_forward = 'relu' \(did you mean 'relu2'\?\): choose from swiglu, relu2",
        ),
        ({"qk_norm": 1}, r"model\.qk_norm = 1: expected true or false"),
    ],
)
def test_what_an_option_cannot_be_is_said(change, message):
    with pytest.raises(UserError, match=message):
        tiny_config(**change)

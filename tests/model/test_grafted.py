"""A language model as decoder: its own logits to the bit before training, and the contract of a decoder after."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.bases import FAMILIES, D, T, V, base_model

from pyro_ltm.config import GraftConfig, ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.model import DecodingOptions, LatentThoughtModel, sample_tokens
from pyro_ltm.model.grafted import GraftedDecoder
from pyro_ltm.model.grafting import check_exact, graft_on, layers_named, probe_logits, shape_for
from pyro_ltm.types import Batch

pytest.importorskip("transformers", reason="the extra graft is not installed")

SHAPE = ModelConfig(vocab_size=V, dim=D, layers=2, heads=2, thoughts=4, max_length=T, init_std=0.25)
TOKENS = torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(0))


def grafted(kind: str = "gpt2", at: tuple[int, ...] = (0, 1), **options: object) -> GraftedDecoder:
    train = str(options.pop("train", "frozen"))
    base = base_model(kind, **options)
    shape = ModelConfig(**{**vars(SHAPE), "layers": len(at), "thoughts": 2 * len(at)})
    settings = GraftConfig(base="base", layers=",".join(map(str, at)), train=train)
    torch.manual_seed(1)
    return graft_on(base, settings, shape, torch.float32)


def awake(decoder: GraftedDecoder) -> GraftedDecoder:
    """With outputs of cross-attention that are not zero."""
    torch.manual_seed(2)
    for each in decoder.grafts:
        torch.nn.init.normal_(each.projections.wo.weight, std=0.3)
    return decoder


def thoughts(decoder: GraftedDecoder, size: int = 2) -> torch.Tensor:
    return torch.randn(size, decoder.config.thoughts, D, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("train", ["frozen", "lora"])
@pytest.mark.parametrize("kind", [*FAMILIES, "gemma2"])
@torch.no_grad()
def test_untrained_logits_are_those_of_the_base_to_the_bit(kind, train):
    alone = base_model(kind, layers=3)(input_ids=TOKENS, use_cache=False).logits
    decoder = grafted(kind, (1, 2), layers=3, train=train)
    z = thoughts(decoder)
    assert torch.equal(decoder.logits(decoder(decoder.context(TOKENS), z)), alone)
    check_exact(decoder, *probe_logits(base_model(kind, layers=3)))
    assert (awake(decoder)(decoder.context(TOKENS), z) - decoder(decoder.context(TOKENS), None)).abs().max() > 0.1


def test_prompts_of_unlike_lengths_are_continued_as_each_alone():
    decoder, lengths = awake(grafted()), [5, 2]
    z, greedy = thoughts(decoder), DecodingOptions(temperature=0)
    together = sample_tokens(decoder, z, TOKENS, 3, lengths=lengths, sampler=greedy)
    for row, length in enumerate(lengths):
        alone = sample_tokens(decoder, z[row : row + 1], TOKENS[row : row + 1, :length], 3, sampler=greedy)
        assert torch.equal(together[row, : length + 3], alone[0])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.no_grad()
def test_written_token_by_token_as_read_at_once(kind):
    decoder = awake(grafted(kind))
    z = thoughts(decoder)
    whole = decoder(decoder.context(TOKENS), z)
    hidden, cache = decoder.prefill(TOKENS[:, :3], z)
    states = [hidden, *(decoder.step(TOKENS[:, at], cache) for at in range(3, 8))]
    torch.testing.assert_close(torch.stack(states, 1), whole[:, 2:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder.forward_slice(decoder.context(TOKENS), z, slice(2, 5)), whole[:, 2:5])


@torch.no_grad()
def test_each_layer_reads_its_own_thoughts_and_no_token_sees_later_ones():
    decoder = awake(grafted(layers=3, at=(0, 2)))
    z, context = thoughts(decoder), decoder.context(TOKENS)
    before = decoder(context, z)
    for first in (0, 2):  # thoughts of either grafted layer
        moved = z.clone()
        moved[:, first : first + 2] += 1
        assert (decoder(context, moved) - before).abs().max() > 0.01
    other = TOKENS.clone()
    other[:, 5:] = 0
    assert torch.allclose(decoder(decoder.context(other), z)[:, :5], before[:, :5], atol=1e-5)


@torch.no_grad()
def test_what_thoughts_add_is_added_after_self_attention():
    """The first layer of a Llama by its parts: the residual stream, then what cross-attention makes of it."""
    decoder = awake(grafted("llama", layers=1, at=(0,)))
    layer, z = decoder.body.layers[0].layer, thoughts(decoder)
    h = decoder.context(TOKENS)
    place = torch.arange(8)[None]
    attended, _ = layer.self_attn(
        hidden_states=layer.input_layernorm(h),
        position_embeddings=decoder.body.rotary_emb(h, place),
        attention_mask=None,
    )
    h = h + attended
    ((keys, outputs),) = decoder.project(z)
    h = h + decoder.grafts[0].addition(h, table=decoder.table[:, :8], keys=keys, outputs=outputs)
    h = h + layer.mlp(layer.post_attention_layernorm(h))
    torch.testing.assert_close(decoder(decoder.context(TOKENS), z), decoder.body.norm(h), rtol=1e-4, atol=1e-4)


def test_layers_below_the_first_grafted_one_run_once(monkeypatch):
    decoder = awake(grafted(layers=3, at=(1, 2)))
    ran = []
    for number, layer in enumerate(decoder.body.h):
        layer.layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    model = LatentThoughtModel(decoder.config, decoder=decoder)
    batch = model.precompute(Batch.from_tokens(TOKENS))
    assert ran == [0]
    decoder(batch.context, thoughts(decoder))
    assert ran == [0, 1, 2]


def test_log_probs_are_the_log_softmax_of_the_logits():
    decoder = awake(grafted())
    batch, z = Batch.from_tokens(TOKENS), thoughts(decoder).requires_grad_()
    hidden = decoder(decoder.context(batch.inputs), z)
    nats = decoder.token_log_probs(hidden.flatten(0, 1), batch.targets.flatten())
    expected = decoder.logits(hidden).log_softmax(-1).gather(2, batch.targets[..., None]).flatten()
    torch.testing.assert_close(nats, expected, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(nats.sum(), z)
    assert gradient.abs().min() > 0


def test_recomputed_layers_give_the_same_gradients():
    decoder, z = awake(grafted(train="all")), torch.randn(2, 4, D)
    gradients = []
    for recompute in (False, True):
        decoder.recompute = recompute
        decoder.zero_grad()
        decoder.logits(decoder(decoder.context(TOKENS), z)).square().mean().backward()
        gradients.append([p.grad.clone() for p in decoder.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("kind", "train"), [("gpt2", "frozen"), ("gpt2", "lora"), ("gpt2", "all"), ("llama", "lora"), ("llama", "all")]
)
def test_what_learns_is_what_is_saved(kind, train):
    decoder = grafted(kind, train=train)
    learning = {name for name, value in decoder.named_parameters() if value.requires_grad}
    saved = decoder.state_dict()
    assert set(saved) == learning
    of_base = {name for name in saved if not name.startswith("cross_attention")}
    assert bool(of_base) == (train != "frozen")
    assert all("lora_" in name for name in of_base) == (train != "all")
    other = grafted(kind, train=train)
    base = {name: value.clone() for name, value in other.named_parameters() if name not in saved}
    other.load_state_dict({name: value + 1 for name, value in saved.items()})
    assert all(torch.equal(value, saved[name] + 1) for name, value in other.state_dict().items())
    assert all(torch.equal(value, base[name]) for name, value in other.named_parameters() if name in base)


def test_the_base_drops_nothing_while_the_graft_learns():
    decoder = grafted(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    assert torch.equal(decoder.context(TOKENS), decoder.context(TOKENS))
    copied = copy.deepcopy(awake(decoder))
    z = thoughts(decoder)
    assert torch.equal(copied(copied.context(TOKENS), z), decoder(decoder.context(TOKENS), z))


def test_a_trace_keeps_the_weights_that_it_ran_with():
    """Log-probabilities taken after `functional_call` has put the weights back are of those that it had put in."""
    import pyro.poutine as poutine

    model = LatentThoughtModel(SHAPE, decoder=awake(grafted(train="lora")))
    batch = Batch.from_tokens(TOKENS)
    given = {name: value + 0.1 for name, value in model.named_parameters() if "lora_" in name}
    z = thoughts(model.decoder)
    trace = poutine.trace(lambda: torch.func.functional_call(model, given, (batch,))).get_trace()
    likelihood = trace.nodes["tokens"]["fn"]
    like = type(likelihood)(model.decoder, z, batch, weights=likelihood.weights)
    with torch.no_grad():
        after = like.log_prob(batch.targets)
        for name, value in given.items():
            model.get_parameter(name).copy_(value)
        now = type(likelihood)(model.decoder, z, batch).log_prob(batch.targets)
    torch.testing.assert_close(after, now, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "found"), [("every", "0,1"), ("1", "1"), ("1, 0", "0,1"), ("2", None), ("a", None), ("", None)]
)
def test_layers_by_name(text, found):
    base = base_model("gpt2")
    if found is None:
        with pytest.raises(UserError, match="layers"):
            layers_named(text, base)
    else:
        assert ",".join(map(str, GraftConfig(layers=layers_named(text, base)).numbers)) == found


def test_a_base_that_reads_long_texts_otherwise_is_read_up_to_there():
    """Of longer ones what it says of a token depends on how many follow: written, they would not be as read."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0, **factors}
    base = base_model("phi3", pad_token_id=0, rope_parameters=rope, original_max_position_embeddings=T // 2)
    assert shape_for(base, thoughts=4, layers=2, max_length=None).max_length == T // 2
    with pytest.raises(UserError, match=f"reads at most {T // 2} tokens"):
        graft_on(base, GraftConfig(base="base", layers="0,1"), SHAPE, torch.float32)


def test_refused_in_a_line():
    base = base_model("gpt2")
    with pytest.raises(UserError, match="multiple of the 2 grafted layers"):
        shape_for(base, thoughts=3, layers=2, max_length=None)
    with pytest.raises(UserError, match="reads at most 64 tokens"):
        shape_for(base, thoughts=4, layers=2, max_length=65)
    with pytest.raises(UserError, match="layers 0,5: the base model has those from 0 to 1"):
        GraftedDecoder(SHAPE, base, (0, 5))
    base.transformer.h = torch.nn.ModuleList(torch.nn.Linear(D, D) for _ in range(2))
    with pytest.raises(UserError, match="no self-attention is found"):
        GraftedDecoder(SHAPE, base, (0, 1))
    base.transformer.h = torch.nn.Sequential()
    with pytest.raises(UserError, match="its layers are not found"):
        GraftedDecoder(SHAPE, base, (0, 1))

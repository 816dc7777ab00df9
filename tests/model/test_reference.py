"""Checkpoints of the reference implementation: read exactly, or refused in one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from helpers.plain import plain_logits
from helpers.tiny import tiny_tokens

from pyro_ltm.errors import UserError
from pyro_ltm.model import Decoder
from pyro_ltm.model.reference import read_reference

ARGUMENTS = {
    "dim": 16,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "vocab_size": 30,
    "multiple_of": 32,
    "max_seq_len": 12,
    "dropout": 0.0,
    "n_prior_layers": 0,
    "n_cls_tokens": 0,
    "window_size": 5,
    "use_liger": True,
    "max_z_len": 4,
    "use_z_pos_emb": True,
}
FUSED = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def plain_weights(*, hidden=64, kv_heads=4, seed=0):
    """Weights under the reference's plain names; 64 is 2/3 * 4D rounded up to a multiple of 32."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    weights = {"tok_embeddings.weight": draw(30, 16), "norm.weight": 1 + 0.1 * draw(16)}
    for i in range(2):
        for name in ("attention_norm", "cross_attention_norm", "ffn_norm"):
            weights[f"layers.{i}.{name}.weight"] = 1 + 0.1 * draw(16)
        for name in ("attention", "cross_attention"):
            for w, rows in {"wq": 16, "wk": 4 * kv_heads, "wv": 4 * kv_heads, "wo": 16}.items():
                weights[f"layers.{i}.{name}.{w}.weight"] = draw(rows, 16)
        for w, shape in {"w1": (hidden, 16), "w2": (16, hidden), "w3": (hidden, 16)}.items():
            weights[f"layers.{i}.feed_forward.{w}.weight"] = draw(*shape)
    return weights | {"output.weight": weights["tok_embeddings.weight"]}


def compiled(name):
    """The name as the released training script saves it: attention compiled by itself, fused SwiGLU."""
    for part in ("attention", "cross_attention"):
        name = name.replace(f".{part}.", f".{part}._orig_mod.")
    for ours, theirs in FUSED.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def save(path: Path, weights, **changes):
    """A checkpoint with everything beside the weights that the reference writes."""
    checkpoint = {
        "model": weights,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 4e-4, "betas": (0.9, 0.95)}]},
        "model_args": ARGUMENTS | changes,
        "iter_num": 1000,
        "best_val_loss": torch.tensor(3.5),
        "config": {"out_dir": "output", "decay_lr": True, "lr": 0.3},
        "rng_state": torch.random.get_rng_state(),
    }
    torch.save(checkpoint, path)
    return path


def logits(decoder, tokens, thoughts):
    return decoder.logits(decoder(decoder.context(tokens), thoughts))


SPELLINGS = {
    "plain": lambda name: name,
    "compiled": compiled,
    "compiled whole": lambda name: f"_orig_mod.{compiled(name)}",
    "DDP": lambda name: f"module.{name}",
    "DDP around compiled": lambda name: f"module._orig_mod.{compiled(name)}",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_gives_the_plain_decoders_logits(tmp_path, spelling):
    weights = plain_weights()
    path = save(tmp_path / "ckpt_1000.pt", {spelling(name): value for name, value in weights.items()})
    config, tensors = read_reference(path)
    decoder = Decoder(config)
    decoder.load_state_dict(tensors)
    tokens, thoughts = tiny_tokens(3, 12)[:, :-1], torch.randn(3, 4, 16)
    plain = plain_logits(weights, tokens, thoughts, layers=2, heads=4, window=5, max_length=12)
    # Single precision, as in tests/model/test_decoder.py.
    torch.testing.assert_close(logits(decoder, tokens, thoughts), plain, atol=1e-5, rtol=1e-5)


def test_reads_the_shape(tmp_path):
    config, _ = read_reference(save(tmp_path / "a.pt", plain_weights()))
    assert (config.vocab_size, config.dim, config.layers, config.heads) == (30, 16, 2, 4)
    assert (config.thoughts, config.max_length, config.window, config.hidden_width) == (4, 12, 5, 64)
    assert (config.rope_theta, config.norm_eps) == (10000.0, 1e-5)
    # A hidden width of its own is read off the weights; the epsilon is an argument that training leaves at its default.
    config, _ = read_reference(save(tmp_path / "b.pt", plain_weights(hidden=24), hidden_dim=24, norm_eps=1e-6))
    assert (config.hidden_width, config.norm_eps) == (24, 1e-6)


@pytest.mark.parametrize("shared", [1, 2])
def test_writes_shared_heads_out_exactly(tmp_path, shared):
    weights = plain_weights(kv_heads=shared)
    config, tensors = read_reference(save(tmp_path / "a.pt", weights, n_kv_heads=shared))
    for name in ("layers.0.attention.wk.weight", "layers.1.cross_attention.wv.weight"):
        for head in range(4):  # query head h reads shared head h // (4 / shared)
            source = head // (4 // shared)
            assert torch.equal(tensors[name][4 * head : 4 * head + 4], weights[name][4 * source : 4 * source + 4])
    Decoder(config).load_state_dict(tensors)


def test_n_kv_heads_none_means_all(tmp_path):
    _, tensors = read_reference(save(tmp_path / "a.pt", plain_weights(), n_kv_heads=None))
    assert torch.equal(tensors["layers.0.attention.wk.weight"], plain_weights()["layers.0.attention.wk.weight"])


def test_drops_tables_and_finds_the_embedding_in_the_head(tmp_path):
    weights = plain_weights()
    del weights["tok_embeddings.weight"]
    tables = ("freqs_cos", "freqs_sin", "freqs_cos_z", "freqs_sin_z", "layers.0.attention.attn_mask")
    config, tensors = read_reference(save(tmp_path / "a.pt", weights | {name: torch.ones(2) for name in tables}))
    assert torch.equal(tensors["tok_embeddings.weight"], weights["output.weight"])
    Decoder(config).load_state_dict(tensors)


def test_draws_no_random_numbers(tmp_path):
    path, before = save(tmp_path / "a.pt", plain_weights()), torch.get_rng_state()
    read_reference(path)
    assert torch.equal(before, torch.get_rng_state())


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_reference(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def test_refuses_what_is_no_checkpoint(tmp_path):
    assert "no such checkpoint" in refusal(tmp_path / "missing.pt")
    assert "cannot be read" in refusal(tmp_path)
    junk = {
        "empty": b"",
        "text": b"not a checkpoint\n" * 9,
        "zip": b"PK\x03\x04" + bytes(99),
        "pickle": pickle.dumps([1, 2]),
        "half": save(tmp_path / "whole.pt", plain_weights()).read_bytes()[:5000],
    }
    for name, content in junk.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        message = refusal(path)
        assert "not a checkpoint" in message, (name, message)


class Attack:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def test_runs_nothing_of_a_malicious_checkpoint(tmp_path):
    target = tmp_path / "written"
    for name, content in {
        "zip.pt": {"model": plain_weights(), "model_args": ARGUMENTS, "config": Attack(target)},
        "only.pt": Attack(target),
    }.items():
        torch.save(content, tmp_path / name)
        assert "safe to read" in refusal(tmp_path / name)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Attack(target)))
    assert "safe to read" in refusal(tmp_path / "bare.pt")
    torch.save({"model": plain_weights()}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert "model_args" in refusal(tmp_path / "legacy.pt")
    assert not target.exists()
    # The weapon is loaded: an ordinary unpickling does write.
    pickle.loads((tmp_path / "bare.pt").read_bytes()).close()
    assert target.exists()


@pytest.mark.parametrize("missing", ["model", "model_args"])
def test_refuses_a_checkpoint_of_something_else(tmp_path, missing):
    content = {"model": plain_weights(), "model_args": ARGUMENTS}
    del content[missing]
    torch.save(content, tmp_path / "a.pt")
    assert f"no table '{missing}'" in refusal(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "a.pt")
    assert "no table 'model_args'" in refusal(tmp_path / "a.pt")


W1 = "layers.1.feed_forward.w1.weight"
ARGUMENT_FAULTS = {
    "no positions": ({"use_z_pos_emb": False}, "use_z_pos_emb"),
    "more layers": ({"n_layers": 3}, "n_layers = 3"),
    "vast": ({"n_layers": 10**12}, "n_layers = 1000000000000"),
    "thoughts uneven": ({"max_z_len": 3}, "model.thoughts = 3"),
    "not a number": ({"dim": "wide"}, "model.dim = 'wide'"),
    "heads do not divide": ({"n_kv_heads": 3}, "n_kv_heads = 3"),
    "no heads": ({"n_kv_heads": 0}, "n_kv_heads = 0"),
    "vocabulary": ({"vocab_size": 31}, "tok_embeddings.weight has shape [30, 16]"),
    "out of range": ({"vocab_size": 10**30}, "at most 16777216"),
    "width": ({"dim": 32}, "has shape"),
}


@pytest.mark.parametrize(("changes", "says"), ARGUMENT_FAULTS.values(), ids=ARGUMENT_FAULTS)
def test_refuses_arguments_that_do_not_fit(tmp_path, changes, says):
    assert says in refusal(save(tmp_path / "a.pt", plain_weights(), **changes))


@pytest.mark.parametrize("name", ["dim", "window_size", "max_z_len"])
def test_refuses_missing_arguments(tmp_path, name):
    arguments = {key: value for key, value in ARGUMENTS.items() if key != name}
    torch.save({"model": plain_weights(), "model_args": arguments}, tmp_path / "a.pt")
    assert f"model_args lacks {name}" in refusal(tmp_path / "a.pt")


def without(name):
    return {key: value for key, value in plain_weights().items() if not key.startswith(name)}


WEIGHT_FAULTS = {
    "missing": (without(W1), f"missing: {W1}"),
    "first gate missing": (without("layers.0.feed_forward.w1"), "layers.0.feed_forward.w1.weight"),
    "first gate flat": (
        plain_weights() | {"layers.0.feed_forward.w1.weight": torch.ones(3)},
        "layers.0.feed_forward.w1",
    ),
    "a layer missing": (without("layers.1."), "n_layers = 2, but there are weights of 1"),
    "no cross-attention": (
        without("layers.0.cross_attention."),
        "missing: layers.0.cross_attention.wk.weight and 3 more",
    ),
    "no embedding": (
        {k: v for k, v in without("tok").items() if k != "output.weight"},
        "missing: tok_embeddings.weight",
    ),
    "superfluous": (plain_weights() | {"prior.weight": torch.ones(2)}, "not part of this decoder: prior.weight"),
    "wrong shape": (plain_weights() | {W1: torch.ones(64, 15)}, f"{W1} has shape [64, 15], and model_args asks for"),
    "untied": (plain_weights() | {"output.weight": torch.ones(30, 16)}, "output.weight differs"),
    "tied to another shape": (plain_weights() | {"output.weight": torch.ones(31, 16)}, "output.weight differs"),
    "twice": (plain_weights() | {W1.replace("w1", "gate_proj"): torch.ones(64, 16)}, "there twice"),
    "whole numbers": (plain_weights() | {W1: torch.ones(64, 16, dtype=torch.long)}, "not a dense tensor"),
    "no tensor": (plain_weights() | {W1: [1.0]}, "not a dense tensor"),
    "sparse": (plain_weights() | {W1: torch.eye(64, 16).to_sparse()}, "not a dense tensor"),
}


@pytest.mark.parametrize(("weights", "says"), WEIGHT_FAULTS.values(), ids=WEIGHT_FAULTS)
def test_refuses_weights_that_do_not_fit(tmp_path, weights, says):
    assert says in refusal(save(tmp_path / "a.pt", weights))

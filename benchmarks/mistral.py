"""The twin against `transformers`' Mistral with the same weights: a training step, scoring, writing.

    python -m benchmarks --only mistral --out FOLDER [--rounds 5]

The shape of the preset `medium` without thoughts, in single precision. Each side as its users have it: ours by
`train_step`, `evaluate_bound` and `sample_tokens`; theirs by scaled dot-product attention, a fused AdamW and `generate`
with its own cache. That both are one function is checked before anything is timed. With `--threads 1` seconds are the
processor's, which a busy machine disturbs less. Needs the extra `scorers`.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.interleave import interleaved, quiet_clock, ratio, summary
from benchmarks.speed import VOCABULARY
from pyro_ltm.config import apply_settings
from pyro_ltm.errors import UserError
from pyro_ltm.inference import build
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.model.sampling import sample_tokens
from pyro_ltm.presets import preset
from pyro_ltm.scores import evaluate_bound
from pyro_ltm.training import train_step
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch

TARGETS = {"training_step": 1.6, "scoring": 2.0, "writing": 2.5}
SCORED, WRITERS, NEW = 2, 8, 128
"""Sequences scored at a time; texts written at a time, and tokens of each."""


def mistral(model: LatentThoughtModel) -> Any:
    """The twin `model` as a `MistralForCausalLM` with the same weights."""
    try:
        from transformers import AutoModelForCausalLM, MistralConfig
    except ImportError:
        raise UserError("--only mistral: needs transformers: pip install 'pyro-ltm[scorers]'") from None
    ours = model.config
    config = MistralConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.dim,
        intermediate_size=ours.hidden_width,
        num_hidden_layers=ours.layers,
        num_attention_heads=ours.heads,
        num_key_value_heads=ours.heads,
        head_dim=ours.dim // ours.heads,
        max_position_embeddings=ours.max_length,
        rms_norm_eps=ours.norm_eps,
        sliding_window=ours.window,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    renamed = {_their_name(name): weight for name, weight in model.decoder.state_dict().items()}
    for name in list(renamed):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # Rotation turns neighbours in ours, and the two halves of a head in theirs.
            heads = renamed[name].unflatten(0, (ours.heads, -1, 2))
            renamed[name] = heads.transpose(1, 2).flatten(0, 2)
    missing, unknown = theirs.load_state_dict(renamed, strict=False)
    assert missing == ["lm_head.weight"], missing  # tied
    assert not unknown, unknown
    theirs.tie_weights()
    return theirs


def _their_name(name: str) -> str:
    for ours, theirs in {
        "tok_embeddings": "model.embed_tokens",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "layers.": "model.layers.",
    }.items():
        name = name.replace(ours, theirs)
    return "model.norm.weight" if name == "norm.weight" else name


def token_nats(theirs: Any, batch: Batch) -> Tensor:
    """Nats [B, T] of each token."""
    logits = theirs(batch.inputs, use_cache=False).logits
    assert batch.targets is not None
    nats: Tensor = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return nats.view_as(batch.targets)


class Rivals:
    """Both decoders, with the same weights."""

    def __init__(self, settings: tuple[str, ...] = ()) -> None:
        shape = ["model.thoughts=0", f"model.vocab_size={VOCABULARY}", "dtype=float32", *settings]
        self.config = apply_settings(preset("medium"), shape)
        self.model, self.loop = build(self.config)
        self.theirs = mistral(self.model)
        self.optimizer = slow_optimizer(self.model, self.loop.guide, self.config.slow)
        betas = (self.config.slow.beta1, self.config.slow.beta2)
        self.their_optimizer = torch.optim.AdamW(
            self.theirs.parameters(), lr=self.config.slow.lr, betas=betas, weight_decay=0.1, fused=True
        )
        length = self.config.model.max_length
        tokens = torch.randint(self.config.model.vocab_size, (SCORED, length + 1))
        self.batch = Batch.from_tokens(tokens)
        self.one = Batch.from_tokens(tokens[:1])

    @torch.no_grad()
    def difference(self) -> float:
        """The largest difference of a token's nats."""
        self.model.eval()
        decoder = self.model.decoder
        hidden = decoder(decoder.context(self.one.inputs), None)
        assert self.one.targets is not None
        ours = -decoder.token_log_probs(hidden.flatten(0, 1), self.one.targets.flatten())
        return float((ours - token_nats(self.theirs.eval(), self.one)[0]).abs().max())

    def train(self) -> None:
        train_step(self.model.train(), [self.one], self.loop, self.optimizer, clip=1.0, seed=0)

    def train_theirs(self) -> None:
        self.their_optimizer.zero_grad(set_to_none=True)
        token_nats(self.theirs.train(), self.one).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.theirs.parameters(), 1.0)
        self.their_optimizer.step()

    def score(self) -> float:
        return evaluate_bound(self.model, [self.batch], self.loop).nats_per_token

    @torch.no_grad()
    def score_theirs(self) -> float:
        return float(token_nats(self.theirs.eval(), self.batch).mean())

    def write(self) -> Tensor:
        prompt = self.batch.inputs[:1, :1].expand(WRITERS, 1)
        thoughts = torch.empty(WRITERS, 0, self.config.model.dim)
        return sample_tokens(self.model.eval().decoder, thoughts, prompt, NEW)

    @torch.no_grad()
    def write_theirs(self) -> Tensor:
        prompt = self.batch.inputs[:1, :1].expand(WRITERS, 1)
        written: Tensor = self.theirs.eval().generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW,
            do_sample=True,
            top_k=0,
            use_cache=True,
            pad_token_id=0,
        )
        assert written.shape[1] == 1 + NEW
        return written


@pyro.validation_enabled(False)  # as in training
def run(rounds: int = 5) -> dict[str, Any]:
    """Each of the three, ours and theirs in turn."""
    rivals = Rivals()
    found: dict[str, Any] = {"preset": "medium", "sequences_scored": SCORED, "texts": WRITERS, "new_tokens": NEW}
    found["difference_of_nats"] = rivals.difference()
    assert found["difference_of_nats"] < 1e-3, found
    for name, ours, theirs in (
        ("writing", rivals.write, rivals.write_theirs),
        ("scoring", rivals.score, rivals.score_theirs),
        ("training_step", rivals.train, rivals.train_theirs),
    ):
        seconds = interleaved({"theirs": theirs, "ours": ours}, rounds, clock=quiet_clock())
        found[name] = {
            "seconds": {who: summary(taken) for who, taken in seconds.items()},
            "faster": ratio(seconds["theirs"], seconds["ours"]),
            "target": TARGETS[name],
        }
    return found

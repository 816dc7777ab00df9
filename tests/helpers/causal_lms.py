"""Tiny causal language models with random weights, in folders as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = "the cat sat on the mat and the dog ran while a bird sang in the tree naïve café"
START = "<|begin|>"


def make_tokenizer(start: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[START] if start else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    # As many files have it: neither is to change what is scored.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding()
    return tokenizer


def save_model(folder: Path, kind: str = "gpt2", *, start: bool = True, length: int = 32, **shape: object) -> Path:
    """A GPT-2 or Llama of two layers whose context is `length`, its tokenizer with or without a token to begin with."""
    import transformers

    torch.manual_seed(0)
    tokenizer = make_tokenizer(start)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "initializer_range": 0.5}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=length, bos_token_id=0, eos_token_id=0, **sizes | shape
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=length,
            **sizes | shape,
        )
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    kept = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"bos_token": START} if start else {})
    kept.save_pretrained(folder)
    return folder

"""Tiny language models of several families with random weights, alone and as folders that `graft` reads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from pyro_ltm.data import Tokenizer

FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
V, D, T = 280, 16, 64
TEXT = "The cat sat on the mat and the dog ran, while a bird sang in the tree; naïve café. "


def base_model(kind: str, *, layers: int = 2, seed: int = 0, **shape: Any) -> Any:
    """A model whose weights are large enough that every part of it matters."""
    import transformers

    torch.manual_seed(seed)
    sizes = {"vocab_size": V, "initializer_range": 0.3}
    if kind == "gpt2":
        sizes |= {"n_embd": D, "n_layer": layers, "n_head": 2, "n_positions": T}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | shape)).eval()
    name = {
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "gemma2": "Gemma2",
        "phi3": "Phi3",
    }[kind]
    config = getattr(transformers, f"{name}Config")
    sizes |= {
        "hidden_size": D,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": T,
    }
    return getattr(transformers, f"{name}ForCausalLM")(config(**sizes | shape)).eval()


def save_base(folder: Path, kind: str = "gpt2", **options: Any) -> Path:
    """A model and its tokenizer in a folder."""
    shards = {"max_shard_size": options.pop("max_shard_size")} if "max_shard_size" in options else {}
    base_model(kind, **options).save_pretrained(folder, **shards)
    Tokenizer.train([TEXT] * 4, V, at_most=True).save(folder / "tokenizer.json")
    return folder


def texts(count: int = 40) -> str:
    """Documents as JSON lines."""
    words, draw = TEXT.split(), random.Random(0)
    return "".join(json.dumps({"text": " ".join(draw.choices(words, k=30))}) + "\n" for _ in range(count))


def write_base_without_weights(folder: Path, text: str) -> None:
    """The files of a model that are read before transformers opens it."""
    shards = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    files = {"config.json": {}, "model.safetensors.index.json": shards, "tokenizer_config.json": {"eos_token": "."}}
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    for name in shards["weight_map"].values():
        (folder / name).touch()
    tokenizer = Tokenizer.train([text], V).to_json().replace("<|endoftext|>", "<|stop|>")
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")

"""A language model in a folder opened as a grafted decoder: its digest, its shape, and a proof that nothing changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from pyro_ltm.config import GraftConfig, ModelConfig
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.model.grafted import GraftedDecoder, find_layers
from pyro_ltm.model.pretrained import CONFIG, WEIGHTS, context_length, load_causal_lm, read_config, shape_of
from pyro_ltm.reading import read_json


class Shards(msgspec.Struct):
    """The index of weights that lie in several files: each weight's file."""

    weight_map: dict[str, str]


EXTRA = "graft"
LONGEST = 1024
"""Tokens that a graft reads at once where nothing else is asked for and the base's context does not end earlier."""


def base_files(folder: Path) -> list[Path]:
    """The files of a base model: its configuration, and its weights, whole or in shards. Raises UserError."""
    read_config(folder)
    whole, index = (folder / name for name in WEIGHTS)
    if whole.is_file():
        return [folder / CONFIG, whole]
    shards = [folder / name for name in sorted(set(read_json(index, Shards).weight_map.values()))]
    for shard in shards:
        if shard.parent != folder or not os.path.isfile(shard):  # which says no, too, of what can be no name
            raise UserError(f"{index}: names {one_line(shard.name, 80)}, which the folder does not have")
    return [folder / CONFIG, index, *shards]


def digest_of(folder: Path) -> str:
    """A digest of a base model's files. Raises UserError when there are none."""
    digest = hashlib.blake2b(digest_size=16)
    for path in base_files(folder):
        with open(path, "rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            while piece := file.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()


def open_graft(
    graft: GraftConfig, shape: ModelConfig, compute_dtype: torch.dtype, device: torch.device
) -> GraftedDecoder:
    """The decoder of a run that is grafted: the base of `graft`, with new cross-attention of this `shape`.

    On the meta device it has no weights, and none are looked for.

    Raises:
        UserError: transformers or peft is not installed; the base is not there, or is another one; or it has another
            shape.
    """
    folder = Path(graft.base)
    if not (folder / CONFIG).is_file():
        raise UserError(f"graft.base = {graft.base}: no Hugging Face model is there (it has no {CONFIG})")
    if device.type == "meta":
        base = shape_of(folder, extra=EXTRA)
    else:
        if graft.digest and digest_of(folder) != graft.digest:
            raise UserError(f"{folder}: its weights or its {CONFIG} are not those that were grafted")
        with torch.random.fork_rng(devices=[]):  # the weights drawn after it do not depend on it
            base = load_causal_lm(folder, extra=EXTRA)
    return graft_on(base, graft, shape, compute_dtype).to(device)


def graft_on(base: Any, graft: GraftConfig, shape: ModelConfig, compute_dtype: torch.dtype) -> GraftedDecoder:
    """The decoder that `base` becomes, which belongs to it from here on. Raises UserError where it does not fit."""
    vocab, width = base.get_input_embeddings().weight.shape
    for name, given, its in (
        ("dim", shape.dim, width),
        ("vocab_size", shape.vocab_size, vocab),
        ("layers", shape.layers, len(graft.numbers)),
    ):
        if given != its:
            raise UserError(f"model.{name} = {given}: this graft has {its}")
    longest = context_length(base)
    if longest is not None and shape.max_length > longest:
        raise UserError(f"model.max_length = {shape.max_length}: the base model reads at most {longest} tokens")
    base.requires_grad_(graft.train == "all")
    if graft.train == "lora":
        _add_low_rank(base, graft)
    return GraftedDecoder(shape, base, graft.numbers, compute_dtype)


def _add_low_rank(base: Any, graft: GraftConfig) -> None:
    """Gives every matrix of the base's layers a low-rank addition that learns, zero at the start (arXiv:2106.09685)."""
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"graft.train = lora: peft is not installed ({error.name} is missing): pip install -e '.[{EXTRA}]' in the "
            "clone, with Python 3.11 or newer"
        ) from None
    # As transformers says of matrices that are stored transposed, GPT-2's.
    transposed = any(type(part).__name__ == "Conv1D" for part in base.modules())
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=graft.rank,
            lora_alpha=graft.alpha,
            target_modules="all-linear",
            fan_in_fan_out=transposed,
            bias="none",
        ),
        base,
    )


def shape_for(base: Any, *, thoughts: int, layers: int, max_length: int | None) -> ModelConfig:
    """The shape of a decoder that is grafted on `base`: its own width, heads and vocabulary.

    Args:
        thoughts: N over all grafted layers. layers: how many are grafted.
        max_length: longest sequence; None: the base's context, at most `LONGEST`.

    Raises:
        UserError: the thoughts are not a multiple of the layers, or a size is out of range.
    """
    if thoughts % layers:
        raise UserError(f"--thoughts {thoughts}: must be a multiple of the {layers} grafted layers, or 0")
    context, (vocab, dim) = context_length(base) or LONGEST, base.get_input_embeddings().weight.shape
    most = getattr(base.config.get_text_config(), "num_attention_heads", 1)
    heads = next((one for one in range(most, 0, -1) if dim % one == 0 and (dim // one) % 2 == 0), 1)
    length = max_length or min(context, LONGEST)
    if length > context:
        raise UserError(f"--max-length {length}: the base model reads at most {context} tokens")
    return ModelConfig(
        vocab_size=vocab,
        dim=dim,
        layers=layers,
        heads=heads,
        thoughts=thoughts,
        max_length=length,
        window=context,
        init_std=round(dim**-0.5, 6),  # keys and values of a normed vector about as large as it
    )


def layers_named(text: str, base: Any) -> str:
    """The layers of `base` that `text` names, `every` or numbers, as a configuration has them. Raises UserError."""
    count = len(find_layers(base))
    if text.strip() == "every":
        return ",".join(map(str, range(count)))
    numbers = GraftConfig(layers=text.replace(" ", "")).numbers
    if not numbers or numbers[-1] >= count:
        raise UserError(f"--layers {text}: the base model has layers from 0 to {count - 1}; every, or such as 0,2,4")
    return ",".join(map(str, numbers))


@torch.no_grad()
def probe_logits(base: Any, length: int = 8) -> tuple[Tensor, Tensor]:
    """Some tokens [2, T] and the logits of them [2, T, V] by the base's own code, before it is grafted."""
    vocab = base.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocab, (2, length), generator=torch.Generator().manual_seed(0))
    with _runs(base):
        return tokens, base.eval()(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def check_exact(decoder: GraftedDecoder, tokens: Tensor, logits: Tensor) -> None:
    """Raises UserError unless the decoder's logits are those of its base to the bit, and thoughts can change them."""
    kind = type(decoder.body).__name__
    thoughts = torch.randn(len(tokens), decoder.config.thoughts, decoder.config.thought_width)
    with _runs(decoder.body):
        ours = decoder.logits(decoder(decoder.context(tokens), thoughts))
    if not torch.equal(ours, logits):
        raise UserError(f"{kind}: grafted, it does not give the logits that it gives alone: its kind is not supported")
    context = decoder.context(tokens)
    with _outputs_that_count(decoder):
        ignored = bool(decoder.config.thoughts) and torch.equal(decoder(context, thoughts), decoder(context, None))
    if ignored:
        raise UserError(f"{kind}: its layers do not read what thoughts add to self-attention: not supported")


@contextmanager
def _runs(base: Any) -> Iterator[None]:
    """Whatever the code of a model of an unknown kind comes up with is a UserError."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{type(base).__name__}: cannot be grafted: {one_line(error)}") from None


@contextmanager
def _outputs_that_count(decoder: GraftedDecoder) -> Iterator[None]:
    """Within it the output projections of cross-attention, zero at the start, are not."""
    outputs = [each.projections.wo.weight for each in decoder.grafts]
    for weight in outputs:
        torch.nn.init.eye_(weight)
    try:
        yield
    finally:
        for weight in outputs:
            torch.nn.init.zeros_(weight)

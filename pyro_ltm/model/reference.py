"""Checkpoints of the reference implementation (mingluzhao/Latent-Thought-LM), read into this project's decoder.

Nothing in a checkpoint is run: only tensors and plain values are unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.config import ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.model.decoder import Decoder

# What the reference calls the shape of its decoder, and what we call it.
SHAPE = {
    "vocab_size": "vocab_size",
    "dim": "dim",
    "n_layers": "layers",
    "n_heads": "heads",
    "max_z_len": "thoughts",
    "max_seq_len": "max_length",
    "window_size": "window",
}
# The fused SwiGLU that the reference trains with has names of its own.
SWIGLU = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
# Tables made from the configuration; older torch code saves what newer code declares non-persistent.
BUFFER = re.compile(r"(^|\.)(freqs_(cos|sin)(_z)?|freqs_cis|attn_mask|mask)$")


def read_reference(path: Path | str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and weights of the `.pt` checkpoint at `path`: `Decoder(config).load_state_dict(tensors)` takes them.

    Prefixes that torch.compile and DDP left in names are stripped, fused and plain SwiGLU are both known, the output
    head must be tied to the embedding (as the reference has it), and shared key/value heads are written out for each
    query head, which changes no logit. Dropout is training's alone and is not kept.

    Raises:
        UserError: no such file; not a checkpoint, or one that holds anything but tensors and plain values; something is
            missing, superfluous or of the wrong shape; no positions for thoughts (`use_z_pos_emb = False`).
    """
    path = Path(path)
    try:
        checkpoint = _load(path)
        arguments = _section(checkpoint, "model_args")
        tensors = _rename(_section(checkpoint, "model"))
        config = _config(arguments, tensors)
        tensors = _repeat_heads(tensors, config.heads, arguments.get("n_kv_heads"))
        _check(config, tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config, tensors


def _load(path: Path) -> Any:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise UserError("no such checkpoint") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}") from None
    with file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # damaged bytes surface as almost any exception, and torch's messages run over many lines
            raise UserError(
                "not a checkpoint that is safe to read: damaged, or no file of torch.save, or it holds Python objects "
                "besides tensors and plain values (none was run)"
            ) from None


def _section(checkpoint: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get(key), Mapping):
        raise UserError(f"not a checkpoint of the reference implementation: it has no table '{key}'")
    section: Mapping[str, Any] = checkpoint[key]
    return section


def _rename(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights under the decoder's names; the output head only where it is the only copy of the embedding."""
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        name = str(key).replace("_orig_mod.", "").removeprefix("module.")
        if BUFFER.search(name):
            continue
        name = re.sub(r"\.(gate_proj|down_proj|up_proj)\.", lambda match: f".{SWIGLU[match[1]]}.", name)
        if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
            raise UserError(f"'{key}' is not a dense tensor of floating-point numbers")
        if name in tensors:
            raise UserError(f"'{name}' is there twice, the second time as '{key}'")
        tensors[name] = value
    head = tensors.pop("output.weight", None)
    if head is not None and not torch.equal(tensors.setdefault("tok_embeddings.weight", head), head):
        raise UserError("output.weight differs from tok_embeddings.weight: this decoder has one tensor for both")
    return tensors


def _config(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ModelConfig:
    missing = [name for name in SHAPE if name not in arguments]
    if missing:
        raise UserError(f"model_args lacks {', '.join(missing)}")
    if not arguments.get("use_z_pos_emb", True):
        raise UserError("use_z_pos_emb is False: a decoder whose thoughts have no positions is not supported")
    layers = {match[1] for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))}
    if len(layers) != arguments["n_layers"]:
        raise UserError(f"model_args says n_layers = {arguments['n_layers']!r}, but there are weights of {len(layers)}")
    gate = tensors.get("layers.0.feed_forward.w1.weight")
    if gate is None or gate.dim() != 2:
        raise UserError("no matrix called layers.0.feed_forward.w1.weight (or gate_proj)")
    return ModelConfig(
        **{ours: arguments[theirs] for theirs, ours in SHAPE.items()},
        hidden=gate.shape[0],
        norm_eps=arguments.get("norm_eps", 1e-5),
    )


def _repeat_heads(tensors: Mapping[str, Tensor], heads: int, shared: Any) -> dict[str, Tensor]:
    """Each of `shared` key/value heads written out for all the query heads that read it."""
    if shared is None or shared == heads:
        return dict(tensors)
    if type(shared) is not int or shared < 1 or heads % shared:
        raise UserError(f"n_kv_heads = {shared!r} does not divide n_heads = {heads}")

    def repeat(rows: Tensor) -> Tensor:
        if rows.dim() != 2 or rows.shape[0] % shared:
            return rows  # `_check` says what is wrong with its shape
        return rows.unflatten(0, (shared, -1)).repeat_interleave(heads // shared, dim=0).flatten(0, 1)

    return {name: repeat(rows) if re.search(r"\.w[kv]\.weight$", name) else rows for name, rows in tensors.items()}


def _check(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Names and shapes against those of a decoder of this shape (on the meta device: nothing is allocated)."""
    try:
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in Decoder(config).state_dict().items()}
    except (RuntimeError, TypeError, OverflowError):  # sizes that no tensor can have
        raise UserError(f"model_args asks for an impossible decoder: {config}") from None
    missing, extra = [*(wanted.keys() - tensors.keys())], [*(tensors.keys() - wanted.keys())]
    if missing or extra:
        what, names = ("missing", missing) if missing else ("not part of this decoder", extra)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"weights {what}: {min(names)}{more}")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"{name} has shape {list(tensors[name].shape)}, and model_args asks for {list(shape)}")

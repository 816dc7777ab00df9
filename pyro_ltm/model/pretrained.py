"""A causal language model in a local folder, as Hugging Face's `save_pretrained` writes it, opened and checked.

Nothing is fetched and no code of the folder is run: local files alone, weights in safetensors alone. transformers is
imported when a folder is opened, and not before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.reading import read_json

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


LAYERS, MOST_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 1 << 12
"""Names of the number of layers in a configuration, and how many are made of one at most."""


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, and a look at what else there is. Raises UserError for what cannot be read."""
    config = read_object(folder / CONFIG)
    if config.get("is_encoder_decoder"):
        raise UserError(f"{folder}: a model of encoder and decoder; a causal language model is needed, such as GPT-2")
    layers = max((count for name in LAYERS if isinstance(count := config.get(name), int)), default=0)
    if layers > MOST_LAYERS:
        raise UserError(f"{folder / CONFIG}: {layers} layers; at most {MOST_LAYERS} are read")
    if config.get("quantization_config"):
        raise UserError(f"{folder / CONFIG}: quantized weights are not read: give the model that they were made of")
    if "/" in str(config.get("attn_implementation") or config.get("_attn_implementation")):
        raise UserError(f"{folder / CONFIG}: asks for attention from a hub, which is code from elsewhere")
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: holds an adapter (adapter_config.json): merge it into its model first")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(f"{folder}: has no {WEIGHTS[0]}; weights are read from safetensors alone")
    return config


def read_object(path: Path) -> dict[str, Any]:
    """An object of a JSON file. Raises UserError."""
    try:
        return read_json(path, dict[str, Any])
    except FileNotFoundError:
        raise UserError(f"{path}: cannot be read: no such file") from None


def load_causal_lm(folder: Path, dtype: str = "float32", *, extra: str) -> Any:
    """The model in `folder`, on the CPU.

    Args:
        dtype: precision of its weights; auto: as they are stored. extra: of this project, that has transformers.

    Raises:
        UserError: it cannot be had, whole, from its local files.
    """
    with _opened(folder, extra) as transformers:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"{folder}: its weights are not those of {type(model).__name__}: {len(missing)} are missing, {missing[0]}"
        )
    return model


def shape_of(folder: Path, *, extra: str) -> Any:
    """A model like that in `folder`, of its shape alone: on the meta device, without weights. Raises UserError."""
    read_config(folder)
    with _opened(folder, extra) as transformers, torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.float32)


def context_length(model: Any) -> int | None:
    """Tokens that it reads at once, where its configuration says so.

    Of longrope (arXiv:2402.13753) those up to which it turns positions as it does of short texts: beyond, all of a
    text's are turned otherwise, so that each prediction would depend on how much is still to come.
    """
    config = model.config.get_text_config()
    lengths = [getattr(config, name, None) or 0 for name in ("max_position_embeddings", "max_seq_len")]
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        name = "original_max_position_embeddings"
        lengths.append(rope.get(name) or getattr(config, name, None) or 0)
    return min((length for length in lengths if length > 1), default=None)


@contextlib.contextmanager
def _opened(folder: Path, extra: str) -> Iterator[Any]:
    """The module transformers, kept from the terminal; whatever a folder's files come up with is a UserError."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{folder}: a Hugging Face model, and transformers is not installed ({error.name} is missing): "
            f"pip install -e '.[{extra}]' in the clone, with Python 3.11 or newer"
        ) from None
    with quiet(transformers.utils.logging):
        try:
            yield transformers
        except Exception as error:
            raise UserError(f"{folder}: not a causal language model that can be loaded: {one_line(error)}") from None


@contextlib.contextmanager
def quiet(log: Any) -> Iterator[None]:
    """Keeps transformers, whose `logging` is `log`, from the terminal but for errors; afterwards all is as before."""
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()

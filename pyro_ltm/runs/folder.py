"""The files of a run folder: their names, tensors and metadata in one file, and digests of weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyro_ltm.digests import sealed
from pyro_ltm.errors import Damaged, UserError
from pyro_ltm.files import write_atomically
from pyro_ltm.reading import check_name, parse_json, read_safetensors

CONFIG, MODEL, TOKENIZER, TRAINER, METRICS, EVALUATION = (
    "config.toml",
    "model.safetensors",
    "tokenizer.json",
    "trainer.safetensors",
    "metrics.jsonl",
    "evaluation.json",
)
FORMAT = "pyro-ltm run 1"

AVERAGE, BEST = "average.safetensors", "best.safetensors"
WEIGHTS = {"last": MODEL, "average": AVERAGE, "best": BEST}
"""Files of weights that a run may have: the last, their average along the run, those of its best validation."""

M = TypeVar("M")


def fingerprint(module: nn.Module) -> str:
    """A digest of all weights of a module."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def trainable(model: nn.Module, guide: nn.Module, objective: Any = None) -> nn.ModuleDict:
    """All that a run learns as one module, whose tensors are named `model.`, `guide.` and, if any, `objective.`."""
    learned = getattr(objective, "learned", None)
    return nn.ModuleDict({"model": model, "guide": guide} | ({} if learned is None else {"objective": learned}))


def load_weights(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Puts tensors in place. Raises UserError naming `path` as `check_weights` does."""
    check_weights(module, tensors, path)
    module.load_state_dict(tensors)


def check_weights(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Raises UserError naming `path` when `tensors` are not those of `module` by name, shape and type."""
    check_tensors(module.state_dict(), tensors, f"{path}: its weights do not fit the run's {CONFIG}")


def check_tensors(wanted: dict[str, Tensor], found: dict[str, Tensor], problem: str) -> None:
    """Raises UserError beginning with `problem` when names, shapes or types differ."""
    for name in [*wanted, *found]:
        if name not in found:
            raise UserError(f"{problem}: {name} is missing")
        if name not in wanted:
            raise UserError(f"{problem}: {name} is none of them")
        if (given := _kind(found[name])) != (needed := _kind(wanted[name])):
            raise UserError(f"{problem}: {name} is {given} and should be {needed}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any], *, form: str = FORMAT) -> None:
    """Tensors, a dictionary and a checksum of both in one safetensors file, atomically; `form`: what kind it is.

    Raises:
        UserError: `check_name`, or the place cannot be written.
    """
    check_name(path)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # One key alone: safetensors writes several in a random order, and equal weights are to give equal files.
    header = {form: sealed(json.dumps(meta), contiguous)}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata=header))


def read_tensors(path: Path, kind: type[M]) -> tuple[dict[str, Tensor], M]:
    """The tensors that `write_tensors` wrote, and its dictionary as a `kind`.

    Raises:
        Damaged: the file is missing or damaged.
        UserError: it is of another release, or something else.
    """
    try:
        tensors, header = read_safetensors(path)
    except FileNotFoundError:
        raise Damaged(f"{path}: missing; the run folder is not complete") from None
    if FORMAT not in header:
        form = next((key for key in header if key.startswith(FORMAT.rstrip("0123456789"))), None)
        what = f"of another release ({form}; this one reads {FORMAT})" if form else "not one of a pyro-ltm run"
        raise UserError(f"{path}: a safetensors file, but {what}")
    try:
        return tensors, parse_json(header[FORMAT], kind)
    except UserError as error:
        raise Damaged(f"{path}: damaged: its metadata: {error}") from None

"""Files of thoughts: what `pyro-ltm infer` writes and `generate --thoughts` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.files import write_atomically
from pyro_ltm.reading import fitted, read_npz, read_safetensors
from pyro_ltm.runs.folder import write_tensors

FORMAT = "pyro-ltm thoughts 1"
SUFFIXES = (".safetensors", ".npz")
"""Kinds of files that are written and read."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def write_thoughts(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes tensors and `meta` in one file, as its suffix says, whole or not at all. In .npz, `meta` is JSON."""
    if path.suffix.lower() == ".npz":
        write_atomically(path, lambda temporary: _write_arrays(temporary, tensors, meta))
    else:
        write_tensors(path, dict(tensors), dict(meta), form=FORMAT)


def read_thoughts(path: Path) -> Tensor:
    """The tensor `thoughts` [S, N, D] of a file. Raises UserError when it has none that is of use."""
    try:
        thoughts = _read_array(path) if path.suffix.lower() == ".npz" else read_safetensors(path)[0].get("thoughts")
    except FileNotFoundError:
        raise UserError(f"--thoughts {path}: no such file; expected what `infer --out` wrote") from None
    except UserError as error:
        raise UserError(f"--thoughts {error}") from None
    if thoughts is None:
        raise UserError(f"--thoughts {path}: holds no tensor 'thoughts'; expected what `infer --out` wrote")
    if thoughts.dtype not in FLOATS or not bool(torch.isfinite(thoughts).all()):
        raise UserError(f"--thoughts {path}: 'thoughts' must hold finite numbers with a fraction")
    return thoughts


class Origin(msgspec.Struct):
    """Which run inferred the thoughts of a file, and at which step; None where the file does not say it."""

    run: str | None = None
    step: int | None = None
    fingerprint: str | None = None


def read_origin(path: Path) -> Origin:
    """Of a file that `read_thoughts` reads, whoever wrote it."""
    try:
        said = read_npz(path, "meta") if path.suffix.lower() == ".npz" else read_safetensors(path)[1].get(FORMAT)
        return fitted(json.loads(str(said)), Origin)
    except (ValueError, RecursionError):  # somebody's own header
        return Origin()


def _write_arrays(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    plain = {name: value.float() if value.dtype is torch.bfloat16 else value for name, value in tensors.items()}
    arrays: dict[str, Any] = {name: value.numpy() for name, value in plain.items()}
    arrays["meta"] = np.array(json.dumps({"format": FORMAT, **meta}))
    with open(path, "wb") as file:  # given a name, numpy would write to another one
        np.savez(file, **arrays)


def _read_array(path: Path) -> Tensor | None:
    array = read_npz(path, "thoughts")
    if array is None:
        return None
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise UserError(f"{path}: 'thoughts' must hold finite numbers with a fraction")
    return torch.from_numpy(np.atleast_1d(array.astype(array.dtype.newbyteorder("="))))

"""Files of thoughts: what `infer` writes and `generate --thoughts` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_ltm.errors import UserError
from pyro_ltm.files import write_atomically

from .runs import check_target as check_file

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "pyro-ltm thoughts 1"
SUFFIXES = (".safetensors", ".npz")
"""Kinds of files that are written and read."""


def check_target(path: Path) -> None:
    """Raises UserError when a file cannot be written at `path`, before the work whose result it is to hold."""
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name a file, such as {path / 'thoughts.safetensors'}")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}; make it first")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    check_file(path)


def write_thoughts(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes tensors and `meta` in one file, as its suffix says, whole or not at all. In .npz, `meta` is JSON."""
    from pyro_ltm.runs.folder import write_tensors

    if path.suffix.lower() == ".npz":
        write_atomically(path, lambda temporary: _write_arrays(temporary, tensors, meta))
    else:
        write_tensors(path, dict(tensors), dict(meta), form=FORMAT)


def _write_arrays(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    import numpy as np
    import torch

    plain = {name: value.float() if value.dtype is torch.bfloat16 else value for name, value in tensors.items()}
    arrays: dict[str, Any] = {name: value.numpy() for name, value in plain.items()}
    arrays["meta"] = np.array(json.dumps({"format": FORMAT, **meta}))
    with open(path, "wb") as file:  # given a name, numpy would write to another one
        np.savez(file, **arrays)


def read_thoughts(path: Path) -> Tensor:
    """The tensor `thoughts` [S, N, D] of a file. Raises UserError when it has none that is of use."""
    import torch

    thoughts = _tensor(path)
    if thoughts is None:
        raise UserError(f"--thoughts {path}: holds no tensor 'thoughts'; expected what `infer --out` wrote")
    usual = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if thoughts.dtype not in usual or not bool(torch.isfinite(thoughts).all()):
        raise UserError(f"--thoughts {path}: 'thoughts' must hold finite numbers with a fraction")
    return thoughts


def _tensor(path: Path) -> Tensor | None:
    import numpy as np
    import torch

    from pyro_ltm.reading import read_npz, read_safetensors

    try:
        if path.suffix.lower() != ".npz":
            return read_safetensors(path)[0].get("thoughts")
        array = read_npz(path, "thoughts")
    except FileNotFoundError:
        raise UserError(f"--thoughts {path}: no such file; expected what `infer --out` wrote") from None
    except UserError as error:
        raise UserError(f"--thoughts {error}") from None
    if array is None:
        return None
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise UserError(f"--thoughts {path}: 'thoughts' must hold finite numbers with a fraction")
    return torch.from_numpy(np.atleast_1d(array.astype(array.dtype.newbyteorder("="))))

"""Files of thoughts: what `infer` writes and `generate --thoughts` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_ltm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "pyro-ltm thoughts 1"


def check_target(path: Path) -> None:
    """Raises UserError when a file cannot be written at `path`, before the work whose result it is to hold."""
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name a file, such as {path / 'thoughts.safetensors'}")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}; make it first")


def write_thoughts(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes tensors and `meta` in one safetensors file, whole or not at all."""
    from pyro_ltm.training.run import write_tensors

    write_tensors(path, dict(tensors), dict(meta), form=FORMAT)


def read_thoughts(path: Path) -> Tensor:
    """The tensor `thoughts` [S, N, D] of a safetensors file. Raises UserError when it has none that is of use."""
    import torch

    from pyro_ltm.reading import read_safetensors

    try:
        tensors, _ = read_safetensors(path)
    except FileNotFoundError:
        raise UserError(f"--thoughts {path}: no such file; expected what `infer --out` wrote") from None
    except UserError as error:
        raise UserError(f"--thoughts {error}") from None
    if "thoughts" not in tensors:
        raise UserError(f"--thoughts {path}: holds no tensor 'thoughts'; expected what `infer --out` wrote")
    thoughts = tensors["thoughts"]
    usual = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if thoughts.dtype not in usual or not bool(torch.isfinite(thoughts).all()):
        raise UserError(f"--thoughts {path}: 'thoughts' must hold finite numbers with a fraction")
    return thoughts

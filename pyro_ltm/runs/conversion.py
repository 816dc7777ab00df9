"""A checkpoint of the reference implementation as a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pyro_ltm.data import Tokenizer
from pyro_ltm.errors import UserError
from pyro_ltm.files import new_folder
from pyro_ltm.inference.build import build
from pyro_ltm.locks import locked
from pyro_ltm.model.reference import read_reference
from pyro_ltm.presets import preset
from pyro_ltm.runs.run import Run


def convert_reference(
    checkpoint: Path, tokenizer: Tokenizer, out: Path, *, seed: int = 0, dtype: str = "float32", device: str = "cpu"
) -> Run:
    """Writes a run with the weights of a checkpoint; its posteriors are fitted as in the preset medium.

    Args:
        tokenizer: that which the checkpoint was trained with.
        out: the run folder; must be new.

    Raises:
        UserError: `out` exists, the checkpoint cannot be read, or the tokenizer has more tokens than it knows.
    """
    _check_new(out)
    shape, weights = read_reference(checkpoint)
    if tokenizer.vocab_size > shape.vocab_size:
        raise UserError(
            f"--tokenizer: has {tokenizer.vocab_size} tokens, the checkpoint {shape.vocab_size}: "
            "give the tokenizer that it was trained with"
        )
    base = preset("medium")
    data = dataclasses.replace(base.data, vocab_size=max(shape.vocab_size, 257), sequence_length=shape.max_length)
    config = dataclasses.replace(base, model=shape, data=data, seed=seed, dtype=dtype)
    model, loop = build(config, device=device)
    model.decoder.load_state_dict(weights)
    with locked(out):
        _check_new(out)  # another may have made it meanwhile
        with new_folder(out) as folder:
            Run.create(folder, config, model, loop, tokenizer)
    return Run.load(out)


def _check_new(out: Path) -> None:
    """Raises UserError when there is something at `out` already."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; name a new folder")

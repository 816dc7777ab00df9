"""`pyro-ltm convert`: a checkpoint of the reference implementation to a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..options import FOLDER, Common, common, examples, tokenizer_options

if TYPE_CHECKING:
    from pyro_ltm.config import Config, ModelConfig
    from pyro_ltm.data import Tokenizer


@click.command(
    short_help="Turn the reference implementation's checkpoint into a run.",
    epilog=examples("pyro-ltm convert ckpt.pt --tokenizer gpt2/tokenizer.json --out runs/reference"),
)
@click.argument("checkpoint", metavar="CHECKPOINT.pt", type=FOLDER)
@tokenizer_options("The tokenizer.json that it was trained with.", required=True)
@click.option("--out", required=True, type=FOLDER, metavar="RUN", help="Run folder to write; must be new.")
@common(seed=None, seed_help="The run's seed; default: 0.")
def command(*, checkpoint: Path, tokenizer: Tokenizer, out: Path, common: Common) -> None:
    """Turns a checkpoint of the reference implementation (mingluzhao/Latent-Thought-LM) into a run folder.

    Nothing in the checkpoint is executed. Its weights are kept as they are; posteriors are fitted as in the preset
    medium.
    """
    from pyro_ltm.errors import UserError
    from pyro_ltm.files import new_folder
    from pyro_ltm.inference.parts import Parts
    from pyro_ltm.locks import locked
    from pyro_ltm.model.reference import read_reference
    from pyro_ltm.runs import Run

    from ..output import emit
    from ..runs import check_device
    from .info import describe, show

    _check_new(out)
    device = check_device(common.device)
    model, weights = read_reference(checkpoint)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"--tokenizer: has {tokenizer.vocab_size} tokens, the checkpoint {model.vocab_size}: "
            "give the tokenizer that it was trained with"
        )
    config = _configure(model, common)
    parts = Parts.build(config, device=device)
    parts.model.decoder.load_state_dict(weights)
    with locked(out):
        _check_new(out)  # another may have made it meanwhile
        with new_folder(out) as folder:
            Run.create(folder, config, parts, tokenizer)
    result = describe(Run.load(out))
    if common.as_json:
        emit(result)
    else:
        show(result)


def _check_new(out: Path) -> None:
    """Raises UserError when there is something at `out` already."""
    from pyro_ltm.errors import UserError

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; name a new folder")


def _configure(model: ModelConfig, common: Common) -> Config:
    """The preset medium with the checkpoint's model, in the reference's precision."""
    from pyro_ltm.presets import preset

    base = preset("medium")
    data = dataclasses.replace(base.data, vocab_size=max(model.vocab_size, 257), sequence_length=model.max_length)
    return dataclasses.replace(base, model=model, data=data, seed=common.seed or 0, dtype=common.dtype or "float32")

"""`pyro-ltm convert`: a checkpoint of the reference implementation to a run."""

from __future__ import annotations

from pathlib import Path

import click

from ..options import FOLDER, Common, TokenizerFile, common, examples, tokenizer_options


@click.command(
    short_help="Turn the reference implementation's checkpoint into a run.",
    epilog=examples("pyro-ltm convert ckpt.pt --tokenizer gpt2/tokenizer.json --out runs/reference"),
)
@click.argument("checkpoint", metavar="CHECKPOINT.pt", type=FOLDER)
@tokenizer_options("The tokenizer.json that it was trained with.", required=True)
@click.option("--out", required=True, type=FOLDER, metavar="RUN", help="Run folder to write; must be new.")
@common(seed=None, seed_help="The run's seed; default: 0.")
def command(*, checkpoint: Path, tokenizer_file: TokenizerFile, out: Path, common: Common) -> None:
    """Turns a checkpoint of the reference implementation (mingluzhao/Latent-Thought-LM) into a run folder.

    Nothing in the checkpoint is executed. Its weights are kept as they are; posteriors are fitted as in the preset
    medium.
    """
    from pyro_ltm.runs.conversion import convert_reference
    from pyro_ltm.runs.description import describe

    from ..output import emit
    from ..runs import check_device
    from .info import show

    device = check_device(common.device)
    tokenizer = tokenizer_file.load()
    assert tokenizer is not None
    dtype = common.dtype or "float32"
    result = describe(convert_reference(checkpoint, tokenizer, out, seed=common.seed or 0, dtype=dtype, device=device))
    if common.as_json:
        emit(result)
    else:
        show(result)

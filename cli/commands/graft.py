"""`pyro-ltm graft`: a language model that exists, to a run whose decoder it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..options import FOLDER, Common, Text, common, examples, gathered, number

if TYPE_CHECKING:
    from pyro_ltm.runs.graft import Graft


def _graft(
    layers: str, thoughts: int | None, train: str, rank: int | None, max_length: int | None, reference: bool
) -> Graft:
    if rank is not None and train != "lora":
        raise click.UsageError("--rank is of --train lora, which is not given")
    from pyro_ltm.runs.graft import Graft

    more = {} if rank is None else {"rank": rank, "alpha": 2 * rank}
    return Graft(layers=layers, thoughts=thoughts, train=train, max_length=max_length, by_reference=reference, **more)


@click.command(
    short_help="Give a language model that exists thoughts.",
    epilog=examples(
        "pyro-ltm graft models/gpt2 --out runs/graft",
        "pyro-ltm graft models/llama --out runs/graft --layers 8,12,16 --thoughts 24 --train lora --rank 16",
        "pyro-ltm graft models/gpt2 --out runs/alone --thoughts 0 --train all",
    ),
)
@click.argument("model_folder", metavar="MODEL_FOLDER", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, metavar="RUN", help="Run folder to write; must be new.")
@click.option("--end-of-text", metavar="NAME", type=Text(), help="Token between documents; default: the model's own.")
@gathered(
    "how",
    _graft,
    click.option(
        "--layers", metavar="LIST", default="every", help="Layers that read thoughts: every, or such as 0,2,4."
    ),
    number("--thoughts", "Thought vectors over all these layers; 0: the model alone.", least=0, show_default="2 each"),
    click.option(
        "--train",
        type=click.Choice(["frozen", "lora", "all"]),
        default="frozen",
        help="Of the model learns: nothing, low-rank additions, every weight.",
    ),
    number("--rank", "Of --train lora: rank of the additions.", show_default="8"),
    number("--max-length", "Longest sequence in tokens.", least=2, show_default="its context, at most 1024"),
    click.option(
        "--reference", is_flag=True, help="Name the model's folder in the run, with a digest, instead of copying it."
    ),
)
@common(seed=None, seed_help="The run's seed; default: 0.")
def command(*, model_folder: Path, out: Path, end_of_text: str | None, how: Graft, common: Common) -> None:
    """Makes a run whose decoder is a causal language model of Hugging Face's: GPT-2, Llama, Mistral, Qwen and others.

    MODEL_FOLDER is a local folder as `save_pretrained` writes it. Chosen layers get cross-attention to thoughts whose
    output is zero at the start: untrained, the run gives the model's own logits to the bit. `train --init-from` trains
    it; in `evaluate` its twin is the model itself. Nothing is fetched, and no code of the folder is run.
    """
    from pyro_ltm.data import Tokenizer
    from pyro_ltm.runs.description import describe
    from pyro_ltm.runs.graft import graft

    from ..output import emit, say, show_next
    from ..runs import check_device
    from .info import show

    device = check_device(common.device)
    tokenizer = None if end_of_text is None else Tokenizer.load(model_folder).ending(end_of_text)
    dtype = common.dtype or "float32"
    run = graft(model_folder, out, how, tokenizer=tokenizer, seed=common.seed or 0, dtype=dtype, device=device)
    result = describe(run)
    if common.as_json:
        emit(result)
        return
    show(result)
    say("Untrained, it gives the logits of its base model, to the bit.")
    show_next(["pyro-ltm", "train", "--init-from", str(out), "--data", "TEXT", "--out", "runs/trained"])

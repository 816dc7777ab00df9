"""`pyro-ltm generate`: text from thoughts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_ltm.errors import visible

from ..options import FOLDER, Common, Text, common, examples, fast_steps, number, run_argument, sampling

if TYPE_CHECKING:
    from pyro_ltm.inference import Generated


@click.command(
    short_help="Write texts.",
    epilog=examples(
        "pyro-ltm generate runs/first --num 3",
        "pyro-ltm generate runs/first --prompt 'The statement' --temperature 0.7 --top-p 0.95",
        "pyro-ltm generate runs/first --thoughts thoughts.safetensors --max-new-tokens 64 --json",
    ),
)
@run_argument
@click.option("--prompt", type=Text(), default="", help="Text to go on from; thoughts are fitted to it alone.")
@number("--num", "Texts to write, from each of the given thoughts.", default=1)
@number("--max-new-tokens", "At most so many each; default: what the model can hold.")
@sampling()
@click.option("--thoughts", "thoughts_file", type=FOLDER, metavar="FILE", help="Thoughts that `infer` wrote.")
@fast_steps
@common(weights=True)
def command(*, run_folder: Path, prompt: str, thoughts_file: Path | None, common: Common, **how: Any) -> None:
    """Writes texts.

    Thoughts come from --thoughts; else, with a prompt, from the posterior fitted to the prompt alone; else from the
    prior. On a terminal texts are parted by rules and the prompt is dim; elsewhere a line of three dashes parts them.
    """
    from pyro_ltm.runs.thoughts_file import read_thoughts

    from ..output import emit
    from ..runs import open_run

    thoughts = read_thoughts(thoughts_file) if thoughts_file else None
    run = open_run(run_folder, common)
    texts = run.generate(prompt=prompt, thoughts=thoughts, seed=common.seed or 0, **how)
    if not common.as_json:
        _show(texts)
        return
    origin = "file" if thoughts_file else "posterior" if prompt else "prior"
    emit(
        {
            "prompt": prompt,
            "texts": [{"text": one.text, "tokens": one.tokens, "ended": one.ended} for one in texts],
            "thoughts": origin if run.config.model.thoughts else "none",
            "seed": common.seed or 0,
            "run": str(run_folder),
        }
    )


def _show(texts: Sequence[Generated]) -> None:
    from ..output import say, stdout_console

    if not sys.stdout.isatty():
        for index, one in enumerate(texts):
            say(("---\n" if index else "") + one.prompt + one.text)
        return
    from rich.text import Text as Styled

    console = stdout_console()
    for index, one in enumerate(texts, 1):
        console.rule(Styled(f"{index} of {len(texts)}, {one.tokens} tokens{'' if one.ended else ', cut short'}"))
        console.print(Styled.assemble((visible(one.prompt), "dim"), visible(one.text)))
    console.rule()

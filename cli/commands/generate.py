"""`pyro-ltm generate`: text from thoughts."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_ltm.errors import visible

from ..options import (
    FOLDER,
    Common,
    Text,
    common,
    examples,
    fast_steps,
    number,
    reading_options,
    run_argument,
    sampling,
)
from ..rethinking import rethinking_options

if TYPE_CHECKING:
    from pyro_ltm.data import Reading
    from pyro_ltm.inference import Generated
    from pyro_ltm.runs import Run


@click.command(
    short_help="Write texts.",
    epilog=examples(
        "pyro-ltm generate runs/first --num 3",
        "pyro-ltm generate runs/first --prompt 'The statement' --temperature 0.7 --top-p 0.95",
        "pyro-ltm generate runs/first --prompts prompts.jsonl --num 4 --out written.jsonl",
        "pyro-ltm generate runs/first --prompt 'The statement' --rethink 4 --keep my_rewards:brevity",
        "pyro-ltm generate runs/first --thoughts thoughts.safetensors --max-new-tokens 64 --json",
    ),
)
@run_argument
@click.option("--prompt", type=Text(), default="", help="Text to go on from; thoughts are fitted to it alone.")
@click.option(
    "--prompts",
    "prompts_file",
    type=FOLDER,
    metavar="FILE",
    help="Many of them: a text a line, or records with prompt (else text) and id. Writes a JSON row a continuation.",
)
@reading_options
@number("--num", "Texts to write, after each prompt or from each of the given thoughts.", default=1)
@number("--max-new-tokens", "At most so many each; default: what the model can hold.")
@sampling()
@rethinking_options
@click.option("--thoughts", "thoughts_file", type=FOLDER, metavar="FILE", help="Thoughts that `infer` wrote.")
@click.option("--out", type=FOLDER, metavar="FILE", help="Where to write the rows of --prompts; default: stdout.")
@number("--batch-size", "Texts of --prompts at a time.", default=32)
@click.option(
    "--operations", is_flag=True, help="With --json: operations a token, too. The first texts are written once more."
)
@fast_steps
@common(weights=True)
def command(
    *,
    run_folder: Path,
    prompt: str,
    prompts_file: Path | None,
    thoughts_file: Path | None,
    reading: Reading,
    out: Path | None,
    batch_size: int,
    common: Common,
    **how: Any,
) -> None:
    """Writes texts.

    Thoughts come from --thoughts; else, with a prompt, from the posterior fitted to the prompt alone (or, of a run
    whose prior is `conditional`, from that prior given the prompt); else from the prior. On a terminal texts are parted
    by rules and the prompt is dim; elsewhere a line of three dashes parts them.

    With --prompts each row has id, prompt, continuation, sample, tokens, ended and seed. What follows a prompt does not
    depend on the others in the file. With --rethink rows have the scores of all R + 1 texts, and which was kept.

    --json also gives the seconds for each token that is left.
    """
    if prompts_file and (prompt or thoughts_file):
        raise click.UsageError("--prompts: give neither --prompt nor --thoughts beside it")
    if how["operations"] and not common.as_json:
        raise click.UsageError("--operations goes with --json")
    if out and not prompts_file:
        raise click.UsageError("--out: is for the rows of --prompts, which is not given")
    from pyro_ltm.runs.thoughts_file import read_thoughts

    from ..runs import open_run

    how["seed"] = common.seed or 0
    if prompts_file:
        _write_rows(run_folder, prompts_file, out, reading, common, how | {"batch_size": batch_size})
        return
    thoughts = read_thoughts(thoughts_file) if thoughts_file else None
    run = open_run(run_folder, common)
    if thoughts_file:
        _warn_of_others(thoughts_file, run)
    texts, cost = _written(run, common, how | {"prompt": prompt, "thoughts": thoughts})
    if not common.as_json:
        _show(texts)
        return
    from pyro_ltm.tasks.prompts import scores_of

    from ..output import emit

    after = "prior given the prompt" if run.model.prior.reads_prompt else "posterior"
    origin = "file" if thoughts_file else after if prompt else "prior"
    emit(
        {
            "prompt": prompt,
            "texts": [{"text": one.text, "tokens": one.tokens, "ended": one.ended, **scores_of(one)} for one in texts],
            "thoughts": origin if run.config.model.thoughts else "none",
            "seed": how["seed"],
            "run": str(run_folder),
            **cost,
        }
    )


def _warn_of_others(file: Path, run: Run) -> None:
    """Says so where the thoughts in a file are those of another decoder."""
    from pyro_ltm.runs.thoughts_file import read_origin

    from ..output import note

    of = read_origin(file)
    if of and of.fingerprint not in (None, run.fingerprint):
        whose = f"{of.run} at step {of.step}"
        note(f"Warning: --thoughts {file}: inferred by {whose}, which is another decoder than this one.")


def _written(run: Run, common: Common, how: dict[str, Any]) -> tuple[list[Generated], dict[str, Any]]:
    """The texts; with --json also what they cost."""
    count = how.pop("operations")
    if not common.as_json:
        return run.generate(**how), {}
    from pyro_ltm.profiling.writing import measured

    texts, cost = measured(run, count=count, **how)
    return texts, {"cost": dataclasses.asdict(cost)}


def _write_rows(
    folder: Path, file: Path, out: Path | None, reading: Reading, common: Common, how: dict[str, Any]
) -> None:
    """The continuations of the prompts in a file, as JSON rows: into `out`, or on stdout."""
    from pyro_ltm.errors import UserError
    from pyro_ltm.files import write_text
    from pyro_ltm.tasks.prompts import check_prompts, read_prompts, rows_of

    from ..output import emit, say
    from ..progress import reporter
    from ..runs import check_target, open_run

    if out:
        check_target(out, file)
        if out.suffix.lower() not in (".jsonl", ".ndjson"):
            raise UserError(f"--out {out}: expected a name that ends in .jsonl or .ndjson")
    prompts = read_prompts(file, reading=reading)
    run = open_run(folder, common)
    check_prompts(run, prompts, how["max_new_tokens"])
    with reporter() as report:
        count = report.counting("generate", len(prompts) * how["num"], "texts")
        progress = {"progress": lambda done: count(done, float("nan"))}
        texts, cost = _written(run, common, how | progress | {"prompts": [prompt.text for prompt in prompts]})
    rows = list(rows_of(prompts, texts, how["seed"]))
    if out:
        write_text(out, "".join(f"{json.dumps(row)}\n" for row in rows))
    if common.as_json:
        where: dict[str, Any] = {"out": out} if out else {"rows": rows}
        about = {**run.about, "prompts": file, "texts": len(rows), "seed": how["seed"]}
        emit({**about, **where, **cost})
    elif out:
        say(f"Written to {out}: {len(rows):,} continuations of {len(prompts):,} prompts.")
    else:
        for row in rows:
            click.echo(json.dumps(row))


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

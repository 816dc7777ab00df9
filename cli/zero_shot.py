"""`pyro-ltm zero-shot`: a run on the texts of a TOML file of tasks."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FOLDER, Common, common, examples, fast_steps, run_argument

if TYPE_CHECKING:
    from pyro_ltm.training.zero_shot import TaskScore

FIGURES = ("nats_per_token", "nats_per_token_stderr", "bits_per_byte", "word_perplexity", "word_perplexity_stderr")


@click.command(
    "zero-shot",
    short_help="Score a run on texts named in a TOML file.",
    epilog=examples(
        "pyro-ltm zero-shot runs/first examples/tasks.toml --twin runs/twin",
        "pyro-ltm zero-shot runs/first examples/tasks.toml --only wikitext-2 --particles 256 --out wikitext-2.csv",
        "pyro-ltm zero-shot runs/first examples/tasks.toml --protocol all --sequences 100 --json",
    ),
)
@run_argument
@click.argument("tasks_file", metavar="TASKS.toml", type=FOLDER)
@click.option("--only", metavar="NAME", multiple=True, help="Only the task of this name. Repeatable.")
@click.option(
    "--protocol",
    type=click.Choice(["bound", "prefix", "all"]),
    default="bound",
    help="bound: an upper bound on nats. prefix: what is predicted from the text so far.",
)
@click.option("--twin", "twin_folder", metavar="RUN", type=FOLDER, help="A run to score on the same text, beside it.")
@click.option("--particles", metavar="K", type=click.IntRange(1), default=16, help="Draws from each posterior.")
@fast_steps
@click.option("--stride", metavar="N", type=click.IntRange(1), help="Tokens between two fits of the protocol prefix.")
@click.option("--sequences", metavar="N", type=click.IntRange(1), help="Score at most so many of each task.")
@click.option("--batch-size", metavar="N", type=click.IntRange(1), default=32, help="Sequences at a time.")
@click.option("--out", metavar="FILE", type=FOLDER, help="Also write the figures there: a .json or a .csv file.")
@common(seed_help="Seed of the noise.")
def command(
    *,
    run_folder: Path,
    tasks_file: Path,
    only: tuple[str, ...],
    protocol: str,
    twin_folder: Path | None,
    particles: int,
    fast_steps: int | None,
    stride: int | None,
    sequences: int | None,
    batch_size: int,
    out: Path | None,
    common: Common,
) -> None:
    """Scores a run on texts that it was not trained on: by the token, by the byte and by the word of the original.

    TASKS.toml has a table [tasks.NAME] for each text: source, and if need be text_column, split, words (whitespace, or
    with-line-ends as WikiText is counted), detokenise (none, wikitext, ptb), packing, sequence_length, sequences.
    """
    from pyro_ltm.errors import UserError

    if out and out.suffix not in (".json", ".csv"):
        raise UserError(f"--out {out}: expected a file that ends in .json or .csv")
    from pyro_ltm.evaluation.tasks import load_tasks
    from pyro_ltm.files import write_text

    from .output import emit
    from .progress import reporter
    from .runs import check_target, check_twin, open_run

    if out:
        check_target(out)
    tasks = load_tasks(tasks_file, only)
    run = open_run(run_folder, common)
    twin = open_run(twin_folder, common) if twin_folder else None
    if twin is not None:
        check_twin(run, twin)
    from pyro_ltm.training.zero_shot import score_task

    scores: dict[str, TaskScore] = {}
    with reporter() as report:
        for task in tasks:
            scores[task.name] = score_task(
                run,
                task,
                twin=twin,
                protocols=("bound", "prefix") if protocol == "all" else (protocol,),
                particles=particles,
                fast_steps=fast_steps,
                stride=stride or 0,
                sequences=sequences,
                batch_size=batch_size,
                seed=common.seed or 0,
                counting=report.counting,
            )
    result: dict[str, Any] = {"run": str(run_folder), "step": run.step}
    if twin_folder:
        result["twin_run"] = str(twin_folder)
    result["tasks"] = {name: score.to_dict() for name, score in scores.items()}
    if out:
        write_text(out, _csv(result) if out.suffix == ".csv" else json.dumps(result, indent=2) + "\n")
    if common.as_json:
        emit(result)
    else:
        _show(scores)


def _show(scores: dict[str, TaskScore]) -> None:
    """A table for each kind of figure, and what was counted."""
    from .output import margin, nats, say, show_table

    headings: dict[str, list[tuple[str, str]]] = {}
    for task, score in scores.items():
        for name, meaning in score.meanings.items():
            heading = meaning if name != "twin" else next(iter(score.meanings.values()))
            headings.setdefault(heading, []).append((task, name))
    for heading, members in headings.items():
        rows: list[list[str]] = []
        for task, name in members:
            score, level = scores[task], scores[task].levels[name]
            gap = score.below_twin.get(name)
            rows += [] if any(row[0] == task for row in rows) else [[task, "", "", "", ""]]
            rows.append(
                [
                    f"  {_label(score, name)}",
                    nats(level.nats_per_token) + margin(level.nats_per_token_stderr),
                    nats(level.bits_per_byte),
                    _short(level.word_perplexity) + (_short(level.word_perplexity_stderr, " ± ")),
                    nats(gap.nats_per_token) + margin(gap.stderr) if gap else "-",
                ]
            )
        columns = ["", "nats a token", "bits a byte", "word perplexity", "below the twin"]
        show_table(heading[:1].upper() + heading[1:], columns, rows)
    for task, score in scores.items():
        about = "about " if score.counts_are_estimated else ""
        words = "words and line ends" if score.task.words == "with-line-ends" else "words"
        scored = "" if score.task.detokenise == "none" else f"; scored without {score.task.detokenise}'s spaces"
        say(
            f"{task}: {score.sequences:,} sequences, {score.tokens:,} tokens; of the original {about}"
            f"{score.words:,} {words}, {about}{score.bytes:,} bytes{scored}"
        )
    first = next(iter(scores.values()))
    say(f"{first.fast_steps} fast steps, {first.particles} particles, fresh noise, seed {first.seed}")


def _label(score: TaskScore, name: str) -> str:
    """What a figure is called in the table."""
    if name == "importance-weighted":
        return f"IWAE, {score.particles} draws"
    if name == "prefix":
        return f"a fit every {score.stride} tokens"
    return "twin" if name == "twin" else "ELBO" if score.fitted else "exact"


def _short(value: float, before: str = "") -> str:
    """A perplexity, that of an untrained model too; nothing where it is not known."""
    return "" if not math.isfinite(value) else f"{before}{value:.2f}" if value < 1e5 else f"{before}{value:.2e}"


def _csv(result: dict[str, Any]) -> str:
    """A row for each figure of each task."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    counts = ("tokens", "words", "bytes", "sequences", "counts_are_estimated", "particles", "fast_steps", "seed")
    writer.writerow(["task", "figure", "meaning", *FIGURES, *counts])
    for task, score in result["tasks"].items():
        for name, level in score.items():
            if isinstance(level, dict) and "nats_per_token" in level and "meaning" in level:
                row = [level[figure] for figure in FIGURES] + [score[key] for key in counts]
                writer.writerow([task, name, level["meaning"], *("" if value is None else value for value in row)])
    return out.getvalue()

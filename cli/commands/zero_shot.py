"""`pyro-ltm zero-shot`: a run on the texts of a TOML file of tasks."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import (
    FOLDER,
    Common,
    batch_size,
    common,
    examples,
    fast_steps,
    fit_settings,
    masked_diffusion_option,
    number,
    run_argument,
)

if TYPE_CHECKING:
    from pyro_ltm.tasks.text_tasks import Level, Task
    from pyro_ltm.tasks.zero_shot import TaskScore

UNITS = ("nats_per_token", "bits_per_byte", "word_perplexity")
FIGURES = tuple(name for unit in UNITS for name in (unit, f"{unit}_stderr"))
COMPARED = ("twin", "masked diffusion", "floor")
"""Figures to compare a task's first with: they stand in its table."""
GAP = 3
"""Characters between two columns of a table."""


@click.command(
    "zero-shot",
    short_help="Score a run on texts named in a TOML file.",
    epilog=examples(
        "pyro-ltm zero-shot runs/first examples/tasks.toml --twin runs/twin",
        "pyro-ltm zero-shot runs/first examples/tasks.toml --only wikitext-2 --particles 256 --out wikitext-2.csv",
        "pyro-ltm zero-shot runs/first examples/tasks.toml --protocol all --sequences 100 --json",
        "pyro-ltm zero-shot runs/first examples/tasks.toml --fast-steps 64 --set optimizer.lr=0.1",
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
@click.option("--twin", "twin_folder", metavar="RUN", type=FOLDER, help="A run to score on the same text.")
@masked_diffusion_option
@number("--particles", "Draws from each posterior.", default=16, metavar="K")
@fast_steps
@fit_settings
@number("--stride", "Tokens between two fits of the protocol prefix.")
@number("--sequences", "Score at most so many of each task.")
@batch_size
@click.option("--out", metavar="FILE", type=FOLDER, help="Also write the figures there: a .json or a .csv file.")
@common(seed_help="Seed of the noise.", weights=True)
def command(
    *,
    run_folder: Path,
    tasks_file: Path,
    only: tuple[str, ...],
    protocol: str,
    twin_folder: Path | None,
    diffusion_folder: Path | None,
    stride: int | None,
    settings: tuple[str, ...],
    out: Path | None,
    common: Common,
    **options: Any,
) -> None:
    """Scores a run on texts that it was not trained on: by the token, by the byte and by the word of the original.

    TASKS.toml has a table [tasks.NAME] for each text: source, and if need be text_column, split, words (whitespace, or
    with-line-ends as WikiText is counted), detokenise (none, wikitext, ptb), packing, sequence_length, sequences.

    Under the text of a world (source = "worlds", packing = "document") stands its entropy, the floor: no bound can be
    lower, and one that is ends in an error.
    """
    from pyro_ltm.files import write_text

    from ..output import emit
    from ..progress import reporter
    from ..runs import open_rivals, open_run

    tasks = _tasks(tasks_file, only, out)
    run = open_run(run_folder, common).with_fast_loop(settings)
    rivals, about = open_rivals(run, twin_folder, diffusion_folder, common)
    from pyro_ltm.tasks.zero_shot import score_task

    options |= {"protocols": ("bound", "prefix") if protocol == "all" else (protocol,)}
    options |= {"stride": stride or 0, "seed": common.seed or 0}
    with reporter() as report:
        scores = {task.name: score_task(run, task, **rivals, counting=report.counting, **options) for task in tasks}
    result: dict[str, Any] = {**run.about, "settings": list(settings), **about}
    result["tasks"] = {name: score.to_dict() for name, score in scores.items()}
    if out:
        write_text(out, _csv(result) if out.suffix == ".csv" else json.dumps(result, indent=2) + "\n")
    if common.as_json:
        emit(result)
    else:
        _show(scores)


def _tasks(file: Path, only: tuple[str, ...], out: Path | None) -> list[Task]:
    """The tasks to score, once it is known that `out` can be written; notes which of their files are not read."""
    from pyro_ltm.errors import UserError
    from pyro_ltm.tasks.text_tasks import load_tasks

    from ..runs import check_target
    from ..sources import note_skipped

    if out and out.suffix not in (".json", ".csv"):
        raise UserError(f"--out {out}: expected a file that ends in .json or .csv")
    if out:
        check_target(out)
    tasks = load_tasks(file, only)
    for task in tasks:
        note_skipped(task.source, task.reading, task.name)
    return tasks


def _show(scores: dict[str, TaskScore]) -> None:
    """A table for each kind of figure, and what was counted."""
    from ..output import say, show_table

    headings: dict[str, list[tuple[str, str]]] = {}
    for task, score in scores.items():
        for name, meaning in score.meanings.items():
            heading = next(iter(score.meanings.values())) if name in COMPARED else meaning
            headings.setdefault(heading, []).append((task, name))
    for heading, figures in headings.items():
        show_table(heading[:1].upper() + heading[1:], *_table(scores, figures))
    for task, score in scores.items():
        _say_of(task, score)
    first = next(iter(scores.values()))
    say(f"{first.fast_steps} fast steps, {first.particles} particles, fresh noise, seed {first.seed}")


def _table(scores: dict[str, TaskScore], figures: list[tuple[str, str]]) -> tuple[list[str], list[list[str]]]:
    """The columns and the rows of figures, each a task and its own name in it, under the names of the tasks."""
    from ..output import margin, nats, stdout_console

    twin = ["below the twin"] if any(scores[task].below_twin for task, _ in figures) else []
    exact = any(not scores[task].no_bytes for task, _ in figures)
    columns = ["", "nats a token", *(["bits a byte", "word perplexity"] if exact else []), *twin]
    rows: list[list[str]] = []
    for task, name in figures:
        score, level = scores[task], scores[task].levels[name]
        gap = score.below_twin.get(name)
        rows += [] if any(row[0] == task for row in rows) else [[task, *[""] * (len(columns) - 1)]]
        rows.append(
            [
                f"  {_label(score, name)}",
                nats(level.nats_per_token) + margin(level.nats_per_token_stderr),
                *(_by_text(level) if exact else []),
                *([nats(gap.nats_per_token) + margin(gap.stderr) if gap else "-"] if twin else []),
            ]
        )
    wide = sum(max(map(len, cells)) + GAP for cells in zip(columns, *rows, strict=True)) - GAP
    if wide > stdout_console().width:  # the error of bits goes: it is in the same proportion as that of nats
        rows = [[*row[:2], row[2].partition(" ±")[0], *row[3:]] for row in rows] if exact else rows
    return columns, rows


def _by_text(level: Level) -> list[str]:
    """Bits a byte and word perplexity; a dash where `_say_of` says why there are none."""
    from ..output import margin, nats

    words = _short(level.word_perplexity) + _short(level.word_perplexity_stderr, " ± ")
    return [nats(level.bits_per_byte) + margin(level.bits_per_byte_stderr), words or "-"]


def _say_of(task: str, score: TaskScore) -> None:
    """Prints what was counted of a task, and where its figures stand above the floor."""
    from ..output import margin, nats, say

    about = "about " if score.counts_are_estimated else ""
    words = "words and line ends" if score.task.words == "with-line-ends" else "words"
    scored = "" if score.task.detokenise == "none" else f"; scored without {score.task.detokenise}'s spaces"
    say(
        f"{task}: {score.sequences:,} sequences, {score.tokens:,} tokens; of the original {about}"
        f"{score.words:,} {words}, {about}{score.bytes:,} bytes{scored}"
    )
    if score.no_bytes:
        say(f"{task}: no figures by the byte or the word: {score.no_bytes}.")
    say(f"{task}: ± is the standard error over {next(iter(score.levels.values())).blocks}")
    if score.no_floor:
        say(f"{task}: no floor stands below these figures: {score.no_floor}.")
    if gaps := score.above_floor:
        above = [f"{_label(score, name)} {nats(gap.nats_per_token)}{margin(gap.stderr)}" for name, gap in gaps.items()]
        say(f"{task}: nats a token above the floor: {'; '.join(above)}")


def _label(score: TaskScore, name: str) -> str:
    """The name of a figure in the table."""
    if name == "importance-weighted":
        return f"IWAE, {score.particles} draws"
    if name == "prefix":
        return f"{'a fit every' if score.fast_steps else 'in blocks of'} {score.stride} tokens"
    return name if name in COMPARED else "ELBO" if score.fitted else "exact"


def _short(value: float, before: str = "") -> str:
    """A perplexity, that of an untrained model too; nothing where it is not known."""
    from ..output import figure

    if math.isnan(value) or (before and math.isinf(value)):
        return ""
    return before + (f"{value:.2e}" if 1e5 <= value < math.inf else figure(value, 2))


def _csv(result: dict[str, Any]) -> str:
    """A row for each figure of each task."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    counts = ("tokens", "words", "bytes", "sequences", "counts_are_estimated", "particles", "fast_steps", "seed")
    writer.writerow(["task", "figure", "meaning", *FIGURES, *counts, "no_bytes"])
    for task, score in result["tasks"].items():
        for name, level in score.items():
            if isinstance(level, dict) and "nats_per_token" in level and "meaning" in level:
                row = [level[figure] for figure in FIGURES] + [score[key] for key in counts] + [score.get("no_bytes")]
                writer.writerow([task, name, level["meaning"], *("" if value is None else value for value in row)])
    return out.getvalue()

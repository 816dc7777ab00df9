"""`pyro-ltm report`: what a run's thoughts carry, on a page that opens from disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import (
    FOLDER,
    Common,
    Text,
    batch_size,
    common,
    examples,
    fast_steps,
    fit_settings,
    number,
    reading_options,
    run_argument,
)

if TYPE_CHECKING:
    from pyro_ltm.data import Reading
    from pyro_ltm.runs import Run
    from pyro_ltm.thoughts.report import Corpus

    from ..progress import Reporter


@click.command(
    short_help="What a run's thoughts carry, as a page.",
    epilog=examples(
        "pyro-ltm report runs/first",
        "pyro-ltm report runs/first --data worlds --sequences 500",
        "pyro-ltm report runs/first --evaluation figures.json --fast-steps 64 --set optimizer.lr=0.1",
        "pyro-ltm report runs/first --labels reviews.jsonl --label-column stars --out pages/reviews",
        "pyro-ltm report runs/first --texts 'A dog ran.' 'A dog slept.' 'A cat slept.'",
    ),
)
@run_argument
@click.option(
    "--data", metavar="SOURCE_OR_DIR", help="Whose texts to look at; default: the run's own validation split."
)
@click.option(
    "--labels", "labels_file", metavar="FILE", type=FOLDER, help="Texts with labels (.jsonl, .csv, .parquet)."
)
@click.option("--label-column", metavar="NAME", multiple=True, help="A column of --labels to probe. Repeatable.")
@reading_options
@click.option(
    "--texts",
    nargs=3,
    type=Text(),
    metavar="A B C",
    help="Go from A's thoughts to B's, and reckon A - B + C; default: three of the texts looked at.",
)
@fast_steps
@fit_settings
@click.option(
    "--evaluation",
    "evaluation_file",
    metavar="FILE",
    type=FOLDER,
    help="Likelihoods to show: what `evaluate --json` printed; default: RUN/evaluation.json, where there is one.",
)
@number("--particles", "Draws from each posterior.", default=4, metavar="K")
@number("--sequences", "Texts to look at, from the first.", least=2, default=256)
@batch_size
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder to write; default: RUN/report.")
@common(seed_help="Seed of the noise and of the probes' folds.", weights=True)
def command(
    *,
    run_folder: Path,
    texts: tuple[str, ...] | None,
    evaluation_file: Path | None,
    out: Path | None,
    common: Common,
    particles: int,
    fast_steps: int | None,
    settings: tuple[str, ...],
    **source: Any,
) -> None:
    """Looks at the thoughts of a run and writes report.html, report.json and pictures.

    Rates, active units, mutual information, whose thoughts the decoder needs, reconstruction by layer, a map, and what
    lies between texts. Labels are read off the thoughts by linear probes: a world's own factors, or columns of
    --labels.
    """
    if bool(source["labels_file"]) != bool(source["label_column"]):
        raise click.UsageError("--labels and --label-column go together: a file, and the columns of it to probe")
    if source["labels_file"] and source["data"]:
        raise click.UsageError("--labels brings its own texts: give either --labels or --data")
    from ..output import emit, note
    from ..progress import reporter
    from ..runs import open_run, say_what_for

    run = open_run(run_folder, common)
    from pyro_ltm.locks import locked
    from pyro_ltm.reports.thoughts_page import write_report
    from pyro_ltm.runs.evaluation_file import read_evaluation
    from pyro_ltm.thoughts.report import ReportOptions

    evaluation = read_evaluation(run, evaluation_file)
    if evaluation is None and (run_folder / "evaluation.json").is_file():
        note(f"{run_folder}/evaluation.json is not of this run as it is now, and not shown: evaluate it again.")
    options = ReportOptions(
        particles=particles, fast_steps=fast_steps, settings=settings, between_texts=texts, seed=common.seed or 0
    )
    with locked(out or run_folder / "report"), reporter() as report:
        corpus = _corpus(run, report, **source)
        # Where labels are probed, thoughts under an untrained decoder stand beside them.
        fits = len(corpus.texts) * (2 if corpus.labels else 1) if corpus else None
        count = report.counting("thoughts", fits)
        page, result = write_report(
            run, corpus, options, evaluation=evaluation, out=out, progress=lambda done: count(done, math.nan)
        )
    say_what_for(run)
    if common.as_json:
        emit({**result, "page": str(page)})
        return
    _show(result, page)


def _corpus(
    run: Run,
    report: Reporter,
    *,
    data: str | None,
    labels_file: Path | None,
    label_column: tuple[str, ...],
    reading: Reading,
    sequences: int,
    batch_size: int,
) -> Corpus | None:
    """The texts to look at; None for a run without thoughts of which none are named."""
    from pyro_ltm.data.sources import read_labelled
    from pyro_ltm.thoughts.report import Corpus

    from ..runs import open_data

    if labels_file:
        texts, labels = read_labelled(labels_file, label_column, reading=reading, limit=sequences)
        return Corpus.of_texts(run, texts, labels, batch_size=batch_size, name=str(labels_file))
    if data is None and not run.config.model.thoughts:
        return None
    with open_data(run, data, reading, report) as scored:
        return Corpus.of_data(run, scored, sequences=sequences, batch_size=batch_size, name=data or "")


def _show(result: Mapping[str, Any], page: Path) -> None:
    from ..output import margin, nats, note, say, show_table

    found = result.get("thoughts")
    for line in result["notes"]:
        note(line)
    if found:

        def both(name: str, figure: Mapping[str, Any], digits: int = 2, key: str = "mean") -> list[str]:
            error = figure.get("stderr")
            return [name, nats(figure.get(key), digits) + margin(math.nan if error is None else error, digits)]

        rows = [
            both("rate, nats a sequence", found["rate"]),
            both(f"mutual information (at most {found['ceiling']:.2f})", found["mutual_information"]),
            *(both(f"distortion, nats a token, thoughts: {name}", d, 4) for name, d in found["distortion"].items()),
            both("saved a nat of rate, against no thoughts", found["exchange_rate"] or {}, 2, "nats_per_nat"),
        ]
        for probe in result["probes"]:
            rows.append(both(f"probe of {probe['label']}, accuracy", probe, 3, "accuracy"))
            rows += [both(f"  {name}", one, 3, "accuracy") for name, one in probe.get("baselines", {}).items()]
        show_table(f"Thoughts of {found['sequences']} texts", ["", ""], rows)
        for line in (found["no_exchange_rate"], *(probe.get("verdict") for probe in result["probes"])):
            if line:
                say(line if line.endswith(".") else f"No exchange rate: {line}.")
    else:
        say("It has no thoughts: the page shows training and samples.")
    say(f"Written to {page}")

"""`pyro-ltm gsm8k`: few-shot arithmetic."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import FOLDER, Common, FiniteRange, common, examples, fast_steps, fit_settings, number, run_argument
from ..rethinking import rethinking_options

if TYPE_CHECKING:
    from pyro_ltm.tasks.gsm8k import Arithmetic


@click.command(
    short_help="Few-shot arithmetic: pass@k on GSM8K.",
    epilog=examples(
        "pyro-ltm gsm8k runs/first --test gsm8k/test.jsonl --train gsm8k/train.jsonl --limit 50",
        "pyro-ltm gsm8k runs/first --test test.jsonl --train train.jsonl --shots 10 --k 5 --samples-out written.jsonl",
        "pyro-ltm gsm8k runs/first --test test.jsonl --train train.jsonl --fast-steps 64 --set optimizer.lr=0.1",
    ),
)
@run_argument
@click.option("--test", "test_file", type=FOLDER, required=True, metavar="FILE", help="Problems, .jsonl.")
@click.option("--train", "train_file", type=FOLDER, required=True, metavar="FILE", help="Examples, .jsonl.")
@number("--shots", "Examples in the prompt.", least=0, default=10)
@number("--k", "Samples of which one must be right.", default=5, metavar="K")
@number("--samples", "Samples for each problem; default: K.")
@number("--limit", "Only the first N problems.")
@click.option("--temperature", metavar="X", type=FiniteRange(0), default=0.7, help="0: the likeliest token.")
@number("--max-new-tokens", "Length of an answer.", default=256)
@rethinking_options
@click.option("--samples-out", type=FOLDER, metavar="FILE", help="Where to keep all that was written, .jsonl.")
@fast_steps
@fit_settings
@common(seed_help="Seed of examples, thoughts and tokens.", weights=True)
def command(
    *,
    run_folder: Path,
    test_file: Path,
    train_file: Path,
    samples: int | None,
    limit: int | None,
    samples_out: Path | None,
    settings: tuple[str, ...],
    common: Common,
    **options: Any,
) -> None:
    """Asks a run grade-school problems (fields question and answer) and reads its answers.

    Thoughts are fitted on each prompt alone. The answer is the first number after '####', else the last number written.
    """
    from pyro_ltm.files import write_text
    from pyro_ltm.tasks.gsm8k import Attempt, evaluate_arithmetic, read_problems

    from ..output import emit
    from ..progress import reporter
    from ..runs import check_target, open_run

    if samples_out:
        check_target(samples_out, test_file, train_file)
    problems, shown = read_problems(test_file)[:limit], read_problems(train_file)
    run = open_run(run_folder, common).with_fast_loop(settings)
    written: list[str] = []
    options |= {"samples": samples or 0, "seed": common.seed or 0}
    with reporter() as report:
        count = report.counting("gsm8k", len(problems), "problems")

        def note(one: Attempt) -> None:
            written.append(json.dumps(dataclasses.asdict(one)))
            count(len(written), float("nan"))

        found = evaluate_arithmetic(run, problems, shown, on_attempt=note, **options)
    if samples_out:
        write_text(samples_out, "".join(f"{line}\n" for line in written))
    if common.as_json:
        of = {**run.about, "test": str(test_file), "train": str(train_file)}
        emit({**found.to_dict(), **of, "settings": list(settings)})
    else:
        _show(found)


def _show(found: Arithmetic) -> None:
    from ..output import say, show_table

    rows = [[f"pass@{n}", f"{v:.3f} ± {found.pass_at_stderr[n]:.3f}"] for n, v in found.pass_at.items()]
    show_table(f"{found.problems} problems, {found.samples} samples each", ["", ""], rows)
    say(f"{found.shots_kept:.1f} of {found.shots} examples fitted the prompt; {found.too_long} problems were too long.")
    say(f"Read so: {found.extraction}.")
    again = f", each thought over {found.rethink} times" if found.rethink else ""
    say(
        f"{found.fast_steps} fast steps{again}, at most {found.max_new_tokens} new tokens, "
        f"temperature {found.temperature:g}, seed {found.seed}"
    )

"""`pyro-ltm lm-eval`: tasks of EleutherAI's evaluation harness, put to a run."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import FOLDER, Common, common, examples, fast_steps, fit_settings, number, run_argument

if TYPE_CHECKING:
    from ..progress import Reporter


@click.command(
    "lm-eval",
    short_help="Put tasks of the evaluation harness to a run.",
    epilog=examples(
        "pyro-ltm lm-eval runs/first --tasks lambada_openai,wikitext --limit 100",
        "pyro-ltm lm-eval runs/first --tasks my-task --include-path tasks --num-fewshot 2 --particles 64 --json",
        "pyro-ltm lm-eval runs/first --tasks lambada_openai --fast-steps 64 --set optimizer.lr=0.1",
    ),
)
@run_argument
@click.option("--tasks", required=True, metavar="NAME,...", help="Tasks, groups, tags or patterns; or YAML files.")
@click.option("--include-path", metavar="DIR", type=FOLDER, help="A folder with more task files.")
@number("--num-fewshot", "Examples before each question; default: the task's own.", least=0)
@number("--limit", "Only so many documents of each task.")
@number("--particles", "Draws from each posterior.", default=16, metavar="K")
@fast_steps
@fit_settings
@number("--stride", "Tokens between two fits of a whole text; default: an eighth of the model's length.")
@number("--batch-size", "Sequences at a time.", default=16)
@click.option("--out", metavar="FILE", type=FOLDER, help="Also write the results there, as JSON.")
@common(seed_help="Seed of the noise and of the choice of examples.", weights=True)
def command(
    *,
    run_folder: Path,
    tasks: str,
    include_path: Path | None,
    num_fewshot: int | None,
    limit: int | None,
    settings: tuple[str, ...],
    out: Path | None,
    common: Common,
    **options: Any,
) -> None:
    """Runs the evaluation harness (lm-eval) on a run. Needs the extra: pip install -e '.[harness]' in the clone.

    Thoughts come from the context alone, so the figures compare with any other model's: answers are scored under the
    mixture over K draws from q(z | context), whole texts block by block, each after those before it.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's own bars; read when tqdm is first imported

    from pyro_ltm.errors import UserError
    from pyro_ltm.files import write_text

    from ..output import emit
    from ..progress import reporter
    from ..runs import check_target, open_run

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UserError("--tasks: names no task")
    if out:
        check_target(out)
    run = open_run(run_folder, common).with_fast_loop(settings)
    from pyro_ltm.integrations.harness import HarnessModel, run_harness

    seed = common.seed or 0
    options["stride"] = options["stride"] or 0
    with reporter() as report:
        model = HarnessModel(run, seed=seed, counting=functools.partial(_counting, report), **options)
        found = run_harness(model, names, include_path=include_path, num_fewshot=num_fewshot, limit=limit, seed=seed)
    of = {**run.about, "settings": list(settings)}
    result = {**of, **json.loads(json.dumps(found, default=_plain))}
    if out:
        write_text(out, json.dumps(result, indent=2) + "\n")
    if common.as_json:
        emit(result)
    else:
        _show(result)


def _counting(report: Reporter, name: str, total: int) -> Callable[[int, float], None]:
    count = report.counting(name, total, "requests")
    return lambda done, nats: count(done, math.nan)  # what it would call a bound is none here


def _show(result: dict[str, Any]) -> None:
    """The table of figures, what is missing in it and why, and how it was measured."""
    from ..output import say, show_table

    columns = ["task", "metric", "value", "examples given", "documents"]
    show_table("Evaluation harness", columns, list(_rows(result)))
    for task, why in result["no_bytes"].items():
        say(f"{task}: no figures by the byte or the word: {why}.")
    config = result["config"]
    say(
        f"{config['fast_steps']} fast steps, {config['particles']} particles, thoughts from the context alone, "
        f"seed {config['seed']}; lm-eval {result['lm_eval_version']}"
    )
    if config["contexts_cut"]:
        say(f"{config['contexts_cut']} contexts were too long for the model and were cut from the left.")


def _rows(result: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each metric of each task."""
    from ..output import margin, nats

    for name, metrics in {**result.get("groups", {}), **result["results"]}.items():
        for key, value in metrics.items():
            metric, _, answers = key.partition(",")
            if not answers or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            label = metric if answers == "none" else f"{metric} ({answers})"
            stderr = metrics.get(f"{metric}_stderr,{answers}")
            error = margin(stderr) if isinstance(stderr, int | float) else ""
            counts = result["n-shot"].get(name), result["n-samples"].get(name, {}).get("effective")
            yield [name, label, nats(float(value)) + error, *("-" if n is None else str(n) for n in counts)]


def _plain(value: Any) -> Any:
    """For JSON: the value of a number of NumPy's; of anything else its text."""
    return value.item() if hasattr(value, "item") else str(value)

"""`pyro-ltm few-shot`: accuracy against shots, on a task that is learned in context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import FOLDER, Common, batch_size, common, examples, fast_steps, fit_settings, number, run_argument

if TYPE_CHECKING:
    from pyro_ltm.tasks.few_shot import AfterShots, FewShot


@click.command(
    "few-shot",
    short_help="Accuracy against shots, on a task learned in context.",
    epilog=examples(
        "pyro-ltm few-shot runs/lookup --twin runs/lookup-twin",
        "pyro-ltm few-shot runs/lookup in-context:lookup,shots=12 --shots 0 --shots 4 --documents 500",
        "pyro-ltm few-shot runs/lookup --fast-steps 64 --json",
    ),
)
@run_argument
@click.argument("source", metavar="[TASK]", required=False)
@number("--shots", "Shots before the question. Repeatable.", least=0, multiple=True, show_default="0, 1, 2, 4, 8, 12")
@number("--documents", "How many documents, a question of each.", default=128)
@click.option("--twin", "twin_folder", metavar="RUN", type=FOLDER, help="A run to ask the same questions.")
@number("--particles", "Draws from each posterior.", default=16, metavar="K")
@fast_steps
@fit_settings
@batch_size
@common(seed_help="Seed of the noise.", weights=True)
def command(
    *,
    run_folder: Path,
    source: str | None,
    twin_folder: Path | None,
    settings: tuple[str, ...],
    common: Common,
    **options: Any,
) -> None:
    """Asks a run the questions of a task whose rule changes from document to document, after more and more shots.

    TASK is in-context:modular, copy, lookup or words, perhaps with ,size=N,shots=N; by default the run's own.
    The documents are new. Thoughts are fitted to each prompt alone. Beside it stands the best that can be had by one
    who knows the task and reads the same shots, exactly; without a shot that is chance.
    """
    from ..output import emit
    from ..progress import reporter
    from ..runs import check_twin, open_run

    run = open_run(run_folder, common).with_fast_loop(settings)
    twin = open_run(twin_folder, common) if twin_folder else None
    differs = check_twin(run, twin) if twin is not None else []
    from pyro_ltm.tasks.few_shot import evaluate_few_shot

    with reporter() as report:

        def counting(what: str, total: int) -> Any:
            return report.counting(what, total, "numbers of shots")

        found = evaluate_few_shot(run, source, twin=twin, seed=common.seed or 0, counting=counting, **options)
    if common.as_json:
        of_twin = {"twin_run": str(twin_folder), "twin_differs": differs} if twin_folder else {}
        emit({**found.to_dict(), **run.about, **of_twin, "settings": list(settings)})
    else:
        _show(found)


def _show(found: FewShot) -> None:
    from ..output import margin, nats, say, show_table

    columns = ["shots", "exact match", "choice", "nats"]
    columns += ["twin's exact match", "above the twin"] if found.twin_answers else []
    rows = []
    for place, (one, best) in enumerate(zip(found.answers, found.best, strict=True)):
        cells = [str(one.shots), _share(one), nats(one.choice, 3), nats(one.nats) + margin(one.nats_stderr)]
        if found.twin_answers and found.above_twin:
            above = found.above_twin[place]
            cells += [_share(found.twin_answers[place]), nats(above.exact_match, 3) + margin(above.stderr, 3)]
        rows.append([*cells, nats(best.accuracy, 3), nats(best.nats)])
    show_table(f"{found.task}: {found.documents} documents", [*columns, "best", "its nats"], rows)
    chance = f"chance is {found.best[0].accuracy:.3f}; " if not found.best[0].shots else ""
    say(f"{chance}{found.meaning}.")
    say(f"± is the standard error over documents; {found.source}")
    say(f"{found.fast_steps} fast steps, {found.particles} particles, seed {found.seed}")


def _share(one: AfterShots) -> str:
    from ..output import margin, nats

    return nats(one.exact_match, 3) + margin(one.exact_match_stderr, 3)

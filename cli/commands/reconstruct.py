"""`pyro-ltm reconstruct`: a text from its own thoughts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ..options import Common, Text, common, examples, fast_steps, run_argument


@click.command(
    short_help="Write a text again from its own thoughts.",
    epilog=examples("pyro-ltm reconstruct runs/first --text 'The statement is executed.'"),
)
@run_argument
@click.option("--text", type=Text(), required=True, help="The text.")
@fast_steps
@common(seed_help="Seed of the noise.", weights=True)
def command(*, run_folder: Path, text: str, fast_steps: int | None, common: Common) -> None:
    """Fits thoughts to a text and writes it again from them alone: what did they keep?"""
    from ..output import emit, nats, say
    from ..runs import open_run

    run = open_run(run_folder, common)
    result = run.reconstruct(text, fast_steps=fast_steps, seed=common.seed or 0)
    if common.as_json:
        steps = run.loop.with_steps(fast_steps).steps
        emit({**dataclasses.asdict(result), "fast_steps": steps, "seed": common.seed or 0, "run": str(run_folder)})
        return
    say("Text:")
    say(result.original)
    say()
    say("From its thoughts alone:")
    say(result.text)
    say()
    right, forced = result.token_accuracy, result.teacher_forced_accuracy
    say(f"{right:.1%} of its {result.tokens} tokens are right; {forced:.1%} where the true ones before them are given")
    say(f"{nats(result.kl_nats, 2)} nats in its thoughts, {nats(result.nats_per_token)} nats a token beside them")

"""`pyro-ltm info`: what is in a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..options import Common, common, examples, run_argument


@click.command(
    short_help="Show what is in a run folder.",
    epilog=examples("pyro-ltm info runs/first", "pyro-ltm info runs/first --json"),
)
@run_argument
@common(unused=("seed", "device", "dtype"), code=True)
def command(*, run_folder: Path, common: Common) -> None:
    """Shows a run: its settings, its size, how far it was trained, its figures, its files."""
    from pyro_ltm.runs import Run
    from pyro_ltm.runs.description import describe

    from ..output import emit

    result = describe(Run.load(run_folder, allow_code=common.allow_code))
    if common.as_json:
        emit(result)
    else:
        show(result)


def show(result: dict[str, Any]) -> None:
    """The same for people."""
    from ..output import nats, say, show_files, show_table

    step = f"step {result['step']} of {result['steps']}"
    say(f"{result['run']}: {step}, {result['tokens']:,} tokens seen in {result['seconds']:,.0f} s")
    counts = result["parameters"]
    rows = [[name.replace("_", " "), f"{count:,}"] for name, count in counts.items() if count]
    show_table("Parameters", ["part", "numbers"], rows)
    check = result["validation"]
    measured = [
        ["unigram", nats(result["unigram_nats_per_token"])],
        ["untrained", nats(result["untrained_nats_per_token"])],
        [f"bound at step {check['step']}", nats(check["nats_per_token"])] if check else ["bound", "-"],
    ]
    show_table("Nats a token on validation text", ["", ""], measured)
    settings = [
        [
            f"{section}.{key}" if isinstance(values, dict) else section,
            value if isinstance(value, str) else json.dumps(value),
        ]
        for section, values in result["config"].items()
        for key, value in _flat(values)
    ]
    show_table("Settings", ["key", "value"], settings)
    data = result["data"]
    if data is None:
        say("It does not say what data it was trained on.")
    elif data["folder"] is None:
        say(f"Its data: {data['problem']}")
    else:
        say(f"Its data: {data['folder']} (from {', '.join(data['sources'])})")
    if result["origin"]:
        say(f"It began with the weights of {result['origin']['run']} at step {result['origin']['step']}.")
    say()
    show_files(Path(result["run"]))


def _flat(values: Any) -> list[tuple[str, Any]]:
    """The entries of a section, a component's options among them; a plain value has one without a name."""
    if not isinstance(values, dict):
        return [("", values)]
    options = values.get("options", {})
    return [(key, value) for key, value in {**values, **options}.items() if key != "options"]

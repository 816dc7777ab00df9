"""Trains small latent-thought language models, and shows what thoughts are good for.

    make demo                      (or: python examples/demo.py [--out FOLDER] [--steps N])

On text that ships with Python: what they tell of a text. On long texts of known entropy (`worlds.py`): what they do for
likelihood. Runs the commands that a user would type, each as its own process, and sums up what they measured. Nothing
is downloaded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table
from worlds import compare, console, run, show

from pyro_ltm import UserError
from pyro_ltm.data.corpora import python_docs
from pyro_ltm.runs import Run
from pyro_ltm.runs.batches import text_batches
from pyro_ltm.thoughts.diagnostics import Thoughts
from pyro_ltm.thoughts.probes import nearest

KINDS = ("reference", "email", "asyncio", "logging", "xml", "http")
"""Parts of Python's documentation, of which the first `SHOWN` that have enough texts are told apart."""
SHOWN, HELD_OUT = 4, 30
"""Kinds, and texts of each that the model never learns from."""
EXCERPT = 150
"""Characters of a text that are shown."""


def write_texts(learned: Path, judged: Path) -> None:
    """Python's documentation as two files: texts to learn from, and a few of each kind, with it, to judge by."""
    by_kind: dict[str, list[str]] = {}
    for document in python_docs():
        place = document.origin.split(":")[1]
        kind = place.split("/")[0] if "/" in place else place if place.endswith(".py") else "reference"
        by_kind.setdefault(kind, []).append(document.text)
    kinds = [kind for kind in KINDS if len(by_kind.get(kind, [])) > HELD_OUT][:SHOWN]

    def rows() -> Iterator[dict[str, str]]:
        for number in range(HELD_OUT):  # in turn, so that the first few are of every kind
            yield from ({"text": by_kind[kind][-number - 1], "kind": kind} for kind in kinds)

    held_out = list(rows())
    judged.write_text("".join(json.dumps(row) + "\n" for row in held_out), encoding="utf-8")
    known = {row["text"] for row in held_out}
    rest = [text for texts in by_kind.values() for text in texts if text not in known]
    learned.write_text("".join(json.dumps({"text": text}) + "\n" for text in rest), encoding="utf-8")


def main() -> None:
    """The demo from text to neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="written anew each time")
    parser.add_argument("--steps", type=int, help="slow steps; default: those of the preset")
    options = parser.parse_args()
    started = time.perf_counter()
    out: Path = options.out
    if out.exists():
        if not (out / "demo.json").exists() and any(out.iterdir()):
            raise UserError(f"{out}: is not a demo's folder; give another one with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / "demo.json").write_text("{}\n")
    text, kinds, data, ltm, twin = (str(out / name) for name in ("text.jsonl", "kinds.jsonl", "data", "ltm", "twin"))
    steps = ["--steps", str(options.steps)] if options.steps else []

    console.rule("1. Text to tokens")
    write_texts(Path(text), Path(kinds))
    shape = ("--vocab-size", "1024", "--sequence-length", "128", "--packing", "document")
    run("prepare", text, "--out", data, *shape)
    console.rule("2. Train: a model whose thoughts carry 40 nats a text, and the same decoder without thoughts")
    run("train", "--data", data, "--out", ltm, "--rate", "40", "--preset", "nano-thoughts", *steps)
    run("train", "--data", data, "--out", twin, "--preset", "nano-thoughts", "--set", "model.thoughts=0", *steps)
    console.rule("3. Evaluate both on text they have not seen")
    figures = run("evaluate", ltm, "--twin", twin, "--sequences", "128")
    console.rule("4. What the thoughts of other texts tell, and what is written from them")
    found = run("report", ltm, "--labels", kinds, "--label-column", "kind")
    console.rule("5. Train: long texts of known entropy, where thoughts help to predict")
    long = compare(out / "worlds", options.steps)

    summary = {
        "bound": figures["bound"],
        "twin": figures["twin"],
        "exchange_rate": figures.get("exchange_rate"),
        "probe": found["probes"][0],
        "worlds": {"bound": long["bound"], "twin": long["twin"], "floor": long["floor"], "closed": long.get("closed")},
        "seconds": round(time.perf_counter() - started, 1),
    }
    (out / "demo.json").write_text(json.dumps(summary, indent=2) + "\n")
    report(summary, found, neighbours(Path(ltm), Path(kinds)), out)


def neighbours(ltm: Path, kinds: Path) -> list[dict[str, str]]:
    """A text and the three whose thoughts lie nearest to its own, as `pyro_ltm.thoughts` finds them."""
    rows: list[dict[str, str]] = [json.loads(line) for line in kinds.read_text(encoding="utf-8").splitlines()]
    own = Run.load(ltm)
    thoughts = Thoughts.fit(own.model, text_batches(own, [row["text"] for row in rows]), own.loop)
    return [rows[index] for index in nearest(thoughts.means[1], thoughts.means, 4)]


def report(summary: dict[str, Any], found: dict[str, Any], near: list[dict[str, str]], out: Path) -> None:
    """What a newcomer should take away."""
    console.rule("What came of it")
    written = found["reconstructions"][0]
    for title, one in (("A text:", written["original"]), ("Written again from its thoughts:", written["text"])):
        console.print(title, style="bold")
        console.print(excerpt(one), markup=False, highlight=False)
    console.print("\nA text, and those whose thoughts lie nearest:", style="bold")
    for row in near:
        console.print(f"  {row['kind']:<10} {excerpt(row['text'], 90)}", markup=False, highlight=False)
    console.print()
    probe = summary["probe"]
    table = Table(title="Which kind of text? A linear classifier's accuracy", title_justify="left")
    table.add_column("features")
    table.add_column("accuracy", justify="right")
    for name, one in {"thoughts": probe, **probe["baselines"]}.items():
        table.add_row(name, f"{one['accuracy']:.2f} ± {one['stderr']:.2f}")
    table.add_row("the commonest kind", f"{probe['majority']:.2f}")
    console.print(table)
    if probe["verdict"]:
        console.print(probe["verdict"], highlight=False)
    console.print(likelihood(summary) + "\n", highlight=False)
    show(summary["worlds"])
    console.print(f"\nDone in {summary['seconds']:.0f} s. Written:", style="bold", highlight=False)
    for path in (
        "ltm/report/report.html",
        "ltm/plots/training.png",
        "demo.json",
        "kinds.jsonl",
        "ltm",
        "twin",
        "data",
        "worlds",
    ):
        console.print(f"  {out / path}", highlight=False)
    console.print("\nNext:", style="bold")
    console.print(f"  .venv/bin/pyro-ltm generate {out}/ltm --num 3", highlight=False)
    console.print("  .venv/bin/pyro-ltm train --data YOUR.jsonl --out runs/mine --rate 40", highlight=False)
    console.print("  .venv/bin/pyro-ltm --help", highlight=False)


def likelihood(summary: dict[str, Any]) -> str:
    """What to expect of likelihood, in two sentences."""
    bound, twin, exchange = (summary[name] for name in ("bound", "twin", "exchange_rate"))
    gap = bound["nats_per_token"] - twin["nats_per_token"]
    saved = f", each of which saves {exchange['nats_per_nat']:.2f} nats of distortion" if exchange else ""
    return (
        f"Thoughts carry {bound['kl_nats_per_sequence']:.1f} nats a text{saved}. So short a text is predicted "
        f"{'worse' if gap > 0 else 'better'} with them, by {abs(gap):.3f} nats a token: at such a rate they are for "
        "what they tell of a text. For likelihood long texts are where they help (docs/results.md):"
    )


def excerpt(text: str, most: int = EXCERPT) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"Error: {error}")

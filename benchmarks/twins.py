"""Is the twin as good as it can be? Twins with a wider window, and after fewer slow steps, against the same LTM.

    python -m benchmarks.twins --out runs/protocols [--only wikitext-2-longer] [--seeds 0,1] [--shared ../shared]
    python -m benchmarks.twins --table runs/protocols/twins.json

Trains them by commands that it prints, on the tokens and beside the runs that `python -m benchmarks.protocols --out
runs/protocols` made (or makes both), each twin with its own schedule of the slow learning rate. Then scores all on the
same text, paired by sequence; the LTM by its ELBO, as there. `evaluate --twin` takes no twin with another window than
the run's, so this is done with the library. Leaves OUT/twins.json. A run that is there already goes on where it was.
The second form publishes such a file: its table goes to benchmarks/notes/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import pages, results
from benchmarks.protocols import CORPORA
from benchmarks.real_text import machine, run
from pyro_ltm.data import TokenDataset, prepare
from pyro_ltm.runs import Run
from pyro_ltm.scores import Bound, difference

TEXTS = ("wikitext-2-longer", "tinyshakespeare-longer")
TABLES = "a window of 8, 2,000 slow steps"
TWINS = {
    TABLES: [],
    "a window of 32": ["--set", "model.window=32"],
    "a window of 256": ["--set", "model.window=256"],
    "500 slow steps": ["--steps", "500"],
    "1,000 slow steps": ["--steps", "1000"],
}
"""Twins, and how each is trained otherwise than that of the tables."""


def trained(name: str, data: str, out: Path, seed: int) -> tuple[Path, dict[str, Path]]:
    """The LTM and its twins, trained on the same tokens."""
    plan = {key: [part.format(data=data) for part in parts] for key, parts in CORPORA[name].items()}
    tokens = out / name / "tokens"
    if not tokens.exists():
        run("prepare", *plan["prepare"], "--out", str(tokens))

    def train(folder: str, *more: str) -> Path:
        path = out / name / folder
        common = ("--data", str(tokens), "--out", str(path), *plan["train"], "--seed", str(seed))
        run("train", *common, *more, "--resume")
        return path

    twins = {}
    for label, otherwise in TWINS.items():
        other = "-".join(["", *label.replace(",", "").split()]) if otherwise else ""
        twins[label] = train(f"twin-{seed}{other}", "--set", "model.thoughts=0", *otherwise)
    return train(f"ltm-{seed}"), twins


def scored(name: str, data: str, ltm: Path, twins: dict[str, Path]) -> list[dict[str, Any]]:
    """A row for each twin: its figure, how far the LTM's ELBO lies below it, and how far it below the tables' twin."""
    asked = _options([part.format(data=data) for part in CORPORA[name]["evaluate"]])
    judged: dict[str, Any] = {"sequences": int(asked["--sequences"][0]), "batch_size": 50, "seed": 1}
    steps, draws = int(asked["--fast-steps"][0]), int(_options(CORPORA[name]["particles"])["--particles"][0])
    model = Run.load(ltm).with_fast_loop(asked["--set"])
    text = held_out(model, asked.get("--data", []))
    bound = model.evaluate(text, particles=draws, fast_steps=steps, **judged)
    exact = {label: Run.load(path).evaluate(text, particles=1, **judged) for label, path in twins.items()}
    same = exact[TABLES]
    return [
        {
            "twin": label,
            **_figure(one),
            "ltm": _figure(bound),
            "ltm_below": asdict(difference(one.sequence_nats, bound.sequence_nats, one.sequence_tokens, one.places)),
            "below_tables": asdict(difference(same.sequence_nats, one.sequence_nats, one.sequence_tokens, one.places)),
        }
        for label, one in exact.items()
    ]


def held_out(model: Run, sources: list[str]) -> TokenDataset:
    """Text to `evaluate`: `sources`, prepared as the run's own data were, or the run's own validation split."""
    if not sources:
        return model.dataset("validation")
    own, folder = model.dataset("train"), model.folder.parent / "held-out"
    same: dict[str, Any] = {"tokenizer": own.tokenizer, "sequence_length": own.sequence_length}
    packing = str(own.meta["packing"])
    return TokenDataset(prepare(sources, folder, **same, packing=packing, validation_fraction=0.0, overwrite=True))


def tables(known: dict[str, Any]) -> dict[str, str]:
    """By the name that marks each in a page."""
    return {"twins": table(known)}


def table(known: dict[str, Any]) -> str:
    """A row for each text, twin and seed."""
    columns = ["text", "twin with", "seed", "twin, exact", "below the tables' twin", "LTM's ELBO below this twin"]
    rows = []
    for name, found in known.items():
        for label in TWINS:
            for row in found["rows"]:
                if row["twin"] == label:
                    level = results.pm(row["nats_per_token"], row["nats_per_token_stderr"], over=row)
                    own = "" if label == TABLES else _gap(row["below_tables"])
                    rows.append([name.removesuffix("-longer"), label, row["seed"], level, own, _gap(row["ltm_below"])])
    machines = {f"{found['machine']}, {found['threads'] or 'all'} threads" for found in known.values()}
    return results.explained(f"{pages.table(columns, rows)}\nMachine: {'; '.join(sorted(machines))}.\n")


def _figure(one: Bound) -> dict[str, Any]:
    keys = ("nats_per_token", "nats_per_token_stderr", "sequences", "tokens")
    return {**{key: getattr(one, key) for key in keys}, "blocks": asdict(one.blocks)}


def _gap(gap: dict[str, Any]) -> str:
    return results.pm(gap["nats_per_token"], gap["stderr"], over=gap)


def _options(words: list[str]) -> dict[str, list[str]]:
    """Options of a command, each with its values."""
    found: dict[str, list[str]] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        found.setdefault(option, []).append(value)
    return found


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="publish such a file, and measure nothing")
    parser.add_argument("--only", choices=TEXTS)
    parser.add_argument("--seeds", default="0,1")
    options = parser.parse_args()
    if (options.out is None) == (options.table is None):
        parser.error("give either --out or --table")
    if options.table:
        pages.publish("twins", options.table, tables)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    file, data = options.out / "twins.json", str(options.shared / "data")
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in [options.only] if options.only else TEXTS:
        rows: list[dict[str, Any]] = known.setdefault(name, {"rows": []})["rows"]
        for seed in map(int, options.seeds.split(",")):
            found = scored(name, data, *trained(name, data, options.out, seed))
            rows[:] = [*(row for row in rows if row["seed"] != seed), *({"seed": seed, **row} for row in found)]
            rows.sort(key=lambda row: int(row["seed"]))
            known[name] |= {"machine": machine(), "threads": os.environ.get("OMP_NUM_THREADS")}
            file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(table({name: known[name]}))


if __name__ == "__main__":
    main()
